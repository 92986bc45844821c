"""Fairness keys share the pending tasks by weight, tasks that are handed back go to the head, and
the virtual time never moves back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qsync.broker.op_values import LeaseRef
from tests.support.queue_driver import BINARIES, LAPSE, Rig, S


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        yield rig


def virtual(rig: Rig) -> float:
    return float(rig.field("meta", "v") or 0)


def fill(rig: Rig, key: str | None, count: int) -> list[str]:
    ids = [f"{key}{n}" for n in range(count)]
    for at in range(0, count, 500):
        rig.enqueue(*ids[at : at + 500], fairness_key=key)
    return ids


# Fairness


@pytest.mark.faults(78)
def test_a_tenant_with_few_tasks_does_not_wait_for_one_with_many(rig: Rig) -> None:
    fill(rig, "big", 1000)
    small = fill(rig, "small", 100)
    order = rig.fetch(500).ids
    assert [id for id in order[:200] if id.startswith("small")] == small
    assert order[-1] == "big399"


def test_new_fairness_key_gets_no_credit_for_earlier_time(rig: Rig) -> None:
    fill(rig, "old", 100)
    rig.complete(*rig.lease(60))
    fill(rig, "new", 40)
    order = rig.fetch(40).ids
    assert len([id for id in order if id.startswith("new")]) == 20


def test_weights_share_the_queue(rig: Rig) -> None:
    rig.set("meta", "weight:heavy", "3")
    fill(rig, "heavy", 100)
    fill(rig, "light", 100)
    order = rig.fetch(80).ids
    assert len([id for id in order if id.startswith("heavy")]) == 60


@pytest.mark.parametrize("weight", ["0", "-1", "", "nan", "much"])
def test_invalid_weight_counts_as_1(rig: Rig, weight: str) -> None:
    rig.set("meta", "weight:a", weight)
    fill(rig, "a", 10)
    fill(rig, "b", 10)
    order = rig.fetch(10).ids
    assert len([id for id in order if id.startswith("a")]) == 5


@pytest.mark.parametrize("weight", ["1e300", "inf", "1e-300"])
def test_absurd_weight_keeps_the_order_within_its_key(rig: Rig, weight: str) -> None:
    rig.set("meta", "weight:a", weight)
    ids = fill(rig, "a", 30)
    assert rig.fetch(10).ids == ids[:10]
    more = [f"more{n}" for n in range(9, 0, -1)]
    rig.enqueue(*more, fairness_key="a")
    assert rig.fetch().ids == ids[10:] + more
    other = [f"other{n}" for n in range(9, 0, -1)]
    rig.enqueue(*other)
    assert rig.fetch().ids == other


def test_tasks_without_a_key_are_one_tenant_among_the_others(rig: Rig) -> None:
    fill(rig, None, 10)
    fill(rig, "k", 10)
    order = rig.fetch(10).ids
    assert len([id for id in order if id.startswith("k")]) == 5


@pytest.mark.parametrize("how", ["scheduled", "retry"])
def test_promoted_tasks_take_the_place_of_their_key(rig: Rig, how: str) -> None:
    ids = [f"late{n}" for n in range(10)]
    if how == "scheduled":
        rig.enqueue(*ids, fairness_key="late", delay=1)
    else:
        rig.enqueue(*ids, fairness_key="late")
        rig.retry(*rig.lease(), delay_us=S)
    rig.now += S
    fill(rig, "early", 10)
    order = rig.fetch(10).ids
    assert len([id for id in order if id.startswith("late")]) == 5
    # Each key continues from its own last tag.
    rig.enqueue("late-last", fairness_key="late")
    rig.enqueue("early-last", fairness_key="early")
    assert set(rig.fetch().ids[-2:]) == {"late-last", "early-last"}


def test_the_last_tags_are_dropped_when_pending_is_empty(rig: Rig) -> None:
    fill(rig, "a", 3)
    fill(rig, "b", 3)
    assert set(rig.dump()["fairness"]) == {b"a", b"b"}
    rig.fetch(5)
    rig.fetch(5)
    assert "fairness" not in rig.dump()
    rig.fetch(5)


def test_last_tags_behind_the_virtual_time_are_dropped(rig: Rig) -> None:
    fill(rig, "once", 1)
    fill(rig, "often", 5)
    rig.fetch(2)  # once0 and often0 have the same tag
    assert set(rig.dump()["fairness"]) == {b"often"}


def test_many_keys_are_dropped_in_parts(rig: Rig) -> None:
    for n in range(150):
        rig.enqueue(f"t{n}", fairness_key=f"k{n}")
    fill(rig, "long", 3)
    rig.fetch(151)
    assert len(rig.dump()["fairness"]) == 51
    rig.fetch(0)
    assert set(rig.dump()["fairness"]) == {b"long"}


# The head


def test_handed_back_tasks_go_to_the_head_in_their_given_order(rig: Rig) -> None:
    rig.enqueue(*"abcdef")
    held = rig.lease(4)
    rig.hand_back(held[2], held[0], held[3])
    assert rig.ids("pending") == ["c", "a", "d", "e", "f"]
    rig.hand_back(held[1])
    assert rig.fetch().ids == ["b", "c", "a", "d", "e", "f"]


def test_handed_back_tasks_of_an_empty_queue_come_before_new_ones(rig: Rig) -> None:
    rig.enqueue("a", "b")
    held = rig.lease()
    rig.hand_back(*held)
    rig.enqueue("c")
    assert rig.fetch().ids == ["a", "b", "c"]


def test_virtual_time_never_moves_back(rig: Rig) -> None:
    rig.enqueue(*"abcdef")
    held = rig.lease(5)
    before = virtual(rig)
    for _ in range(3):
        rig.hand_back(*held)
        held = rig.lease(2)
        assert virtual(rig) == before
        rig.hand_back(*held)
        held = rig.lease(5)
        assert virtual(rig) == before
    rig.lease()
    assert virtual(rig) > before


def test_new_task_after_hand_back_goes_behind_waiting_tasks(rig: Rig) -> None:
    rig.enqueue(*"abc")
    rig.hand_back(*rig.lease())
    rig.enqueue("d")
    rig.enqueue("e", fairness_key="new")
    assert rig.fetch().ids[:3] == ["a", "b", "c"]


def test_recovered_and_handed_back_tasks_get_distinct_tags(rig: Rig) -> None:
    rig.enqueue(*"abcdef")
    rig.lease(3, server="dead")
    held = rig.lease(2)
    rig.now += LAPSE
    rig.hand_back(*held)
    assert rig.fetch(0).recovered == 3
    assert rig.fetch().ids == ["a", "b", "c", "d", "e", "f"]


def test_tags_keep_their_order_over_many_rounds(rig: Rig) -> None:
    rig.set("meta", "weight:a", "3")
    expected = []
    for n in range(60):
        rig.enqueue(f"a{n}", fairness_key="a")
        expected.append(f"a{n}")
        if n % 3 == 2:
            held: list[LeaseRef] = rig.lease(2)
            rig.hand_back(*held)
            [first] = rig.lease(1)
            assert first.id == expected.pop(0)
            rig.complete(first)
    assert rig.fetch().ids == expected
