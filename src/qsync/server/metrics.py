"""What servers count, by queue and type: values that cross from process to process and add up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

import msgspec

OTHER: Final = "other"

BOUNDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    300.0, 1800.0,
)  # fmt: skip
"""Upper bounds of the buckets of both histograms, seconds; above the last one is one more."""

OUTCOMES: Final = ("completed", "retried", "dead", "cancelled", "handed_back", "lost")
"""How a run may end: `lost` is one whose lease went to another server."""


def _buckets() -> list[int]:
    return [0] * (len(BOUNDS) + 1)


class MetricRow(msgspec.Struct, array_like=True):
    """The figures of one type on one queue."""

    queue: str
    type: str
    running: int = 0
    outcomes: list[int] = msgspec.field(default_factory=lambda: [0] * len(OUTCOMES))
    waits: list[int] = msgspec.field(default_factory=_buckets)
    """Per bucket: from when a task could start to its start, retries not counted."""
    wait_s: float = 0.0
    runs: list[int] = msgspec.field(default_factory=_buckets)
    """Per bucket: from the start of a run to its end."""
    run_s: float = 0.0
    unknown: int = 0
    """How often a task of the queue went back because the server has no handler for its type."""

    def add(self, other: MetricRow) -> None:
        """Count what the other has counted, too."""
        self.running += other.running
        self.wait_s += other.wait_s
        self.run_s += other.run_s
        self.unknown += other.unknown
        for mine, theirs in (
            (self.outcomes, other.outcomes), (self.waits, other.waits), (self.runs, other.runs),
        ):  # fmt: skip
            for at, count in enumerate(theirs):
                mine[at] += count


def total(rows: Iterable[MetricRow]) -> list[MetricRow]:
    """The sums of rows of the same queue and type."""
    sums: dict[tuple[str, str], MetricRow] = {}
    for row in rows:
        sums.setdefault((row.queue, row.type), MetricRow(row.queue, row.type)).add(row)
    return list(sums.values())


def over(rows: Iterable[MetricRow]) -> list[MetricRow]:
    """What is left of figures when their server is no more: nothing runs, the counts stay."""
    left = total(rows)
    for row in left:
        row.running = 0
    return left


class MetricSource(Protocol):
    """Whoever counts; the list is replaced as a whole when it is heard from."""

    rows: list[MetricRow]


class MetricTotals:
    """The sums of what many count, those included that are no more; they never go back.

    One thread changes it and any may read it: all of it hangs on one reference.
    """

    def __init__(self) -> None:
        self._state: tuple[list[MetricRow], frozenset[MetricSource]] = ([], frozenset())

    def add(self, source: MetricSource) -> None:
        """This one counts, too, from now on."""
        past, sources = self._state
        self._state = past, sources | {source}

    def end(self, source: MetricSource) -> None:
        """This one is no more; what it has counted stays."""
        past, sources = self._state
        self._state = total([*past, *over(source.rows)]), sources - {source}

    def rows(self) -> list[MetricRow]:
        """The sums, as far as is known."""
        past, sources = self._state
        return total([*past, *(row for source in sources for row in source.rows)])
