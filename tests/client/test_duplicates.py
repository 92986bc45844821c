"""Clients can skip, replace and debounce tasks with the same unique key, and set priorities."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qsync.errors import DuplicateTask, InvalidTask, ResultTimeout
from qsync.message import decode_message
from qsync.state import TaskState
from qsync.task import Task
from tests.conftest import Colour
from tests.support.client_driver import Hand
from tests.support.stores import Store

KEY: dict[str, Any] = {"unique_key": "doc:7"}


@pytest.fixture
def client(colour: Colour, store: Store, prefix: str) -> Any:
    return colour.client(store.url, prefix)


@pytest.fixture
def hand(store: Store, prefix: str) -> Iterator[Hand]:
    with Hand(store.url, prefix) as hand:
        yield hand


def test_higher_priority_starts_first(colour: Colour, client: Any, hand: Hand) -> None:
    colour.do(client.enqueue(Task("t", id="normal")))
    tasks = [Task("t", id="low", priority=2), Task("t", id="high", priority=9), Task("t", id="n")]
    colour.do(client.enqueue_many(tasks))
    assert [one.id for one in hand.take(4)] == ["high", "normal", "n", "low"]


def test_duplicate_is_an_error_unless_it_is_skipped(
    colour: Colour, client: Any, hand: Hand
) -> None:
    first = colour.do(client.enqueue(Task("t", 1, **KEY, on_duplicate="skip", retention=60)))
    assert first.created
    second = colour.do(client.enqueue(Task("t", 2, **KEY, on_duplicate="skip", retention=60)))
    assert (second.id, second.created) == (first.id, False)
    with pytest.raises(DuplicateTask):
        colour.do(client.enqueue(Task("t", 3, **KEY, on_duplicate="raise")))
    hand.succeed(hand.one(), value="done")
    assert colour.do(second.result(timeout=5)) == "done"


def test_skip_does_not_hide_a_taken_id(colour: Colour, client: Any) -> None:
    colour.do(client.enqueue(Task("t", 1, id="a")))
    with pytest.raises(DuplicateTask, match=r"^id 'a': a task in queue"):
        colour.do(client.enqueue(Task("t", 2, id="a", **KEY, on_duplicate="skip")))


def test_replaced_task_runs_with_the_last_payload(colour: Colour, client: Any, hand: Hand) -> None:
    first = colour.do(client.enqueue(Task("t", 1, **KEY, on_duplicate="replace", retention=60)))
    again = Task("t", 2, **KEY, on_duplicate="replace", retention=60)
    second = colour.do(client.enqueue(again))
    assert (second.id, second.created) == (first.id, False)
    held = hand.one()
    third, fourth = colour.do(
        client.enqueue_many([again.replace(payload=3), again.replace(payload=4)])
    )
    assert {third.id, fourth.id} == {first.id}
    hand.succeed(held, value="of 2")
    assert colour.do(first.info()).state is TaskState.SCHEDULED
    held = hand.one()
    assert held.id == first.id
    assert colour.do(first.info()).value(int) == 4
    hand.succeed(held, value="of 4")
    assert colour.do(first.result(timeout=5)) == "of 4"
    assert colour.do(third.result(timeout=5)) == "of 4"


def test_debounced_calls_make_one_task(colour: Colour, client: Any, hand: Hand) -> None:
    handles = [
        colour.do(client.enqueue(Task("t", n, **KEY, debounce=60, debounce_max=600)))
        for n in range(3)
    ]
    assert [handle.created for handle in handles] == [True, False, False]
    assert len({handle.id for handle in handles}) == 1
    status = colour.do(handles[0].info())
    assert (status.state, status.value(int)) == (TaskState.SCHEDULED, 2)
    colour.do(handles[0].reschedule(delay=0))
    assert hand.one().id == handles[0].id


@pytest.mark.parametrize("way", [{"on_duplicate": "replace"}, {"debounce": 60}])
def test_repeated_enqueue_with_an_own_id_returns_the_task_that_it_was_merged_into(
    colour: Colour, client: Any, hand: Hand, way: dict[str, Any]
) -> None:
    first = colour.do(client.enqueue(Task("t", 1, id="req-1", **KEY, **way)))
    task = Task("t", 2, id="req-2", **KEY, **way)
    merged = colour.do(client.enqueue(task))
    again = colour.do(client.enqueue(task))
    [of_many] = colour.do(client.enqueue_many([task]))
    assert merged == again == of_many == first
    assert not (again.created or of_many.created)
    assert colour.do(again.info()).value(int) == 2
    colour.do(first.reschedule(delay=0)) if "debounce" in way else None
    hand.finish(hand.one())
    with pytest.raises(
        DuplicateTask, match=r"'req-2' was already .* merged into has ended, so it is not run again"
    ) as got:
        colour.do(client.enqueue(task))
    assert (got.value.id, got.value.queue) == ("req-2", "default")


@pytest.mark.parametrize("way", [{"on_duplicate": "replace"}, {"debounce": 1}])
def test_result_waits_for_a_later_call_that_sets_a_retention(
    colour: Colour, client: Any, hand: Hand, way: dict[str, Any]
) -> None:
    """The running attempt has no retention."""
    first = colour.do(client.enqueue(Task("t", 1, id="a", **KEY, **way)))
    colour.do(first.reschedule(delay=0)) if "debounce" in way else None
    held = hand.one()
    with pytest.raises(InvalidTask, match="retention: task 'a'"):
        colour.do(first.result(timeout=0))
    second = colour.do(client.enqueue(Task("t", 2, **KEY, **way, retention=60)))
    for handle in (first, second, client.handle("a")):
        with pytest.raises(ResultTimeout):
            colour.do(handle.result(timeout=0))
    results = [colour.begin(lambda handle=h: handle.result(30)) for h in (first, second)]
    hand.finish(held)
    if "debounce" in way:
        colour.do(second.reschedule(delay=0))
    hand.succeed(hand.one(), value="of 2")
    assert [result.result(30) for result in results] == ["of 2", "of 2"]


def test_result_is_refused_when_the_later_call_has_no_retention(
    colour: Colour, client: Any, hand: Hand
) -> None:
    way: dict[str, Any] = {**KEY, "on_duplicate": "replace"}
    colour.do(client.enqueue(Task("t", 1, id="a", **way, retention=60)))
    hand.one()
    second = colour.do(client.enqueue(Task("t", 2, **way)))
    with pytest.raises(InvalidTask, match="retention: task 'a'"):
        colour.do(second.result(timeout=0))


def test_message_contains_the_options_of_its_task(
    colour: Colour, client: Any, store: Store, hand: Hand
) -> None:
    task = Task("t", 1, id="a", **KEY, priority=8, debounce=5, debounce_max=60)
    colour.do(client.enqueue(task))
    with store.client() as redis:
        options = decode_message(redis.hget(hand.keys.key("tasks"), "a")).options
    assert options is not None
    assert (options.priority, options.replaces) == (8, True)
    assert (options.debounce_us, options.debounce_max_us) == (5_000_000, 60_000_000)
