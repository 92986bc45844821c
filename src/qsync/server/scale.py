"""How many workers it takes to have every task started within a time. Pure.

A worker is one `qsync worker` with all its processes: what an autoscaler adds and removes.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

import msgspec

WINDOW_S: Final = 120.0
"""Rates are those of the last two minutes at most."""

LEAST_S: Final = 1.0
"""They are measured over so many seconds at least."""

BEHIND_S: Final = 1.0
"""Tasks that have waited for so long say that the workers have all they can do."""

MOST: Final = 1000
"""No more workers than this are asked for, unless another limit is given."""


class Sample(msgspec.Struct, frozen=True):
    """What the store said at one moment of the queues in question, paused ones left out."""

    at: float
    """By a monotonic clock, seconds."""
    pending: int
    active: int
    oldest_s: float
    """Age of the oldest pending task."""
    enqueued: int
    """Tasks enqueued up to now."""
    finished: int
    """Attempts that have ended up to now, in whatever way."""
    servers: int
    slots: int
    """Tasks that all servers together can run at the same time."""


class Goal(msgspec.Struct, frozen=True):
    """What is asked for."""

    target_s: float = 30.0
    """In so many seconds the backlog is to be gone."""
    per_worker: float | None = None
    """Tasks that a worker finishes in a second; None: as measured."""
    least: int = 0
    most: int = MOST


class Advice(msgspec.Struct, frozen=True):
    """The answer; rates are a second."""

    backlog: int
    running: int
    oldest_seconds: float
    enqueued_per_second: float | None
    finished_per_second: float | None
    backlog_seconds: float | None
    """How long the backlog takes at the present rate; None while that is not known."""
    workers: float
    """How many there are."""
    per_worker: float | None
    target_seconds: float
    desired: int


class Scaler:
    """Keeps samples, and says what they mean. `processes`: how many servers make a worker."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._samples: deque[Sample] = deque()

    def add(self, sample: Sample) -> None:
        """Take a sample; counters that went back, with a store that lost its data, begin anew."""
        last = self._samples[-1] if self._samples else sample
        if sample.finished < last.finished or sample.enqueued < last.enqueued:
            self._samples.clear()
        self._samples.append(sample)
        # One that is older stays until the next one is old enough to measure from.
        while len(self._samples) > 2 and self._samples[1].at <= sample.at - WINDOW_S:
            self._samples.popleft()

    def age_s(self, now: float) -> float:
        """Seconds since the last sample."""
        return now - self._samples[-1].at if self._samples else math.inf

    @property
    def span_s(self) -> float:
        """Over how many seconds rates can be measured."""
        return self._samples[-1].at - self._samples[0].at if self._samples else 0.0

    def advise(self, goal: Goal) -> Advice:
        """What follows from the samples; there has to be one."""
        first, now = self._samples[0], self._samples[-1]
        span_s = now.at - first.at
        arriving = finishing = None
        if span_s >= LEAST_S:
            arriving = (now.enqueued - first.enqueued) / span_s
            finishing = (now.finished - first.finished) / span_s
        per_worker = goal.per_worker or self._per_worker(now, finishing)
        backlog_s: float | None = None
        if not now.pending:
            backlog_s = 0.0
        elif finishing:
            backlog_s = round(now.pending / finishing, 1)
        return Advice(
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

    def _per_worker(self, now: Sample, finishing: float | None) -> float | None:
        """What a worker can do in a second, were all its slots busy; None: nobody knows."""
        if not finishing or not now.servers or not now.slots:
            return None
        # While tasks wait, every worker does what it can, though slots may be free: of a processor
        # that has too much to do, say. Otherwise the share of busy slots tells.
        behind = now.oldest_s > BEHIND_S or not now.active
        busy = 1.0 if behind else min(1.0, now.active / now.slots)
        return finishing / busy / now.servers * self._processes

    def _desired(self, now: Sample, goal: Goal, arriving: float, per_worker: float | None) -> int:
        in_hand = now.pending + now.active
        slots = now.slots / now.servers * self._processes if now.servers else 0.0
        if not in_hand and not arriving:
            wanted = 0
        elif per_worker:
            wanted = max(1, math.ceil((arriving + now.pending / goal.target_s) / per_worker - 1e-9))
        else:
            # Nothing has ended yet: it may take long, and then each task needs a slot of its own.
            wanted = math.ceil(in_hand / slots) if slots else 1
        if slots:  # what runs is not to be interrupted
            wanted = max(wanted, math.ceil(now.active / slots))
        return max(goal.least, min(wanted, goal.most))
