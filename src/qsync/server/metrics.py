"""Metrics of servers by queue and type, as values that processes exchange and add up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import msgspec

from qsync.histogram import BOUNDS as BOUNDS
from qsync.type_counts import OUTCOMES as OUTCOMES
from qsync.type_rolls import OTHER as OTHER


def _buckets() -> list[int]:
    return [0] * (len(BOUNDS) + 1)


class MetricRow(msgspec.Struct, array_like=True):
    """The metrics of one type on one queue."""

    queue: str
    type: str
    running: int = 0
    outcomes: list[int] = msgspec.field(default_factory=lambda: [0] * len(OUTCOMES))
    waits: list[int] = msgspec.field(default_factory=_buckets)
    """Histogram of the time from when a task could start until it started; retries do not count."""
    wait_s: float = 0.0
    """Sum of these times, in seconds."""
    runs: list[int] = msgspec.field(default_factory=_buckets)
    """Histogram of the time from the start of a run to its end."""
    run_s: float = 0.0
    """Sum of these times, in seconds."""
    unknown: int = 0
    """Number of times that a task was handed back because the server has no handler for its
    type."""
    dropped: int = 0
    """Number of runs whose statistics the store did not accept."""
    oldest_began: float = 0.0
    """Start of the oldest running task, by `time.monotonic`, which all processes of a machine
    share; 0 if no task runs."""

    def add(self, other: MetricRow) -> None:
        """Add the counts of another row to this one."""
        self.running += other.running
        self.wait_s += other.wait_s
        self.run_s += other.run_s
        self.unknown += other.unknown
        self.dropped += other.dropped
        if other.oldest_began:
            self.oldest_began = min(self.oldest_began or other.oldest_began, other.oldest_began)
        for mine, theirs in (
            (self.outcomes, other.outcomes), (self.waits, other.waits), (self.runs, other.runs),
        ):  # fmt: skip
            for index, count in enumerate(theirs):
                mine[index] += count


def merged(rows: Iterable[MetricRow]) -> list[MetricRow]:
    """Return one row for each queue and type, with the sums of all its rows."""
    sums: dict[tuple[str, str], MetricRow] = {}
    for row in rows:
        sums.setdefault((row.queue, row.type), MetricRow(row.queue, row.type)).add(row)
    return list(sums.values())


def closed(rows: Iterable[MetricRow]) -> list[MetricRow]:
    """Return the rows of a server that has ended: the counts remain, but nothing runs."""
    totals = merged(rows)
    for row in totals:
        row.running, row.oldest_began = 0, 0.0
    return totals


class MetricSource(Protocol):
    """A source of metrics; each update replaces the whole list."""

    rows: list[MetricRow]


class MetricTotals:
    """The sums over many sources, including sources that have ended, so that counters never
    decrease.

    One thread changes the totals; any thread may read them, since all state is in one reference.
    """

    def __init__(self) -> None:
        self._state: tuple[list[MetricRow], frozenset[MetricSource]] = ([], frozenset())

    def add(self, source: MetricSource) -> None:
        """Add a source."""
        past, sources = self._state
        self._state = past, sources | {source}

    def end(self, source: MetricSource) -> None:
        """Remove a source that has ended, and keep its counts."""
        past, sources = self._state
        self._state = merged([*past, *closed(source.rows)]), sources - {source}

    def rows(self) -> list[MetricRow]:
        """Return the sums of the latest rows of all sources."""
        past, sources = self._state
        return merged([*past, *(row for source in sources for row in source.rows)])
