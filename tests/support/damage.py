"""Damages a queue, as an operator, an eviction or a bad disk would, and repairs it.

The model does not cover damaged queues. Damaged data must not make any script fail, and a queue
that an audit has repaired must drain like any other queue.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Final, NamedTuple, TypeVar, cast

from msgspec.structs import replace

from qsync.broker import operator_ops, ops, type_ops
from qsync.broker.aio import AsyncBroker
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
from qsync.diagnostics.audit import Auditor, Report
from qsync.keys import QUEUE_KEYS
from tests.support.queue_driver import DAY, LEASE, Dump, Rig, S

T = TypeVar("T")

HASHES: Final = (
    "tasks", "owner", "crashes", "failures", "results", "unique", "keys", "cancels", "progress",
    "fetches", "calls", "meta", "stats", "holds", "limits", "limit_rules",
    "successors",
)  # fmt: skip
SETS: Final = (
    "scheduled", "pending", "active", "retry", "limited", "completed", "dead", "waiters",
    "openings",
)  # fmt: skip

FOREVER: Final = frozenset(
    {
        "meta",
        "stats",
        "fetches",
        "ticks",
        "wake",
        "idle",
        "recent",
        "limit_rules",
        "type_reports",
        "type_stats",
    }
)
"""Keys that a queue may have when it holds no tasks."""

ROUNDS: Final = 40


class Damage(NamedTuple):
    """Damage to one field of a key, or to the whole key."""

    how: str
    """lost | spoilt | evicted"""
    key: str
    at: int


class Patient:
    """A damaged queue and the calls made on it."""

    def __init__(self, rig: Rig, policy: FetchPolicy, number: int) -> None:
        self.rig = rig
        self._policy = policy
        self._number = number

    def inflict(self, damage: Damage) -> None:
        """Cause the damage, if the key has data."""
        client, key = self.rig.client, self.rig.keys.key(damage.key)
        if damage.how == "evicted":
            client.unlink(key)
            return
        is_set = damage.key in SETS
        fields = sorted(client.zrange(key, 0, -1) if is_set else client.hkeys(key))
        if not fields:
            return
        field = fields[damage.at % len(fields)]
        if damage.how == "spoilt" and not is_set:
            client.hset(key, field, b"\xc1 this is none")
        else:
            (client.zrem if is_set else client.hdel)(key, field)

    def treat(self, verbs: list[str], held: list[LeaseRef], ids: tuple[str, ...]) -> None:
        """Make ordinary calls on the damaged queue; none may fail."""
        for verb in verbs:
            self.rig.now += LEASE if verb == "fetch" else 1
            self.rig.run(self._call(verb, held or [LeaseRef(ids[0], "s/0")], ids))

    def _call(self, verb: str, held: list[LeaseRef], ids: tuple[str, ...]) -> Call[Any]:
        keys, now = self.rig.keys, self.rig.now
        match verb:
            case "fetch":
                return self._fetch("nurse", 3)
            case "complete":
                return ops.complete(
                    keys, [Completion(*one, 5 * S, b"r") for one in held], now_us=now
                )
            case "retry":
                return ops.retry(keys, [Retried(*one, S, b"f") for one in held], now_us=now)
            case "kill":
                return ops.kill(keys, [Killed(*one, True, b"f") for one in held], now_us=now)
            case "hand_back":
                return ops.hand_back(keys, [HandedBack(*one) for one in held], now_us=now)
            case "stopped":
                return ops.end_cancelled(keys, held, now_us=now)
            case "renew":
                return ops.renew(keys, held, lease_us=LEASE, now_us=now)
            case "mark_started":
                return ops.mark_started(keys, held)
            case "cancel":
                return ops.cancel(keys, ids[0], retention_us=S, now_us=now)
            case "run":
                return operator_ops.run(keys, ids[1], "dead", lock="l", now_us=now)
            case "delete":
                return operator_ops.delete(keys, list(ids), "scheduled", now_us=now)
            case "enqueue":
                tasks = self.rig.tasks(*ids, unique=True, unique_key="l")
                return ops.enqueue(keys, tasks, now_us=now)
        return ops.abandon(keys, "s")

    def _fetch(self, server: str, wanted: int) -> Call[FetchResult]:
        self._number += 1
        return ops.fetch(
            self.rig.keys, server=server, number=self._number, wanted=wanted,
            policy=self._policy, now_us=self.rig.now,
        )  # fmt: skip

    def heal(self) -> None:
        """Repair all damage except locks that another task has taken in the meantime."""
        auditor = Auditor(cast("AsyncBroker", _AtOnce(self.rig)), prefix=self.rig.keys.prefix)
        # A repair can reveal more damage. After a lost message, the audit can find a record of the
        # next run, and after that, missing limits.
        for _ in range(4):
            report: Report = _finished(auditor.audit(self.rig.keys.queue))
            left = [damage for damage in report.damages if damage.kind != "lock lost"]
            if not left:
                return
            _finished(auditor.repair(report.damages))
        raise AssertionError(f"not mended: {left}")

    def drain(self) -> None:
        """Run all tasks until they end, and check that none of their data is left after a year."""
        self._resume()
        self.rig.now = max(self.rig.now, self._latest())  # the clock may have gone back by hours
        for at in range(ROUNDS):
            # After a long pause, leases do not expire for a while; after a short pause, they do.
            self.rig.now += LEASE // 2 if at % 2 else 2 * LEASE
            fetched = self.rig.run(self._fetch("doctor", 20))
            held = [LeaseRef(id, f"doctor/{self._number}") for id in fetched.ids]
            self.rig.run(
                ops.complete(self.rig.keys, [Completion(*one) for one in held], now_us=self.rig.now)
            )
            if not any(self.rig.ids(state) for state in SETS[:5]):
                break
        for _ in range(4):
            self.rig.now += 100 * DAY
            self.rig.run(self._fetch("doctor", 0))
        left: Dump = self.rig.dump()
        assert left.keys() <= QUEUE_KEYS.keys()
        assert left.keys() <= FOREVER, (
            f"left behind: { {k: left[k] for k in left.keys() - FOREVER} }"
        )

    def _resume(self) -> None:
        """Resume the queue and all types that the store lists as paused."""
        self.rig.run(operator_ops.resume(self.rig.keys))
        for paused in self.rig.run(type_ops.paused_types(self.rig.keys)):
            self.rig.run(type_ops.resume_type(self.rig.keys, paused.type, now_us=self.rig.now))

    def _latest(self) -> int:
        """Return the latest time at which a task becomes due, a lease expires or a limit opens."""
        client, key = self.rig.client, self.rig.keys.key
        names = ("scheduled", "active", "retry", "openings")
        last = [client.zrange(key(name), -1, -1, withscores=True) for name in names]
        return max([int(due) for found in last for _, due in found], default=0)


class _AtOnce:
    """The part of AsyncBroker that an audit of one queue needs; it uses the rig and its clock."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    async def run(self, call: Call[T]) -> T:
        if call.script.name == "repair":
            call = replace(call, args=(self._rig.now, *call.args[1:]))
        return self._rig.run(call)


def _finished(work: Coroutine[Any, Any, T]) -> T:
    """Return the value of a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as end:
        return cast("T", end.value)
    raise AssertionError("it waits")
