"""Drives a queue on a real store for tests of the scripts, with short calls, a fixed clock and
dumps."""

from __future__ import annotations

import atexit
import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any, Final, Self, TypeVar

import pytest

from qsync import codec
from qsync.broker import operator_ops, ops, redis_clients, stored_task, views
from qsync.broker.blocking import Broker
from qsync.broker.call import Call
from qsync.broker.op_values import (
    Completion,
    FetchPolicy,
    FetchResult,
    HandedBack,
    Killed,
    LeaseRef,
    Retried,
)
from qsync.broker.script import Script
from qsync.keys import DONE_CHANNEL, GlobalKeys, QueueKeys
from qsync.message import Failure
from qsync.new_task import NewTask, new_nonce, new_task
from qsync.state import STORED
from qsync.task import Task, TaskStatus
from tests.support import acl as limited
from tests.support.stores import Binary, Store, available

T = TypeVar("T")
Dump = dict[str, Any]

BINARIES: Final = [
    pytest.param(name, marks=pytest.mark.skipif(not available(name), reason=f"needs {name}"))
    for name in ("valkey", "redis")
]

S: Final = 1_000_000
"""One second, in the unit of time that scripts use."""

DAY: Final = 86_400 * S
START: Final = 20_000 * DAY
LEASE: Final = 30 * S
LAPSE: Final = LEASE + 500
"""Time after which every lease of a batch has expired. The leases of a batch expire one after
another."""

STATES: Final = tuple(state.value for state in STORED)

POLICY: Final = FetchPolicy(lease_us=LEASE, max_crashes=3, dead_limit=10_000, dead_age_us=90 * DAY)
FAILURE: Final = codec.encode(Failure(attempts=1, error="boom", failed_at_us=START))


@cache
def shared_store(binary: Binary) -> Store:
    """Return the store that all rigs of this server binary share. The store also listens on a Unix
    socket."""
    store = Store(binary)
    store.config["unixsocket"] = str(store.folder / "socket")
    store.start()
    atexit.register(store.close)
    return store


class Rig:
    """An empty queue, alone in its store. The clock moves only when `now` is set."""

    def __init__(self, binary: Binary) -> None:
        store = shared_store(binary)
        self.keys, self.globals = QueueKeys("test", "queue"), GlobalKeys("test")
        self.socket = str(store.config["unixsocket"])
        user = limited.user_of_rigs(store, self.keys.prefix) if limited.LIMITED else ""
        self._user = user.partition(":")[0] or "default"
        self.broker = Broker(redis_clients.parse(f"unix://{user}{self.socket}"))
        self._unlimited = self.broker
        """A broker that may run any command on all keys; `broker` may have only the rights of a
        role."""
        if user:
            self._unlimited = Broker(redis_clients.parse(f"unix://{self.socket}"))
        self.client: Any = store.client(protocol=2)
        self.now = START
        self._number = 0
        self.reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.broker.close()
        self._unlimited.close()
        self.client.close()

    def reset(self) -> None:
        """Empty the store and reset the clock."""
        self.client.flushall()
        self.broker.flow_queues.clear()
        self.now = START

    def allow_publishing(self, allowed: bool) -> None:
        """Grant or revoke the store user's rights to channels."""
        pattern = f"&{{{self.keys.prefix}:*}}:{DONE_CHANNEL}" if limited.LIMITED else "&*"
        rules = ["resetchannels", *([pattern] if allowed else [])]
        self.client.execute_command("ACL", "SETUSER", self._user, *rules)

    def run(self, call: Call[T]) -> T:
        """Make a call without retries."""
        return self.broker.run(call, patience=0)

    def enqueue(self, *ids: str, **options: Any) -> list[tuple[str, str]]:
        """Enqueue one task per id in one call; return the outcomes and holders."""
        return self.send(self.tasks(*ids, **options))

    def tasks(self, *ids: str, **options: Any) -> list[NewTask]:
        """Return encoded tasks, all with the same nonce. The payload defaults to the id."""
        nonce, type = new_nonce(), options.pop("type", "type")
        payload = options.pop("payload", None)
        return [new_task(Task(type, payload or id.encode(), id=id, **options), nonce) for id in ids]

    def send(self, tasks: Sequence[NewTask]) -> list[tuple[str, str]]:
        outcomes = self.run(ops.enqueue(self.keys, tasks, now_us=self.now))
        return [(one.outcome, one.id) for one in outcomes]

    def fetch(
        self,
        wanted: int = 500,
        *,
        server: str = "s",
        number: int | None = None,
        policy: FetchPolicy = POLICY,
    ) -> FetchResult:
        """Fetch with the next number, or with `number` if it is set."""
        return self.run(self.fetching(wanted, server=server, number=number, policy=policy))

    def fetching(
        self,
        wanted: int = 500,
        *,
        server: str = "s",
        number: int | None = None,
        policy: FetchPolicy = POLICY,
    ) -> Call[FetchResult]:
        if number is None:
            self._number += 1
            number = self._number
            self.be_seen()
        return ops.fetch(
            self.keys, server=server, number=number, wanted=wanted, policy=policy, now_us=self.now
        )

    def be_seen(self) -> None:
        """Record that a server was alive until now, so that no grace period begins."""
        if self.field("meta", "seen") is not None:
            self.set("meta", "seen", self.now)

    def lease(self, wanted: int = 500, *, server: str = "s") -> list[LeaseRef]:
        """Fetch, and return the leases."""
        ids = self.fetch(wanted, server=server).ids
        return [LeaseRef(id, f"{server}/{self._number}") for id in ids]

    def complete(
        self, *held: LeaseRef, retention_us: int | None = None, result: bytes = b""
    ) -> Sequence[str]:
        rows = [Completion(*one, retention_us, result) for one in held]
        return self.run(ops.complete(self.keys, rows, now_us=self.now))

    def retry(self, *held: LeaseRef, delay_us: int = S, failure: bytes = FAILURE) -> Sequence[str]:
        rows = [Retried(*one, delay_us, failure) for one in held]
        return self.run(ops.retry(self.keys, rows, now_us=self.now))

    def kill(self, *held: LeaseRef, failed: bool = True, failure: bytes = FAILURE) -> Sequence[str]:
        rows = [Killed(*one, failed, failure) for one in held]
        return self.run(ops.kill(self.keys, rows, now_us=self.now))

    def hand_back(
        self, *held: LeaseRef, delay_us: int | None = None, failure: bytes = b""
    ) -> Sequence[str]:
        rows = [HandedBack(*one, delay_us, failure) for one in held]
        return self.run(ops.hand_back(self.keys, rows, now_us=self.now))

    def end_cancelled(self, *held: LeaseRef) -> Sequence[str]:
        return self.run(ops.end_cancelled(self.keys, held, now_us=self.now))

    def renew(self, *held: LeaseRef) -> Sequence[str]:
        return self.run(ops.renew(self.keys, held, lease_us=LEASE, now_us=self.now))

    def mark_started(self, *held: LeaseRef) -> Sequence[str]:
        return self.run(ops.mark_started(self.keys, held))

    def cancel(self, id: str, retention_us: int | None = None) -> tuple[str, str]:
        return self.run(ops.cancel(self.keys, id, retention_us=retention_us, now_us=self.now))

    def rerun(self, id: str, state: str, **options: str) -> tuple[str, str]:
        return self.run(operator_ops.run(self.keys, id, state, now_us=self.now, **options))

    def delete(self, state: str, *ids: str) -> int:
        return self.run(operator_ops.delete(self.keys, ids, state, now_us=self.now))

    def abandon(self, server: str) -> int:
        """Abandon all leases of a server; return their number."""
        cursor, total = "0", 0
        while True:
            call = ops.abandon(self.keys, server, cursor=cursor)
            cursor, found = self.run(call)
            total += found
            if cursor == "0":
                return total

    def status(self, id: str) -> TaskStatus | None:
        [shown] = self.run(views.get_tasks(self.keys, [id]))
        return None if shown is None else stored_task.status(id, "queue", shown)

    def state(self, id: str) -> str | None:
        """Return the state of a task, or None if it is in no state."""
        found = [name for name in STATES if self.score(name, id) is not None]
        assert len(found) <= 1, f"{id} is in {found}"
        return found[0] if found else None

    def ids(self, state: str) -> list[str]:
        """Return the ids in a state, ordered by score."""
        return [id.decode() for id in self.client.zrange(self.keys.key(state), 0, -1)]

    def score(self, name: str, member: str) -> float | None:
        score: float | None = self.client.zscore(self.keys.key(name), member)
        return score

    def field(self, name: str, field: str) -> bytes | None:
        value: bytes | None = self.client.hget(self.keys.key(name), field)
        return value

    def set(self, name: str, field: str, value: str | bytes | int) -> None:
        """Write a field directly, without a script."""
        self.client.hset(self.keys.key(name), field, value)

    def counters(self) -> dict[str, int]:
        """Return the total counters, without the daily ones."""
        stored = self.client.hgetall(self.keys.key("stats"))
        return {name.decode(): int(value) for name, value in stored.items() if not name.count(b":")}

    def woken(self) -> bool:
        """Return whether a server was woken since the last call of this method."""
        elements = self.client.lrange(self.keys.key("wake"), 0, -1)
        assert len(elements) <= 1
        self.client.delete(self.keys.key("wake"))
        return bool(elements)

    def locks(self) -> dict[str, str]:
        stored = self.client.hgetall(self.keys.key("unique"))
        return {field.decode(): value.decode() for field, value in stored.items()}

    def dumping(self) -> Call[Dump]:
        """Return a call that dumps the store; see `dump`."""
        return Call(_DUMP, (), (), lambda reply: _dump(reply, self.keys.base + ":"))

    def dump(self, *, lost: bool = False) -> Dump:
        """Return all data in the store; the keys of the queue are under their names, other keys
        under the whole key.

        If `lost`, include the counter of refused settlements, which a repeated call increments.
        """
        found = self._unlimited.run(self.dumping(), patience=0)
        return found if lost else without_lost(found)


def without_lost(dump: Dump) -> Dump:
    """Return the dump without the counters of refused settlements."""
    stats = dump.get("stats", {})
    kept = {field: value for field, value in stats.items() if not field.startswith(b"lost")}
    rest = {name: held for name, held in dump.items() if name != "stats"}
    return rest | ({"stats": kept} if kept else {})


_DUMP_TEXT: Final = """#!lua flags=no-writes
local read = {
  hash = function(key) return redis.call('HGETALL', key) end,
  zset = function(key) return redis.call('ZRANGE', key, 0, -1, 'WITHSCORES') end,
  list = function(key) return redis.call('LRANGE', key, 0, -1) end,
  set = function(key) return redis.call('SMEMBERS', key) end,
  stream = function(key) return redis.call('XRANGE', key, '-', '+') end,
}
local found = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local type = redis.call('TYPE', key).ok
  found[#found + 1] = { key, type, read[type](key) }
end
return found
"""
_DUMP: Final = Script("dump", _DUMP_TEXT, hashlib.sha1(_DUMP_TEXT.encode()).hexdigest(), ())  # noqa: S324 - what EVALSHA goes by

_SHAPE: Final[dict[bytes, Any]] = {
    b"hash": lambda flat: dict(zip(flat[::2], flat[1::2], strict=True)),
    b"zset": lambda flat: dict(zip(flat[::2], map(float, flat[1::2]), strict=True)),
    b"list": list,
    b"set": set,
    b"stream": lambda entries: {id: tuple(fields) for id, fields in entries},
}


def _dump(reply: Any, base: str) -> Dump:
    return {
        key.decode().removeprefix(base): _SHAPE[type](flat) for key, type, flat in sorted(reply)
    }
