"""A client that is written from docs/design/data-model.md alone can enqueue tasks and store
schedules.

The client encodes its messages without qsync, with the same bytes as in docs/design/vectors.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qsync import Mux, Qsync, Task, TaskInfo, codec
from qsync.broker.schedule_ops import stored_schedules
from qsync.broker.stored_schedules import decode_record, next_tick
from qsync.keys import QueueKeys
from qsync.testing import SyncKit

ROOT = Path(__file__).parents[2]
LUA = ROOT / "src" / "qsync" / "broker" / "lua"
PAGE = (ROOT / "docs" / "design" / "data-model.md").read_text("utf-8")
VECTORS = json.loads((ROOT / "docs" / "design" / "vectors.json").read_text("utf-8"))
HEAD = bytes.fromhex("9801cf")


def script_text(verb: str, *, flow: bool = False) -> tuple[str, list[str]]:
    """Return a script, assembled as the section "Scripts" describes, and the names of its keys."""
    variant = "flow " if flow else "plain "
    first, *lines = (LUA / f"{verb}.lua").read_text("utf-8").splitlines()
    pieces, slots, body = [], dict[str, str](), list[str]()
    for line in lines:
        text = line.strip().removeprefix("-- ")
        text = text.removeprefix(variant) if line.lstrip().startswith("-- ") else ""
        if text.startswith(("include: ", "here: ")):
            pieces += text.partition(": ")[2].split()
        elif slot := re.match(r"(KEYS|ARGV)\[(\d+)\]\s+(\w+)", text):
            slots[f"{slot[1]}.{slot[3]}"] = f"{slot[1]}[{slot[2]}]"
        body.append(line)
    includes = [(LUA / "include" / f"{name}.lua").read_text("utf-8") for name in pieces]
    text = "\n".join(_of_variant("\n".join([*includes, *body]).splitlines(), flow=flow))
    text = re.sub(r"(?:KEYS|ARGV)\.\w+", lambda match: slots.get(match[0], "nil"), text)
    keys = [name.partition(".")[2] for name in slots if name.startswith("KEYS")]
    return f"{first}\n{text}", keys


def _of_variant(lines: list[str], *, flow: bool) -> Iterator[str]:
    block = ""
    for line in lines:
        if (mark := line.strip()) in ("-- flow:", "-- plain:", "-- end flow"):
            block = mark[3:-1] if mark.endswith(":") else ""
        elif block in ("", "flow" if flow else "plain"):
            yield line


class ForeignClient:
    """A client that does only what the page describes."""

    def __init__(self, kit: SyncKit) -> None:
        self._ask = kit._opened.broker.ask
        self._prefix = kit.app.prefix
        self._number = 0

    def _call(self, script: str, keys: list[str], *args: str | bytes | int) -> Any:
        return self._ask("EVAL", script, len(keys), *keys, *args)

    def enqueue(self, *tasks: tuple[str, dict[str, Any]], flow: bool = False) -> Any:
        script, keys = script_text("enqueue", flow=flow)
        self._number += 1
        self._ask("SADD", f"{self._prefix}:queues", "default")
        flat: list[str | bytes] = []
        for id, sent in tasks:
            flat += [id, bytes.fromhex(sent["message"]), bytes.fromhex(sent["options"])]
        names = [f"{{{self._prefix}:default}}:{key}" for key in keys]
        return self._call(script, names, "", HEAD, "a client", self._number, 3, *flat)

    def put_schedule(self, name: str, record: bytes) -> Any:
        names = section_keys("put_schedule keys")
        script, keys = script_text("put_schedule")
        assert names == keys
        self._ask("SADD", f"{self._prefix}:queues", "default")
        full = [f"{{{self._prefix}:default}}:{key}" for key in keys]
        reply = self._call(script, full, "", "", 180_000_000, name, 0, record)
        self._ask("HSET", f"{self._prefix}:schedule_queues", "default", 7)
        return reply


def section_keys(name: str) -> list[str]:
    """Return the names between two markers on the page."""
    [text] = re.findall(rf"<!-- {name} -->(.*?)<!-- end of {name} -->", PAGE, re.DOTALL)
    return re.findall(r"`(\w+)`", text)


ran: list[tuple[str, Any]] = []


@pytest.fixture
def kit() -> Iterator[SyncKit]:
    mux = Mux()
    ran.clear()
    for type in ("reindex-file", "mail", "report", "poll", "move"):

        @mux.handle(type)
        async def handle(task: TaskInfo) -> None:
            ran.append((task.type, task.value() if task.is_value else task.payload))

    app = Qsync("redis://127.0.0.1:1", mux=mux)
    app.limit("map", concurrency=1)
    app.limit("car", concurrency=1)
    with SyncKit(app) as opened:
        yield opened


def test_tasks_of_a_client_in_another_language_run(kit: SyncKit) -> None:
    client = ForeignClient(kit)
    vectors = {vector["name"]: vector for vector in VECTORS["messages"]}
    for number, (name, vector) in enumerate(vectors.items()):
        id = vector["enqueue"]["id"] or f"id-{number}"
        reply = client.enqueue((id, vector["enqueue"]), flow=name == "flow control")
        assert reply == b"created", name
    locked = vectors["options"]["enqueue"]  # this task has the lock of id-3 and the same nonce
    assert client.enqueue(("another", locked), flow=True) == [b"duplicate", b"id-3"]
    kit.drain()
    kit.advance(seconds=60)
    kit.drain()
    expected = [
        (vector["fields"]["type"], vector["value"] or bytes.fromhex(vector["fields"]["payload"]))
        for vector in vectors.values()
    ]
    assert sorted(map(repr, ran)) == sorted(map(repr, expected))


@pytest.mark.parametrize("vector", VECTORS["schedules"], ids=lambda vector: vector["name"])
def test_schedules_of_a_client_in_another_language_tick(
    kit: SyncKit, vector: dict[str, Any]
) -> None:
    stamp, of_program = ForeignClient(kit).put_schedule("foreign", bytes.fromhex(vector["record"]))
    assert (len(stamp), of_program) == (8, b"")
    with kit.app.client() as client:
        before = client.schedules.get("foreign")
        assert before is not None
        kit.advance(minutes=1)
        if not kit.enqueued(before.type):
            kit.advance(days=1)  # each schedule ticks within a day
        ticks = kit.enqueued(before.type)
        assert ticks
        assert all(tick.id.startswith("foreign@") for tick in ticks)
        row = stored_schedules(QueueKeys(kit.app.prefix, "default"), ["foreign"])
        _, [stored] = kit._opened.broker.run(row)
        assert stored is not None
        content = decode_record(stored.record)
        # The client of qsync sends the same record, so its call changes nothing.
        details = content.details()
        options = {"retry": details.retry, "retention": _seconds(details.options)}
        payload = codec.decode(details.payload) if details.is_value else details.payload
        asked = vector["asked"]
        after = client.schedules.put("foreign", Task(details.type, payload, **options), **asked)
        assert after.put_at == before.put_at
        assert next_tick(content.schedule, vector["after_us"]) == vector["next_us"]
        zeros = bytes.fromhex("c408") + bytes(8)
        assert vector["message"] == (zeros + content.message[10:]).hex()


def _seconds(options: Any) -> float | None:
    return None if options is None else options.retention_us / 1_000_000
