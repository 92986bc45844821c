"""How many workers it takes to have every task started within a time. Pure.

A worker is one `qsync worker` with all its processes: what an autoscaler adds and removes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from itertools import pairwise
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


class ScaleSample(msgspec.Struct, frozen=True):
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


class ScaleTarget(msgspec.Struct, frozen=True):
    """What is asked for."""

    target_s: float = 30.0
    """In so many seconds the backlog is to be gone."""
    per_worker: float | None = None
    """Tasks that a worker finishes in a second; None: as measured."""
    least: int = 0
    most: int = MOST


class ScaleAdvice(msgspec.Struct, frozen=True):
    """The answer; rates are a second."""

    backlog: int
    running: int
    oldest_seconds: float
    enqueued_per_second: float | None
    """Without bursts, which are in the backlog."""
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
        self._samples: deque[ScaleSample] = deque()

    def add(self, sample: ScaleSample) -> None:
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

    def advise(self, goal: ScaleTarget) -> ScaleAdvice:
        """What follows from the samples; there has to be one."""
        first, now = self._samples[0], self._samples[-1]
        span_s = now.at - first.at
        arriving = finishing = measured = None
        if span_s >= LEAST_S:
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
        """Tasks that come in a second, bursts left out: these are in the backlog.

        It is the median over the time between samples, so that a burst in less than half of the
        window does not count.
        """
        rates = sorted(
            ((now.enqueued - last.enqueued) / (now.at - last.at), now.at - last.at)
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
        """What a worker can do in a second, were all its slots busy; None: nobody knows.

        Times that begin or end idle count only if there are no others: nobody knows for how long
        the workers were busy in them.
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
            wanted = 0
        elif per_worker:
            wanted = max(1, math.ceil((arriving + now.pending / goal.target_s) / per_worker - 1e-9))
        else:
            # Nothing has ended yet: it may take long, and then each task needs a slot of its own.
            wanted = math.ceil(in_hand / slots) if slots else 1
        if slots:  # what runs is not to be interrupted
            wanted = max(wanted, math.ceil(now.active / slots))
        return max(goal.least, min(wanted, goal.most))


def _is_busy(last: ScaleSample, now: ScaleSample) -> bool:
    """Whether it is known for how long the workers were busy between two samples."""
    return now.pending > 0 or (now.active > 0 and (last.pending > 0 or last.active > 0))


def _busy_share(last: ScaleSample, now: ScaleSample) -> float:
    """Which share of its slots and of the time between two samples the workers were busy.

    While tasks wait, every worker does what it can, though slots may be free: of a processor that
    has too much to do, say. Otherwise the busy slots tell.
    """
    took_s = now.at - last.at
    if not now.slots or took_s <= 0:
        return 0.0
    if now.pending and not last.pending and not last.active:  # idle until the oldest came
        return min(1.0, now.oldest_s / took_s)
    if now.oldest_s > BEHIND_S:
        return 1.0
    # Tasks so short that none is seen to run keep less than a slot busy.
    active = max(last.active, now.active) or (0.5 if now.finished > last.finished else 0.0)
    return min(1.0, active / now.slots)
