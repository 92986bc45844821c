"""With docs/design/data-model.md alone, a client without qsync can enqueue a task and read its
result."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import msgspec
import redis

from qsync.mux import Mux
from qsync.task import TaskInfo
from tests.support.server import bench
from tests.support.stores import Store, wait_until

LUA = Path(__file__).parents[2] / "src" / "qsync" / "broker" / "lua"
HEAD = bytes.fromhex("9801cf")
SECOND_US = 1_000_000

pack = msgspec.msgpack.encode


def plain(source: str) -> str:
    """Return the source of a script or an include, in its plain variant."""
    kept, keeping = [], True
    for line in source.splitlines():
        match re.match(r"-- (flow:|plain:|end flow)$", line.strip()):
            case None:
                if keeping and not line.startswith("-- flow "):
                    kept.append(re.sub(r"^-- plain ", "-- ", line))
            case mark:
                keeping = mark[1] != "flow:"
    return "\n".join(kept)


class ForeignClient:
    """A client that uses only the scripts and the page about the data model, not qsync."""

    def __init__(self, url: str, prefix: str, queue: str = "default") -> None:
        self.redis = redis.Redis.from_url(url, protocol=2)
        self.base = f"{{{prefix}:{queue}}}"
        self.sender, self.number = os.urandom(11).hex(), 0
        self.redis.sadd(f"{prefix}:queues", queue)

    def run(self, name: str, *args: str | bytes | int) -> Any:
        """Run a script with the keys that its header lists."""
        shebang, body = plain((LUA / f"{name}.lua").read_text("utf-8")).split("\n", 1)
        includes = " ".join(re.findall(r"^-- include: (.+)$", body, re.MULTILINE)).split()
        pieces = [plain((LUA / "include" / f"{one}.lua").read_text("utf-8")) for one in includes]
        text = "\n".join([shebang, *pieces, body])
        for kind in ("KEYS", "ARGV"):
            for slot, key in re.findall(rf"^-- ({kind}\[\d+\]) (\w+)", body, re.MULTILINE):
                text = re.sub(rf"\b{kind}\.{key}\b", slot, text)
        keys = [f"{self.base}:{key}" for key in re.findall(r"^-- KEYS\[\d+\] (\w+)", body, re.M)]
        return self.redis.eval(text, len(keys), *keys, *args)

    def enqueue(
        self, id: str, type: str, value: object, options: object, call: object, number: int
    ) -> Any:
        """Enqueue a task; `call` has the options that the script reads."""
        fields = (os.urandom(8), type, pack(value), True, 3, options)
        self.message = b"".join(map(pack, fields))
        return self.send(id, call, number)

    def send(self, id: str, call: object, number: int) -> Any:
        """Send the last message, whether or not it has been sent before."""
        return self.run("enqueue", "", HEAD, self.sender, number, 3, id, self.message, pack(call))

    def show(self, id: str) -> Any:
        """Read a task."""
        [row] = self.run("get_tasks", "", id)
        return row


def test_task_that_another_language_enqueues_runs_and_its_result_is_read(
    store: Store, prefix: str
) -> None:
    payload = {"to": "ada@example.org"}
    lock = hashlib.blake2b(b"task\0mail\0" + pack(payload), digest_size=16).hexdigest()
    retention, remembered = 60 * SECOND_US, 3600 * SECOND_US
    options = {"rt": retention, "lk": lock, "lw": 0}
    mux, seen = Mux(), []

    @mux.handle("mail")
    async def send_mail(task: TaskInfo) -> dict[str, int]:
        seen.append((task.id, task.value()))
        return {"sent": 1}

    client = ForeignClient(store.url, prefix)
    listening = client.redis.pubsub(ignore_subscribe_messages=True)
    listening.ssubscribe(f"{client.base}:done")

    def ended() -> bytes | None:
        message = listening.get_sharded_message(timeout=0.1)
        return None if message is None else message["data"]

    call = ["", "", lock, 0, remembered]
    assert client.enqueue("mail-1", "mail", payload, options, call, 1) == b"created"
    assert client.show("mail-1")[0] == b"pending"
    assert client.send("mail-1", call, 1) == [b"created", b"mail-1"]
    assert client.enqueue("mail-2", "mail", payload, options, call, 2) == [b"duplicate", b"mail-1"]

    async def main() -> None:
        async with bench(store.url, prefix) as on, on.server(mux):
            await asyncio.to_thread(wait_until, lambda: ended() == b"mail-1")

    asyncio.run(main())
    assert seen == [("mail-1", payload)]
    state, _, _, owner, _, failure, result, cancelled, _, _ = client.show("mail-1")
    assert (state, owner, failure, cancelled) == (b"completed", None, None, None)
    value, is_value, error, begun_us = msgspec.msgpack.decode(result)
    assert (msgspec.msgpack.decode(value), is_value, error) == ({"sent": 1}, True, None)
    assert begun_us > 0
    assert client.enqueue("mail-1", "mail", payload, options, call, 3) == [b"exists", b"mail-1"]
    listening.close()
    client.redis.close()


def test_delayed_task_of_another_language_is_scheduled(store: Store, prefix: str) -> None:
    client = ForeignClient(store.url, prefix)
    options = {"dy": 60 * SECOND_US}
    call = [f"+{60 * SECOND_US}", "", "", 0, 0]
    assert client.enqueue("later", "mail", 1, options, call, 1) == b"created"
    assert client.show("later")[0] == b"scheduled"
    client.redis.close()
