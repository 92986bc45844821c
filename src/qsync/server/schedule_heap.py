"""Which periodic tasks come next: a heap, so that those that are far cost nothing. Pure."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence

from qsync import schedule
from qsync.schedule import Periodic
from qsync.task import Task


class Entry:
    """A schedule, and the moment after which it owes ticks, as far as this server knows."""

    __slots__ = ("after_us", "at_us", "build", "periodic")

    def __init__(self, periodic: Periodic, build: Callable[[], Task]) -> None:
        self.periodic = periodic
        self.build = build
        self.after_us: int | None = None
        self.at_us: int | None = None
        """When there is something to do; None: never again."""

    @property
    def name(self) -> str:
        """The name of the schedule."""
        return self.periodic.name

    def due(self, now_us: int, grace_us: int) -> int | None:
        """The first tick that is to be enqueued now."""
        ticks = schedule.due_ticks(
            self.periodic.schedule, self.after_us, now_us, self.periodic.missed,
            grace_us=grace_us, limit=1,
        )  # fmt: skip
        return ticks[0] if ticks else None


class Agenda:
    """Entries by when there is something to do for them."""

    def __init__(self, grace_us: int) -> None:
        self._grace_us = grace_us
        self._heap: list[tuple[int, int, Entry]] = []
        self._order = itertools.count()

    def plan(self, entry: Entry, at_us: int | None) -> None:
        """Look at an entry at that time instead of any other; None: never again."""
        entry.at_us = at_us
        if at_us is not None:
            heapq.heappush(self._heap, (at_us, next(self._order), entry))

    def learn(self, entry: Entry, after_us: int, *, again: bool = False) -> None:
        """Note the moment after which an entry owes ticks; later than known, or `again` told."""
        if entry.after_us is None or after_us > entry.after_us or again:
            entry.after_us = max(after_us, entry.after_us or after_us)
            self.plan(entry, after_us)

    def next_us(self) -> int | None:
        """When there is something to do."""
        while self._heap and self._heap[0][2].at_us != self._heap[0][0]:
            heapq.heappop(self._heap)  # it was planned anew
        return self._heap[0][0] if self._heap else None

    def pop(self, now_us: int, most: int) -> Sequence[tuple[Entry, int]]:
        """Entries with a tick that is due, which the caller plans anew. Looks at no more than
        `most` entries; each entry has one tick at a time."""
        due = []
        for _ in range(most):
            at_us = self.next_us()
            if at_us is None or at_us > now_us:
                break
            entry = heapq.heappop(self._heap)[2]
            tick_us = entry.due(now_us, self._grace_us)
            if tick_us is None:
                self.plan(entry, entry.periodic.schedule.next_after(now_us))
            else:
                entry.at_us = None
                due.append((entry, tick_us))
        return due
