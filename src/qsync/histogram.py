"""Histograms of durations, whose quantiles are accurate to about 7 %. Pure.

Durations are counted by cell. The upper bound of a cell is at most 15 % above its lower bound. A
long-term record contains only the weights of 18 buckets, and the cells of its median and its 95th
percentile.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

import msgspec

BOUNDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    300.0, 1800.0,
)  # fmt: skip
"""Upper bounds of the buckets, in seconds; one more bucket counts durations above the last
bound."""

SHORTEST_S: Final = 0.0001
LONGEST_S: Final = 86_400.0
"""Upper bounds of the first and of the second-to-last cell, in seconds."""

CELL_RATIO: Final = 1.15
"""Largest ratio of a cell's upper bound to its lower bound, except in the first and last cells."""

MEDIAN: Final = 0.5
HIGH: Final = 0.95

HIGH_DEVIATIONS: Final = 1.645
"""Number of standard deviations from the median of a normal distribution to its quantile HIGH."""

_MARGINS: Final = {MEDIAN: 0.025, HIGH: 0.005}
"""Minimum share of the total weight that a stored quantile's cell has on each side of the
quantile."""


def _cell_bounds() -> Iterator[float]:
    yield SHORTEST_S
    for lower, upper in zip((SHORTEST_S, *BOUNDS), (*BOUNDS, LONGEST_S), strict=True):
        parts = math.ceil(math.log(upper / lower) / math.log(CELL_RATIO))
        yield from (lower * (upper / lower) ** (part / parts) for part in range(1, parts))
        yield upper


CELL_BOUNDS: Final = (*_cell_bounds(),)
"""Upper bounds of the cells, in seconds, including all upper bounds of the buckets."""

CELLS: Final = len(CELL_BOUNDS) + 1
BUCKETS: Final = len(BOUNDS) + 1

_ENDS: Final = (*(CELL_BOUNDS.index(bound) + 1 for bound in BOUNDS), CELLS)
"""Number of cells up to the end of each bucket."""

_BUCKET_OF: Final = tuple(bisect_left(_ENDS, cell + 1) for cell in range(CELLS))


def cell_of(seconds: float) -> int:
    """Return the number of the cell that a duration belongs to."""
    return bisect_left(CELL_BOUNDS, seconds)


class Cells(NamedTuple):
    """Numbers of the cells of the median and the 95th percentile, counted from 1; 0 if unknown."""

    median: int = 0
    high: int = 0


def cells_in(weights: Sequence[float]) -> Cells:
    """Estimate the cells of the median and the 95th percentile from the weights of the buckets.

    The result is exactly the same on all machines.
    """
    sums = [*accumulate(weights)]
    return Cells(*(_cell_in(weights, sums, share * sums[-1]) for share in (MEDIAN, HIGH)))


def _cell_in(weights: Sequence[float], sums: Sequence[float], target: float) -> int:
    bucket = bisect_left(sums, target)
    begin = _ENDS[bucket - 1] if bucket else 0
    number = _ENDS[bucket] - begin
    part = (target - sums[bucket] + weights[bucket]) / weights[bucket]
    return begin + min(number, int(number * part) + 1)


class Histogram(msgspec.Struct):
    """Counts of durations; a count that was computed from stored weights may be a fraction.

    cells   count of each cell that is not empty
    stored  weights of the buckets, keyed by the known cells of their quantiles
    """

    cells: dict[int, float] = msgspec.field(default_factory=dict)
    stored: dict[Cells, list[float]] = msgspec.field(default_factory=dict)

    def count(self, seconds: float) -> None:
        """Count a duration."""
        cell = bisect_left(CELL_BOUNDS, seconds)
        self.cells[cell] = self.cells.get(cell, 0) + 1

    def add(self, other: Histogram) -> None:
        """Add the counts of another histogram to this one."""
        for cell, count in other.cells.items():
            self.cells[cell] = self.cells.get(cell, 0) + count
        for known, weights in other.stored.items():
            mine = self.stored.get(known)
            self.stored[known] = (
                [*weights] if mine is None else [a + b for a, b in zip(mine, weights, strict=True)]
            )

    @property
    def total(self) -> float:
        """Number of durations."""
        return sum(self.cells.values()) + sum(map(sum, self.stored.values()))

    def buckets(self) -> list[float]:
        """Return the weight of each bucket."""
        weights = [0.0] * BUCKETS
        for cell, count in self.cells.items():
            weights[_BUCKET_OF[cell]] += count
        for stored in self.stored.values():
            for bucket, weight in enumerate(stored):
                weights[bucket] += weight
        return weights

    def quantile_cells(self) -> Cells:
        """Return the cells of the median and the 95th percentile."""
        cells = self._cells_at((MEDIAN, HIGH))
        return Cells() if cells is None else Cells(*(cell + 1 for cell in cells))

    def quantile(self, share: float) -> float | None:
        """Estimate a quantile, in seconds; None if the histogram is empty.

        The result is the middle of a cell. If the counts are known by cell, or the share is MEDIAN
        or HIGH, the error is therefore at most half of the cell's width, i.e. 7 %. A result is
        never longer than a day.
        """
        cells = self._cells_at((share,))
        return None if cells is None else _middle(cells[0])

    def _cells_at(self, shares: Iterable[float]) -> list[int] | None:
        total = self.total
        if total <= 0:
            return None
        groups = [
            _Group(known, sum(weights), [0.0, *accumulate(weights)])
            for known, weights in self.stored.items()
        ]
        counts = sorted(self.cells.items())
        numbers = [cell for cell, _ in counts]
        sums = [0.0, *accumulate(count for _, count in counts)]

        def weight_to_end_of(cell: int) -> float:
            counted = sums[bisect_left(numbers, cell + 1)]
            return counted + sum(group.weight_to_end_of(cell) for group in groups)

        last = CELLS - 1
        slack = 1e-9 * total
        return [
            min(last, bisect_left(range(CELLS), share * total - slack, key=weight_to_end_of))
            for share in shares
        ]


class _Group(NamedTuple):
    """Stored weights: their known quantiles, their sum, and their cumulative sums."""

    known: Cells
    total: float
    sums: Sequence[float]

    def weight_to_end_of(self, cell: int) -> float:
        """Estimate the weight of all cells up to and including this cell.

        Within a bucket, the weight follows the log-normal distribution with the known quantiles, or
        is spread evenly if they are not known.
        """
        bucket = _BUCKET_OF[cell]
        begin, end = _ENDS[bucket - 1] if bucket else 0, _ENDS[bucket]
        share = self._share(begin, cell + 1, end)
        weight = self.sums[bucket] + share * (self.sums[bucket + 1] - self.sums[bucket])
        for known, quantile in zip(self.known, (MEDIAN, HIGH), strict=True):
            if known:
                margin = _MARGINS[quantile] * self.total
                if cell + 1 < known:
                    weight = min(weight, quantile * self.total - margin)
                else:
                    weight = max(weight, quantile * self.total + margin)
        return weight

    def _share(self, begin: int, at: int, end: int) -> float:
        """Return the share of the weight between bounds `begin` and `end` that is below `at`."""
        median, high = self.known
        if median:
            deviation = max(0.5, high - median) / HIGH_DEVIATIONS
            low, part, whole = (
                math.erf((bound - median + 0.5) / deviation / math.sqrt(2))
                for bound in (begin, at, end)
            )
            if whole - low > 1e-9:
                return (part - low) / (whole - low)
        return (at - begin) / (end - begin)


def _middle(cell: int) -> float:
    if cell == 0:
        return SHORTEST_S / 2
    if cell == CELLS - 1:
        return LONGEST_S
    return math.sqrt(CELL_BOUNDS[cell - 1] * CELL_BOUNDS[cell])
