"""An enqueue that is repeated after a lost reply gets the first reply again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from qsync.broker import ops
from qsync.broker.call import Call
from qsync.broker.op_values import Enqueued
from tests.support.queue_driver import BINARIES, DAY, Rig, S

pytestmark = [pytest.mark.faults(34), pytest.mark.guarantee(5)]

KEPT = 600 * S
"""How long the last call of a sender is remembered."""


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        yield rig


def created(*ids: str) -> list[Enqueued]:
    return [Enqueued("created", id) for id in ids]


def test_repeated_call_does_not_recreate_an_ended_task(rig: Rig) -> None:
    call = ops.enqueue(rig.keys, rig.tasks("a", "b"), sender="x", number=1, now_us=rig.now)
    assert rig.run(call) == created("a", "b")
    rig.complete(*rig.lease())
    before = rig.dump()
    assert rig.run(call) == created("a", "b")
    assert rig.dump() == before


def test_repeated_call_without_a_sender_recreates_an_ended_task(rig: Rig) -> None:
    """As a control for the test above, make a call without a sender. The store does not remember
    such a call."""
    call = ops.enqueue(rig.keys, rig.tasks("a"), now_us=rig.now)
    rig.run(call)
    rig.complete(*rig.lease())
    rig.run(call)
    assert rig.state("a") == "pending"


@pytest.mark.faults(72)
def test_repeated_call_gets_its_first_reply_while_its_window_lasts(rig: Rig) -> None:
    [task] = rig.tasks("a", unique=60)
    call = ops.enqueue(rig.keys, [task], sender="x", number=1, now_us=rig.now)
    assert rig.run(call) == created("a")
    rig.complete(*rig.lease())
    assert rig.run(call) == created("a")
    assert rig.send(rig.tasks("b", unique=60, payload=b"a")) == [("duplicate", "a")]


def test_repeated_call_gets_its_first_reply_for_refused_tasks(rig: Rig) -> None:
    rig.enqueue("a")
    rig.enqueue("l", unique=True, unique_key="k")
    tasks = [
        *rig.tasks("a", "b"), *rig.tasks("c", unique=True, unique_key="k"), *rig.tasks("d"),
    ]  # fmt: skip
    call = ops.enqueue(rig.keys, tasks, sender="x", number=7, now_us=rig.now)
    first = rig.run(call)
    assert first == [
        Enqueued("exists", "a"), *created("b"), Enqueued("duplicate", "l"), *created("d"),
    ]  # fmt: skip
    rig.complete(*rig.lease())
    before = rig.dump()
    assert rig.run(call) == first
    assert rig.dump() == before


def test_call_that_found_its_own_task_does_not_create_it_again_after_it_ended(rig: Rig) -> None:
    """Each attempt of a parent task enqueues the same child, but as another sender."""
    tasks = rig.tasks("child")
    first = ops.enqueue(rig.keys, tasks, sender="first", number=1, now_us=rig.now)
    second = ops.enqueue(rig.keys, tasks, sender="second", number=1, now_us=rig.now)
    assert rig.run(first) == created("child")
    assert rig.run(second) == created("child")
    rig.complete(*rig.lease())
    before = rig.dump()
    assert rig.run(second) == created("child")
    assert rig.run(first) == created("child")
    assert rig.dump() == before


def test_a_call_that_created_nothing_leaves_no_trace(rig: Rig) -> None:
    rig.enqueue("a")
    before = rig.dump()
    call = ops.enqueue(rig.keys, rig.tasks("a"), sender="x", number=1, now_us=rig.now)
    assert rig.run(call) == [Enqueued("exists", "a")]
    assert rig.dump() == before


def test_call_older_than_the_last_one_does_nothing(rig: Rig) -> None:
    late = ops.enqueue(rig.keys, rig.tasks("a"), sender="x", number=1, now_us=rig.now)
    later = ops.enqueue(rig.keys, rig.tasks("b"), sender="x", number=2, now_us=rig.now)
    assert rig.run(later) == created("b")
    before = rig.dump()
    assert rig.run(late) == []
    assert rig.dump() == before


def test_numbers_of_calls_with_one_task_are_compared_as_numbers(rig: Rig) -> None:
    """The script compares numbers of equal length as strings, and all others numerically."""

    def call(number: int) -> Call[list[Enqueued]]:
        task = rig.tasks(f"t{number}")
        return ops.enqueue(rig.keys, task, sender="x", number=number, now_us=rig.now)

    numbers = [1, 2, 9, 10, 11, 19, 20, 99, 100, 101, 999, 1000, 1001, 10**15 - 1, 10**15]
    for number, next_number in itertools.pairwise(numbers):
        first = call(number)
        assert rig.run(first) == created(f"t{number}")
        rig.complete(*rig.lease())
        before = rig.dump()
        assert rig.run(first) == created(f"t{number}")
        assert rig.run(call(number - 1)) == []
        assert rig.dump() == before
        later = ops.enqueue(
            rig.keys, rig.tasks("many", "tasks"), sender="x", number=next_number, now_us=rig.now
        )
        assert rig.run(later) == created("many", "tasks")
        rig.complete(*rig.lease(2))
        assert rig.run(first) == []
        rig.client.hdel(rig.keys.key("calls"), "x")


def test_senders_are_independent(rig: Rig) -> None:
    for sender, number in (("x", 5), ("y", 1), ("x", 6), ("y", 2)):
        id = f"{sender}{number}"
        call = ops.enqueue(rig.keys, rig.tasks(id), sender=sender, number=number, now_us=rig.now)
        assert rig.run(call) == created(id)
        assert rig.run(call) == created(id)
    assert rig.client.hlen(rig.keys.key("calls")) == 2


def test_sender_is_forgotten_after_exactly_ten_minutes(rig: Rig) -> None:
    rig.run(ops.enqueue(rig.keys, rig.tasks("a"), sender="x", number=1, now_us=rig.now))
    rig.now += KEPT
    rig.run(ops.enqueue(rig.keys, rig.tasks("b"), sender="y", number=1, now_us=rig.now))
    rig.fetch()
    assert rig.field("calls", "x")
    rig.now += S
    rig.fetch()
    assert rig.field("calls", "x") is None
    assert rig.field("calls", "y")


def test_many_senders_are_all_forgotten_by_fetches(
    rig: Rig,
) -> None:
    """Fetches can forget more than a hundred calls per second, because each fetch continues where
    the one before it stopped."""
    many = 5000
    mapping = {f"s{n}": f"1 {rig.now:d}" for n in range(many)}
    rig.client.hset(rig.keys.key("calls"), mapping=mapping)
    rig.now += DAY
    fetches = 0
    while left := rig.client.hlen(rig.keys.key("calls")):
        assert rig.fetch(0).more == bool(rig.client.hlen(rig.keys.key("calls"))), left
        rig.now += 1000
        fetches += 1
        assert fetches < many / 20
    rig.now += S
    assert not rig.fetch(0).more
