"""A script that fails writes nothing. A script that succeeds completes its transition.

For each script, the tests make the store refuse each command in turn, and give each key the wrong
type in turn.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from qsync.broker import limit_ops, operator_ops, ops, redis_clients, type_ops
from qsync.broker.acl import _COMMAND
from qsync.broker.blocking import Broker
from qsync.broker.call import Call
from qsync.broker.op_values import Completion, FetchPolicy, HandedBack, Killed, LeaseRef, Retried
from qsync.errors import ConfigError, QsyncError
from qsync.keys import QUEUE_KEYS
from qsync.limit import LimitRule
from tests.scripts.test_ops_twice import ALL, Make, queue, recording
from tests.support.limits import with_limits
from tests.support.mutation import planted
from tests.support.queue_driver import BINARIES, DAY, FAILURE, LEASE, Dump, Rig, S


def late_fetch(rig: Rig, held: list[LeaseRef]) -> Call[Any]:
    """Return a fetch that does everything: it promotes, recovers, kills and leases tasks, ends
    cancelled tasks, sweeps and trims."""
    rig.set("crashes", "a", "2+")
    rig.now += 4000 * S
    policy = FetchPolicy(lease_us=LEASE, max_crashes=3, dead_limit=0, dead_age_us=DAY)
    return rig.fetching(3, server="other", policy=policy)


def repair(rig: Rig, damage: str, id: str) -> Call[Any]:
    return operator_ops.repair(
        rig.keys, damage, [(id, "")], record=FAILURE, lease_us=LEASE, now_us=rig.now
    )


def repair_two_states(rig: Rig, held: list[LeaseRef]) -> Call[Any]:
    rig.client.zadd(rig.keys.key("dead"), {"p": 1})
    return repair(rig, "several states", "p")


def repair_no_state(rig: Rig, held: list[LeaseRef]) -> Call[Any]:
    rig.client.zrem(rig.keys.key("pending"), "p")
    return repair(rig, "no state", "p")


def repair_no_message(rig: Rig, held: list[LeaseRef]) -> Call[Any]:
    rig.client.hdel(rig.keys.key("tasks"), "p")
    return repair(rig, "no message", "p")


def enqueue_chosen(rig: Rig, held: list[LeaseRef]) -> Call[Any]:
    tasks = [replace(task, remember_us=S) for task in rig.tasks("x", "y", fairness_key="k")]
    return ops.enqueue(rig.keys, tasks, sender="me", number=1, now_us=rig.now)


def limited_queue(rig: Rig) -> LeaseRef:
    """Enqueue limited tasks in all states; return the lease of the task that holds their limit."""
    rules = {"c": LimitRule(concurrency=1), "r": LimitRule(rate=1, per_us=S, burst=1)}
    rig.run(limit_ops.put_limit_rules(rig.keys, rules, now_us=rig.now))
    rig.send([with_limits(task, "c:1", "r") for task in rig.tasks("l1", "l2", "l3", retention=5)])
    rig.send([with_limits(task, "c:2") for task in rig.tasks("m1", "m2")])
    held = {one.id: one for one in rig.lease()}
    rig.kill(held["m1"])
    return held["l1"]


LIMITED: dict[str, Make] = {
    "complete": lambda rig, _: ops.complete(
        rig.keys, [Completion(*limited_queue(rig))], now_us=rig.now
    ),
    "complete and keep": lambda rig, _: ops.complete(
        rig.keys, [Completion(*limited_queue(rig), S, b"result")], now_us=rig.now
    ),
    "retry": lambda rig, _: ops.retry(
        rig.keys, [Retried(*limited_queue(rig), S, FAILURE)], now_us=rig.now
    ),
    "kill": lambda rig, _: ops.kill(
        rig.keys, [Killed(*limited_queue(rig), True, FAILURE)], now_us=rig.now
    ),
    "hand_back": lambda rig, _: ops.hand_back(
        rig.keys, [HandedBack(*limited_queue(rig), None, b"", "r", S)], now_us=rig.now
    ),
    "end_cancelled": lambda rig, _: ops.end_cancelled(
        rig.keys, [limited_queue(rig)], now_us=rig.now
    ),
    "cancel": lambda rig, _: (
        limited_queue(rig), ops.cancel(rig.keys, "l2", retention_us=5, now_us=rig.now)
    )[1],
    "delete": lambda rig, _: (
        limited_queue(rig), operator_ops.delete(rig.keys, ["l2", "l3"], "limited", now_us=rig.now)
    )[1],
    "purge": lambda rig, _: (
        limited_queue(rig), operator_ops.purge(rig.keys, "limited", now_us=rig.now)
    )[1],
    "run": lambda rig, _: (
        limited_queue(rig), operator_ops.run(rig.keys, "m1", "dead", now_us=rig.now)
    )[1],
    "enqueue": lambda rig, _: (
        limited_queue(rig),
        ops.enqueue(
            rig.keys, [with_limits(t, "c:1", "c:3") for t in rig.tasks("x", "y")], now_us=rig.now
        ),
    )[1],
    "fetch": lambda rig, _: (limited_queue(rig), late_fetch(rig, []))[1],
    "open": lambda rig, _: (
        rig.run(
            ops.hand_back(
                rig.keys, [HandedBack(*limited_queue(rig), None, b"", "c:1", S)], now_us=rig.now
            )
        ),
        limit_ops.open_limit(rig.keys, "c:1", now_us=rig.now),
    )[1],
    "rules": lambda rig, _: (
        limited_queue(rig),
        limit_ops.set_limit(rig.keys, "c", LimitRule(concurrency=3), "me", now_us=rig.now),
    )[1],
}  # fmt: skip


def paused_queue(rig: Rig) -> LeaseRef:
    """Enqueue limited tasks and pause their type, so that some are set aside; return the lease of a
    running task."""
    held = limited_queue(rig)
    rig.run(type_ops.pause_type(rig.keys, "type", b"me", now_us=rig.now))
    rig.enqueue("aside")
    rig.fetch(2)
    return held


PAUSED: dict[str, Make] = {
    "complete": lambda rig, _: ops.complete(
        rig.keys, [Completion(*paused_queue(rig))], now_us=rig.now
    ),
    "cancel": lambda rig, _: (
        paused_queue(rig), ops.cancel(rig.keys, "aside", retention_us=5, now_us=rig.now)
    )[1],
    "enqueue": lambda rig, _: (
        paused_queue(rig),
        ops.enqueue(
            rig.keys, [with_limits(t, "c:3") for t in rig.tasks("x", "y")], now_us=rig.now
        ),
    )[1],
    "fetch": lambda rig, _: (paused_queue(rig), late_fetch(rig, []))[1],
    "resume": lambda rig, _: (
        paused_queue(rig), type_ops.resume_type(rig.keys, "type", now_us=rig.now)
    )[1],
}  # fmt: skip


def in_flow(make: Make) -> Make:
    """Return a function that makes the call, in the flow variant if the script has one."""

    def made(rig: Rig, held: list[LeaseRef]) -> Call[Any]:
        call = recording(make)(rig, held)
        return call.in_flow() if call.script.is_plain else call

    return made


EVERY = (
    ALL
    | {f"{name} with limits": in_flow(make) for name, make in LIMITED.items()}
    | {f"{name} with a paused type": in_flow(make) for name, make in PAUSED.items()}
    | {
        "enqueue of chosen ids": enqueue_chosen,
        "fetch late": late_fetch,
        "repair of two states": repair_two_states,
        "repair of no state": repair_no_state,
        "repair of no message": repair_no_message,
    }
)

BESIDE = {
    "stats", "wake", "idle", "fairness", "progress", "keys", "meta", "fetches", "calls", "limits",
    "events",
}  # fmt: skip
"""Keys that do not decide the state or content of tasks. A failed script may leave these keys
unwritten."""


RECORDING = {"XADD", "XDEL", "XREVRANGE"}
"""Commands that record an action. If such a command fails, the script must still make its
change."""


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        try:
            yield rig
        finally:
            rig.client.execute_command("ACL", "DELUSER", "lacking")


def core(dump: Dump, *, less: str = "") -> Dump:
    """Return the keys that decide the state and content of tasks."""
    return {name: held for name, held in dump.items() if name not in BESIDE and name != less}


def shape(dump: Dump) -> dict[str, set[Any]]:
    """Return the fields of each key without their values, which differ between runs."""
    return {name: set(held) for name, held in core(dump).items()}


@contextlib.contextmanager
def lacking(rig: Rig, command: str) -> Iterator[Broker]:
    """Yield a broker whose user may run all commands except this one."""
    rules = ["reset", "on", ">secret", "~*", "&*", "+@all", f"-{command.lower()}"]
    rig.client.execute_command("ACL", "SETUSER", "lacking", *rules)
    broker = Broker(redis_clients.parse(f"unix://lacking:secret@{rig.socket}"))
    try:
        yield broker
    finally:
        broker.close()


def commands(call: Any) -> list[str]:
    """Return the store commands that the script of a call runs."""
    return sorted({name for name, _ in _COMMAND.findall(call.script.text)} - {"MEMORY"})


def assert_whole(name: str, found: Dump) -> None:
    """Assert that each task is in exactly one state, has its message, and has an owner if it is
    active."""
    if name.startswith("repair"):
        return
    states = [id for state in ("scheduled", "pending", "limited", "active", "retry", "completed",
                               "dead")
              for id in found.get(state, {})]  # fmt: skip
    assert len(states) == len(set(states)), f"{name}: a task is in two states"
    assert set(states) == set(found.get("tasks", {})), f"{name}: a task has no state, or no message"
    assert set(found.get("owner", {})) == set(found.get("active", {})), f"{name}: owner"


@pytest.mark.faults(84)
@pytest.mark.guarantee(2)
@pytest.mark.parametrize("name", EVERY)
def test_forbidden_command_leaves_no_partial_transition(rig: Rig, name: str) -> None:
    call = EVERY[name](rig, queue(rig))
    rig.run(call)
    whole = shape(rig.dump(lost=True))
    for command in commands(call):
        rig.reset()
        call = EVERY[name](rig, queue(rig))
        before = rig.dump(lost=True)
        failed = False
        with lacking(rig, command) as broker:
            try:
                broker.run(call, patience=0)
            except ConfigError:
                failed = True
        assert not (failed and command in RECORDING), f"{name} failed without {command}"
        found = rig.dump(lost=True)
        assert_whole(f"{name} without {command}", found)
        if failed and not name.startswith("fetch"):
            assert core(found) == core(before), (
                f"{name} wrote something although {command} was refused"
            )
        rig.run(call)
        assert shape(rig.dump(lost=True)) == whole, (
            f"after {command} was refused, a repeated {name} leaves other data"
        )


@pytest.mark.parametrize(
    ("command", "line"),
    [("XADD", "local added = redis.pcall("), ("XREVRANGE", "ipairs(redis.pcall('XREVRANGE'")],
)
def test_event_record_that_fails_its_script_is_detected(rig: Rig, command: str, line: str) -> None:
    with planted("include/record_event.lua", line, line.replace("pcall", "call")):
        for name in ("pause", "set weight", "edit dead", "pause_type"):
            call = EVERY[name](rig, queue(rig))
            with lacking(rig, command) as broker, pytest.raises(ConfigError):
                broker.run(call, patience=0)
            rig.reset()


@pytest.mark.faults(84)
@pytest.mark.guarantee(2)
@pytest.mark.parametrize("name", EVERY)
def test_key_of_another_type_leaves_no_partial_transition(rig: Rig, name: str) -> None:
    spoilt_keys = [key for key in EVERY[name](rig, queue(rig)).script.keys if key in QUEUE_KEYS]
    for key in spoilt_keys:
        rig.reset()
        call = EVERY[name](rig, queue(rig))
        full = rig.keys.key(key)
        rig.client.delete(full)
        rig.client.sadd(full, "something else")
        before = rig.dump(lost=True)
        try:
            rig.run(call)
        except QsyncError as error:
            assert re.search("WRONGTYPE", str(error)), error
            assert key != "events", f"{name} failed because of the action record"
            if not name.startswith("fetch"):
                assert core(rig.dump(lost=True)) == core(before), (
                    f"{name} wrote something although {key} has the wrong type"
                )
        found = rig.dump(lost=True)
        if key not in (
            "tasks",
            "owner",
            "active",
            "pending",
            "scheduled",
            "retry",
            "limited",
            "completed",
            "dead",
        ):
            assert_whole(f"{name} with another {key}", found)
