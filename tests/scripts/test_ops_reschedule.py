"""The due time of a waiting task can be changed; a task in any other state does not change."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qsync.broker.operator_ops import Rescheduled, reschedule
from qsync.state import TaskState
from tests.support.queue_driver import BINARIES, LAPSE, START, Rig, S


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        yield rig


def move(rig: Rig, id: str, due: str) -> Rescheduled:
    reply = rig.run(reschedule(rig.keys, id, due, now_us=rig.now))
    assert reply.deadline_us is None
    return reply


@pytest.mark.parametrize(
    ("due", "at"),
    [("+5000000", START + 5 * S), (str(START + 9 * S), START + 9 * S), ("7", START), ("+0", START)],
)
def test_scheduled_task_gets_another_due_time(rig: Rig, due: str, at: int) -> None:
    rig.enqueue("a", delay=60)
    assert move(rig, "a", due)[:2] == (TaskState.SCHEDULED, at)
    assert rig.score("scheduled", "a") == at
    rig.now = at - 1
    assert rig.fetch().ids == []
    rig.now = at
    fetched = rig.fetch()
    assert (fetched.ids, fetched.since) == (["a"], {"a": at})


def test_task_that_waits_for_a_retry_stays_in_retry(rig: Rig) -> None:
    rig.enqueue("a")
    rig.retry(*rig.lease(), delay_us=600 * S)
    assert move(rig, "a", "+2000000")[:2] == (TaskState.RETRY, START + 2 * S)
    rig.now += 2 * S
    fetched = rig.fetch()
    assert fetched.ids == ["a"]
    assert fetched.failures[0] is not None, "a keeps its failed attempts"


def test_task_in_any_other_state_stays_as_it_is(rig: Rig) -> None:
    rig.enqueue("c", retention=60)
    rig.complete(*rig.lease(), retention_us=60 * S)
    rig.enqueue("x", retention=60)
    rig.cancel("x", 60 * S)
    rig.enqueue("d")
    rig.kill(*rig.lease())
    rig.enqueue("a")
    rig.lease()
    rig.enqueue("p")
    before = rig.dump()
    states = {"c": "completed", "x": "cancelled", "d": "dead", "a": "active", "p": "pending"}
    for id, state in states.items():
        assert move(rig, id, "+5")[:2] == (TaskState(state), None)
    assert move(rig, "none", "+5")[:2] == (None, None)
    assert rig.dump() == before


def test_promoted_task_is_not_taken_back(rig: Rig) -> None:
    """A due task can be rescheduled until a fetch promotes it."""
    rig.enqueue("a", "b", delay=5)
    rig.now += 5 * S
    assert move(rig, "a", "+60000000").due_us == rig.now + 60 * S
    assert rig.fetch(0).ids == []
    assert rig.ids("pending") == ["b"]
    assert move(rig, "b", "+60000000")[:2] == (TaskState.PENDING, None)
    assert rig.ids("scheduled") == ["a"]


def test_only_an_earlier_time_wakes_a_server(rig: Rig) -> None:
    rig.enqueue("a", delay=60)
    rig.client.delete(rig.keys.key("wake"))
    move(rig, "a", "+90000000")
    assert "wake" not in rig.dump()
    move(rig, "a", "+30000000")
    assert rig.dump()["wake"] == [b"1"]


def test_reschedule_keeps_lock_and_records(rig: Rig) -> None:
    rig.enqueue("a", delay=60, unique=True, unique_key="k", fairness_key="f")
    before = rig.dump()
    move(rig, "a", "+1000000")
    after = rig.dump()
    for name in ("tasks", "unique", "keys"):
        assert after[name] == before[name]
    rig.now += LAPSE
    assert rig.fetch().ids == ["a"]
