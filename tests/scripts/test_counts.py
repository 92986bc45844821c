"""The view `counts` returns the number of tasks in each state of a queue, and the queue's
counters."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qsync.broker import ops, views
from qsync.keys import QUEUE_KEYS
from qsync.state import STORED, TaskState
from tests.support.queue_driver import BINARIES, DAY, START, Rig, S


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        yield rig


def test_missing_queue_has_zero_counts(rig: Rig) -> None:
    counts = rig.run(views.counts(rig.keys))
    assert counts.states == dict.fromkeys(TaskState, 0)
    assert set(counts.others) == set(QUEUE_KEYS) - set(STORED) - {"wake", "idle", "meta", "stats"}
    assert not any(counts.others.values())
    assert counts.stats == {}


def test_every_state_and_every_other_key_is_counted(rig: Rig) -> None:
    rig.enqueue("kept", retention=60)
    [kept] = rig.lease()
    rig.complete(kept, retention_us=60 * S, result=b"r")
    rig.enqueue("d1", "d2")
    rig.kill(*rig.lease())
    rig.enqueue("again")
    rig.retry(*rig.lease())
    rig.enqueue("run1", "run2", "run3")
    rig.lease()
    rig.enqueue("later", delay=60)
    rig.enqueue("p1", unique=True)
    rig.enqueue("p2", "p3", "p4", fairness_key="k")
    counts = rig.run(views.counts(rig.keys))
    assert {state.value: number for state, number in counts.states.items()} == {
        "scheduled": 1, "pending": 4, "active": 3, "retry": 1, "completed": 1, "dead": 2,
        "cancelled": 0, "limited": 0,
    }  # fmt: skip
    assert counts.others == {
        "fairness": 2, "tasks": 12, "owner": 3, "crashes": 0, "failures": 3, "results": 1,
        "unique": 2, "keys": 3, "fetches": 1, "ticks": 0, "schedules": 0, "cancels": 0,
        "progress": 0, "calls": 0, "recent": 0, "next_ticks": 0, "stored_schedules": 0,
        "waiters": 0, "openings": 0, "holds": 0, "limits": 0, "limit_rules": 0, "successors": 0,
        "events": 0, "type_reports": 0, "type_stats": 0, "schedule_runs": 0,
    }  # fmt: skip


def test_counters_are_kept_in_total_and_by_day(rig: Rig) -> None:
    rig.enqueue("a", "b")
    rig.now += DAY
    rig.enqueue("c")
    rig.complete(*rig.lease())
    stats = rig.run(views.counts(rig.keys)).stats
    day = START // DAY
    assert stats["enqueued"] == 3
    assert stats[f"enqueued:{day}"] == 2
    assert stats[f"enqueued:{day + 1}"] == 1
    assert stats["completed"] == 3
    assert f"completed:{day}" not in stats


def test_damaged_counter_is_left_out(rig: Rig) -> None:
    rig.enqueue("a")
    rig.set("stats", "completed", "many")
    stats = rig.run(views.counts(rig.keys)).stats
    assert stats["enqueued"] == 1
    assert "completed" not in stats


@pytest.mark.parametrize(
    ("held", "then"),
    [("41", 42), ("9007199254740992", 9007199254740993), ("9223372036854775806", 2**63 - 1),
     ("text", 1), ("inf", 1), ("-inf", 1), ("nan", 1), ("1.5", 1), ("9223372036854775807", 1)],
)  # fmt: skip
def test_enqueue_adds_to_a_counter_that_is_large_or_replaces_an_invalid_one(
    rig: Rig, held: str, then: int
) -> None:
    rig.client.hset(rig.keys.key("stats"), "enqueued", held)
    rig.enqueue("a")
    stats = rig.client.hgetall(rig.keys.key("stats"))
    assert int(stats[b"enqueued"]) == then
    assert int(stats[b"enqueued:%d" % (START // DAY)]) == 1
    assert int(stats[b"bytes"]) == int(stats[b"bytes:%d" % (START // DAY)]) > 0


def test_enqueue_succeeds_when_the_counters_have_another_type(rig: Rig) -> None:
    rig.client.set(rig.keys.key("stats"), "text")
    assert rig.enqueue("a") == [("created", "a")]
    assert rig.client.get(rig.keys.key("stats")) == b"text"


def enqueue_plain(rig: Rig, count: int, start: int = 0) -> int:
    """Enqueue tasks without flow control, one per call; return the bytes that each takes in the
    store."""
    for number in range(start, start + count):
        [task] = rig.tasks(f"one{number:03}")
        call = ops.enqueue(rig.keys, [task], sender="s", number=number + 1, now_us=rig.now)
        assert [reply.outcome for reply in rig.run(call)] == ["created"]
    return int(rig.client.hstrlen(rig.keys.key("tasks"), f"one{start:03}"))


def test_plain_tasks_are_counted_at_once_although_their_sum_is_stored_later(rig: Rig) -> None:
    day, size = START // DAY, enqueue_plain(rig, 3)
    assert rig.client.exists(rig.keys.key("stats")) == 0
    rig.enqueue("other")
    other = int(rig.client.hstrlen(rig.keys.key("tasks"), "other"))
    enqueue_plain(rig, 67, start=3)
    assert int(rig.client.hget(rig.keys.key("stats"), "enqueued") or 0) == 65
    rig.now += DAY
    enqueue_plain(rig, 2, start=70)
    assert int(rig.client.hget(rig.keys.key("stats"), "enqueued") or 0) == 71
    expected = {
        "enqueued": 73, f"enqueued:{day}": 71, f"enqueued:{day + 1}": 2,
        "bytes": 72 * size + other, f"bytes:{day}": 70 * size + other, f"bytes:{day + 1}": 2 * size,
    }  # fmt: skip
    assert rig.run(views.counts(rig.keys)).stats == expected
    assert rig.run(views.overview(rig.keys, days=2, now_us=rig.now)).stats == expected


@pytest.mark.parametrize("damage", ["text", "1.5", "9223372036854775807", "-9223372036854775808"])
def test_enqueue_replaces_a_damaged_tally(rig: Rig, damage: str) -> None:
    enqueue_plain(rig, 1)
    rig.set("meta", "tally", damage)
    enqueue_plain(rig, 64, start=1)
    stats = rig.run(views.counts(rig.keys)).stats
    assert 63 <= stats["enqueued"] <= 64
    rig.set("meta", "tally_day", damage)
    enqueue_plain(rig, 1, start=65)
    assert rig.run(views.counts(rig.keys)).stats["enqueued"] == stats["enqueued"] + 1
