"""The statistics of types over a period, from their records in the store. Without I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final, NamedTuple

from qsync.inspector.type_values import Period, TypePoint, run_stats
from qsync.server_starts import StoredStart, decode_starts, merge_starts
from qsync.times import MINUTE_US, from_us
from qsync.type_counts import TypeCounts, decode_block, sum_of
from qsync.type_rolls import (
    STARTS_FIELD,
    hours_of,
    merged_reports,
    minutes_of,
    reported_starts,
)


class Span(NamedTuple):
    """The steps of a period; `before`: how many minutes earlier the line to compare with begins."""

    minutes: int
    number: int
    before: int


SPANS: Final[dict[Period, Span]] = {
    "1h": Span(1, 60, 1440), "24h": Span(60, 24, 1440), "7d": Span(60, 168, 7 * 1440),
    "90d": Span(1440, 90, 0),
}  # fmt: skip


class Steps(NamedTuple):
    """Numbers of the steps to show, in steps since the epoch."""

    span: Span
    first: int
    last: int

    def earlier(self) -> Steps | None:
        """Return the steps of the time before, if there are any."""
        if not self.span.before:
            return None
        shift = self.span.before // self.span.minutes
        return Steps(self.span, self.first - shift, self.last - shift)


def steps_of(period: Period, now_us: int) -> Steps:
    """Return the steps of a period that ends now."""
    span = SPANS[period]
    last = now_us // MINUTE_US // span.minutes
    return Steps(span, last - span.number + 1, last)


def fields_of(type: str, steps: Steps) -> list[str]:
    """Return the fields of type_stats that have these steps of a type."""
    span = steps.span
    if span.minutes == 1:
        return [minutes_of(hour, type) for hour in range(steps.first // 60, steps.last // 60 + 1)]
    per_day = 1440 // span.minutes
    days = range(steps.first // per_day, steps.last // per_day + 1)
    return [hours_of(day, type) for day in days]


class TypeHistory:
    """The counts of types: stored blocks, and reports that are not in them yet."""

    def __init__(
        self, blocks: Mapping[str, bytes | None], reports: Mapping[str, bytes], types: Iterable[str]
    ) -> None:
        self._blocks = {field: data for field, data in blocks.items() if data}
        self._fresh = merged_reports(reports, types)
        self._starts = merge_starts(
            decode_starts(blocks.get(STARTS_FIELD)), reported_starts(reports), 0
        )

    def starts(self, type: str, since_us: int) -> list[StoredStart]:
        """Return the starts of servers with a handler for a type, since a time."""
        return [
            start for start in self._starts if start.concerns(type) and start.last_us >= since_us
        ]

    @property
    def fresh_types(self) -> set[str]:
        """Types in the reports."""
        return set(self._fresh)

    def counts(self, type: str, steps: Steps) -> dict[int, TypeCounts]:
        """Return the counts of a type by step; steps without any are left out."""
        parts_of: dict[int, list[TypeCounts]] = {}
        minutes = steps.span.minutes
        for field in fields_of(type, steps):
            base = int(field[1:].partition(":")[0]) * (60 if minutes == 1 else 24)
            per_step = 24 if minutes > 60 else 1
            numbers = range(steps.first * per_step - base, (steps.last + 1) * per_step - base)
            for period, counts in decode_block(self._blocks.get(field), numbers).items():
                parts_of.setdefault((base + period) // per_step, []).append(counts)
        for minute, counts in self._fresh.get(type, {}).items():
            parts_of.setdefault(minute // minutes, []).append(counts)
        return {
            number: parts[0] if len(parts) == 1 else sum_of(parts)
            for number, parts in parts_of.items()
            if steps.first <= number <= steps.last
        }

    def points(self, type: str, steps: Steps) -> list[TypePoint]:
        """Return a point for each step."""
        counts = self.counts(type, steps)
        return [
            TypePoint(
                at=moment_of_step(steps, number),
                stats=run_stats(counts[number]) if number in counts else None,
            )
            for number in range(steps.first, steps.last + 1)
        ]


def moment_of_step(steps: Steps, number: int) -> datetime:
    """Return when a step begins."""
    return from_us(number * steps.span.minutes * MINUTE_US)
