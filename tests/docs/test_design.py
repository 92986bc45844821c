"""The design notes in docs/design agree with the code."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from qsync import codec, message, new_task, task
from qsync.backoff import ExponentialBackoff
from qsync.broker import ops, script
from qsync.keys import COUNTERS, DONE_CHANNEL, QUEUE_KEYS, GlobalKeys, queue_keys
from qsync.state import STORED, TRANSITIONS, TaskState

ROOT = Path(__file__).parents[2]
DESIGN = ROOT / "docs" / "design"
PACKAGE = ROOT / "src" / "qsync"
SCRIPTS = sorted(path.stem for path in (PACKAGE / "broker" / "lua").glob("*.lua"))
PAGES = {path.name: path.read_text("utf-8") for path in sorted(DESIGN.glob("*.md"))}
DATA_MODEL = PAGES["data-model.md"]
ARCHITECTURE = PAGES["architecture.md"]
VECTORS = json.loads((DESIGN / "vectors.json").read_text("utf-8"))
MEMORY_FULL = {"flags=allow-oom": "runs", "flags=no-writes": "reads only", "": "refused"}


def section(text: str, name: str) -> str:
    """Return the text between two markers."""
    [found] = re.findall(rf"<!-- {name} -->(.*?)<!-- end of {name} -->", text, re.DOTALL)
    return str(found)


def table(text: str, name: str) -> list[list[str]]:
    """Return the rows of a table, as lists of cells."""
    lines = [line for line in section(text, name).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def names(text: str) -> list[str]:
    """Return the names in backticks."""
    return re.findall(r"`([^`]+)`", text)


# Files.


def files_of(page: str) -> set[str]:
    """Return the package's files that a page names."""
    return {name for name in names(page) if re.fullmatch(r"[a-z_]+(/[a-z_]+)*\.(py|lua)", name)}


def exists(name: str) -> bool:
    """Return whether a file exists in the package; a script may be named without its folder."""
    folders = (PACKAGE, ROOT, PACKAGE / "broker" / "lua")
    return any((folder / name).exists() for folder in folders)


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page: str) -> None:
    missing = {name for name in files_of(PAGES[page]) if not exists(name)}
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_to_files(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGES[page])
    assert all((DESIGN / link).exists() for link in links if "://" not in link), links


def test_layers_are_those_of_the_import_contract() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contract = config["tool"]["importlinter"]["contracts"][0]
    layers = [re.findall(r"\w+", layer) for layer in contract["layers"]]
    assert [names(layer) for layer, _ in table(ARCHITECTURE, "layers")] == layers


def test_tour_names_functions_and_classes_of_its_files() -> None:
    rows = table(ARCHITECTURE, "tour")
    assert [number for number, *_ in rows] == [str(at + 1) for at in range(len(rows))]
    for _, file, look_at, _ in rows:
        path = PACKAGE / names(file)[0]
        if path.suffix == ".py":
            tree = ast.parse(path.read_text("utf-8"))
            kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            defined = {node.name for node in ast.walk(tree) if isinstance(node, kinds)}
            assert set(names(look_at)) <= defined, file


def test_parts_of_a_server_are_named_with_their_files() -> None:
    wiring = (PACKAGE / "server" / "server.py").read_text("utf-8")
    for _, part, file, _ in table(ARCHITECTURE, "parts"):
        source = "".join((PACKAGE / name).read_text("utf-8") for name in names(file))
        for name in names(part):
            kind, _, method = name.partition(".")
            assert re.search(rf"^class {kind}\b", source, re.MULTILINE), name
            assert not method or f"def {method}(" in source, name
            assert kind in wiring, name


def test_fields_that_threads_share_exist() -> None:
    classes: dict[str, str] = {}
    for file in ("queue_state.py", "capacity.py"):
        text = (PACKAGE / "server" / file).read_text("utf-8")
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef):
                classes[node.name] = ast.get_source_segment(text, node) or ""
    for shared, *_ in table(ARCHITECTURE, "shared fields"):
        kind, _, field = names(shared)[0].partition(".")
        assert re.search(rf"^    (    self\.)?{field}: ", classes[kind], re.MULTILINE), shared


# Keys.


def test_every_key_of_a_queue_is_described_with_its_type() -> None:
    rows = table(DATA_MODEL, "keys")
    described = {names(name)[0]: kind for name, kind, _, _ in rows}
    assert described == {name: kind for name, (kind, _) in QUEUE_KEYS.items()}
    assert all(holds and until for _, _, holds, until in rows)


def test_every_key_outside_the_queues_is_described() -> None:
    keys = GlobalKeys("PREFIX")
    expected = [
        keys.queues, keys.schedule_queues, keys.events, keys.servers, keys.server("<id>"),
        keys.inbox("<id>"),
    ]  # fmt: skip
    rows = table(DATA_MODEL, "global keys")
    described = [names(row[0])[0] for row in rows]
    assert described == [name.replace("PREFIX", "<prefix>") for name in expected]
    lasting = [names(row[0])[0] for row in rows if "time to live" not in row[3]]
    assert sorted(lasting) == sorted(key.replace("PREFIX", "<prefix>") for key in keys.lasting)


def test_example_names_of_keys_and_channels_are_those_of_the_code() -> None:
    keys = queue_keys("qsync", "default")
    assert f"`{keys.key('pending')}`" in DATA_MODEL
    assert keys.done == f"{{qsync:default}}:{DONE_CHANNEL}"
    assert f"`{{<prefix>:<queue>}}:{DONE_CHANNEL}`" in DATA_MODEL
    channel = keys.wake_channel("SERVER").removeprefix("{qsync:default}")
    assert f"`{{<prefix>:<queue>}}{channel.replace('SERVER', '<server id>')}`" in DATA_MODEL


def test_every_counter_is_named() -> None:
    assert tuple(names(section(DATA_MODEL, "counters"))) == COUNTERS


def test_fields_of_meta_that_scripts_use_are_described() -> None:
    sources = [path.read_text("utf-8") for path in (PACKAGE / "broker" / "lua").rglob("*.lua")]
    commands = re.findall(r"'H(?:GET|SET|MGET|DEL)',\s*KEYS\.meta,([^)]*)", "".join(sources))
    used = {name for command in commands for name in re.findall(r"'([a-z_]{2,20}:?|v)'", command)}
    described = {
        field.partition("<")[0] for row in table(DATA_MODEL, "meta") for field in names(row[0])
    }
    assert used == described


# States.


def test_every_state_is_described_with_its_sorted_set() -> None:
    described = {names(row[0])[0]: names(row[1])[0] for row in table(DATA_MODEL, "states")}
    assert described == {state: state for state in STORED} | {"cancelled": "completed"}
    assert {state.value for state in STORED} == set(described.values())


def test_transitions_are_those_of_the_code() -> None:
    def shown(state: TaskState | None) -> str:
        return "none" if state is None else state.value

    described = {
        (before, verb): after.split(", ")
        for before, verb, after, _ in table(DATA_MODEL, "transitions")
    }
    assert described == {
        (shown(before), verb): [shown(state) for state in after]
        for (before, verb), after in TRANSITIONS.items()
    }


def test_diagram_of_states_has_all_transitions() -> None:
    drawn = {
        (before, verb, after)
        for before, after, verbs in re.findall(
            r"^ +(\S+) --> (\S+): (.+)$", section(DATA_MODEL, "diagram"), re.MULTILINE
        )
        for verb in verbs.split(", ")
    }
    assert drawn == {
        ("[*]" if before is None else before.value, verb, "[*]" if to is None else to.value)
        for (before, verb), after in TRANSITIONS.items()
        for to in after
    }


def test_scripts_of_transitions_write_the_states_they_lead_from_and_to() -> None:
    for before, verb, after, scripts in table(DATA_MODEL, "transitions"):
        for name in names(scripts):
            keys = set(script.load(name, flow=True).keys)
            missing = ({before, *after.split(", ")} - {"none"}) - keys
            assert not missing, f"{before} {verb}: {name} has no key {missing}"


# Scripts.


def operations() -> dict[str, list[str]]:
    """Return, for each script, the public functions of the broker that call it."""
    found: dict[str, list[str]] = {}
    for path in sorted((PACKAGE / "broker").glob("*.py")):
        module, text = path.stem, path.read_text("utf-8")
        if not re.search(r"\.script import .*\bload\b|\bqueue_(call|query)\(", text):
            continue
        tree = ast.parse(text)
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        for name in functions:
            if not name.startswith("_"):
                for used in sorted(set(_scripts_of(functions, name, {name}))):
                    found.setdefault(used, []).append(f"{module}.{name}")
    return found


def _scripts_of(functions: dict[str, ast.FunctionDef], name: str, seen: set[str]) -> Iterator[str]:
    for node in ast.walk(functions[name]):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        for argument in node.args[:1]:
            if not isinstance(argument, ast.Constant) or not isinstance(argument.value, str):
                continue
            if argument.value in SCRIPTS:
                yield argument.value
        called = node.func.id
        if called in functions and called not in seen:
            yield from _scripts_of(functions, called, {*seen, called})


def callers(of: list[str]) -> set[str]:
    """Return the files that name one of these operations, except the test kit."""
    return {name for name, used in names_in_sources().items() if not used.isdisjoint(of)}


@cache
def names_in_sources() -> dict[str, set[str]]:
    """Return the names of the form `module.function` in each file."""
    return {
        path.relative_to(PACKAGE).as_posix(): set(
            re.findall(r"(?<![\w.])\w+\.\w+", path.read_text("utf-8"))
        )
        for path in PACKAGE.rglob("*.py")
        if path.parent.name != "testing"
    }


def test_every_script_is_described_once() -> None:
    assert sorted(names(row[0])[0] for row in table(DATA_MODEL, "scripts")) == SCRIPTS


def test_scripts_behave_in_a_full_store_as_described() -> None:
    for name, memory_full, _, _ in table(DATA_MODEL, "scripts"):
        shebang = script.read(f"{names(name)[0]}.lua").split("\n", 1)[0]
        assert MEMORY_FULL[shebang.removeprefix("#!lua").strip()] == memory_full, name


def test_callers_of_scripts_are_those_of_the_code() -> None:
    known = operations()
    for name, _, what, by in table(DATA_MODEL, "scripts"):
        assert what, name
        assert set(names(by)) == callers(known[names(name)[0]]), name


@pytest.mark.parametrize("name", ["enqueue", "get_tasks"])
def test_keys_for_other_languages_are_those_of_the_script(name: str) -> None:
    assert tuple(names(section(DATA_MODEL, f"{name} keys"))) == script.load(name).keys


# Encoding.


@pytest.mark.parametrize(
    ("name", "record"),
    [("message", message.Message), ("result", message.Result), ("failure", message.Failure)],
)
def test_fields_of_records_are_described_in_order(name: str, record: type[msgspec.Struct]) -> None:
    rows = table(DATA_MODEL, name)
    assert [(row[0], *names(row[1])) for row in rows] == [
        (str(at), field) for at, field in enumerate(record.__struct_fields__)
    ]


def test_options_of_messages_are_described_with_their_short_names() -> None:
    described = {names(row[0])[0]: names(row[1])[0] for row in table(DATA_MODEL, "options")}
    options = message.StoredOptions
    assert described == dict(
        zip(options.__struct_encode_fields__, options.__struct_fields__, strict=True)
    )


@pytest.mark.parametrize("vector", VECTORS["messages"], ids=lambda vector: vector["name"])
def test_vectors_of_messages_decode_to_their_fields(vector: dict[str, Any]) -> None:
    stored = bytes.fromhex(vector["stored"])
    record = message.decode_message(stored)
    fields = {name: getattr(record, name) for name in record.__struct_fields__}
    fields["nonce"] = record.nonce.hex()
    fields["payload"] = record.payload.hex()
    fields["options"] = codec.decode(codec.encode(record.options))
    assert fields == vector["fields"]
    assert record.version == codec.VERSION
    if record.is_value:
        assert codec.decode(record.payload) == vector["value"]
    else:
        assert vector["value"] is None


@pytest.mark.parametrize("vector", VECTORS["messages"], ids=lambda vector: vector["name"])
def test_client_sends_the_vectors_of_messages(vector: dict[str, Any]) -> None:
    sent = vector["enqueue"]
    stored, fields = bytes.fromhex(vector["stored"]), vector["fields"]
    stamp = fields["enqueued_at_us"].to_bytes(8, "big")
    assert stored == message.ENVELOPE_HEAD + stamp + bytes.fromhex(sent["message"])
    nonce = bytes.fromhex(fields["nonce"])
    new = new_task.new_task(_task_of(vector), nonce, remember_us=3_600_000_000)
    assert new.message.hex() == sent["message"]
    [*_, tail, options] = _options_sent(new)
    assert (tail.hex(), options.hex()) == (sent["message"], sent["options"])
    decoded = codec.decode(options) if options else None
    assert decoded == sent["options_fields"]


def _options_sent(new: new_task.NewTask) -> list[Any]:
    call = ops.enqueue(queue_keys("qsync", "default"), [new])
    _now, head, _sender, _number, stride, *rest = call.args
    assert head == message.ENVELOPE_HEAD
    return rest if stride == 3 else [*rest, b""]


def _task_of(vector: dict[str, Any]) -> task.Task:
    """Return the task as a caller would pass it."""
    fields = vector["fields"]
    given: dict[str, Any] = {
        "type": fields["type"],
        "payload": vector["value"] if fields["is_value"] else bytes.fromhex(fields["payload"]),
        "retry": fields["retry"],
        "id": vector["enqueue"]["id"],
        **vector["asked"],
    }
    if isinstance(given.get("retry_delay"), dict):
        given["retry_delay"] = ExponentialBackoff(**given["retry_delay"])
    return task.Task(**given)


def test_names_of_unique_locks_are_made_as_described() -> None:
    by_name = {vector["name"]: vector["fields"] for vector in VECTORS["messages"]}
    of_task, by_key = by_name["options"], by_name["delays and window"]
    identity = b"task\0" + of_task["type"].encode() + b"\0" + bytes.fromhex(of_task["payload"])
    assert of_task["options"]["lk"] == hashlib.blake2b(identity, digest_size=16).hexdigest()
    key = hashlib.blake2b(b"key\0feed-9", digest_size=16)
    assert by_key["options"]["lk"] == key.hexdigest()


@pytest.mark.parametrize("vector", VECTORS["results"], ids=lambda vector: vector["name"])
def test_vectors_of_results_decode_to_their_fields(vector: dict[str, Any]) -> None:
    stored = bytes.fromhex(vector["stored"])
    record = msgspec.msgpack.decode(stored, type=message.Result)
    fields = {name: getattr(record, name) for name in record.__struct_fields__}
    assert {**fields, "value": record.value.hex()} == vector["fields"]
    returned = codec.decode(record.value) if record.is_value else record.value.hex()
    assert returned == vector["returned"]
    assert codec.encode(record) == stored


@pytest.mark.parametrize("vector", VECTORS["failures"], ids=lambda vector: vector["name"])
def test_vectors_of_failures_decode_to_their_fields(vector: dict[str, Any]) -> None:
    stored = bytes.fromhex(vector["stored"])
    record = message.decode_failure(stored)
    fields = {name: getattr(record, name) for name in record.__struct_fields__}
    fields["history"] = [
        {name: getattr(attempt, name) for name in attempt.__struct_fields__}
        for attempt in record.history
    ]
    assert fields == vector["fields"]
    assert codec.encode(record) == stored


@pytest.mark.parametrize("vector", VECTORS["values"], ids=lambda vector: vector["python"])
def test_vectors_of_values_decode_to_their_values(vector: dict[str, str]) -> None:
    value = codec.decode(bytes.fromhex(vector["hex"]))
    assert repr(value) == vector["python"]
    assert codec.encode_value(value).hex() == vector["hex"]


def test_vectors_in_the_text_are_those_of_the_file() -> None:
    kinds = {"message": VECTORS["messages"], "result": VECTORS["results"]}
    for vector, stored in table(DATA_MODEL, "vectors"):
        kind, _, name = vector.replace('"', "").partition(" ")
        [of_file] = [one for one in kinds[kind] if one["name"] == name]
        assert names(stored) == [of_file["stored"]]
    apart = DATA_MODEL.rpartition("```\n98 ")[2].partition("```")[0]
    columns = [line[:40] for line in f"98 {apart}".splitlines()]
    assert re.sub(r"\s", "", "".join(columns)) == VECTORS["messages"][0]["stored"]
