"""Priorities are strict within a queue, fair within a priority, and preserved by every
transition."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qsync.broker import operator_ops
from tests.support.queue_driver import BINARIES, LAPSE, Rig, S

BAND, REACH, FAR = 2**41, 2**40, 2**39


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        yield rig


def test_higher_priority_starts_first_at_any_enqueue_order(rig: Rig) -> None:
    rig.enqueue("a", "b")
    rig.enqueue("low", priority=1)
    rig.enqueue("high", priority=9)
    rig.enqueue("above", priority=6)
    rig.enqueue("high2", priority=9)
    rig.enqueue("c")
    assert rig.ids("pending") == ["high", "high2", "above", "a", "b", "c", "low"]
    assert rig.fetch(2).ids == ["high", "high2"]
    rig.enqueue("high3", priority=9)
    assert rig.fetch().ids == ["high3", "above", "a", "b", "c", "low"]


def test_normal_priority_is_readable_by_an_earlier_version(rig: Rig) -> None:
    rig.enqueue("a", priority=5, fairness_key="k")
    rig.fetch()
    dump = rig.dump()
    assert dump["meta"][b"schema"] == b"1"
    assert dump["keys"] == {b"a": b"k"}


def test_priority_other_than_normal_raises_the_layout_of_the_queue(rig: Rig) -> None:
    rig.enqueue("a", priority=6)
    assert rig.dump()["meta"][b"schema"] == b"2"


@pytest.mark.parametrize("priority", range(1, 10))
def test_tags_of_a_priority_are_its_band(rig: Rig, priority: int) -> None:
    rig.enqueue("a", "b", priority=priority)
    middle = (5 - priority) * BAND
    assert [rig.score("pending", id) for id in "ab"] == [middle + 1, middle + 2]


def test_each_priority_is_fair_in_itself(rig: Rig) -> None:
    rig.enqueue(*[f"f{n}" for n in range(6)], priority=8, fairness_key="flood")
    rig.enqueue(*[f"s{n}" for n in range(2)], priority=8, fairness_key="small")
    rig.enqueue(*[f"n{n}" for n in range(2)], fairness_key="flood")
    assert rig.fetch(4).ids == ["f0", "s0", "f1", "s1"]
    rig.enqueue("late", priority=8, fairness_key="small")
    assert rig.fetch().ids == ["f2", "late", "f3", "f4", "f5", "n0", "n1"]


def test_weight_counts_in_every_priority(rig: Rig) -> None:
    rig.set("meta", "weight:big", "1000")
    for priority in (9, 5, 1):
        rig.enqueue(*[f"b{priority}{n}" for n in range(3)], fairness_key="big", priority=priority)
        tags = [rig.score("pending", f"b{priority}{n}") or 0 for n in range(3)]
        assert tags[0] < tags[1] < tags[2], f"tags of priority {priority} advance"


def test_recovered_and_handed_back_tasks_lead_their_own_priority(rig: Rig) -> None:
    rig.enqueue("n1", "n2")
    rig.enqueue("h1", "h2", priority=9)
    held = rig.lease(4)
    rig.hand_back(*held[1:3])
    assert rig.ids("pending") == ["h2", "n1"]
    rig.enqueue("h3", priority=9)
    rig.enqueue("n3")
    rig.now += LAPSE
    rig.fetch(0, server="other")
    assert rig.ids("pending") == ["h1", "h2", "h3", "n2", "n1", "n3"]


def test_retry_promotion_and_run_keep_the_priority(rig: Rig) -> None:
    rig.enqueue("n")
    rig.enqueue("r", "s", "p", priority=9)
    rig.retry(*rig.lease(1), delay_us=5 * S)
    rig.hand_back(*rig.lease(1), delay_us=5 * S)
    rig.enqueue("later", delay=5, priority=9)
    rig.now += 5 * S
    rig.fetch(0)
    assert rig.ids("pending") == ["p", "later", "s", "r", "n"]
    rig.enqueue("again", delay=600, priority=1)
    rig.run(operator_ops.run(rig.keys, "again", "scheduled", now_us=rig.now))
    assert rig.ids("pending")[-2:] == ["n", "again"]


def test_dead_task_is_run_again_in_its_priority(rig: Rig) -> None:
    rig.enqueue("n")
    rig.enqueue("d", priority=9, fairness_key="k")
    rig.kill(*rig.lease(1))
    assert "keys" not in rig.dump(), "the priority and key of a dead task are not stored"
    rig.run(operator_ops.run(rig.keys, "d", "dead", fairness_key="k", priority=9, now_us=rig.now))
    assert rig.ids("pending") == ["d", "n"]
    assert rig.dump()["keys"] == {b"d": b"\xff9k"}


def test_tags_never_leave_their_band(rig: Rig) -> None:
    rig.enqueue("a", priority=6)
    rig.set("meta", "v", str(REACH + 10))
    rig.set("meta", "virtual:6", str(-BAND + REACH + 10))
    rig.set("meta", "virtual:7", "1e300")
    rig.enqueue("n", "n2")
    rig.enqueue("h", "h2", priority=6)
    rig.enqueue("g", priority=7)
    for id, priority in (("n2", 5), ("h2", 6), ("g", 7)):
        score = rig.score("pending", id)
        assert score is not None
        assert abs(score - (5 - priority) * BAND) < REACH
    assert rig.ids("pending")[0] == "g"
    assert rig.ids("pending")[-2:] == ["n", "n2"]


def test_large_virtual_time_restarts_in_an_empty_queue(rig: Rig) -> None:
    rig.enqueue("a", priority=6)
    rig.fetch()
    rig.set("meta", "virtual:6", str(-BAND + FAR + 10))
    rig.enqueue("b", "c", priority=6)
    assert rig.fetch(1).ids == ["b"]
    assert b"virtual:6" in rig.dump()["meta"], "a task waits"
    assert rig.fetch().ids == ["c"]
    assert b"virtual:6" not in rig.dump()["meta"]
    rig.enqueue("d", priority=6)
    assert rig.score("pending", "d") == -BAND + 1
