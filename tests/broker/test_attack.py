"""An attacker who can write to the store can only make registered tasks run."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from qsync.broker import acl, redis_clients
from qsync.broker.blocking import Broker
from qsync.client import Client
from qsync.errors import ConfigError, InvalidTask
from qsync.keys import QueueKeys
from qsync.new_task import new_nonce, new_task
from qsync.task import HEADERS_LIMIT, PAYLOAD_LIMIT, Task
from tests.conftest import Colour
from tests.support.acl import rights_are_old
from tests.support.processes import ROOT
from tests.support.queue_driver import BINARIES
from tests.support.server import bench
from tests.support.stores import Binary, Store, _watchdog, wait_until

VALKEY, REDIS = BINARIES
ON_BOTH = [VALKEY, pytest.param("redis", marks=[*REDIS.marks, pytest.mark.slow])]

RECORDS = 10_000
GROWN_MIB = 50.0

STAMP = b"\x98\x01\xcf" + bytes(8)

TYPES = (
    "os.system", "builtins.eval", "__import__", "subprocess:Popen", "good.__class__", "../good",
    "tests.support.attacked_server:main", "qsync.testing", "this", "antigravity", "good\n", "GOOD",
    "", "\u0000",
)  # fmt: skip


class Bomb:
    """An object that leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self._mark}",)


def deep(levels: int) -> bytes:
    """Return nested lists, encoded as msgpack."""
    return b"\x91" * levels + b"\xc0"


def hostile(chance: random.Random, mark: Path) -> bytes:
    """Return a hostile message, which may be malformed."""
    bomb = pickle.dumps(Bomb(mark))
    bodies = (
        bomb, b"c" + bomb, deep(3_000), b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff\xc0",
        b"\xc9\x7f\xff\xff\xff\x01", b"\xc7\x04\x80evil", b"!!python/object/apply:os.system [ls]",
        b'{"py/object": "os.system"}', chance.randbytes(200), b"x" * chance.choice((0, 10, 5_000)),
    )  # fmt: skip
    body = chance.choice(bodies)
    kind = chance.random()
    if kind < 0.25:
        return body
    if kind < 0.5:
        return STAMP + body
    type = chance.choice(TYPES) if kind < 0.9 else "good"
    sent = new_task(Task("t", body, headers={"h": "v"}), new_nonce()).message
    parts = msgspec.msgpack.decode(STAMP + sent)
    parts[3] = type
    if kind > 0.95:  # mark the payload as an encoded value
        parts[5] = True
    at = chance.randrange(len(parts))
    if chance.random() < 0.2:
        parts[at] = chance.choice([None, -1, 2**63, "x" * 1000, [1], {"a": 1}, b"\x00"])
    return msgspec.msgpack.encode(parts)


def attack(client: Any, keys: QueueKeys, chance: random.Random, mark: Path) -> None:
    """Add hostile tasks to the pending tasks, some with records of failures and crashes."""
    for begin in range(0, RECORDS, 500):
        pipe = client.pipeline(transaction=True)
        for n in range(begin, begin + 500):
            id = f"evil-{n}"
            pipe.hset(keys.key("tasks"), id, hostile(chance, mark))
            pipe.zadd(keys.key("pending"), {id: n + 1})
            if n % 10 == 0:
                pipe.hset(keys.key("failures"), id, hostile(chance, mark))
                pipe.hset(keys.key("crashes"), id, chance.choice(["x", "-1", "1", "9" * 99]))
        pipe.lpush(keys.key("wake"), "1")
        pipe.execute()


async def still_works(url: str, prefix: str) -> None:
    async with bench(url, prefix) as b:
        handle = await b.client.enqueue(Task("good", {"n": 1}, retention=60))
        assert await handle.result(timeout=10) == {"n": 1}


@pytest.mark.faults(55, 60)
@pytest.mark.guarantee(8)
@pytest.mark.parametrize("binary", ON_BOTH)
def test_ten_thousand_hostile_records_make_a_server_do_nothing(
    binary: Binary, prefix: str, tmp_path: Path
) -> None:
    """The server imports nothing, calls only registered handlers, uses no more memory, and keeps
    working."""
    mark, keys = tmp_path / "mark", QueueKeys(prefix, "default")
    with Store(binary) as store, store.client() as client:
        command = [sys.executable, "-m", "tests.support.attacked_server", store.url, prefix]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
        ) as process:
            _watchdog().add(process.pid)
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                assert process.stdout.readline() == "ready\n"
                attack(client, keys, random.Random(1), mark)
                wait_until(
                    lambda: not client.exists(keys.key("pending"), keys.key("active")), timeout=60
                )
                asyncio.run(still_works(store.url, prefix))
                process.stdin.close()
                report = json.loads(process.stdout.read())
                assert process.wait(timeout=20) == 0
            finally:
                process.kill()
                _watchdog().remove(process.pid)
        assert report["events"] == []
        assert report["modules"] == []
        assert report["handled"] == ["good"]
        assert report["grown_mib"] < GROWN_MIB
        assert not mark.exists()
        states = {name: client.zcard(keys.key(name)) for name in ("dead", "scheduled", "retry")}
        assert states["dead"] > RECORDS // 3, "unreadable tasks are dead"
        assert states["scheduled"] > RECORDS // 10, "tasks of unknown types are scheduled"


def nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("fits", "too_large"),
    [
        (Task("t", b"x" * PAYLOAD_LIMIT), Task("t", b"x" * (PAYLOAD_LIMIT + 1))),
        (Task("t", nested(64)), Task("t", nested(65))),
    ],
    ids=["payload of 1 MiB", "64 levels"],
)
def test_payload_limits_are_exact(fits: Task, too_large: Task) -> None:
    assert new_task(fits, new_nonce())
    with pytest.raises(InvalidTask, match=r"^payload: "):
        new_task(too_large, new_nonce())


def test_headers_of_8_kib_are_accepted_and_one_byte_more_is_refused() -> None:
    around = len(msgspec.msgpack.encode({"h": "x" * 300})) - 300
    room = HEADERS_LIMIT - around
    assert HEADERS_LIMIT == 8 * 1024
    assert new_task(Task("t", headers={"h": "x" * room}), new_nonce())
    with pytest.raises(InvalidTask, match=r"^headers: 8193 bytes are over the limit of 8192"):
        new_task(Task("t", headers={"h": "x" * (room + 1)}), new_nonce())


def test_call_with_many_ids_is_split_into_calls_of_500(valkey: Store, prefix: str) -> None:
    valkey.command("CONFIG", "RESETSTAT")
    with Client(Broker(redis_clients.parse(valkey.url)), prefix=prefix) as client:
        handles = client.enqueue_many([Task("t") for _ in range(10_001)])
    assert len({handle.id for handle in handles}) == 10_001
    made = valkey.command("INFO", "commandstats")
    assert made["cmdstat_evalsha"]["calls"] >= 21
    assert made["cmdstat_hset"]["calls"] >= 21


@pytest.mark.parametrize("binary", BINARIES)
def test_queue_without_rights_is_refused_and_nothing_is_written(
    binary: Binary, colour: Colour
) -> None:
    with Store(binary) as store:
        rules = acl.rules("client", "mine", old=rights_are_old(store))
        rules = ["~{mine:own}:*" if rule == "~{mine:*}:*" else rule for rule in rules]
        assert "~{mine:own}:*" in rules
        store.command("ACL", "SETUSER", "joe", "reset", "on", ">secret", *rules)
        client = colour.client(store.url.replace("//", "//joe:secret@"), "mine")
        assert colour.do(client.enqueue(Task("t", queue="own"))).created
        before = store.command("KEYS", "*")
        for call in (
            lambda: client.enqueue(Task("t", queue="other")),
            lambda: client.enqueue_many([Task("t", queue="other")] * 3),
        ):
            with pytest.raises(ConfigError, match=r"refuses: .*(permission|access)"):
                colour.do(call())
        assert [key for key in store.command("KEYS", "*") if b":other}" in key] == []
        assert set(before) <= set(store.command("KEYS", "*"))
        # Users with different prefixes cannot access each other's data in a shared store either.
        stranger = colour.client(store.url.replace("//", "//joe:secret@"), "theirs")
        with pytest.raises(ConfigError, match="refuses"):
            colour.do(stranger.enqueue(Task("t")))
        assert [key for key in store.command("KEYS", "*") if b"theirs" in key] == []
