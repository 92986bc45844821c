"""Computes how many workers are needed to start every task within a target time. Without I/O.

A worker is one `qsync worker` with all its processes: the unit that an autoscaler adds and removes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from itertools import pairwise
from typing import Final

import msgspec

WINDOW_S: Final = 120.0
"""Longest time over which rates are measured, in seconds."""

MIN_WINDOW_S: Final = 1.0
"""Shortest time over which rates are measured, in seconds."""

BEHIND_S: Final = 1.0
"""Age of the oldest pending task above which all workers count as fully busy, in seconds."""

MAX_WORKERS: Final = 1000
"""Default upper limit for the advised number of workers."""


class ScaleSample(msgspec.Struct, frozen=True):
    """The state of the queues at one moment.

    `pending`, `active` and `oldest_s` leave out paused queues.
    """

    at: float
    """Time by a monotonic clock, in seconds."""
    pending: int
    active: int
    oldest_s: float
    """Age of the oldest pending task, in seconds."""
    enqueued: int
    """Total number of tasks enqueued so far."""
    finished: int
    """Total number of attempts that have ended so far, with any outcome."""
    servers: int
    slots: int
    """Number of tasks that all servers together can run at the same time."""
    limited: int = 0
    """Number of tasks that wait for a limit, and so would not start sooner with more workers."""

    @property
    def arrived(self) -> int:
        """Total number of tasks that have arrived so far and may start."""
        return self.enqueued - self.limited


class ScaleTarget(msgspec.Struct, frozen=True):
    """The target and the limits of a request."""

    target_s: float = 30.0
    """Target time to drain the backlog, in seconds."""
    per_worker: float | None = None
    """Number of tasks that a worker finishes per second; None means the measured rate."""
    minimum: int = 0
    maximum: int = MAX_WORKERS


class ScaleAdvice(msgspec.Struct, frozen=True):
    """The advice for one request; rates are per second."""

    backlog: int
    running: int
    oldest_seconds: float
    enqueued_per_second: float | None
    """Arrival rate without bursts, whose tasks count as backlog."""
    finished_per_second: float | None
    backlog_seconds: float | None
    """Time to drain the backlog at the current rate, in seconds; None if unknown."""
    workers: float
    """Number of workers that run now."""
    per_worker: float | None
    target_seconds: float
    desired: int


class Scaler:
    """Keeps samples and computes advice from them. `processes` is the number of servers per
    worker."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._samples: deque[ScaleSample] = deque()

    def add(self, sample: ScaleSample) -> None:
        """Add a sample; if counters decreased (the store lost its data), discard the earlier
        samples."""
        last = self._samples[-1] if self._samples else sample
        if sample.finished < last.finished or sample.enqueued < last.enqueued:
            self._samples.clear()
        self._samples.append(sample)
        # Keep one older sample until the next one is old enough to measure from.
        while len(self._samples) > 2 and self._samples[1].at <= sample.at - WINDOW_S:
            self._samples.popleft()

    def age_s(self, now: float) -> float:
        """Return the time since the last sample, in seconds; infinity if there are no samples."""
        return now - self._samples[-1].at if self._samples else math.inf

    @property
    def span_s(self) -> float:
        """Time between the first and the last sample, in seconds."""
        return self._samples[-1].at - self._samples[0].at if self._samples else 0.0

    def advise(self, goal: ScaleTarget) -> ScaleAdvice:
        """Return advice from the samples; at least one sample is required."""
        first, now = self._samples[0], self._samples[-1]
        span_s = now.at - first.at
        arriving = finishing = measured = None
        if span_s >= MIN_WINDOW_S:
            arriving = self._steady()
            finishing = (now.finished - first.finished) / span_s
            measured = self._per_worker()
        per_worker = goal.per_worker or measured
        backlog_s: float | None = None
        if not now.pending:
            backlog_s = 0.0
        elif measured and now.servers:
            backlog_s = round(now.pending / (measured * now.servers / self._processes), 1)
        return ScaleAdvice(
            backlog=now.pending,
            running=now.active,
            oldest_seconds=round(now.oldest_s, 1),
            enqueued_per_second=None if arriving is None else round(arriving, 2),
            finished_per_second=None if finishing is None else round(finishing, 2),
            backlog_seconds=backlog_s,
            workers=round(now.servers / self._processes, 2),
            per_worker=None if per_worker is None else round(per_worker, 3),
            target_seconds=goal.target_s,
            desired=self._desired(now, goal, arriving or 0.0, per_worker),
        )

    def _steady(self) -> float:
        """Return the arrival rate per second. Bursts and tasks that wait for a limit do not count.

        The rate is the median of the rates between samples, weighted by time. A burst in less than
        half of the window therefore does not count. The burst's tasks still count as backlog.
        """
        rates = sorted(
            (max(0, now.arrived - last.arrived) / (now.at - last.at), now.at - last.at)
            for last, now in pairwise(self._samples)
            if now.at > last.at
        )
        left_s = sum(took_s for _, took_s in rates) / 2
        for rate, took_s in rates:
            left_s -= took_s
            if left_s <= 1e-9:
                return rate
        return 0.0

    def _per_worker(self) -> float | None:
        """Return how many tasks a fully busy worker finishes per second; None if unknown.

        Intervals that begin or end with idle workers count only if there are no other intervals,
        because the workers' busy time in them is unknown.
        """
        pairs = list(pairwise(self._samples))
        return self._rate(pair for pair in pairs if _is_busy(*pair)) or self._rate(pairs)

    def _rate(self, pairs: Iterable[tuple[ScaleSample, ScaleSample]]) -> float | None:
        finished = busy_s = 0.0
        for last, now in pairs:
            finished += now.finished - last.finished
            busy_s += _busy_share(last, now) * (now.at - last.at) * now.servers
        return finished / busy_s * self._processes if finished > 0 and busy_s > 0 else None

    def _desired(
        self, now: ScaleSample, goal: ScaleTarget, arriving: float, per_worker: float | None
    ) -> int:
        in_hand = now.pending + now.active
        slots = now.slots / now.servers * self._processes if now.servers else 0.0
        if not in_hand and not arriving:
            desired = 0
        elif per_worker:
            desired = max(
                1, math.ceil((arriving + now.pending / goal.target_s) / per_worker - 1e-9)
            )
        else:
            # No attempt has ended yet, so tasks may take a long time. Give each task its own slot.
            desired = math.ceil(in_hand / slots) if slots else 1
        if slots:  # do not remove workers that run tasks
            desired = max(desired, math.ceil(now.active / slots))
        return max(goal.minimum, min(desired, goal.maximum))


def _is_busy(last: ScaleSample, now: ScaleSample) -> bool:
    """Return whether two samples show how long the workers were busy between them."""
    return now.pending > 0 or (now.active > 0 and (last.pending > 0 or last.active > 0))


def _busy_share(last: ScaleSample, now: ScaleSample) -> float:
    """Return how busy the workers were between two samples, as a share from 0 to 1.

    If the oldest pending task has waited for over BEHIND_S, the share is 1. The workers are then at
    their limit even if slots are free, for example because their CPU is saturated. Otherwise, the
    result is the share of busy slots.
    """
    took_s = now.at - last.at
    if not now.slots or took_s <= 0:
        return 0.0
    # The workers were idle until the oldest task arrived.
    if now.pending and not last.pending and not last.active:
        return min(1.0, now.oldest_s / took_s)
    if now.oldest_s > BEHIND_S:
        return 1.0
    # Tasks that are too short to be seen running keep less than one slot busy.
    active = max(last.active, now.active) or (0.5 if now.finished > last.finished else 0.0)
    return min(1.0, active / now.slots)
