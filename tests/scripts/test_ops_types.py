"""How the scripts treat paused types, in cases that the model check rarely reaches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qsync.broker import type_ops
from tests.support.queue_driver import BINARIES, Rig, S

MANY = 1200


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        yield rig


def pause(rig: Rig, type: str, note: bytes = b"me") -> bool | None:
    return rig.run(type_ops.pause_type(rig.keys, type, note, now_us=rig.now))


def resume(rig: Rig, type: str) -> bool | None:
    return rig.run(type_ops.resume_type(rig.keys, type, now_us=rig.now))


def paused(rig: Rig) -> list[type_ops.StoredPause]:
    return rig.run(type_ops.paused_types(rig.keys))


def test_tasks_of_a_paused_type_are_set_aside_and_return_in_order(rig: Rig) -> None:
    rig.enqueue("a1", "a2", type="a")
    [running] = rig.lease(1)
    assert rig.field("meta", "schema") == b"1"
    assert pause(rig, "a") is True
    assert rig.field("meta", "schema") == b"2"
    rig.enqueue("b1", type="b")
    assert rig.woken()
    rig.enqueue("a3", type="a")
    assert rig.state("a3") == "limited"
    assert not rig.woken(), "nothing can start"
    assert rig.fetch().ids == ["b1"]
    assert [rig.state(id) for id in ("a2", "a3")] == ["limited", "limited"]
    assert paused(rig) == [type_ops.StoredPause("a", b"me", rig.now, 2)]
    rig.now += S
    assert rig.retry(running) == ["ok"]
    rig.now += S
    assert rig.fetch().ids == [], "tasks that wait for a retry are also set aside"
    assert rig.ids("limited") == ["a2", "a3", "a1"]
    assert resume(rig, "a") is True
    assert resume(rig, "a") is False
    assert rig.woken()
    assert rig.fetch().ids == ["a2", "a3", "a1"]
    assert rig.client.exists(*(rig.keys.key(name) for name in ("waiters", "limit_rules"))) == 0


def test_repeated_pause_replaces_the_note_and_keeps_the_time(rig: Rig) -> None:
    began = rig.now
    assert pause(rig, "a", b"one") is True
    rig.now += S
    assert pause(rig, "b", b"other") is True
    assert pause(rig, "a", b"\xff two") is False
    assert paused(rig) == [
        type_ops.StoredPause("a", b"\xff two", began, 0),
        type_ops.StoredPause("b", b"other", rig.now, 0),
    ]
    assert resume(rig, "c") is False
    assert resume(rig, "a") is True
    assert [one.type for one in paused(rig)] == ["b"]


def test_no_more_than_100_types_are_paused(rig: Rig) -> None:
    for n in range(type_ops.PAUSED_MOST):
        assert pause(rig, f"t{n}") is True
    assert pause(rig, "one more") is None
    assert pause(rig, "t7", b"still") is False
    assert len(paused(rig)) == type_ops.PAUSED_MOST
    assert resume(rig, "t7") is True
    assert pause(rig, "one more") is True


@pytest.mark.parametrize("type", ["x", "x" * 31, "x" * 32, "x" * 255, "x" * 256, "ж" * 256, "a:b@"])
def test_type_with_any_name_is_found_in_messages(rig: Rig, type: str) -> None:
    rig.enqueue("before", type=type)
    pause(rig, type)
    rig.enqueue("like", type=type[:-1] or "y")
    rig.enqueue("after", type=type)
    assert rig.fetch().ids == ["like"]
    assert rig.ids("limited") == ["before", "after"]
    resume(rig, type)
    assert rig.fetch().ids == ["before", "after"]


def test_tasks_that_are_set_aside_can_be_cancelled_deleted_and_purged(rig: Rig) -> None:
    pause(rig, "a")
    rig.enqueue("1", "2", "3", "4", type="a")
    assert rig.cancel("1")[0] == "cancelled"
    assert rig.delete("limited", "2") == 1
    assert paused(rig)[0].waiting == 2
    resume(rig, "a")
    assert rig.delete("limited", "3", "4") == 2
    assert rig.fetch().ids == []
    assert "waiters" not in rig.dump()
    assert "openings" not in rig.dump()


def test_each_fetch_moves_a_bounded_number_of_tasks(rig: Rig) -> None:
    """However many tasks there are, no script runs for long and tasks of other types start soon."""
    for first in range(0, MANY, 300):
        rig.enqueue(*(f"{n:04}" for n in range(first, first + 300)), type="a")
    rig.enqueue("other", type="b")
    pause(rig, "a")
    fetched, calls = rig.fetch(10), 1
    while not fetched.ids:
        assert fetched.left, "the server fetches again immediately"
        assert len(rig.ids("limited")) <= 350 * calls
        fetched, calls = rig.fetch(10), calls + 1
    assert fetched.ids == ["other"]
    assert calls <= 1 + MANY / 300
    assert len(rig.ids("limited")) == MANY
    resume(rig, "a")
    assert rig.fetch(0).next_due_us == 0
    assert len(rig.ids("pending")) == 150
    assert [len(rig.fetch(100).ids) for _ in range(12)] == [100] * 12
    assert rig.ids("limited") == []
