"""Statistics of one type of tasks in one period, and how the store keeps them. Pure.

A block holds the periods of one type: 60 minutes of an hour, or 24 hours of a day. Counts are
exact. Of a histogram it keeps the square root of each bucket's share, in 12 steps, which is enough
for a median and a 95th percentile and takes half of the memory.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from qsync import codec

BOUNDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    300.0, 1800.0,
)  # fmt: skip
"""Upper bounds of the buckets of both histograms, in seconds; one more bucket is above the last."""

OUTCOMES: Final = ("completed", "retried", "dead", "cancelled", "handed_back", "snoozed", "lost")
"""Outcomes of a run; `lost` means that the server lost the task's lease."""

FORMAT: Final = 1
"""First element of a block."""

STEPS: Final = 12
"""Number of steps in which a block keeps the square root of a share."""

BLOCK_LIMIT: Final = 1 << 20
"""Largest decompressed block, in bytes."""

_BUCKETS: Final = len(BOUNDS) + 1
_WAITS: Final = 1 + len(OUTCOMES)
_RUNS: Final = _WAITS + _BUCKETS
_COLUMNS: Final = _RUNS + _BUCKETS


class TypeCounts(msgspec.Struct):
    """The runs of one type in one period; a bucket may hold a fraction of a run."""

    started: int = 0
    outcomes: list[int] = msgspec.field(default_factory=lambda: [0] * len(OUTCOMES))
    waits: list[float] = msgspec.field(default_factory=lambda: [0.0] * _BUCKETS)
    runs: list[float] = msgspec.field(default_factory=lambda: [0.0] * _BUCKETS)

    def add(self, other: TypeCounts) -> None:
        """Add the counts of another period to this one."""
        self.started += other.started
        for index, count in enumerate(other.outcomes):
            self.outcomes[index] += count
        for mine, theirs in ((self.waits, other.waits), (self.runs, other.runs)):
            for index, weight in enumerate(theirs):
                mine[index] += weight

    @property
    def ended(self) -> int:
        """Number of runs that ended."""
        return sum(self.outcomes)


def sum_of(counts: Iterable[TypeCounts]) -> TypeCounts:
    """Return the sum of several periods."""
    total = TypeCounts()
    for count in counts:
        total.add(count)
    return total


def quantile(weights: Sequence[float], share: float) -> float | None:
    """Estimate a quantile of a histogram, in seconds; None if it is empty.

    It lies within its bucket, placed as if the bucket were filled evenly. The last bucket has no
    upper bound, so its lower one is returned.
    """
    total = sum(weights)
    if total <= 0:
        return None
    target, below = share * total, 0.0
    for index, weight in enumerate(weights):
        if weight > 0 and below + weight >= target:
            lower = BOUNDS[index - 1] if index else 0.0
            upper = BOUNDS[index] if index < len(BOUNDS) else lower
            return lower + (upper - lower) * max(0.0, target - below) / weight
        below += weight
    return BOUNDS[-1]


def encode_report(rows: Mapping[str, TypeCounts]) -> bytes:
    """Return what a server reports of a minute: by type, the counts of columns that are not 0."""
    return codec.encode(
        {
            type: {column: int(value) for column, value in enumerate(_columns(row)) if value}
            for type, row in rows.items()
        }
    )


def decode_report(data: bytes) -> dict[str, TypeCounts]:
    """Return the counts in a report, by type; none if it is damaged."""
    try:
        rows = codec.decode(data, dict[str, dict[int, int]])
    except codec.CodecError:
        return {}
    return {type: _of_columns(row) for type, row in rows.items()}


def encode_block(periods: Mapping[int, TypeCounts]) -> bytes:
    """Return a block with these periods, by their number in it."""
    numbers = sorted(periods)
    rows = [_stored(periods[number]) for number in numbers]
    columns = {
        column: values
        for column, values in enumerate(map(list, zip(*rows, strict=True)))
        if any(values)
    }
    return codec.encode_compressed([FORMAT, numbers, columns])


def decode_block(data: bytes | None, only: Container[int] | None = None) -> dict[int, TypeCounts]:
    """Return the periods in a block, or the wanted ones of them.

    Returns none if there is no block, or it is damaged.
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


def _columns(row: TypeCounts) -> list[Any]:
    return [row.started, *row.outcomes, *row.waits, *row.runs]


def _of_columns(values: Mapping[int, int]) -> TypeCounts:
    row = [max(0, values.get(column, 0)) for column in range(_COLUMNS)]
    waits, runs = row[_WAITS:_RUNS], row[_RUNS:]
    return TypeCounts(row[0], row[1:_WAITS], list(map(float, waits)), list(map(float, runs)))


def _stored(row: TypeCounts) -> list[int]:
    return [row.started, *row.outcomes, *_shares(row.waits), *_shares(row.runs)]


def _shares(weights: Sequence[float]) -> list[int]:
    """Return the square root of each share in STEPS; 0 for less than 0.2 % of the runs."""
    total = sum(weights) or 1
    return [round(STEPS * math.sqrt(max(0.0, weight / total))) for weight in weights]


def _loaded(row: Sequence[int]) -> TypeCounts:
    started, outcomes = row[0], list(row[1:_WAITS])
    ended = sum(outcomes) or started
    waits, runs = _weights(row[_WAITS:_RUNS], started), _weights(row[_RUNS:], ended)
    return TypeCounts(started, outcomes, waits, runs)


def _weights(steps: Sequence[int], count: int) -> list[float]:
    squares = [step * step for step in steps]
    total = sum(squares)
    return [count * square / total for square in squares] if total else [0.0] * len(squares)
