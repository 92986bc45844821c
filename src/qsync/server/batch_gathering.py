"""Gathers leased tasks of batch handlers until a batch is complete. Runs on the event loop.

A batch is complete when it has `max_size` tasks, when `max_wait` has passed since its first task,
or when a task in it would miss its deadline by waiting longer. A complete batch is due, which means
that it starts as soon as a slot is free. An open batch has no slot, so it does not block other
tasks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from qsync.mux import BatchLimits
from qsync.server.queue_state import QUEUED, LeasedTask


class Batch:
    """Tasks of one type that run together."""

    __slots__ = ("ends", "limits", "tasks", "timer", "type")

    def __init__(self, type: str, limits: BatchLimits, ends: float) -> None:
        self.type: str = type
        self.limits: BatchLimits = limits
        self.tasks: list[LeasedTask] = []
        self.ends: float = ends
        """Latest time at which the batch becomes due, by the event loop's clock."""
        self.timer: asyncio.TimerHandle | None = None


class Gathering:
    """The open batch of each type, and the batches that are due."""

    def __init__(self, on_due: Callable[[], None], *, longest_wait_s: float | None = None) -> None:
        self._on_due = on_due
        self._longest_wait_s = longest_wait_s
        self._loop = asyncio.get_running_loop()
        self._open: dict[str, Batch] = {}
        self.due: deque[Batch] = deque()
        """Batches that wait for a slot, in the order in which they became due."""

    def add(self, leased: LeasedTask, limits: BatchLimits, ready: deque[LeasedTask]) -> None:
        """Add a task to its type's batch, along with the tasks of that type that follow in `ready`.

        A complete batch moves to `due`.
        """
        message = leased.message
        type = message.type
        batch = self._open.get(type) or self._begin(type, limits)
        append, take, queued = batch.tasks.append, ready.popleft, QUEUED
        room = limits.max_size - len(batch.tasks)
        while True:
            append(leased)
            room -= 1
            if not room or (message.options is not None and self._ends_too_late(batch, leased)):
                self._end(type)
                return
            try:
                leased = take()
            except IndexError:  # e.g. a heartbeat thread took the last task
                return
            message = leased.message
            if message.type != type or leased.crashes or leased.phase is not queued:
                ready.appendleft(leased)
                return

    def spare(self) -> int:
        """Return how many more tasks to fetch for open batches.

        For each batch, this is the number of tasks that it lacks, but at most its current size,
        since the fetch may return tasks of other types instead.
        """
        spare = 0
        for batch in self._open.values():
            size = len(batch.tasks)
            spare += min(size, batch.limits.max_size - size)
        return spare

    def take(self, *, overdue_s: float | None = None) -> list[LeasedTask]:
        """Remove and return the tasks of all batches, or only of batches that became due over
        `overdue_s` seconds ago."""
        batches = [*self.due]
        if overdue_s is None:
            batches += self._open.values()
            for batch in self._open.values():
                _stop_timer(batch)
            self._open.clear()
        else:
            limit = self._loop.time() - overdue_s
            batches = [batch for batch in batches if batch.ends < limit]
        for batch in batches:
            if batch in self.due:
                self.due.remove(batch)
        return [leased for batch in batches for leased in batch.tasks if leased.phase is QUEUED]

    def _begin(self, type: str, limits: BatchLimits) -> Batch:
        wait_s = limits.max_wait_s
        if self._longest_wait_s is not None:
            wait_s = min(wait_s, self._longest_wait_s)
        batch = self._open[type] = Batch(type, limits, self._loop.time() + wait_s)
        batch.timer = self._loop.call_at(batch.ends, self._over, type)
        return batch

    def _ends_too_late(self, batch: Batch, leased: LeasedTask) -> bool:
        """Return whether a task would miss its deadline while the batch waits for more tasks."""
        options = leased.message.options
        if options is None or options.deadline_us is None:
            return False
        wait_us = (batch.ends - self._loop.time()) * 1_000_000
        return leased.queue.store_time_us() + wait_us >= options.deadline_us

    def _over(self, type: str) -> None:
        self._end(type)
        self._on_due()

    def _end(self, type: str) -> None:
        batch = self._open.pop(type)
        _stop_timer(batch)
        batch.ends = self._loop.time()
        self.due.append(batch)


def _stop_timer(batch: Batch) -> None:
    if batch.timer is not None:
        batch.timer.cancel()
        batch.timer = None
