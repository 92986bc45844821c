"""The views of tasks, in every state."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from qsync import codec
from qsync.broker import operator_ops, ops, stored_task, views
from qsync.message import Failure, Result
from qsync.state import TaskState
from qsync.task import TaskStatus
from qsync.times import from_us
from tests.support.queue_driver import BINARIES, FAILURE, LAPSE, START, Rig, S


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        yield rig


def status(rig: Rig, id: str = "a") -> TaskStatus:
    found = rig.status(id)
    assert found is not None
    stored = TaskState.COMPLETED if found.state is TaskState.CANCELLED else found.state
    assert stored == rig.state(id)
    return found


def test_every_requested_field_is_returned(rig: Rig) -> None:
    rig.enqueue(
        "a",
        payload={"n": 1},
        retry=5,
        deadline=from_us(START) + timedelta(days=30_000),
        retention=60,
        headers={"trace": "x"},
    )
    shown = status(rig)
    assert (shown.id, shown.queue, shown.type) == ("a", "queue", "type")
    assert shown.value() == {"n": 1}
    assert shown.is_value
    assert (shown.retry, shown.attempt, shown.crashes) == (5, 1, 0)
    assert shown.enqueued_at == from_us(START)
    assert shown.deadline == from_us(START) + timedelta(days=30_000)
    assert shown.headers == {"trace": "x"}
    assert shown.retention_us == 60 * S
    assert (shown.token, shown.last_error, shown.progress, shown.due_at) == ("", None, None, None)
    assert not shown.cancelled


def test_pending_task_is_shown(rig: Rig) -> None:
    rig.enqueue("a")
    assert status(rig).state is TaskState.PENDING
    assert status(rig).payload == b"a"
    assert status(rig).due_at is None


def test_scheduled_task_is_shown(rig: Rig) -> None:
    rig.enqueue("a", delay=1.5)
    assert status(rig).state is TaskState.SCHEDULED
    assert status(rig).due_at == from_us(START + 1_500_000)


def test_active_task_is_shown(rig: Rig) -> None:
    rig.enqueue("a")
    [held] = rig.lease()
    rig.run(ops.progress(rig.keys, [(*held, 1, 4)]))
    shown = status(rig)
    assert shown.state is TaskState.ACTIVE
    assert shown.token == held.token
    assert shown.progress == (1.0, 4.0)
    assert not shown.cancelled
    rig.cancel("a")
    assert status(rig).cancelled


def test_retried_task_is_shown(rig: Rig) -> None:
    rig.enqueue("a")
    rig.retry(*rig.lease(), delay_us=7)
    shown = status(rig)
    assert shown.state is TaskState.RETRY
    assert shown.due_at == from_us(START + 7)
    assert shown.last_error == "boom"
    assert shown.attempt == 2


def test_completed_task_is_shown(rig: Rig) -> None:
    rig.enqueue("a")
    rig.complete(*rig.lease(), retention_us=9, result=codec.encode(Result(b"r", False)))
    assert status(rig).state is TaskState.COMPLETED
    assert not status(rig).cancelled
    [shown] = rig.run(views.get_tasks(rig.keys, ["a"]))
    assert shown is not None
    assert stored_task.result_of(shown) == Result(b"r", False)


def test_retained_cancelled_task_is_shown(rig: Rig) -> None:
    rig.enqueue("a")
    rig.cancel("a", retention_us=9)
    assert status(rig).state is TaskState.CANCELLED
    assert status(rig).cancelled
    [shown] = rig.run(views.get_tasks(rig.keys, ["a"]))
    assert shown is not None
    assert stored_task.result_of(shown) is None


def test_task_dead_after_failures_is_shown(rig: Rig) -> None:
    rig.enqueue("a")
    rig.kill(*rig.lease(), failure=codec.encode(Failure(4, "no luck", START)))
    shown = status(rig)
    assert shown.state is TaskState.DEAD
    assert shown.last_error == "no luck"
    assert shown.attempt == 4


def test_task_dead_before_its_first_attempt_is_shown(rig: Rig) -> None:
    rig.enqueue("a")
    rig.kill(*rig.lease(), failed=False, failure=codec.encode(Failure(error="deadline")))
    assert status(rig).attempt == 1
    assert status(rig).last_error == "deadline"


def test_task_dead_after_crashes_is_shown(rig: Rig) -> None:
    rig.enqueue("a")
    for _ in range(3):
        rig.mark_started(*rig.lease())
        rig.now += LAPSE
        rig.fetch(0, server="t")
    shown = status(rig)
    assert shown.state is TaskState.DEAD
    assert shown.last_error == "crashed 3 times"
    assert shown.crashes == 3


def test_task_killed_after_a_crash_shows_its_failure(rig: Rig) -> None:
    rig.enqueue("a")
    rig.lease()
    rig.now += LAPSE
    held = rig.lease(server="t")
    rig.mark_started(*held)
    rig.kill(*held, failure=FAILURE)
    assert status(rig).last_error == "boom"
    assert status(rig).crashes == 1


def test_task_dead_without_its_message_is_shown(rig: Rig) -> None:
    rig.enqueue("a")
    rig.client.hdel(rig.keys.key("tasks"), "a")
    rig.fetch()
    shown = status(rig)
    assert shown.last_error == "the store lost the message of this task"
    assert (shown.type, shown.payload) == ("", b"")


def test_unknown_ids_are_none_in_their_positions(rig: Rig) -> None:
    rig.enqueue("a", "b")
    shown = rig.run(views.get_tasks(rig.keys, ["x", "b", "y", "a", ""]))
    assert [one is not None for one in shown] == [False, True, False, True, False]
    assert rig.run(views.get_tasks(rig.keys, [])) == []


def test_500_tasks_are_shown_at_once(rig: Rig) -> None:
    ids = [str(n) for n in range(500)]
    rig.enqueue(*ids)
    shown = rig.run(views.get_tasks(rig.keys, ids))
    stored = rig.dump()["tasks"]
    assert [one.message for one in shown if one] == [stored[id.encode()] for id in ids]


def test_views_change_nothing(rig: Rig) -> None:
    rig.enqueue("a", unique=True)
    rig.lease()
    before = rig.dump()
    status(rig)
    assert rig.dump() == before


def test_an_overview_reads_few_large_messages(rig: Rig) -> None:
    """To take little time in the store, an overview reads at most eight messages, and fewer if they
    are large."""
    rig.enqueue(*"abcdefgh", payload=b"x" * 900_000)
    seen = rig.run(views.overview(rig.keys, now_us=rig.now))
    assert len(seen.first) == 1
    rig.run(operator_ops.delete(rig.keys, list("abcdefgh"), "pending"))
    rig.enqueue(*"ijklmnopqr")
    assert len(rig.run(views.overview(rig.keys, now_us=rig.now)).first) == 8


def test_page_returns_at_most_a_quarter_of_a_megabyte(rig: Rig) -> None:
    """Long errors of dead tasks and long messages count towards the size of a page. The next page
    returns the remaining tasks."""
    ids = [f"d{n}" for n in range(100)]
    rig.enqueue(*ids)
    while held := rig.lease():
        for one in held:
            rig.kill(one, failure=b"e" * 4096)
    page = rig.run(views.list_tasks(rig.keys, TaskState.DEAD, count=500))
    assert page.total == 100
    assert page.more
    assert 60 < len(page.rows) < 65
    rest = rig.run(views.list_tasks(rig.keys, TaskState.DEAD, count=500, after=page.rows[-1].place))
    assert len(page.rows) + len(rest.rows) == 100
    assert not rest.more
