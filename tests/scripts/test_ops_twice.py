"""A repeated call has no further effect, and a call without a valid lease changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from qsync import codec
from qsync.bounds import Bounds
from qsync.broker import (
    bounds_ops,
    limit_ops,
    operator_ops,
    ops,
    program_schedule_ops,
    registry_ops,
    schedule_ops,
    schedule_run_ops,
    type_ops,
)
from qsync.broker.acl import scripts
from qsync.broker.call import Call
from qsync.broker.event_ops import EventRecord, event_bytes, record_event, recorded
from qsync.broker.op_values import Completion, HandedBack, Killed, LeaseRef, Retried
from qsync.broker.operator_ops import edit, reschedule
from qsync.broker.schedule_ops import TickRow
from qsync.broker.schedule_run_ops import Note
from qsync.broker.script import read
from qsync.broker.stored_schedules import StoredScheduleRow
from qsync.limit import LimitRule
from qsync.message import decode_message
from tests.scripts.test_ops_locks import LOCK, NAME
from tests.support.queue_driver import BINARIES, FAILURE, LAPSE, LEASE, START, Rig, S

RECORDING = {
    name for name in scripts() if "ARGV[2] event" in read(f"{name}.lua") and name != "record_event"
}
EVENT = event_bytes(EventRecord("task.delete", "ann"), b"12345678", grows=False)
STAMP = START.to_bytes(8, "big")

Make = Callable[[Rig, list[LeaseRef]], Call[Any]]


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        yield rig


SETTLE: dict[str, Make] = {
    "complete": lambda rig, held: ops.complete(
        rig.keys, [Completion(*one) for one in held], now_us=rig.now
    ),
    "complete and keep": lambda rig, held: ops.complete(
        rig.keys, [Completion(*one, S, b"result") for one in held], now_us=rig.now
    ),
    "complete without room": lambda rig, held: ops.complete_without_room(
        rig.keys, [Completion(*one, S, b"result") for one in held], now_us=rig.now
    ),
    "retry": lambda rig, held: ops.retry(
        rig.keys, [Retried(*one, S, FAILURE) for one in held], now_us=rig.now
    ),
    "kill": lambda rig, held: ops.kill(
        rig.keys, [Killed(*one, True, FAILURE) for one in held], now_us=rig.now
    ),
    "hand_back": lambda rig, held: ops.hand_back(
        rig.keys, [HandedBack(*one) for one in held], now_us=rig.now
    ),
    "hand_back for later": lambda rig, held: ops.hand_back(
        rig.keys, [HandedBack(*one, S, FAILURE) for one in held], now_us=rig.now
    ),
    "end_cancelled": lambda rig, held: ops.end_cancelled(rig.keys, held, now_us=rig.now),
}

HOLD: dict[str, Make] = {
    "renew": lambda rig, held: ops.renew(rig.keys, held, lease_us=2 * LEASE, now_us=rig.now),
    "mark_started": lambda rig, held: ops.mark_started(rig.keys, held),
    "progress": lambda rig, held: ops.progress(rig.keys, [(*one, 1, 2.5) for one in held]),
}


def enqueue_urgent(rig: Rig) -> Call[Any]:
    tasks = [*rig.tasks("u", priority=9, fairness_key="k"), *rig.tasks("v", priority=1)]
    return ops.enqueue(rig.keys, tasks, sender="me", number=1, now_us=rig.now)


def replace_holder(rig: Rig, held: list[LeaseRef] | None = None) -> Call[Any]:
    """Return an enqueue that replaces a waiting task (or an active task, with `held`) and adds
    another task."""
    options: dict[str, Any] = {"unique_key": "doc", "on_duplicate": "replace"}
    rig.enqueue("doc", **options)
    if held is not None:
        rig.hand_back(*held)
        held[:] = rig.lease()
    tasks = [*rig.tasks("y", delay=3, priority=8, **options), *rig.tasks("z")]
    return ops.enqueue(rig.keys, tasks, sender="me", number=1, now_us=rig.now)


def end_replaced(rig: Rig, held: list[LeaseRef], call: Call[Any]) -> Call[Any]:
    """Return a call that ends attempts, one of them of a task that has since been replaced."""
    message = rig.field("tasks", held[0].id)
    assert message is not None
    rig.set("successors", held[0].id, b"%d 1 k%s" % (rig.now + 5, message))
    rig.set("meta", "schema", "2")
    return call.in_flow()


def edit_of(rig: Rig, id: str, state: str, **options: Any) -> Call[Any]:
    """Return an edit that makes the message of a task longer."""
    seen = rig.field("tasks", id)
    assert seen is not None
    message = codec.encode(msgspec.structs.replace(decode_message(seen), payload=b"new payload"))
    return edit(rig.keys, id, state, seen=seen, message=message, now_us=rig.now, **options)


OTHER: dict[str, Make] = {
    "cancel active": lambda rig, held: ops.cancel(rig.keys, "a", retention_us=5, now_us=rig.now),
    "cancel pending": lambda rig, held: ops.cancel(rig.keys, "p", retention_us=5, now_us=rig.now),
    "cancel scheduled": lambda rig, held: ops.cancel(
        rig.keys, "s", retention_us=None, now_us=rig.now
    ),
    "enqueue of priorities": lambda rig, held: enqueue_urgent(rig),
    "replace waiting": lambda rig, held: replace_holder(rig),
    "replace active": lambda rig, held: replace_holder(rig, held),
    "complete replaced": lambda rig, held: end_replaced(
        rig, held, ops.complete(rig.keys, [Completion(*one) for one in held], now_us=rig.now)
    ),
    "complete and keep replaced": lambda rig, held: end_replaced(
        rig,
        held,
        ops.complete(rig.keys, [Completion(*one, 5, b"r") for one in held], now_us=rig.now),
    ),
    "complete replaced without room": lambda rig, held: end_replaced(
        rig,
        held,
        ops.complete_without_room(
            rig.keys, [Completion(*one, 5, b"r") for one in held], now_us=rig.now
        ),
    ),
    "retry replaced": lambda rig, held: end_replaced(
        rig, held, ops.retry(rig.keys, [Retried(*one, S, FAILURE) for one in held], now_us=rig.now)
    ),
    "kill replaced": lambda rig, held: end_replaced(
        rig, held, ops.kill(rig.keys, [Killed(*one, True, FAILURE) for one in held], now_us=rig.now)
    ),
    "hand back replaced": lambda rig, held: end_replaced(
        rig, held, ops.hand_back(rig.keys, [HandedBack(*one) for one in held], now_us=rig.now)
    ),
    "end cancelled replaced": lambda rig, held: end_replaced(
        rig, held, ops.end_cancelled(rig.keys, held, now_us=rig.now)
    ),
    "reschedule": lambda rig, held: reschedule(rig.keys, "s", "+5", now_us=rig.now),
    "edit scheduled": lambda rig, held: edit_of(rig, "s", "scheduled", due="+5"),
    "edit retry and run": lambda rig, held: edit_of(
        rig, "r", "retry", rerun=operator_ops.RerunRequest("r")
    ),
    "edit dead": lambda rig, held: edit_of(rig, "d", "dead"),
    "edit dead and run": lambda rig, held: edit_of(
        rig, "d", "dead", rerun=operator_ops.RerunRequest("d", "k", NAME, FAILURE)
    ),
    "run scheduled": lambda rig, held: operator_ops.run(rig.keys, "s", "scheduled", now_us=rig.now),
    "run dead": lambda rig, held: operator_ops.run(
        rig.keys, "d", "dead", lock=NAME, fairness_key="k", now_us=rig.now
    ),
    "delete": lambda rig, held: operator_ops.delete(
        rig.keys, ["p", "d"], "pending", now_us=rig.now
    ),
    "delete dead": lambda rig, held: operator_ops.delete(
        rig.keys, ["p", "d"], "dead", now_us=rig.now
    ),
    "mark_idle": lambda rig, held: ops.mark_idle(
        rig.keys, server="s", lease_us=LEASE, keep_us=S, now_us=rig.now
    ),
    "abandon": lambda rig, held: ops.abandon(rig.keys, "s"),
    "run many": lambda rig, held: operator_ops.run_many(
        rig.keys,
        [operator_ops.RerunRequest("d", "k", NAME, FAILURE), operator_ops.RerunRequest("p")],
        "dead",
        now_us=rig.now,
    ),
    "purge": lambda rig, held: operator_ops.purge(rig.keys, "pending", now_us=rig.now),
    "purge lapsed": lambda rig, held: operator_ops.purge(
        rig.keys, "active", now_us=rig.now + LEASE
    ),
    "forget": lambda rig, held: operator_ops.delete_queue(rig.keys),
    "publish": lambda rig, held: program_schedule_ops.publish_schedules(
        rig.keys, [("hourly", b"r", b"t")], now_us=rig.now
    ),
    "pause schedule": lambda rig, held: program_schedule_ops.pause_schedule(
        rig.keys, "hourly", b"me", now_us=rig.now
    ),
    "resume schedule": lambda rig, held: program_schedule_ops.resume_schedule(
        rig.keys, "hourly", now_us=rig.now
    ),
    "forget schedule": lambda rig, held: program_schedule_ops.forget_schedule(
        rig.keys, "hourly", silence_us=0, now_us=rig.now
    ),
    "put schedule": lambda rig, held: schedule_ops.put_schedule(
        rig.keys, "daily", rig.now + S, b"another record", now_us=rig.now + 1
    ),
    "put new schedule": lambda rig, held: schedule_ops.put_schedule(
        rig.keys, "new", rig.now + S, b"a record", now_us=rig.now
    ),
    "delete schedule": lambda rig, held: schedule_ops.delete_schedule(rig.keys, "daily"),
    "resume stored": lambda rig, held: program_schedule_ops.resume_schedule(
        rig.keys, "paused", now_us=rig.now
    ),
    "tick schedules": lambda rig, held: tick_stored(rig),
    "announce schedules": lambda rig, held: schedule_ops.announce_schedules(
        rig.globals, "queue", 1
    ),
    "unregister": lambda rig, held: registry_ops.unregister(rig.globals, ["a"]),
    "pause": lambda rig, held: operator_ops.pause(rig.keys, b"me"),
    "resume": lambda rig, held: operator_ops.resume(rig.keys),
    "report_types": lambda rig, held: type_ops.report_types(rig.keys, {"1:s": b"x"}),
    "roll_types": lambda rig, held: (
        rig.run(type_ops.report_types(rig.keys, {"1:s": b"x", "2:s": b"y"})),
        type_ops.roll_types(rig.keys, b"", ["1:s"], {"#": b"d", "m0:t": b"z", "m1:t": None}),
    )[-1],
    "note runs": lambda rig, held: schedule_run_ops.note_runs(rig.keys, [Note("daily", 1, "M")]),
    "pause_type": lambda rig, held: type_ops.pause_type(rig.keys, "t", b"me", now_us=rig.now),
    "resume_type": lambda rig, held: (
        rig.run(type_ops.pause_type(rig.keys, "u", b"me", now_us=rig.now)),
        rig.run(type_ops.pause_type(rig.keys, "type", b"me", now_us=rig.now)),
        rig.enqueue("set-aside"),
        type_ops.resume_type(rig.keys, "type", now_us=rig.now),
    )[-1],
    "tick": lambda rig, held: program_schedule_ops.tick(
        rig.keys, "hourly", rig.now, rig.tasks("tick", **LOCK)[0], now_us=rig.now
    ),
    "begin_ticks": lambda rig, held: program_schedule_ops.begin_ticks(
        rig.keys, ["a", "b"], now_us=rig.now
    ),
    "fetch": lambda rig, held: rig.fetching(2),
    "fetch for upkeep": lambda rig, held: rig.fetching(0),
    "enqueue": lambda rig, held: ops.enqueue(
        rig.keys, rig.tasks("x", "y", delay=3, fairness_key="k", **LOCK), now_us=rig.now
    ),
    "enqueue one": lambda rig, held: ops.enqueue(
        rig.keys, rig.tasks("x"), sender="s", number=1, now_us=rig.now
    ),
    "register": lambda rig, held: registry_ops.register(rig.globals, ["a", "b"]),
    "announce": lambda rig, held: registry_ops.server_heartbeat(
        rig.globals, "s", ttl_us=S, now_us=rig.now
    ),
    "announce an end": lambda rig, held: registry_ops.server_heartbeat(
        rig.globals, "s", ttl_us=0, now_us=rig.now
    ),
    "describe": lambda rig, held: registry_ops.set_server_info(
        rig.globals, "s", {"a": 1}, ttl_ms=60_000
    ),
    "describe an end": lambda rig, held: registry_ops.set_server_info(
        rig.globals, "s", {}, ttl_ms=0
    ),
    "set bounds": lambda rig, held: bounds_ops.set_bounds(
        rig.keys, Bounds(max_bytes=10_000), by="ann", now_us=rig.now
    ),
    "remove bounds": lambda rig, held: (
        rig.run(bounds_ops.set_bounds(rig.keys, Bounds(max_bytes=10_000), now_us=rig.now)),
        bounds_ops.set_bounds(rig.keys, None, now_us=rig.now),
    )[-1],
    "recount bytes": lambda rig, held: (
        rig.run(bounds_ops.set_bounds(rig.keys, Bounds(max_bytes=10_000), now_us=rig.now)),
        rig.set("meta", "bytes", "7"),
        bounds_ops.recount_bytes(rig.keys),
    )[-1],
    "set weight": lambda rig, held: bounds_ops.set_weight(rig.keys, "k", 2.5),
    "set latency target": lambda rig, held: bounds_ops.set_latency_target(rig.keys, S),
    "acknowledge dead": lambda rig, held: bounds_ops.acknowledge_dead(rig.keys, rig.now),
    "wait marker": lambda rig, held: ops.wait(rig.keys, "fsync", timeout_ms=1).mark,
    "record": lambda rig, held: record_event(rig.keys, EVENT, ids=["a"], now_us=rig.now),
    "send": lambda rig, held: registry_ops.send_order(rig.globals, "s", b"quiet", ttl_ms=60_000),
}


def tick_stored(rig: Rig) -> Call[Any]:
    """Return ticks of two stored schedules, one of them paused, and of a schedule whose record is
    lost."""
    due = [StoredScheduleRow(name, STAMP, rig.now) for name in ("daily", "paused", "lost")]
    rows = [
        TickRow(row, rig.now + S, rig.tasks(f"{row.name}@1", fairness_key="k", **LOCK))
        for row in due
    ]
    return schedule_ops.tick_schedules(rig.keys, rows, now_us=rig.now)


def recording(make: Make) -> Make:
    """Return a function that makes the call, with the record of an operator's action if the script
    takes such a record."""

    def made(rig: Rig, held: list[LeaseRef]) -> Call[Any]:
        call = make(rig, held)
        takes_event = "events" in call.script.keys and call.script.name in RECORDING
        return recorded(call, EVENT) if takes_event else call

    return made


ALL = SETTLE | HOLD | {name: recording(make) for name, make in OTHER.items()}


def queue(rig: Rig) -> list[LeaseRef]:
    """Create a task in each state; return the leases of two tasks that have crashed before."""
    rig.enqueue("d", **LOCK)
    rig.kill(*rig.lease())
    rig.enqueue("c")
    rig.complete(*rig.lease(), retention_us=1000 * S, result=b"old")
    rig.enqueue("r")
    rig.retry(*rig.lease(), delay_us=900 * S)
    rig.enqueue("a", "b", fairness_key="k", unique=True)
    rig.lease(server="dead")
    rig.now += LAPSE
    held = rig.lease(2)
    rig.run(ops.cancel(rig.keys, "b", retention_us=7 * S, now_us=rig.now))
    rig.enqueue("p", "q")
    rig.enqueue("s", delay=3600)
    for name in ("daily", "paused"):
        put = schedule_ops.put_schedule(rig.keys, name, rig.now, b"a record", now_us=START)
        rig.run(put)
    rig.run(program_schedule_ops.pause_schedule(rig.keys, "paused", b"me", now_us=START))
    rig.client.zadd(rig.keys.key("next_ticks"), {"lost": rig.now})
    assert [one.id for one in held] == ["a", "b"]
    return held


def test_every_script_that_writes_is_repeated_here(rig: Rig) -> None:
    """tests/scripts/test_half_way.py makes the same calls, and lets each of their commands fail."""
    called = set()
    for make in ALL.values():
        rig.reset()
        called.add(make(rig, queue(rig)).script.name)
    writing = {name for name in scripts() if "no-writes" not in read(f"{name}.lua")}
    assert writing - called <= {"open_limit", "put_limit_rules", "repair"}, (
        "test_half_way.py makes these"
    )


@pytest.mark.faults(34, 35, 36)
@pytest.mark.parametrize("name", ALL)
def test_repeated_operation_has_no_further_effect(rig: Rig, name: str) -> None:
    call = ALL[name](rig, queue(rig))
    rig.run(call)
    once = rig.dump()
    rig.run(call)
    assert rig.dump() == once


ACTIONS: dict[str, Make] = {
    name: OTHER[name]
    for name in (
        "cancel pending", "cancel scheduled", "run scheduled", "run dead", "delete dead",
        "edit retry and run", "edit dead and run", "resume stored",
        "delete schedule", "resume_type", "acknowledge dead", "set bounds", "remove bounds",
        "set weight", "set latency target",
    )
} | {
    "resume": lambda rig, held: (
        rig.run(operator_ops.pause(rig.keys, b"me")),
        operator_ops.resume(rig.keys),
    )[-1],
    "reset weight": lambda rig, held: (
        rig.run(bounds_ops.set_weight(rig.keys, "k", 2.5)),
        bounds_ops.set_weight(rig.keys, "k", None),
    )[-1],
    "reset latency target": lambda rig, held: (
        rig.run(bounds_ops.set_latency_target(rig.keys, S)),
        bounds_ops.set_latency_target(rig.keys, None),
    )[-1],
    "forget schedule": lambda rig, held: (
        rig.run(
            program_schedule_ops.publish_schedules(
                rig.keys, [("hourly", b"r", b"t")], now_us=rig.now
            )
        ),
        program_schedule_ops.forget_schedule(rig.keys, "hourly", silence_us=0, now_us=rig.now),
    )[-1],
    "reset limit": lambda rig, held: (
        rig.run(limit_ops.set_limit(rig.keys, "c", LimitRule(concurrency=2), "ann")),
        limit_ops.set_limit(rig.keys, "c", None, ""),
    )[-1],
    "open limit": lambda rig, held: (
        rig.client.hset(rig.keys.key("limits"), "c", f"0 0 0 {2**52}"),
        limit_ops.open_limit(rig.keys, "c"),
    )[-1],
}  # fmt: skip
"""Operators' actions that change a single item."""


@pytest.mark.faults(35)
@pytest.mark.parametrize("name", ACTIONS)
def test_repeated_action_of_an_operator_gets_the_same_reply(rig: Rig, name: str) -> None:
    call = recorded(ACTIONS[name](rig, queue(rig)), EVENT)
    before = rig.dump()
    answer = rig.run(call)
    assert rig.dump() != before
    assert rig.run(call) == answer
    another = event_bytes(EventRecord("task.delete", "ann"), b"87654321", grows=False)
    if name in ("resume", "reset limit", "delete schedule", "delete dead"):
        assert not rig.run(recorded(call, another))


@pytest.mark.faults(35)
def test_repeated_call_of_a_client_gets_the_same_reply(rig: Rig) -> None:
    held = queue(rig)
    gone = ops.cancel(rig.keys, "s", retention_us=None, call_id=("me", 1), now_us=rig.now)
    assert rig.run(gone) == rig.run(gone) == ("cancelled", "")
    rig.enqueue("s")
    assert rig.run(gone) == ("cancelled", "")
    assert rig.state("s") == "pending", "another task has the id now"
    running = ops.cancel(rig.keys, "a", retention_us=None, call_id=("me", 2), now_us=rig.now)
    assert rig.run(running) == rig.run(running) == ("active", held[0].token)
    rig.run(ops.end_cancelled(rig.keys, held[:1], now_us=rig.now))
    assert rig.run(running) == ("cancelled", "")
    other = ops.cancel(rig.keys, "a", retention_us=None, call_id=("me", 3), now_us=rig.now)
    assert rig.run(other) == ("missing", "")
    earlier = reschedule(rig.keys, "r", "+0", call_id=("me", 4), now_us=rig.now)
    again = recorded(reschedule(rig.keys, "r", "+1", now_us=rig.now), EVENT)
    for call in (earlier, again):
        answer = rig.run(call)
        rig.now += S
        assert rig.run(call.at(rig.now)) == answer
    rig.fetch(10)
    assert rig.state("r") == "active"
    assert rig.run(again.at(rig.now)).due_us == answer.due_us
    late = reschedule(rig.keys, "r", "+0", call_id=("me", 5), now_us=rig.now)
    assert rig.run(late).due_us is None


@pytest.mark.parametrize("name", SETTLE | HOLD)
def test_a_settlement_changes_something_once(rig: Rig, name: str) -> None:
    """Each call changes something; otherwise, the other tests would prove nothing."""
    call = (SETTLE | HOLD)[name](rig, queue(rig))
    before = rig.dump()
    assert set(rig.run(call)) <= {"ok", "cancelled"}
    assert rig.dump() != before


@pytest.mark.faults(36)
@pytest.mark.parametrize("name", SETTLE)
def test_repeated_settlement_is_answered_with_done(rig: Rig, name: str) -> None:
    call = SETTLE[name](rig, queue(rig))
    rig.run(call)
    assert rig.run(call) == ["done", "done"]


@pytest.mark.faults(3)
@pytest.mark.guarantee(3)
@pytest.mark.parametrize("name", SETTLE | HOLD)
@pytest.mark.parametrize("token", ["s/0", "t/5", "s", "", "s/04"])
def test_settlement_with_a_stale_token_changes_nothing(rig: Rig, name: str, token: str) -> None:
    held = queue(rig)
    stale = [LeaseRef(one.id, token) for one in held]
    call = (SETTLE | HOLD)[name](rig, stale)
    before = rig.dump()
    assert rig.run(call) == ["lost", "lost"]
    assert rig.dump() == before


@pytest.mark.parametrize("name", SETTLE | HOLD)
def test_unowned_task_settles_as_done(rig: Rig, name: str) -> None:
    queue(rig)
    unheld = [LeaseRef(id, "s/1") for id in ("p", "s", "c", "d", "r", "unknown")]
    call = (SETTLE | HOLD)[name](rig, unheld)
    before = rig.dump()
    assert rig.run(call) == ["done"] * 6
    assert rig.dump(lost=True) == before | {"stats": rig.dump(lost=True)["stats"]}
    assert rig.dump() == before


@pytest.mark.parametrize("name", SETTLE | HOLD)
def test_one_call_may_have_current_and_stale_tokens(rig: Rig, name: str) -> None:
    held = queue(rig)
    call = (SETTLE | HOLD)[name](
        rig, [LeaseRef("a", "s/0"), LeaseRef("p", "s/1"), held[1], held[1]]
    )
    first, second, third, fourth = rig.run(call)
    assert (first, second) == ("lost", "done")
    assert third in ("ok", "cancelled")
    assert fourth == "done"
    assert rig.state("a") == "active"
    assert rig.field("owner", "a") == held[0].token.encode()


@pytest.mark.faults(3, 36)
@pytest.mark.guarantee(3)
@pytest.mark.parametrize("name", SETTLE)
def test_settlement_repeated_after_the_task_was_fetched_again_changes_nothing(
    rig: Rig, name: str
) -> None:
    """The first reply was lost, and the same server has since leased the task again in another
    fetch."""
    call = SETTLE[name](rig, queue(rig))
    rig.run(call)
    rig.now += 10 * S
    again = {one.id: one.token for one in rig.lease()}
    before = rig.dump()
    answers = rig.run(call)
    assert answers == ["lost" if id in again else "done" for id in ("a", "b")]
    assert rig.dump() == before


@pytest.mark.parametrize("name", SETTLE | HOLD)
def test_an_empty_batch_is_no_error(rig: Rig, name: str) -> None:
    queue(rig)
    before = rig.dump()
    assert rig.run((SETTLE | HOLD)[name](rig, [])) == []
    assert rig.dump() == before


def test_refused_settlements_are_counted(rig: Rig) -> None:
    rig.enqueue("a", "b")
    held = [LeaseRef(one.id, "s/0") for one in rig.lease()]
    for settle in (rig.complete, rig.retry, rig.kill):
        settle(*held)
    assert rig.counters()["lost"] == 6


# Enqueue


@pytest.mark.faults(35)
def test_repeated_fetch_gets_the_same_reply(rig: Rig) -> None:
    queue(rig)
    call = rig.fetching(2)
    first, again = rig.run(call), rig.run(call)
    assert first.ids == ["p", "q"]
    for field in ("now_us", "ids", "messages", "failures", "crashes", "paused"):
        assert getattr(again, field) == getattr(first, field)


@pytest.mark.faults(34)
@pytest.mark.parametrize("options", [{}, {"delay": 5}, {"fairness_key": "k"}, LOCK])
def test_the_same_enqueue_again_is_created_wherever_the_task_is(
    rig: Rig, options: dict[str, object]
) -> None:
    tasks = rig.tasks("a", **options)
    assert rig.send(tasks) == [("created", "a")]
    rig.now += 5 * S
    for step in (
        lambda: rig.lease(),
        lambda: rig.retry(LeaseRef("a", rig.field("owner", "a").decode()), delay_us=S),  # type: ignore[union-attr]
        lambda: setattr(rig, "now", rig.now + S),
        lambda: rig.complete(*rig.lease(), retention_us=S),
    ):
        step()
        before = rig.dump()
        assert rig.send(tasks) == [("created", "a")]
        assert rig.dump() == before


@pytest.mark.faults(34)
def test_another_enqueue_of_the_same_id_is_a_duplicate(rig: Rig) -> None:
    rig.enqueue("a")
    before = rig.dump()
    assert rig.enqueue("a", delay=3, fairness_key="k", **LOCK) == [("exists", "a")]
    assert rig.dump() == before
    rig.complete(*rig.lease())
    assert rig.enqueue("a") == [("created", "a")]


def test_id_repeated_in_one_call_is_created_once(rig: Rig) -> None:
    same, other = rig.tasks("a"), rig.tasks("a", payload=b"other")
    assert rig.send(same + same) == [("created", "a"), ("created", "a")]
    assert rig.send(same + other) == [("created", "a"), ("exists", "a")]
    assert rig.counters()["enqueued"] == 1
    assert rig.send(rig.tasks("b") + rig.tasks("b")) == [("created", "b"), ("exists", "b")]


def test_batch_of_500_with_all_options_is_settled(rig: Rig) -> None:
    ids = [str(n) for n in range(500)]
    tasks = rig.tasks(*ids, unique=5, fairness_key="k", retention=9)
    assert rig.send(tasks) == [("created", id) for id in ids]
    once = rig.dump()
    assert rig.send(tasks) == [("created", id) for id in ids]
    assert rig.dump() == once
    held = rig.lease()
    assert rig.renew(*held) == ["ok"] * 500
    assert rig.retry(*held, delay_us=0) == ["ok"] * 500
    while rig.fetch(0).more:
        pass
    held = rig.lease()
    assert rig.hand_back(*held) == ["ok"] * 500
    held = rig.lease()
    assert rig.complete(*held, retention_us=S, result=b"r") == ["ok"] * 500
    assert rig.delete("completed", *ids) == 500


@pytest.mark.parametrize(
    "make",
    [
        lambda rig, many: ops.enqueue(rig.keys, rig.tasks(*[one.id for one in many])),
        lambda rig, many: operator_ops.delete(rig.keys, [one.id for one in many], "dead"),
        *SETTLE.values(),
        *HOLD.values(),
    ],
)
def test_no_call_is_made_for_more_than_500(rig: Rig, make: Make) -> None:
    many = [LeaseRef(str(n), "s/1") for n in range(501)]
    with pytest.raises(ValueError, match="501 tasks in one call are over the limit of 500"):
        make(rig, many)
