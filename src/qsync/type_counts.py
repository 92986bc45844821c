"""Statistics of one task type in one period, and their form in the store. Pure.

A block holds the periods of one type: 60 minutes of an hour, or 24 hours of a day. Counts are
exact. For a histogram, a block keeps the square root of each bucket's share, rounded to STEPS
steps, and the cells of the median and the 95th percentile. A block takes less than half of the
memory that exact counts would take.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from qsync import codec
from qsync.histogram import BUCKETS, CELLS, Cells, Histogram, cells_in

OUTCOMES: Final = ("completed", "retried", "dead", "cancelled", "handed_back", "snoozed", "lost")
"""Outcomes of a run; `lost` means that the server lost the task's lease."""

FORMAT: Final = 1
"""First element of a block."""

STEPS: Final = 8
"""Number of steps to which a block rounds the square root of a share."""

BLOCK_LIMIT: Final = 1 << 20
"""Maximum size of a decompressed block, in bytes."""

_WAITS: Final = 1 + len(OUTCOMES)
_RUNS: Final = _WAITS + BUCKETS
_KNOWN: Final = _RUNS + BUCKETS
_COLUMNS: Final = _KNOWN + 2 * len(Cells._fields)
"""Column indexes at which the waits, the durations and the known quantile cells begin; and the
number of columns."""

_WAIT_CELLS: Final = 1000
_RUN_CELLS: Final = 2000
"""Column indexes at which the cells of the waits and of the durations begin in a report."""


class TypeCounts(msgspec.Struct):
    """The runs of one type in one period, their waits and their durations."""

    started: int = 0
    outcomes: list[int] = msgspec.field(default_factory=lambda: [0] * len(OUTCOMES))
    waits: Histogram = msgspec.field(default_factory=Histogram)
    runs: Histogram = msgspec.field(default_factory=Histogram)

    def add(self, other: TypeCounts) -> None:
        """Add the counts of another period to this one."""
        self.started += other.started
        for index, count in enumerate(other.outcomes):
            self.outcomes[index] += count
        self.waits.add(other.waits)
        self.runs.add(other.runs)

    @property
    def ended(self) -> int:
        """Number of runs that ended."""
        return sum(self.outcomes)


def sum_of(counts: Iterable[TypeCounts]) -> TypeCounts:
    """Return the sum of the counts of several periods."""
    total = TypeCounts()
    for count in counts:
        total.add(count)
    return total


def encode_report(rows: Mapping[str, TypeCounts]) -> bytes:
    """Encode a server's report on one minute: by type, the counts of columns that are not 0.

    The buckets are included for versions that cannot read the cells.
    """
    return codec.encode({type: _report(row) for type, row in rows.items()})


def _report(row: TypeCounts) -> dict[int, int]:
    columns = [row.started, *row.outcomes, *row.waits.buckets(), *row.runs.buckets()]
    report = {column: int(value) for column, value in enumerate(columns) if value}
    for first, histogram in ((_WAIT_CELLS, row.waits), (_RUN_CELLS, row.runs)):
        report |= {first + cell: int(count) for cell, count in sorted(histogram.cells.items())}
    return report


def decode_report(data: bytes) -> dict[str, TypeCounts]:
    """Return the counts in a report, by type; empty if the report is damaged."""
    try:
        rows = codec.decode(data, dict[str, dict[int, int]])
    except codec.CodecError:
        return {}
    return {type: _of_columns(row) for type, row in rows.items()}


def encode_block(periods: Mapping[int, TypeCounts]) -> bytes:
    """Encode a block with these periods; the keys are their numbers in the block."""
    numbers = sorted(periods)
    rows = [_stored(periods[number]) for number in numbers]
    columns = {
        column: values
        for column, values in enumerate(map(list, zip(*rows, strict=True)))
        if any(values)
    }
    return codec.encode_compressed([FORMAT, numbers, columns])


def decode_block(data: bytes | None, only: Container[int] | None = None) -> dict[int, TypeCounts]:
    """Return the periods in a block: all, or those in `only`.

    The result is empty if there is no block, or if it is damaged.
    """
    if not data:
        return {}
    try:
        format, numbers, columns = codec.decode_compressed(
            data, tuple[int, list[int], dict[int, list[int]]], BLOCK_LIMIT
        )
    except codec.CodecError:
        return {}
    if format != FORMAT:
        return {}
    none = [0] * len(numbers)
    whole = [columns.get(column, none) for column in range(_COLUMNS)]
    rows = zip(*[values if len(values) == len(numbers) else none for values in whole], strict=True)
    return {
        number: _loaded(row)
        for number, row in zip(numbers, rows, strict=True)
        if only is None or number in only
    }


def _of_columns(values: Mapping[int, int]) -> TypeCounts:
    row = [max(0, values.get(column, 0)) for column in range(_KNOWN)]
    waits = _reported(values, _WAIT_CELLS, row[_WAITS:_RUNS])
    runs = _reported(values, _RUN_CELLS, row[_RUNS:])
    return TypeCounts(row[0], row[1:_WAITS], waits, runs)


def _reported(values: Mapping[int, int], first: int, buckets: Sequence[int]) -> Histogram:
    cells = {
        column - first: float(count)
        for column, count in values.items()
        if first <= column < first + CELLS and count > 0
    }
    if cells or not any(buckets):
        return Histogram(cells)
    return Histogram(stored={Cells(): [*map(float, buckets)]})


def _stored(row: TypeCounts) -> list[int]:
    waits, runs = _shares(row.waits.buckets()), _shares(row.runs.buckets())
    known = [*_offsets(row.waits, waits), *_offsets(row.runs, runs)]
    return [row.started, *row.outcomes, *waits, *runs, *known]


def _shares(weights: Sequence[float]) -> list[int]:
    """Return the square root of each share, in units of 1 / STEPS; 0 for a share under 0.4 %."""
    total = sum(weights) or 1
    return [round(STEPS * math.sqrt(max(0.0, weight / total))) for weight in weights]


def _offsets(histogram: Histogram, shares: Sequence[int]) -> list[int]:
    """Return how the cells of the quantiles differ from those that are estimated from the shares.

    An offset n is stored as 2n, or as -2n - 1 if it is negative.
    """
    if not any(shares):
        return [0] * len(Cells._fields)
    guessed = cells_in([step * step for step in shares])
    offsets = [a - b for a, b in zip(histogram.quantile_cells(), guessed, strict=True)]
    return [2 * offset if offset >= 0 else -2 * offset - 1 for offset in offsets]


def _loaded(row: Sequence[int]) -> TypeCounts:
    started, outcomes = row[0], list(row[1:_WAITS])
    ended = sum(outcomes) or started
    waits = _histogram(row[_WAITS:_RUNS], row[_KNOWN : _KNOWN + 2], started)
    runs = _histogram(row[_RUNS:_KNOWN], row[_KNOWN + 2 :], ended)
    return TypeCounts(started, outcomes, waits, runs)


def _histogram(shares: Sequence[int], stored: Sequence[int], count: int) -> Histogram:
    squares = [step * step for step in shares]
    total = sum(squares)
    if not total:
        return Histogram()
    known = Cells()
    if any(stored):
        offsets = [number // 2 if number % 2 == 0 else -(number + 1) // 2 for number in stored]
        known = Cells(*map(operator.add, cells_in(squares), offsets))
    return Histogram(stored={known: [count * square / total for square in squares]})
