"""A heap of periodic tasks by due time, so that distant ones cost nothing. Without I/O."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence

from qsync import schedule
from qsync.schedule import Periodic
from qsync.task import Task
from qsync.times import is_of_wrong_clock


class Entry:
    """A schedule, and the time after which its ticks are not enqueued yet, as far as known here."""

    __slots__ = ("after_us", "at_us", "build", "periodic")

    def __init__(self, periodic: Periodic, build: Callable[[], Task]) -> None:
        self.periodic: Periodic = periodic
        self.build: Callable[[], Task] = build
        self.after_us: int | None = None
        self.at_us: int | None = None
        """Time of the next check, in microseconds; None means never again."""

    @property
    def name(self) -> str:
        """The name of the schedule."""
        return self.periodic.name

    def missed(self, tick_us: int | None, now_us: int) -> tuple[int, int] | None:
        """Return the last and the first tick before `tick_us`, the due one, that are skipped."""
        schedule = self.periodic.schedule
        if self.periodic.missed != "skip" or self.after_us is None:
            return None
        last_us = schedule.previous(now_us if tick_us is None else tick_us - 1)
        if last_us is None or last_us <= self.after_us:
            return None
        return last_us, schedule.next_after(self.after_us) or last_us

    def due(self, now_us: int, grace_us: int) -> int | None:
        """Return the first tick to enqueue now, in microseconds; None if none is due."""
        ticks = schedule.due_ticks(
            self.periodic.schedule, self.after_us, now_us, self.periodic.missed,
            grace_us=grace_us, limit=1,
        )  # fmt: skip
        return ticks[0] if ticks else None


class ScheduleHeap:
    """Entries ordered by the time of their next check."""

    def __init__(self, grace_us: int) -> None:
        self._grace_us = grace_us
        self._heap: list[tuple[int, int, Entry]] = []
        self._order = itertools.count()
        self.missed: list[tuple[Entry, int, int]] = []
        """Skipped ticks as (entry, last tick, first tick); the caller clears the list."""

    def plan(self, entry: Entry, at_us: int | None) -> None:
        """Set the time of an entry's next check; None means never again."""
        entry.at_us = at_us
        if at_us is not None:
            heapq.heappush(self._heap, (at_us, next(self._order), entry))

    def learn(self, entry: Entry, after_us: int, now_us: int, *, again: bool = False) -> None:
        """Record the time after which an entry's ticks are not enqueued yet, and check it then.

        Ignore a time that is not later than the known one, unless `again` is true or the known one
        is from a clock that was ahead.
        """
        if is_of_wrong_clock(entry.after_us or now_us, now_us):
            entry.after_us = None
        if entry.after_us is None or after_us > entry.after_us or again:
            entry.after_us = max(after_us, entry.after_us or after_us)
            self.plan(entry, after_us)

    def next_us(self) -> int | None:
        """Return the time of the earliest check, in microseconds; None if there is none."""
        while self._heap and self._heap[0][2].at_us != self._heap[0][0]:
            heapq.heappop(self._heap)  # outdated: the entry has another time by now
        return self._heap[0][0] if self._heap else None

    def pop(self, now_us: int, limit: int) -> Sequence[tuple[Entry, int]]:
        """Remove entries with a due tick, and return each with that tick; the caller plans them
        again. Check at most `limit` entries."""
        due = []
        for _ in range(limit):
            at_us = self.next_us()
            if at_us is None or at_us > now_us:
                break
            entry = heapq.heappop(self._heap)[2]
            tick_us = entry.due(now_us, self._grace_us)
            if (ticks := entry.missed(tick_us, now_us)) is not None:
                self.missed.append((entry, *ticks))
            if tick_us is None:
                self.plan(entry, entry.periodic.schedule.next_after(now_us))
            else:
                entry.at_us = None
                due.append((entry, tick_us))
        return due
