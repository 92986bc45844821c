"""Scripts match their headers and follow the rules that apply to all scripts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from qsync.bounds import Bounds
from qsync.broker import (
    bounds_ops,
    error_ops,
    event_ops,
    limit_ops,
    operator_ops,
    ops,
    program_schedule_ops,
    registry_ops,
    schedule_ops,
    schedule_run_ops,
    type_ops,
    views,
)
from qsync.broker.call import Call
from qsync.broker.op_values import Completion, HandedBack, Killed, LeaseRef, Retried
from qsync.broker.operator_ops import edit, reschedule
from qsync.broker.schedule_ops import TickRow
from qsync.broker.schedule_run_ops import Note
from qsync.broker.script import Script, has_variants, load, variant
from qsync.broker.stored_schedules import StoredScheduleRow
from qsync.keys import COUNTERS, DONE_CHANNEL, QUEUE_KEYS, GlobalKeys, QueueKeys
from qsync.limit import LimitRule
from qsync.new_task import new_nonce, new_task
from qsync.state import TaskState
from qsync.task import Task
from tests.support import lua
from tests.support.lua import INCLUDES, SCRIPTS, VARIANTS, Function, Source
from tests.support.mutation import planted
from tests.support.queue_driver import BINARIES, POLICY, shared_store
from tests.support.stores import Binary

GLOBALS = {"queues", "servers", "server", "inbox", "schedule_queues", "events"}
TYPES = {
    "queues": "set", "servers": "zset", "server": "hash", "inbox": "list",
    "schedule_queues": "hash",
}  # fmt: skip
CAN_BE_REFUSED = {
    "edit", "enqueue", "enqueue_one", "tick", "put_schedule", "tick_schedules", "report_types",
    "roll_types", "note_runs",
}  # fmt: skip
VIEWS = {
    "audit", "counts", "get_tasks", "key_types", "check_for_work", "overview", "list_tasks",
    "pending_position",
    "permissions", "queues", "registered", "schedules", "server_info", "servers",
    "due_schedules", "stored_schedules", "stored_page", "schedule_queues", "get_limit",
    "list_limits",
    "audit_limits", "paused_types", "type_stats",
    "bounds", "weights", "events", "sample_keys", "schedule_runs",
    "sample_types", "last_runs",
    "count_errors",
}  # fmt: skip

TEXTS = {
    # Names that always hold strings, so that `..` may join them.
    "counter", "partner", "day", "head", "holder", "id", "key", "lock", "server", "stamped",
    "message", "claim", "seconds", "micros", "zeros", "now_text", "time_bytes",
    "schema", "newest_schema", "layout", "limit_name", "name", "tag_bytes",
    "item", "short", "entry", "text",
}  # fmt: skip

WAKE_CHANNEL = "table.concat({KEYS.wake,':',server})"

every_script = pytest.mark.parametrize("name", VARIANTS)


@cache
def functions(*, flow: bool) -> dict[str, tuple[str, Function]]:
    """Return the include and the source of each shared function of a variant, by name."""
    return {
        function.name: (piece, function)
        for piece in INCLUDES
        for function in lua.piece(piece, flow=flow).functions
    }


def functions_of(name: str) -> dict[str, tuple[str, Function]]:
    """Return the shared functions that this script of VARIANTS includes, in its variant."""
    return functions(flow=lua.is_flow(name))


def reached(name: str) -> dict[str, Function]:
    """Return the shared functions that a script calls, directly or indirectly."""
    found: dict[str, Function] = {}
    open_, shared = [lua.script(name)], functions_of(name)
    while open_:
        for call in open_.pop().calls:
            if call.name in shared and call.name not in found:
                found[call.name] = shared[call.name][1]
                open_.append(found[call.name].body)
    return found


def used(name: str, kind: str) -> set[str]:
    """Return the names after `KEYS.` or `ARGV.` in a script and in the shared functions that it
    calls."""
    source = lua.script(name)
    bodies = [source, *(function.body for function in reached(name).values())]
    return {slot for body in bodies for slot in body.uses(kind)}


def loaded(name: str) -> Script:
    """Load the script, in the variant that its name in VARIANTS gives."""
    script = load(name.partition("/")[0])
    return script.flow() if name.endswith("/flow") else script


# Headers


@every_script
def test_keys_are_numbered_from_1_and_known(name: str) -> None:
    source = lua.script(name)
    assert [number for number, _ in source.keys] == list(range(1, len(source.keys) + 1))
    names = [key for _, key in source.keys]
    assert len(set(names)) == len(names)
    assert set(names) <= set(QUEUE_KEYS) | {DONE_CHANNEL} or set(names) <= GLOBALS


@every_script
def test_the_header_tells_the_types_of_keys(name: str) -> None:
    types = TYPES | {key: type for key, (type, _) in QUEUE_KEYS.items()} | {"done": "channel"}
    lines = re.findall(r"^-- KEYS\[\d+\] (\w+) +(\w+)", lua.script(name).header, re.MULTILINE)
    assert lines == [(key, types[key]) for key, _ in lines]
    assert len(lines) == len(lua.script(name).keys)


@every_script
def test_code_uses_exactly_the_keys_of_the_header(name: str) -> None:
    source = lua.script(name)
    assert used(name, "KEYS") == {key for _, key in source.keys}
    assert not source.slots("KEYS")


@every_script
def test_code_uses_exactly_the_arguments_of_the_header(name: str) -> None:
    source = lua.script(name)
    assert [number for number, _ in source.arguments] == list(range(1, len(source.arguments) + 1))
    assert set(source.uses("ARGV")) == {argument for _, argument in source.arguments}
    begins = set(beginnings(source))
    assert {int(slot) for slot in source.slots("ARGV") if slot.isdigit()} <= begins
    assert begins == ({source.rest[0]} if source.rest else set())
    assert not begins or begins == {len(source.arguments) + 1}
    assert begins or not source.slots("ARGV")


@pytest.mark.parametrize("piece", INCLUDES)
def test_includes_do_not_read_arguments(piece: str) -> None:
    assert "ARGV" not in lua.piece(piece, flow=True).tokens
    assert "ARGV" not in lua.piece(piece, flow=False).tokens


def beginnings(source: Source) -> Iterator[int]:
    """Yield the positions from which the code reads the open-ended part of ARGV."""
    for call in source.calls:
        if ("ARGV",) in call.arguments:
            after = call.arguments[call.arguments.index(("ARGV",)) + 1 :]
            yield int(after[0][0]) if after else 1
    for first in re.findall(r"for i = (\d+), #ARGV", source.text):
        yield int(first)


@every_script
def test_check_leases_gets_the_number_of_values_per_task(name: str) -> None:
    source = lua.script(name)
    for call in source.calls:
        if call.name == "check_leases":
            stride = call.arguments[2]
            told = stride == ("stride",) and "-- ARGV[2] stride " in source.header
            assert told or stride == (str(source.stride),)


@every_script
def test_header_describes_the_script_and_its_reply(name: str) -> None:
    header = lua.script(name).header.splitlines()
    assert header[1].startswith(f"-- {name.partition('/')[0]}: ")
    assert any(line.startswith(("-- returns ", "-- REPLY[1] ")) for line in header)


# Includes


@every_script
def test_script_includes_exactly_the_files_that_it_uses(name: str) -> None:
    source, shared = lua.script(name), functions_of(name)
    needed = {shared[function][0] for function in reached(name)}
    assert set(source.includes) == needed
    assert len(source.includes) == len(set(source.includes))
    called = {shared[call.name][0] for call in source.calls if call.name in shared}
    assert set(INCLUDES) >= called


@every_script
def test_pieces_are_placed_in_blocks_that_use_them(name: str) -> None:
    source, shared = lua.script(name), functions_of(name)
    for indent, pieces, block in re.findall(
        r"^( *)-- here: (.+)\n((?:\1.*\n)*)", source.text, re.MULTILINE
    ):
        assert indent
        assert set(pieces.split()) <= set(source.includes)
        called = {call.name for call in lua.Source(block).calls}
        assert {shared[function][0] for function in called & set(shared)} & set(pieces.split())


def test_lone_enqueue_creates_no_function_in_the_usual_case() -> None:
    source = lua.script("enqueue_one")
    placed = re.findall(r"-- here: (.+)", source.text)
    assert set(source.includes) == {piece for pieces in placed for piece in pieces.split()}


@every_script
def test_include_follows_the_includes_it_needs(name: str) -> None:
    source, shared = lua.script(name), functions_of(name)
    place = {piece: at for at, piece in enumerate(source.includes)}
    for caller, function in reached(name).items():
        for call in function.body.calls:
            if call.name in shared:
                assert place[shared[call.name][0]] <= place[shared[caller][0]]


def test_shared_functions_have_unique_names() -> None:
    for flow in (True, False):
        pieces = [lua.piece(piece, flow=flow) for piece in INCLUDES]
        names = [function.name for piece in pieces for function in piece.functions]
        assert len(names) == len(set(names))
    names = [*functions(flow=True), *functions(flow=False)]
    for name in VARIANTS:
        own = {function.name for function in lua.script(name).functions}
        assert not own & set(names)


@pytest.mark.parametrize("piece", INCLUDES)
def test_include_is_described_and_used(piece: str) -> None:
    assert lua.piece(piece, flow=True).text.startswith(f"-- {piece}: ")
    assert any(piece in lua.script(name).includes for name in VARIANTS)


# Flags


@pytest.mark.faults(26)
@every_script
def test_scripts_have_the_expected_flags(name: str) -> None:
    line = lua.script(name).text.splitlines()[0]
    name = name.partition("/")[0]
    if name in CAN_BE_REFUSED:
        assert line == "#!lua"
    elif name in VIEWS:
        assert line == "#!lua flags=no-writes"
    else:
        assert line == "#!lua flags=allow-oom"


def test_complete_can_be_refused_if_it_includes_results() -> None:
    keys = QueueKeys("p", "q")
    bare, full = Completion("a", "s/1"), Completion("b", "s/1", 1, b"result")
    assert ops.complete(keys, [bare]).script.text.startswith("#!lua flags=allow-oom\n")
    assert ops.complete(keys, [bare, full]).script.text.startswith("#!lua\n")
    pressed = ops.complete_without_room(keys, [bare, full])
    assert pressed.script.text.startswith("#!lua flags=allow-oom\n")
    assert pressed.args == ops.complete(keys, [bare, full]).args


def test_every_script_is_loaded_by_an_operation() -> None:
    """Every script is loaded by a module, and `views` loads only read-only scripts."""
    loaded = {
        module.name: set(
            re.findall(r'(?:load|_settle|queue_call|queue_query)\(\s*"(\w+)"', module.read_text())
        )
        for module in files("qsync.broker").iterdir()
        if module.name.endswith(".py")
    }
    assert loaded["views.py"] <= VIEWS
    assert set[str]().union(*loaded.values()) == set(SCRIPTS)


# Rules


def sources() -> Iterator[tuple[str, Source]]:
    for name in VARIANTS:
        yield name, lua.script(name)
    for piece in INCLUDES:
        for flow in (True, False):
            yield f"include/{piece}{'/flow' if flow else ''}", lua.piece(piece, flow=flow)


every_source = pytest.mark.parametrize("source", [pytest.param(s, id=n) for n, s in sources()])


@every_source
def test_scripts_concatenate_only_text(source: Source) -> None:
    """`..` turns microseconds into 1.79e+15, so the form or the name of its operands must show that
    they are strings."""
    tokens = source.tokens
    for at, part in enumerate(tokens):
        if part == "..":
            assert is_text(operand_before(tokens, at)), tokens[at - 8 : at + 8]
            assert is_text(operand_after(tokens, at)), tokens[at - 8 : at + 8]


def is_text(operand: list[str]) -> bool:
    if operand[0].startswith("'"):
        return True
    if operand[0] == "to_text" or operand[:2] in (["ARGV", "["], ["ARGV", "."]):
        return True
    if operand[:2] == ["string", "."] and operand[2] in ("sub", "char"):
        return True
    if operand[:3] == ["struct", ".", "pack"]:
        return True
    if operand[0] == "(":  # an expression that chooses between strings
        inner = operand[1:-1]
        return [part[0] for part in inner[-3:]] == ["'", "o", "'"]
    return "".join(operand) in TEXTS


def operand_before(tokens: list[str], at: int) -> list[str]:
    begin, depth = at - 1, 0
    while begin >= 0:
        part = tokens[begin]
        depth += part in lua.CLOSING
        depth -= part in lua.OPENING
        joined = depth == 0 and tokens[begin - 1] != "." and part != "."
        if joined and part not in lua.OPENING:
            break
        if joined and not re.fullmatch(r"[A-Za-z_]\w*", tokens[begin - 1]):
            break
        begin -= 1
    return tokens[begin:at]


def operand_after(tokens: list[str], at: int) -> list[str]:
    end, depth = at + 1, 0
    while end < len(tokens):
        depth += tokens[end] in lua.OPENING
        depth -= tokens[end] in lua.CLOSING
        following = tokens[end + 1] if end + 1 < len(tokens) else ""
        end += 1
        if depth == 0 and following not in (".", "[", "(") and tokens[end - 1] != ".":
            break
    return tokens[at + 1 : end]


@pytest.mark.faults(54)
@every_source
def test_every_command_is_on_a_declared_key(source: Source) -> None:
    """Keys come from KEYS or from parameters. No script builds a key.

    Only the channels that wake servers are built from the name of a key, so that they are in the
    slot of the key.
    """
    known = aliases(source)
    for call in source.calls:
        if call.name in ("redis.call", "redis.pcall"):
            command, *arguments = call.arguments
            assert re.fullmatch(r"'[A-Z]+'", command[0]), "the command must be a literal"
            if command == ("'MEMORY'",):
                arguments = arguments[1:]  # the first argument is a subcommand
            if command == ("'SPUBLISH'",) and "".join(arguments[0]) == WAKE_CHANNEL:
                pass
            elif command != ("'TIME'",):
                assert is_key(arguments[0], known), (command, arguments[0])
        if call.name in functions(flow=True):
            _, function = functions(flow=True)[call.name]
            # Trailing arguments may be left out; they are then nil.
            for parameter, argument in zip(function.parameters, call.arguments, strict=False):
                if parameter.endswith("_key"):
                    assert is_key(argument, known), (call.name, argument)


def is_key(argument: tuple[str, ...], known: set[str]) -> bool:
    text = "".join(argument)
    return bool(re.fullmatch(r"KEYS\.\w+", text)) or text in known


def aliases(source: Source) -> set[str]:
    """Return the names that stand for keys: parameters named `..._key`, and variables set from
    KEYS."""
    names = {
        parameter
        for parameters in re.findall(r"function \w*\(([^)]*)\)", source.text)
        for parameter in re.findall(r"\w+_key\b", parameters)
    }
    element = r"(?:\{[^{}]*\}|[\w.\[\]]+)"
    for name, value in re.findall(r"^local (\w+) = (\(?\{[^}]*\}\)?(?:\[\w+\]|\[ARGV\.\w+\])?)$",
                                  source.text, re.MULTILINE):  # fmt: skip
        if re.findall(r"KEYS\.\w+", value):
            names.add(name)
    for name, value in re.findall(rf"for \w+, (\w+) in ipairs\((\{{[^}}]*\}}|{element})\) do",
                                  source.text):  # fmt: skip
        if re.search(r"KEYS\.\w+", value) or value in names:
            names.add(name)
    return names


def test_the_rule_on_keys_catches_a_key_that_is_built_or_not_declared() -> None:
    for wrong in ("KEYS.tasks .. ':x'", "'{a}:b'", "ARGV.id", "other"):
        source = Source(f"redis.call('HGET', {wrong}, ARGV.id)\n")
        with pytest.raises(AssertionError):
            test_every_command_is_on_a_declared_key(source)


def test_the_rule_on_texts_catches_a_number() -> None:
    for wrong in ("now .. ':'", "':' .. now", "'a' .. tonumber(id)", "#ids .. ''", "'' .. row.day"):
        with pytest.raises(AssertionError):
            test_scripts_concatenate_only_text(Source(f"local x = {wrong}\n"))


# Arguments that Python sends


def calls() -> dict[str, tuple[Call[Any], int]]:
    """Return a call to each operation by name, with the number of tasks in the call."""
    keys, all_keys = QueueKeys("p", "q"), GlobalKeys("p")
    held = [LeaseRef("a", "s/1"), LeaseRef("b", "s/1")]
    tasks = [new_task(Task("t", id=id), new_nonce()) for id in "ab"]
    fetch = ops.fetch(keys, server="s", number=1, wanted=5, policy=POLICY)
    row = StoredScheduleRow("hourly", b"12345678record", 1)
    return {
        "enqueue": (ops.enqueue(keys, tasks), 2),
        "enqueue_one": (ops.enqueue(keys, tasks[:1], sender="s", number=1), 1),
        "tick": (program_schedule_ops.tick(keys, "hourly", 1, tasks[0]), 1),
        "begin_ticks": (program_schedule_ops.begin_ticks(keys, ["hourly", "daily"]), 2),
        "fetch": (fetch, 0),
        "complete": (ops.complete(keys, [Completion(*one) for one in held]), 2),
        "retry": (ops.retry(keys, [Retried(*one, 1, b"") for one in held]), 2),
        "kill": (ops.kill(keys, [Killed(*one, True, b"") for one in held]), 2),
        "hand_back": (ops.hand_back(keys, [HandedBack(*one) for one in held]), 2),
        "end_cancelled": (ops.end_cancelled(keys, held), 2),
        "renew": (ops.renew(keys, held, lease_us=1), 2),
        "mark_started": (ops.mark_started(keys, held), 2),
        "progress": (ops.progress(keys, [("a", "s/1", 1, 2), ("b", "s/1", 1, 2)]), 2),
        "abandon": (ops.abandon(keys, "s"), 0),
        "cancel": (ops.cancel(keys, "a", retention_us=None), 0),
        "reschedule": (reschedule(keys, "a", "+5"), 0),
        "edit": (edit(keys, "a", "dead", seen=b"old", message=b"new"), 0),
        "run": (
            operator_ops.run_many(
                keys, [operator_ops.RerunRequest("a"), operator_ops.RerunRequest("b")], "dead"
            ),
            2,
        ),
        "delete": (operator_ops.delete(keys, ["a", "b"], "dead"), 2),
        "pause": (operator_ops.pause(keys, b"me"), 0),
        "purge": (operator_ops.purge(keys, "dead"), 0),
        "delete_queue": (operator_ops.delete_queue(keys), 0),
        "publish_schedules": (
            program_schedule_ops.publish_schedules(
                keys, [("hourly", b"", b""), ("daily", b"", b"")]
            ),
            2,
        ),
        "pause_schedule": (program_schedule_ops.pause_schedule(keys, "hourly", b"me"), 0),
        "forget_schedule": (program_schedule_ops.forget_schedule(keys, "hourly", silence_us=1), 0),
        "put_schedule": (schedule_ops.put_schedule(keys, "hourly", 1, b"record"), 0),
        "delete_schedule": (schedule_ops.delete_schedule(keys, "hourly"), 0),
        "due_schedules": (schedule_ops.due_schedules(keys), 0),
        "tick_schedules": (schedule_ops.tick_schedules(keys, [TickRow(row, 2, tasks[:1])]), 8),
        "stored_schedules": (schedule_ops.stored_schedules(keys, ["a", "b"]), 2),
        "stored_page": (schedule_ops.stored_page(keys), 0),
        "announce_schedules": (schedule_ops.announce_schedules(all_keys, "q", 1), 0),
        "schedule_queues": (schedule_ops.schedule_queues(all_keys), 0),
        "unregister": (registry_ops.unregister(all_keys, ["a", "b"]), 2),
        "wait_marker": (ops.wait(keys, "fsync", timeout_ms=1).mark, 0),
        "register": (registry_ops.register(all_keys, ["a", "b"]), 2),
        "server_heartbeat": (registry_ops.server_heartbeat(all_keys, "s", ttl_us=1), 0),
        "set_server_info": (
            registry_ops.set_server_info(all_keys, "s", {"a": 1, "b": 2}, ttl_ms=1),
            4,
        ),
        "send_order": (registry_ops.send_order(all_keys, "s", b"stop", ttl_ms=1), 0),
        "put_limit_rules": (
            limit_ops.put_limit_rules(keys, {"a": LimitRule(concurrency=1), "b": LimitRule()}),
            2,
        ),
        "open_limit": (limit_ops.open_limit(keys, "a"), 0),
        "list_limits": (limit_ops.list_limits(keys), 0),
        "report_types": (type_ops.report_types(keys, {"1:s": b"a", "2:s": b"b"}), 2),
        "roll_types": (type_ops.roll_types(keys, b"", ["1:s"], {"#": b"d"}), 3),
        "type_stats": (type_ops.type_stats(keys, ["#", "m1:t"], reports=1), 2),
        "pause_type": (type_ops.pause_type(keys, "t", b"me"), 0),
        "paused_types": (type_ops.paused_types(keys), 0),
        "audit_limits": (limit_ops.audit_limits(keys), 0),
        "get_limit": (limit_ops.get_limit(keys, "a"), 0),
        "get_tasks": (views.get_tasks(keys, ["a", "b"]), 2),
        "counts": (views.counts(keys), 0),
        "pending_position": (views.pending_position(keys, "a"), 0),
        "check_for_work": (views.check_for_work(keys, lease_us=1), 0),
        "mark_idle": (ops.mark_idle(keys, server="s", lease_us=1, keep_us=1), 0),
        "permissions": (views.permissions(keys, ["hset", "zadd"]), 2),
        "overview": (views.overview(keys), len(COUNTERS)),
        "list_tasks": (views.list_tasks(keys, TaskState.DEAD, count=1), 0),
        "queues": (views.queues(all_keys), 0),
        "server_info": (views.server_info(all_keys, "s"), 0),
        "registered": (views.registered(all_keys, "a"), 0),
        "schedules": (views.schedules(keys), 0),
        "servers": (views.servers(all_keys), 0),
        "bounds": (bounds_ops.queue_bounds(keys), 0),
        "set_bounds": (bounds_ops.set_bounds(keys, Bounds(max_tasks=1000)), 0),
        "recount_bytes": (bounds_ops.recount_bytes(keys), 0),
        "acknowledge_dead": (bounds_ops.acknowledge_dead(keys, None), 0),
        "set_latency_target": (bounds_ops.set_latency_target(keys, 1), 0),
        "set_weight": (bounds_ops.set_weight(keys, "a", 2), 0),
        "weights": (bounds_ops.weights(keys), 0),
        "record_event": (event_ops.record_event(keys, b"-", ids=["a", "b"]), 2),
        "events": (event_ops.events(keys), 0),
        "sample_keys": (bounds_ops.sample_keys(keys, count=1), 0),
        "count_errors": (error_ops.count_errors(keys, TaskState.DEAD), 0),
        "note_runs": (
            schedule_run_ops.note_runs(keys, [Note("a", 1), Note("b", 2, "M")]),
            10,
        ),
        "sample_types": (type_ops.sample_types(keys, count=1), 0),
        "last_runs": (schedule_run_ops.last_runs(keys, count=1), 0),
        "schedule_runs": (schedule_run_ops.schedule_runs(keys, ["a", "b"]), 2),
        "audit": (views.stand(keys, [("a", ""), ("b", "lock")]), 2),
        "key_types": (views.key_types(keys), 0),
        "repair": (
            operator_ops.repair(keys, "leftover", [("a", ""), ("b", "")], record=b"", lease_us=1),
            2,
        ),
    }


@every_script
def test_a_call_fills_the_slots_of_the_header(name: str) -> None:
    call, tasks = calls()[name.partition("/")[0]]
    call = call.in_flow() if name.endswith("/flow") else call
    source = lua.script(name)
    assert call.script.sha == loaded(name).sha
    keys, all_keys = QueueKeys("p", "q"), GlobalKeys("p")
    own = {"queues": all_keys.queues, "servers": all_keys.servers,
           "server": all_keys.server("s"), "inbox": all_keys.inbox("s"),
           "schedule_queues": all_keys.schedule_queues}  # fmt: skip
    names = [key for _, key in source.keys]
    assert call.keys == tuple(own[key] if key in own else keys.key(key) for key in names)
    assert len(call.args) == len(source.arguments) + source.stride * tasks


# Loading


@every_script
def test_a_script_is_read_once(name: str) -> None:
    assert loaded(name) is loaded(name)
    assert loaded(name).name == name.partition("/")[0]
    assert loaded(name).keys == tuple(key for _, key in lua.script(name).keys)


@pytest.mark.parametrize("binary", BINARIES)
def test_store_accepts_every_script_under_our_digest(binary: Binary) -> None:
    variants = [loaded(name) for name in VARIANTS] + [load("complete", allow_oom=False)]
    with shared_store(binary).client() as client:
        for script in variants:
            answer = client.execute_command("SCRIPT LOAD", script.text)
            assert answer in (script.sha, script.sha.encode())
            assert hashlib.sha1(script.text.encode(), usedforsecurity=False).hexdigest() == (
                script.sha
            )
    assert len({script.sha for script in variants}) == len(variants)


def test_sent_scripts_have_no_comments() -> None:
    for name in VARIANTS:
        lines = loaded(name).text.splitlines()
        assert lines[0].startswith("#!lua")
        assert not [line for line in lines[1:] if line.lstrip().startswith("--")]


def test_loaded_script_reads_keys_and_arguments_by_number() -> None:
    for name in VARIANTS:
        text = loaded(name).text
        assert not re.search(r"\b(KEYS|ARGV)\.", text)
        assert {int(n) for n in re.findall(r"KEYS\[(\d+)\]", text)} == {
            number for number, _ in lua.script(name).keys
        }


def test_loaded_script_has_no_function_that_nothing_calls() -> None:
    for name in VARIANTS:
        text = loaded(name).text
        for function in Source(text).functions:
            used = rf"(?<![\w.]){function.name}[({{]|(?<![\w.])pcall\({function.name},"
            assert len(re.findall(used, text)) > 1, function.name
    assert "local function make_dead(" in load("repair").text
    assert "local function recover_expired(" not in load("repair").text


@pytest.mark.parametrize("wrong", ["KEYS.task", "ARGV.nw", "KEYS.pending"])
def test_name_that_the_header_does_not_have_fails_the_loader(wrong: str) -> None:
    right = "redis.call('EXISTS', KEYS.cancels)"
    with (
        planted("renew.lua", right, f"redis.call('EXISTS', {wrong})"),
        pytest.raises(ValueError, match=rf"^renew.lua: .* does not name {re.escape(wrong)}"),
    ):
        load("renew")


@every_script
def test_fields_of_a_reply_are_those_of_the_header(name: str) -> None:
    fields, code = loaded(name).reply_fields, " ".join(lua.script(name).tokens)
    tables = re.findall(r"(?:reply|answer) \( \{(.*?)\} \)", code)
    tables += re.findall(r"local fields = \{(.*?)\}", code) if fields else []
    named = {field for table in tables for field in re.findall(r"(\w+) = ", table)}
    named |= set(re.findall(r"fields \. (\w+)", code)) if fields else set()
    assert named == set(fields)


FLOW_KEYS = {"limited", "waiters", "holds", "limits", "limit_rules", "openings"}


def test_plain_variants_contain_no_flow_control() -> None:
    """Queues without flow control use scripts that have no key, argument or line for it."""
    plain = [load(name) for name in SCRIPTS if has_variants(name)]
    assert {script.name for script in plain} >= {
        "enqueue",
        "fetch",
        "complete",
        "retry",
        "mark_idle",
    }
    for script in plain:
        flow = script.flow()
        assert not set(script.keys) & FLOW_KEYS
        assert "SCHEMA" in script.text
        assert flow.keys[: len(script.keys)] == script.keys
        assert flow.text != script.text
        assert not flow.is_plain
        marks = re.findall(r"flow", script.text.partition("\n")[2])
        assert not marks, f"{script.name}: a marker of the flow variant remains"


def test_lines_of_a_variant_are_only_in_it() -> None:
    text = """-- x: a script
-- KEYS[1] meta hash
-- flow KEYS[2] limited zset
-- plain ARGV[1...] ids
-- flow ARGV[1...] two values per task: id, limit
one()
  -- flow:
  two()
  -- plain:
  three()
  -- end flow
-- flow:
four()
-- end flow
five()
"""
    assert variant(text, flow=False) == (
        "-- x: a script\n-- KEYS[1] meta hash\n-- ARGV[1...] ids\none()\n  three()\nfive()\n"
    )
    assert variant(text, flow=True) == (
        "-- x: a script\n-- KEYS[1] meta hash\n-- KEYS[2] limited zset\n"
        "-- ARGV[1...] two values per task: id, limit\none()\n  two()\nfour()\nfive()\n"
    )


def test_slot_with_a_wrong_number_fails_the_loader() -> None:
    with (
        planted("renew.lua", "-- KEYS[4] meta", "-- KEYS[5] meta"),
        pytest.raises(ValueError, match=r"^renew.lua: KEYS\[5\] meta is slot 4 of its header$"),
    ):
        load("renew")


def test_flag_of_a_script_can_be_overridden() -> None:
    assert load("enqueue", allow_oom=True).text.startswith("#!lua flags=allow-oom\n")
    assert load("kill", allow_oom=False).text.startswith("#!lua\n")


# The package


def test_the_package_holds_the_scripts() -> None:
    folder = files("qsync.broker") / "lua"
    assert {entry.name for entry in folder.iterdir()} - {"include"} == {
        f"{name}.lua" for name in SCRIPTS
    }
    assert tuple(sorted(calls())) == SCRIPTS
    assert {"clock", "insert_tasks", "fairness_tags"} <= set(INCLUDES)


def test_the_wheel_holds_the_scripts(tmp_path: Path) -> None:
    wheels = pytest.importorskip("hatchling.builders.wheel")
    root = Path(__file__).parents[2]
    [wheel] = wheels.WheelBuilder(str(root)).build(directory=str(tmp_path), versions=["standard"])
    with ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.endswith(".lua")}
    folder = "qsync/broker/lua"
    assert held == {f"{folder}/{name}.lua" for name in SCRIPTS} | {
        f"{folder}/include/{name}.lua" for name in INCLUDES
    }
