"""Bounded queues: refused tasks, dropped tasks, and the exact size of all messages."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from qsync.bounds import Bounds, QueueBounds
from qsync.broker import bounds_ops, limit_ops, operator_ops, ops, program_schedule_ops, views
from qsync.broker.op_values import LeaseRef
from qsync.errors import QueueFull
from qsync.inspector.base import enqueue_once
from qsync.limit import LimitRule
from qsync.message import decode_message
from qsync.state import TaskState
from tests.scripts.model.mistakes import (
    bulk_call_passes_a_bound,
    removed_bytes_still_counted,
    scheduled_tasks_pass_a_bound,
)
from tests.support.queue_driver import BINARIES, DAY, LAPSE, Rig, S

WAITING = ("pending", "limited", "scheduled", "retry")


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        yield rig


def bound(rig: Rig, **bounds: Any) -> None:
    rig.run(bounds_ops.put_program_bounds(rig.keys, Bounds(**bounds)))


def read(rig: Rig) -> QueueBounds:
    return rig.run(bounds_ops.queue_bounds(rig.keys))


def held_bytes(rig: Rig) -> int:
    return sum(map(len, rig.client.hvals(rig.keys.key("tasks"))))


def test_bounds_raise_the_layout_and_are_read_as_they_were_set(rig: Rig) -> None:
    assert read(rig) == QueueBounds()
    bound(rig, max_tasks=5)
    assert rig.field("meta", "schema") == b"2"
    assert read(rig).program == Bounds(max_tasks=5)
    assert read(rig).bytes is None
    one = Bounds(max_bytes=1000, when_full="drop_oldest")
    assert rig.run(bounds_ops.set_bounds(rig.keys, one, by="ann b", now_us=rig.now))
    shown = read(rig)
    assert shown.operator is not None
    assert (shown.operator.bounds, shown.operator.by) == (one, "ann b")
    assert shown.in_force == one
    assert shown.bytes == 0
    assert rig.run(bounds_ops.set_bounds(rig.keys, None))
    assert not rig.run(bounds_ops.set_bounds(rig.keys, None))
    assert read(rig).in_force == Bounds(max_tasks=5)
    bound(rig)
    assert read(rig) == QueueBounds()


def test_call_beyond_max_tasks_is_refused_as_a_whole(rig: Rig) -> None:
    bound(rig, max_tasks=5)
    rig.enqueue("a", "b")
    rig.enqueue("later", delay=60)
    before = rig.dump()
    with pytest.raises(QueueFull) as refused:
        rig.enqueue("c", "a", "d", "e")
    error = refused.value
    assert (error.queue, error.bound, error.limit, error.count) == ("queue", "max_tasks", 5, 3)
    assert error.room == 3  # there is room for c, the existing a, and d
    assert "queue queue does not have enough space for this call: 3 tasks are waiting" in str(error)
    assert "enqueue fewer or smaller tasks per call" in str(error)
    assert rig.dump() == before
    rig.enqueue("c", "a", "d")
    assert rig.enqueue("a") == [("exists", "a")]  # an existing id needs no room


def test_room_ends_at_the_task_that_does_not_fit_even_if_another_has_its_id(rig: Rig) -> None:
    bound(rig, max_tasks=2)
    rig.enqueue("holder", unique=True, unique_key="l")
    duplicate = rig.tasks("x", unique=True, unique_key="l")
    with pytest.raises(QueueFull) as refused:
        rig.send([*duplicate, *rig.tasks("a"), *rig.tasks("x")])
    assert refused.value.room == 2  # for `a`, and for the duplicate, which needs no space


def test_active_tasks_do_not_count_and_come_back_beyond_the_bound(rig: Rig) -> None:
    bound(rig, max_tasks=2)
    rig.enqueue("a", "b")
    held = rig.lease()
    rig.enqueue("c", "d")
    rig.hand_back(held[0])
    rig.retry(held[1])
    assert read(rig).waiting == 4
    assert "full: 4 of 2 waiting tasks" in read(rig).note
    with pytest.raises(QueueFull):
        rig.enqueue("e")


def test_call_beyond_max_bytes_is_refused(rig: Rig) -> None:
    rig.enqueue("old", payload=b"x" * 1000)
    size = held_bytes(rig)
    bound(rig, max_bytes=2 * size)
    assert read(rig).bytes == size
    rig.enqueue("new", payload=b"x" * 1000)
    with pytest.raises(QueueFull) as refused:
        rig.enqueue("c")
    assert (refused.value.bound, refused.value.count) == ("max_bytes", 2 * size)
    assert refused.value.room == 0
    rig.complete(*rig.lease(1))
    rig.enqueue("c")
    assert read(rig).bytes == held_bytes(rig)


def test_drop_oldest_makes_room_and_leaves_active_tasks(rig: Rig) -> None:
    bound(rig, max_tasks=3, when_full="drop_oldest")
    rig.enqueue("running")
    rig.lease()
    for id in ("a", "b", "c", "d"):
        rig.enqueue(id, unique=True, unique_key=id)
    assert rig.ids("pending") == ["b", "c", "d"]
    assert rig.ids("active") == ["running"]
    assert rig.counters()["dropped"] == 1
    assert rig.state("a") is None
    assert rig.enqueue("a", unique=True, unique_key="a") == [("created", "a")]
    with pytest.raises(QueueFull) as refused:
        rig.enqueue("1", "2", "3", "4")
    assert refused.value.room == 3
    rig.enqueue("1", "2", "3")
    assert rig.ids("pending") == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("options", "outcome"),
    [
        ({"on_duplicate": "replace"}, "replaced"),
        ({"on_duplicate": "skip"}, "duplicate"),
        ({"unique": True}, "duplicate"),
    ],
)
@pytest.mark.parametrize("first", ["the new task", "the duplicate"])
def test_call_does_not_drop_the_task_that_its_reply_names(
    rig: Rig, options: dict[str, Any], outcome: str, first: str
) -> None:
    """Two callers share a round trip. One sends a new task; the other sends a task whose lock is
    held by the oldest waiting task."""
    doc = {"unique_key": "doc", **options}
    bound(rig, max_tasks=2, when_full="drop_oldest")
    rig.enqueue("doc", payload=b"old", **doc)
    rig.enqueue("a")
    tasks = [*rig.tasks("b"), *rig.tasks("again", payload=b"new", **doc)]
    expected = [("created", "b"), (outcome, "doc")]
    order = 1 if first == "the new task" else -1
    call = ops.enqueue(rig.keys, tasks[::order], sender="me", number=1, now_us=rig.now)
    for _ in range(2):
        assert [(one.outcome, one.id) for one in rig.run(call)] == expected[::order]
    assert rig.ids("pending") == ["doc", "b"]
    assert rig.counters()["dropped"] == 1
    stored = decode_message(rig.dump()["tasks"][b"doc"]).payload
    assert stored == (b"new" if outcome == "replaced" else b"old")


def test_call_is_refused_if_only_tasks_that_its_reply_names_could_be_dropped(rig: Rig) -> None:
    doc: dict[str, Any] = {"unique_key": "doc", "on_duplicate": "replace"}
    bound(rig, max_tasks=1, when_full="drop_oldest")
    rig.enqueue("doc", **doc)
    before = rig.dump()
    with pytest.raises(QueueFull) as refused:
        rig.send([*rig.tasks("again", **doc), *rig.tasks("b")])
    assert refused.value.room == 1
    assert rig.dump() == before


def test_repeated_call_of_an_operator_does_not_store_a_dropped_task_again(rig: Rig) -> None:
    bound(rig, max_tasks=1, when_full="drop_oldest")
    call = enqueue_once(rig.keys, rig.tasks("a"))
    assert [reply.outcome for reply in rig.run(call)] == ["created"]
    rig.enqueue("b")
    assert [reply.outcome for reply in rig.run(call)] == ["created"], "as the lost reply"
    assert rig.ids("pending") == ["b"]


def test_drop_oldest_meets_lowered_bound_in_steps(rig: Rig) -> None:
    for first in range(0, 2600, 100):
        rig.send(rig.tasks(*(f"{number:04}" for number in range(first, first + 100))))
    bound(rig, max_tasks=500, when_full="drop_oldest")
    rig.send(rig.tasks("a"))
    assert (len(rig.ids("pending")), rig.ids("pending")[0]) == (1601, "1000")
    rig.send(rig.tasks("b"))
    rig.send(rig.tasks("c"))
    assert len(rig.ids("pending")) == 500
    bound(rig, max_bytes=2000, when_full="drop_oldest")
    rig.send(rig.tasks("d"))
    assert 1 < len(rig.ids("pending")) < 60


def test_drop_oldest_takes_pending_before_retried_and_scheduled_tasks(rig: Rig) -> None:
    bound(rig, max_tasks=4, when_full="drop_oldest")
    rig.enqueue("failed")
    rig.retry(*rig.lease())
    rig.enqueue("late", delay=100)
    rig.enqueue("soon", delay=50)
    rig.enqueue("now")
    rig.enqueue("1", "2")
    assert (rig.ids("retry"), rig.ids("scheduled")) == ([], ["soon", "late"])
    rig.enqueue("3", "4", "5")
    assert (rig.ids("scheduled"), rig.ids("pending")) == (["late"], ["3", "4", "5"])


def test_drop_oldest_frees_bytes_or_drops_nothing(rig: Rig) -> None:
    rig.enqueue("a", "b", "c", payload=b"x" * 1000)
    size = held_bytes(rig)
    bound(rig, max_bytes=size, when_full="drop_oldest")
    rig.enqueue("d", payload=b"x" * 1500)
    assert rig.ids("pending") == ["c", "d"]
    rig.lease()
    before = rig.dump()
    with pytest.raises(QueueFull) as refused:
        rig.enqueue("e", payload=b"x" * 1500)
    assert refused.value.room == 0
    assert rig.dump() == before
    assert read(rig).bytes == held_bytes(rig)


def test_tick_refused_by_a_full_queue_is_enqueued_later(rig: Rig) -> None:
    bound(rig, max_tasks=1)
    rig.enqueue("a")
    [task] = rig.tasks("hourly@1")
    call = program_schedule_ops.tick(rig.keys, "hourly", 1, task, now_us=rig.now)
    with pytest.raises(QueueFull):
        rig.run(call)
    assert rig.field("ticks", "hourly") is None
    rig.complete(*rig.lease())
    assert rig.run(call)


def test_repair_counts_the_bytes_again(rig: Rig) -> None:
    bound(rig, max_bytes=10_000)
    rig.enqueue("a")
    rig.set("meta", "bytes", 7)
    assert rig.run(bounds_ops.counted_bytes(rig.keys)) == (7, held_bytes(rig))
    assert rig.run(bounds_ops.recount_bytes(rig.keys))
    assert not rig.run(bounds_ops.recount_bytes(rig.keys))
    assert read(rig).bytes == held_bytes(rig)


def act(rig: Rig, chance: random.Random, held: list[LeaseRef]) -> None:
    """Perform one random action on a queue."""
    names = [f"t{chance.randrange(40)}" for _ in range(chance.randrange(1, 8))]
    one = [held.pop(chance.randrange(len(held)))] if held else []
    match chance.randrange(13):
        case 0 | 1 | 2:
            options: dict[str, Any] = chance.choice(
                [{}, {"delay": 5}, {"unique": True}, {"priority": chance.randrange(1, 10)},
                 {"unique": True, "unique_key": "k", "on_duplicate": "replace"}, {"limits": ["a"]}]
            )  # fmt: skip
            rig.enqueue(*dict.fromkeys(names), payload=b"x" * chance.randrange(200), **options)
        case 3:
            held += one + rig.lease(chance.randrange(1, 6))
        case 4:
            rig.complete(*one, retention_us=chance.choice([None, 5 * S]), result=b"r")
        case 5:
            rig.retry(*one)
        case 6:
            rig.kill(*one)
        case 7:
            rig.hand_back(*one, delay_us=chance.choice([None, S]))
        case 8:
            held += one
            rig.cancel(names[0], chance.choice([None, 5 * S]))
        case 9:
            held += one
            rig.rerun(names[0], chance.choice(["dead", "retry", "scheduled"]))
        case 10:
            held += one
            rig.delete(chance.choice(["pending", "dead", "completed"]), *names)
        case 11:
            held += one
            rig.run(operator_ops.purge(rig.keys, TaskState(chance.choice(["pending", "dead"]))))
        case 12:
            held += one
            rig.now += chance.choice([S, LAPSE, LAPSE, DAY])
            rig.fetch(chance.randrange(3))


def check(rig: Rig, seed: int, when_full: Any) -> None:
    """Perform random actions. After each action, check that the recorded size is exact and that no
    enqueue has exceeded a bound."""
    rig.reset()
    chance = random.Random(seed)
    rig.enqueue(*[f"old{number}" for number in range(5)])
    bounds = Bounds(max_tasks=12, max_bytes=2500, when_full=when_full)
    rig.run(bounds_ops.put_program_bounds(rig.keys, bounds))
    rule = {"a": LimitRule(concurrency=2)}
    rig.run(limit_ops.put_limit_rules(rig.keys, rule, now_us=rig.now))
    held: list[LeaseRef] = []
    for _ in range(100):
        before = rig.counters().get("enqueued", 0)
        try:
            act(rig, chance, held)
        except QueueFull as error:
            assert error.bound in ("max_tasks", "max_bytes")
        shown = read(rig)
        assert shown.bytes == held_bytes(rig), "the stored size of the messages is wrong"
        assert shown.waiting == sum(len(rig.ids(state)) for state in WAITING)
        damage = rig.run(limit_ops.audit_limits(rig.keys))
        assert not (damage.miscounted or damage.unlisted or damage.strays), damage
        if rig.counters().get("enqueued", 0) > before:
            assert shown.waiting <= 12, "an enqueue has passed max_tasks"
            assert shown.bytes <= 2500, "an enqueue has passed max_bytes"
    assert sum(rig.run(views.counts(rig.keys)).states.values()) == rig.client.hlen(
        rig.keys.key("tasks")
    )


@pytest.mark.parametrize("when_full", ["raise", "drop_oldest"])
def test_bytes_are_exact_and_bounds_hold_in_random_histories(rig: Rig, when_full: str) -> None:
    for seed in range(3):
        check(rig, seed, when_full)


@pytest.mark.parametrize(
    "mistake", [bulk_call_passes_a_bound, removed_bytes_still_counted, scheduled_tasks_pass_a_bound]
)
def test_planted_mistakes_are_found(rig: Rig, mistake: Any) -> None:
    with mistake(), pytest.raises(AssertionError):
        for seed in range(6):
            check(rig, seed, "raise")


def test_drop_oldest_takes_limited_tasks_and_counts_them_out(rig: Rig) -> None:
    rule = {"a": LimitRule(concurrency=1)}
    rig.run(limit_ops.put_limit_rules(rig.keys, rule, now_us=rig.now))
    for id in ("running", "first", "second"):
        rig.enqueue(id, limits=["a"])
    rig.lease()
    assert (rig.ids("active"), rig.ids("limited")) == (["running"], ["first", "second"])
    bound(rig, max_tasks=2, when_full="drop_oldest")
    rig.enqueue("third", limits=["a"])
    assert rig.ids("limited") == ["second", "third"]
    damage = rig.run(limit_ops.audit_limits(rig.keys))
    assert not (damage.miscounted or damage.unlisted or damage.strays or damage.shut)
