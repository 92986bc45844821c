"""What a measure finds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value; None when the store would not tell."""

    name: str
    unit: str
    value: float | None
    how: str


@dataclass(frozen=True, slots=True)
class Curve:
    """Points to draw, in order."""

    name: str
    unit: str
    points: tuple[tuple[float, float], ...]
    how: str


Found = list[Figure | Curve]


def median(values: Sequence[float]) -> float:
    """The middle one of the rounds."""
    return statistics.median(values)


def quantile(ordered: Sequence[float], share: float) -> float:
    """What so large a share of the values does not exceed; they are in order, and not none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def percentiles(name: str, seconds: Sequence[float], how: str) -> list[Figure]:
    """The median of times and what few of them exceed, in milliseconds."""
    ordered = sorted(seconds)
    return [
        Figure(f"{name}, {text}", "ms", 1000 * quantile(ordered, share), how)
        for text, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    ]
