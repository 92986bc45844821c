"""The results of a measure: values and curves."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value; None if the store did not return it."""

    name: str
    unit: str
    value: float | None
    how: str


@dataclass(frozen=True, slots=True)
class Curve:
    """Points to plot, in order."""

    name: str
    unit: str
    points: tuple[tuple[float, float], ...]
    how: str


Results = list[Figure | Curve]


def median(values: Sequence[float]) -> float:
    """Return the median of the rounds."""
    return statistics.median(values)


def known_median(values: Sequence[float | None]) -> float | None:
    """Return the upper median of the values that the store returned, or None if there are none."""
    known = sorted(value for value in values if value is not None)
    return known[len(known) // 2] if known else None


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return a quantile of the ordered values, e.g. the 95th percentile for a share of 0.95."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def percentiles(name: str, seconds: Sequence[float], how: str) -> list[Figure]:
    """Return p50, p95 and p99 of times, in milliseconds."""
    ordered = sorted(seconds)
    return [
        Figure(f"{name}, {text}", "ms", 1000 * quantile(ordered, share), how)
        for text, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    ]
