"""A script that fails has written nothing, and one that succeeds has done all of a transition.

Each command of each script is refused in turn, and each of its keys holds something else in turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from qsync.broker import ops, redis_clients
from qsync.broker.acl import _COMMAND
from qsync.broker.blocking import Broker
from qsync.broker.call import Call
from qsync.broker.ops import FetchPolicy, LeaseRef
from qsync.errors import ConfigError, QsyncError
from qsync.keys import QUEUE_KEYS
from tests.scripts.test_ops_twice import ALL, queue
from tests.support.queue_driver import BINARIES, DAY, FAILURE, LEASE, Dump, Rig, S


def late_fetch(rig: Rig, held: list[LeaseRef]) -> Call[Any]:
    """A fetch that promotes, recovers, kills, ends what was cancelled, leases, sweeps and trims."""
    rig.set("crashes", "a", "2+")
    rig.now += 4000 * S
    policy = FetchPolicy(lease_us=LEASE, max_crashes=3, dead_limit=0, dead_age_us=DAY)
    return rig.fetching(3, server="other", policy=policy)


def repair(rig: Rig, damage: str, id: str) -> Call[Any]:
    return ops.repair(rig.keys, damage, [(id, "")], record=FAILURE, lease_us=LEASE, now_us=rig.now)


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


EVERY = ALL | {
    "enqueue of chosen ids": enqueue_chosen,
    "fetch late": late_fetch,
    "repair of two states": repair_two_states,
    "repair of no state": repair_no_state,
    "repair of no message": repair_no_message,
}

BESIDE = {"stats", "wake", "idle", "fairness", "progress", "keys", "meta", "fetches", "calls"}
"""Keys that decide nothing about a task: what is written to them may be missing."""


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        try:
            yield rig
        finally:
            rig.client.execute_command("ACL", "DELUSER", "lacking")


def core(dump: Dump, *, less: str = "") -> Dump:
    """What decides where tasks are and what they are."""
    return {name: held for name, held in dump.items() if name not in BESIDE and name != less}


def shape(dump: Dump) -> dict[str, set[Any]]:
    """The fields of each key, without their values, which differ from one making to the next."""
    return {name: set(held) for name, held in core(dump).items()}


def lacking(rig: Rig, command: str) -> Broker:
    """The store as a user who may do everything but this."""
    rules = ["reset", "on", ">secret", "~*", "&*", "+@all", f"-{command.lower()}"]
    rig.client.execute_command("ACL", "SETUSER", "lacking", *rules)
    return Broker(redis_clients.parse(f"unix://lacking:secret@{rig.socket}"))


def commands(call: Any) -> list[str]:
    """The commands of the script of a call, but for those that make it run at all."""
    return sorted({name for name, _ in _COMMAND.findall(call.script.text)} - {"MEMORY"})


def assert_whole(name: str, found: Dump) -> None:
    """Assert that each task is in one state and has its message, and an owner while active."""
    if name.startswith("repair"):
        return
    states = [id for state in ("scheduled", "pending", "active", "retry", "completed", "dead")
              for id in found.get(state, {})]  # fmt: skip
    assert len(states) == len(set(states)), f"{name}: a task is in two states"
    assert set(states) == set(found.get("tasks", {})), f"{name}: a task has no state, or no message"
    assert set(found.get("owner", {})) == set(found.get("active", {})), f"{name}: owner"


@pytest.mark.faults(84)
@pytest.mark.guarantee(2)
@pytest.mark.parametrize("name", EVERY)
def test_command_without_rights_leaves_no_half_of_a_transition(rig: Rig, name: str) -> None:
    call = EVERY[name](rig, queue(rig))
    rig.run(call)
    whole = shape(rig.dump(lost=True))
    for command in commands(call):
        rig.reset()
        call = EVERY[name](rig, queue(rig))
        before = rig.dump(lost=True)
        broker = lacking(rig, command)
        try:
            broker.run(call, patience=0)
        except ConfigError:
            failed = True
        else:
            failed = False
        finally:
            broker.close()
        found = rig.dump(lost=True)
        assert_whole(f"{name} without {command}", found)
        if failed and not name.startswith("fetch"):
            assert core(found) == core(before), f"{name} without {command} wrote something"
        rig.run(call)
        assert shape(rig.dump(lost=True)) == whole, (
            f"{name} without {command}: it cannot be repeated"
        )


@pytest.mark.faults(84)
@pytest.mark.guarantee(2)
@pytest.mark.parametrize("name", EVERY)
def test_key_of_another_type_leaves_no_half_of_a_transition(rig: Rig, name: str) -> None:
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
            if not name.startswith("fetch"):
                assert core(rig.dump(lost=True)) == core(before), (
                    f"{name} with another {key} wrote something"
                )
        found = rig.dump(lost=True)
        if key not in (
            "tasks",
            "owner",
            "active",
            "pending",
            "scheduled",
            "retry",
            "completed",
            "dead",
        ):
            assert_whole(f"{name} with another {key}", found)
