"""Samples the queues every few seconds, for the charts of the last 15 minutes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from itertools import pairwise
from typing import Final, NamedTuple

from qsync import store_clock
from qsync.errors import QsyncError
from qsync.inspector import Day, Inspector, QueueInfo
from qsync.state import TaskState

log: Final = logging.getLogger("qsync.web")

INTERVAL_S: Final = 5.0
SAMPLES_KEPT: Final = 181
"""Number of samples to keep, enough for 15 minutes."""

CHARTED_QUEUES: Final = 50
"""Maximum number of queues that have their own charts and count in the daily totals."""

DAYS_CHARTED: Final = 30
DAYS_CACHE_S: Final = 60.0
"""How long the daily counters are cached, in seconds."""


class Figures(NamedTuple):
    """Counters of one queue, or of all queues, at a point in time.

    `latency` is in seconds; `pending` is the number of pending tasks.
    """

    enqueued: int
    completed: int
    failed: int
    dead: int
    latency: float
    pending: int
    crashed: int

    def since(self, earlier: Figures) -> Figures:
        """Return the growth of the counters since an earlier sample.

        The growth is never negative, although the counters of a recreated queue restart at 0.
        """
        return Figures(
            max(0, self.enqueued - earlier.enqueued),
            max(0, self.completed - earlier.completed),
            max(0, self.failed - earlier.failed),
            max(0, self.dead - earlier.dead),
            self.latency,
            self.pending,
            max(0, self.crashed - earlier.crashed),
        )


class TimedFigures(NamedTuple):
    """A sample, with its time by time.monotonic; `total` is None if the store did not answer."""

    time: float
    total: Figures | None
    queues: Mapping[str, Figures]


class Sampler:
    """Keeps the samples of the last 15 minutes; caches the daily counters for a minute."""

    def __init__(self, inspector: Inspector, *, interval_s: float = INTERVAL_S) -> None:
        self.interval_s = interval_s
        self._inspector = inspector
        self._samples: deque[TimedFigures] = deque(maxlen=SAMPLES_KEPT)
        self._task: asyncio.Task[None] | None = None
        self._days: dict[int, tuple[float, list[Day]]] = {}
        """For each number of days: when its counters were last read, and the counters."""
        self._days_lock = asyncio.Lock()

    @property
    def minutes(self) -> int:
        """Time span of the samples, in minutes."""
        return round((SAMPLES_KEPT - 1) * self.interval_s / 60)

    def start(self) -> None:
        """Start sampling in the running event loop, unless it has started already."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="qsync-dashboard-samples")

    async def stop(self) -> None:
        """Stop sampling."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        while True:
            await self.sample()
            await asyncio.sleep(self.interval_s)

    async def sample(self) -> None:
        """Take a sample; if the store does not answer, record a gap."""
        try:
            async with asyncio.timeout(self.interval_s):
                overview = await self._inspector.overview()
        except (QsyncError, TimeoutError) as error:
            log.debug("no sample: %s", type(error).__name__)
            self._samples.append(TimedFigures(time.monotonic(), None, {}))
            return
        each = {info.name: _figures(info) for info in overview.queues}
        charted = dict(list(each.items())[:CHARTED_QUEUES])
        self._samples.append(TimedFigures(time.monotonic(), _sum(list(each.values())), charted))

    def series(self, queue: str | None = None) -> list[tuple[float, Figures] | None]:
        """Return each interval between samples: its length in seconds, and the growth of the
        counters.

        Latency and pending tasks are those at the end of the interval. An interval is None if a
        sample is missing.
        """
        intervals: list[tuple[float, Figures] | None] = []
        samples = list(self._samples)
        for before, after in pairwise(samples):
            first, second = _of(before, queue, is_first=True), _of(after, queue)
            if first is None or second is None or after.time <= before.time:
                intervals.append(None)
                continue
            intervals.append((after.time - before.time, second.since(first)))
        return intervals

    async def days(self, number: int = DAYS_CHARTED) -> list[Day]:
        """Return the sum of the daily counters of up to 50 queues, the latest day first.

        The counters are cached for a minute, because reading them takes one call per queue.
        """
        async with self._days_lock:
            read_at, days = self._days.get(number, (-DAYS_CACHE_S, []))
            if time.monotonic() - read_at >= DAYS_CACHE_S:
                days = await self._read_days(number)
                self._days[number] = time.monotonic(), days
            return days

    async def _read_days(self, number: int) -> list[Day]:
        queues = (await self._inspector.overview()).queues[:CHARTED_QUEUES]
        totals: dict[date, Counter[str]] = {}
        for name in [queue.name for queue in queues]:
            info = await self._inspector.queue(name, days=number)
            for day in info.days if info else ():
                totals.setdefault(day.day, Counter()).update(day.counters)
        return [Day(day=day, counters=totals[day]) for day in sorted(totals, reverse=True)]


def filled(days: Sequence[Day], count: int = DAYS_CHARTED) -> list[Day]:
    """Return the last `count` days up to today, the latest last; idle days are included."""
    by_day = {day.day: day.counters for day in days}
    today = max([store_clock.now().date(), *by_day])
    dates = [today - timedelta(days=back) for back in range(count - 1, -1, -1)]
    return [Day(day=day, counters=by_day.get(day, {})) for day in dates]


def _figures(info: QueueInfo) -> Figures:
    counters = info.counters
    return Figures(
        counters["enqueued"], counters["completed"], counters["failed"], counters["dead"],
        info.latency, info.states[TaskState.PENDING], counters["crashed"],
    )  # fmt: skip


def _sum(each: Sequence[Figures]) -> Figures:
    return Figures(
        sum(figures.enqueued for figures in each),
        sum(figures.completed for figures in each),
        sum(figures.failed for figures in each),
        sum(figures.dead for figures in each),
        max((figures.latency for figures in each), default=0.0),
        sum(figures.pending for figures in each),
        sum(figures.crashed for figures in each),
    )


def _of(sample: TimedFigures, queue: str | None, *, is_first: bool = False) -> Figures | None:
    """Return the figures of a queue, or of all queues; None if the sample lacks them.

    is_first   whether the sample begins an interval; a queue that is missing from such a sample did
               not exist yet, so its figures are 0
    """
    if queue is None or sample.total is None:
        return sample.total
    is_whole = len(sample.queues) < CHARTED_QUEUES
    return sample.queues.get(queue, _sum([]) if is_first and is_whole else None)
