"""Thousands of periodic tasks tick in the right order."""

from __future__ import annotations

from qsync.schedule import Every, Missed, Periodic
from qsync.server.periodic import Entry, ScheduleHeap
from qsync.task import Task

GRACE_US = 30_000_000
S = 1_000_000


class Counted:
    """A schedule that ticks once per second and counts the calls of `next_after`."""

    asked = 0

    def next_after(self, moment_us: int) -> int | None:
        Counted.asked += 1
        return (moment_us // S + 1) * S

    def previous(self, moment_us: int) -> int | None:
        Counted.asked += 1
        return moment_us // S * S


def heap_of(count: int, missed: Missed = "skip") -> tuple[ScheduleHeap, list[Entry]]:
    heap = ScheduleHeap(GRACE_US)
    entries = [
        Entry(Periodic(f"s{at}", Counted(), missed), lambda: Task("a")) for at in range(count)
    ]
    for entry in entries:
        heap.learn(entry, 0, 0)
    return heap, entries


def test_check_cost_is_independent_of_the_number_of_schedules() -> None:
    heap, entries = heap_of(5000)
    asked = []
    for now_us in (S // 2, S // 2, S, 2 * S, 2 * S):
        Counted.asked = 0
        heap.pop(now_us, 50)
        asked.append(Counted.asked)
    assert max(asked) <= 150
    assert len(entries) == 5000


def test_every_schedule_gets_its_turn() -> None:
    heap, entries = heap_of(500)
    seen: list[Entry] = []
    while due := heap.pop(S, 50):
        seen += [entry for entry, tick_us in due if tick_us == S]
    assert len(seen) == len(entries)
    assert {*seen} == {*entries}
    assert heap.next_us() is None, "the heap does not plan the next ticks by itself"


def test_distant_schedules_are_not_checked() -> None:
    heap = ScheduleHeap(GRACE_US)
    far = [Entry(Periodic(f"f{at}", Every(3600)), lambda: Task("a")) for at in range(1000)]
    near = Entry(Periodic("near", Every(1)), lambda: Task("a"))
    for entry in (*far, near):
        heap.learn(entry, S, S)
    for _ in range(30):
        heap.pop(S, 50)
    assert heap.next_us() == 2 * S
    assert heap.pop(2 * S, 50) == [(near, 2 * S)]
    assert heap.next_us() == 3600 * S


def test_all_missed_ticks_are_enqueued_in_order() -> None:
    heap, [entry] = heap_of(1, "all")
    ticks = []
    while due := heap.pop(5 * S, 50):
        [(_, tick_us)] = due
        ticks.append(tick_us)
        entry.after_us = tick_us
        heap.plan(entry, entry.periodic.schedule.next_after(tick_us))
    assert ticks == [1 * S, 2 * S, 3 * S, 4 * S, 5 * S]
    assert heap.next_us() == 6 * S


def test_tick_learned_late_is_not_repeated() -> None:
    heap, [entry] = heap_of(1, "all")
    heap.learn(entry, 4 * S, 4 * S)
    assert heap.pop(5 * S, 50) == [(entry, 5 * S)]
    heap.learn(entry, 3 * S, 4 * S)
    assert heap.next_us() is None


def test_tick_of_a_clock_that_was_days_ahead_is_forgotten() -> None:
    heap, [entry] = heap_of(1)
    heap.learn(entry, 90_000 * S, 90_000 * S)
    heap.learn(entry, 5 * S, 5 * S, again=True)
    assert heap.pop(6 * S, 50) == [(entry, 6 * S)]
