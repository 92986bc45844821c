"""Which periodic tasks come next, among thousands."""

from __future__ import annotations

from qsync.schedule import Every, Missed, Periodic
from qsync.server.schedule_heap import Agenda, Entry
from qsync.task import Task

GRACE_US = 30_000_000
S = 1_000_000


class Counted:
    """Every second, and how often anybody asked."""

    asked = 0

    def next_after(self, moment_us: int) -> int | None:
        Counted.asked += 1
        return (moment_us // S + 1) * S

    def previous(self, moment_us: int) -> int | None:
        Counted.asked += 1
        return moment_us // S * S


def agenda_of(count: int, missed: Missed = "skip") -> tuple[Agenda, list[Entry]]:
    agenda = Agenda(GRACE_US)
    entries = [
        Entry(Periodic(f"s{at}", Counted(), missed), lambda: Task("a")) for at in range(count)
    ]
    for entry in entries:
        agenda.learn(entry, 0)
    return agenda, entries


def test_one_look_costs_the_same_whatever_the_number_of_schedules() -> None:
    agenda, entries = agenda_of(5000)
    asked = []
    for now_us in (S // 2, S // 2, S, 2 * S, 2 * S):
        Counted.asked = 0
        agenda.pop(now_us, 50)
        asked.append(Counted.asked)
    assert max(asked) <= 150
    assert len(entries) == 5000


def test_every_schedule_has_its_turn() -> None:
    agenda, entries = agenda_of(500)
    seen: list[Entry] = []
    while due := agenda.pop(S, 50):
        seen += [entry for entry, tick_us in due if tick_us == S]
    assert len(seen) == len(entries)
    assert {*seen} == {*entries}
    assert agenda.next_us() is None, "the caller says what comes next"


def test_far_schedules_are_not_looked_at() -> None:
    agenda = Agenda(GRACE_US)
    far = [Entry(Periodic(f"f{at}", Every(3600)), lambda: Task("a")) for at in range(1000)]
    near = Entry(Periodic("near", Every(1)), lambda: Task("a"))
    for entry in (*far, near):
        agenda.learn(entry, S)
    for _ in range(30):
        agenda.pop(S, 50)
    assert agenda.next_us() == 2 * S
    assert agenda.pop(2 * S, 50) == [(near, 2 * S)]
    assert agenda.next_us() == 3600 * S


def test_all_missed_ticks_are_enqueued_in_order() -> None:
    agenda, [entry] = agenda_of(1, "all")
    ticks = []
    while due := agenda.pop(5 * S, 50):
        [(_, tick_us)] = due
        ticks.append(tick_us)
        entry.after_us = tick_us
        agenda.plan(entry, entry.periodic.schedule.next_after(tick_us))
    assert ticks == [1 * S, 2 * S, 3 * S, 4 * S, 5 * S]
    assert agenda.next_us() == 6 * S


def test_what_is_learned_late_does_not_come_again() -> None:
    agenda, [entry] = agenda_of(1, "all")
    agenda.learn(entry, 4 * S)
    assert agenda.pop(5 * S, 50) == [(entry, 5 * S)]
    agenda.learn(entry, 3 * S)
    assert agenda.next_us() is None
