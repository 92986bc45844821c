"""A unique lock is taken at enqueue and freed only when the task ends, whether it succeeds or
not."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from qsync.broker.op_values import LeaseRef
from qsync.new_task import new_nonce, new_task
from qsync.task import Task
from tests.support.queue_driver import BINARIES, LAPSE, LEASE, START, Rig, S

LOCK = {"unique": True, "unique_key": "the key"}
WINDOW = {"unique": 60, "unique_key": "the key"}
NAME = new_task(Task("type", unique=True, unique_key="the key"), b"").lock


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        yield rig


def lapse_cancelled(rig: Rig) -> None:
    rig.lease()
    rig.cancel("a")
    rig.now += LAPSE
    rig.fetch(0, server="t")


def crash_dead(rig: Rig) -> None:
    for _ in range(3):
        rig.mark_started(*rig.lease())
        rig.now += LAPSE
        rig.fetch(0, server="t")
    assert rig.state("a") == "dead"


def cancel_and(how: Callable[[Rig, list[LeaseRef]], object]) -> Callable[[Rig], object]:
    def end(rig: Rig) -> object:
        held = rig.lease()
        assert rig.cancel("a")[0] == "active"
        return how(rig, held)

    return end


def retried(rig: Rig) -> object:
    return rig.retry(*rig.lease(), delay_us=S)


def crash_once(rig: Rig) -> None:
    rig.lease()
    rig.now += LAPSE
    rig.fetch(0, server="t")


ENDS: dict[str, Callable[[Rig], object]] = {
    "complete": lambda rig: rig.complete(*rig.lease()),
    "complete and keep": lambda rig: rig.complete(*rig.lease(), retention_us=S),
    "kill": lambda rig: rig.kill(*rig.lease()),
    "kill before the start": lambda rig: rig.kill(*rig.lease(), failed=False),
    "crash": crash_dead,
    "cancel pending": lambda rig: rig.cancel("a"),
    "cancel pending and keep": lambda rig: rig.cancel("a", retention_us=S),
    "cancel in retry": lambda rig: (retried(rig), rig.cancel("a")),
    "cancel active, then stopped": cancel_and(lambda rig, held: rig.end_cancelled(*held)),
    "cancel active, then completed": cancel_and(lambda rig, held: rig.complete(*held)),
    "cancel active, then failed": cancel_and(lambda rig, held: rig.retry(*held)),
    "cancel active, then killed": cancel_and(lambda rig, held: rig.kill(*held)),
    "cancel active, then handed back": cancel_and(lambda rig, held: rig.hand_back(*held)),
    "cancel active, then lapsed": lapse_cancelled,
    "delete pending": lambda rig: rig.delete("pending", "a"),
    "delete in retry": lambda rig: (retried(rig), rig.delete("retry", "a")),
    "lose its message": lambda rig: (
        rig.client.hdel(rig.keys.key("tasks"), "a"),
        rig.fetch(),
    ),
}

STAYS: dict[str, Callable[[Rig], object]] = {
    "wait": lambda rig: None,
    "fetch": lambda rig: rig.lease(),
    "retry": retried,
    "hand back": lambda rig: rig.hand_back(*rig.lease()),
    "hand back for later": lambda rig: rig.hand_back(*rig.lease(), delay_us=S),
    "crash once": crash_once,
    "ask for its cancel": lambda rig: (rig.lease(), rig.cancel("a")),
    "renew": lambda rig: rig.renew(*rig.lease()),
    "run from retry": lambda rig: (retried(rig), rig.rerun("a", "retry")),
    "settle with a stale token": lambda rig: (rig.lease(), rig.complete(LeaseRef("a", "s/0"))),
}


@pytest.mark.faults(71, 73)
@pytest.mark.guarantee(6)
@pytest.mark.parametrize("how", ENDS)
def test_an_end_frees_the_lock(rig: Rig, how: str) -> None:
    rig.enqueue("a", **LOCK)
    assert rig.locks() == {f"={NAME}": "0:a", "@a": NAME}
    ENDS[how](rig)
    assert rig.locks() == {}
    assert rig.enqueue("b", **LOCK) == [("created", "b")]


@pytest.mark.faults(72)
@pytest.mark.guarantee(6)
@pytest.mark.parametrize("how", STAYS)
def test_non_final_transition_keeps_the_lock(rig: Rig, how: str) -> None:
    rig.enqueue("a", **LOCK)
    STAYS[how](rig)
    assert rig.locks() == {f"={NAME}": "0:a", "@a": NAME}
    assert rig.enqueue("b", **LOCK) == [("duplicate", "a")]
    rig.now += 100 * LEASE
    assert rig.enqueue("b", **LOCK) == [("duplicate", "a")]


@pytest.mark.faults(72)
@pytest.mark.guarantee(6)
@pytest.mark.parametrize("how", ENDS)
def test_a_window_outlives_its_task(rig: Rig, how: str) -> None:
    rig.enqueue("a", unique=3600, unique_key="the key")
    ENDS[how](rig)
    assert rig.locks() == {f"={NAME}": f"{START + 3600 * S}:a"}
    assert rig.enqueue("b", **LOCK) == [("duplicate", "a")]
    rig.now = START + 3600 * S
    assert rig.enqueue("b", **LOCK) == [("created", "b")]


@pytest.mark.faults(73)
@pytest.mark.guarantee(6)
def test_cancel_and_delete_of_a_scheduled_task_free_the_lock(rig: Rig) -> None:
    rig.enqueue("a", delay=9, **LOCK)
    rig.cancel("a")
    assert rig.enqueue("b", delay=9, **LOCK) == [("created", "b")]
    rig.delete("scheduled", "b")
    assert rig.locks() == {}


@pytest.mark.faults(72)
@pytest.mark.guarantee(6)
def test_a_task_outlives_its_window(rig: Rig) -> None:
    rig.enqueue("a", **WINDOW)
    rig.now += 60 * S
    rig.fetch(0)
    assert rig.enqueue("b", **LOCK) == [("duplicate", "a")]
    rig.complete(*rig.lease())
    assert rig.locks() == {}


def test_lock_window_starts_at_the_enqueue_of_its_holder(rig: Rig) -> None:
    rig.enqueue("a", **WINDOW)
    rig.complete(*rig.lease())
    rig.now += 60 * S - 1
    assert rig.enqueue("b", **WINDOW) == [("duplicate", "a")]
    rig.now += 1
    assert rig.enqueue("b", **WINDOW) == [("created", "b")]
    assert rig.locks() == {f"={NAME}": f"{rig.now + 60 * S}:b", "@b": NAME}


@pytest.mark.faults(73)
@pytest.mark.guarantee(6)
def test_end_of_an_earlier_holder_does_not_free_the_lock_of_a_later_holder(rig: Rig) -> None:
    rig.enqueue("a", **WINDOW)
    rig.kill(*rig.lease())
    rig.now += 60 * S
    rig.enqueue("b", **LOCK)
    rig.delete("dead", "a")
    assert rig.enqueue("c", **LOCK) == [("duplicate", "b")]


def test_a_lock_within_one_call_goes_to_the_first(rig: Rig) -> None:
    assert rig.enqueue("a", "b", "c", **LOCK) == [
        ("created", "a"),
        ("duplicate", "a"),
        ("duplicate", "a"),
    ]
    assert rig.ids("pending") == ["a"]
    assert rig.locks() == {f"={NAME}": "0:a", "@a": NAME}


def test_a_refused_task_leaves_nothing_behind(rig: Rig) -> None:
    rig.enqueue("a", **LOCK)
    before = rig.dump()
    rig.enqueue("b", fairness_key="k", delay=5, **LOCK)
    assert rig.dump() == before


def test_the_same_call_again_is_not_a_duplicate_of_itself(rig: Rig) -> None:
    tasks = rig.tasks("a", **LOCK)
    assert rig.send(tasks) == rig.send(tasks) == [("created", "a")]
    rig.lease()
    assert rig.send(tasks) == [("created", "a")]


def test_locks_of_different_keys_are_independent(rig: Rig) -> None:
    rig.enqueue("a", **LOCK)
    assert rig.enqueue("b", unique=True, unique_key="other") == [("created", "b")]
    assert rig.enqueue("c", unique=True, payload=b"p") == [("created", "c")]
    assert rig.enqueue("d", unique=True, payload=b"p") == [("duplicate", "c")]
    assert rig.enqueue("e", unique=True, payload=b"q") == [("created", "e")]
    assert rig.enqueue("f", payload=b"p") == [("created", "f")]


# Dead tasks that are run again


@pytest.mark.faults(73)
def test_a_dead_task_takes_its_lock_again(rig: Rig) -> None:
    rig.enqueue("a", **LOCK)
    rig.kill(*rig.lease())
    assert rig.rerun("a", "dead", lock=NAME) == ("ok", "")
    assert rig.enqueue("b", **LOCK) == [("duplicate", "a")]
    rig.complete(*rig.lease())
    assert rig.locks() == {}


def test_a_dead_task_whose_lock_is_taken_stays_dead(rig: Rig) -> None:
    rig.enqueue("a", **LOCK)
    rig.kill(*rig.lease())
    rig.enqueue("b", **LOCK)
    before = rig.dump()
    assert rig.rerun("a", "dead", lock=NAME) == ("duplicate", "b")
    assert rig.dump() == before
    rig.complete(*rig.lease())
    assert rig.rerun("a", "dead", lock=NAME) == ("ok", "")


def test_open_window_of_another_task_refuses_a_dead_task(rig: Rig) -> None:
    rig.enqueue("a", **LOCK)
    rig.kill(*rig.lease())
    rig.enqueue("b", **WINDOW)
    rig.complete(*rig.lease())
    assert rig.rerun("a", "dead", lock=NAME) == ("duplicate", "b")


def test_a_dead_task_that_is_run_again_keeps_the_rest_of_its_window(rig: Rig) -> None:
    rig.enqueue("a", **WINDOW)
    rig.kill(*rig.lease())
    rig.now += 10 * S
    assert rig.rerun("a", "dead", lock=NAME) == ("ok", "")
    rig.complete(*rig.lease())
    assert rig.enqueue("b", **LOCK) == [("duplicate", "a")]
    rig.now = START + 60 * S
    assert rig.enqueue("b", **LOCK) == [("created", "b")]


# Sweep


def test_ended_windows_are_swept_and_open_windows_stay(rig: Rig) -> None:
    rig.enqueue("a", **WINDOW)
    rig.complete(*rig.lease())
    rig.fetch(0)
    assert rig.locks() == {f"={NAME}": f"{START + 60 * S}:a"}
    rig.now += 60 * S
    rig.fetch(0)
    assert rig.locks() == {}


def test_many_ended_windows_are_swept_in_parts(rig: Rig) -> None:
    for at in range(0, 2000, 500):
        rig.enqueue(*[f"t{n}" for n in range(at, at + 500)], unique=10)
        rig.complete(*rig.lease())
    rig.enqueue("holder", **LOCK)
    for _ in range(60):
        rig.now += S
        rig.fetch(0)
    assert rig.locks() == {f"={NAME}": "0:holder", "@holder": NAME}


@pytest.mark.faults(71)
@pytest.mark.guarantee(6)
def test_lock_of_a_missing_task_is_swept(rig: Rig) -> None:
    rig.set("unique", f"={NAME}", "0:nobody")
    rig.set("unique", "@nobody", NAME)
    assert rig.enqueue("b", **LOCK) == [("duplicate", "nobody")]
    for _ in range(2):
        rig.now += S
        rig.fetch(0)
    assert rig.enqueue("b", **LOCK) == [("created", "b")]


def test_a_dead_task_frees_nothing_when_it_is_trimmed(rig: Rig) -> None:
    rig.enqueue("a", **LOCK)
    rig.kill(*rig.lease())
    nonce = new_nonce()
    rig.send([new_task(Task("type", id="b", unique=True, unique_key="the key"), nonce)])
    rig.now += 10**15  # over ninety days, after which dead tasks are trimmed
    rig.fetch(0)
    assert rig.state("a") is None
    assert rig.locks() == {f"={NAME}": "0:b", "@b": NAME}
