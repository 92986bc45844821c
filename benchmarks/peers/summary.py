"""Medians of the rounds, and what they are beside qsync's."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.peers.table import BY_NAME, Peer

Rounds = Mapping[str, list[dict[str, Any]]]
"""By name of the peer, what each round measured."""


@dataclass(frozen=True, slots=True)
class Column:
    """One measure in a table: `digits` after the point, and what of a ratio is printed."""

    key: str
    title: str
    digits: int = 0


COLUMNS = (
    Column("drain", "drain, tasks/s"),
    Column("one", "one by one, /s"),
    Column("concurrent", "concurrent, /s"),
    Column("bulk", "bulk, /s"),
    Column("p50_ms", "p50, ms", 2),
    Column("p95_ms", "p95, ms", 2),
    Column("p99_ms", "p99, ms", 2),
    Column("bytes", "B a task"),
)


def medians(rounds: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The median of each measure over the rounds that have it."""
    rounds = list(rounds)
    found: dict[str, Any] = {}
    for column in COLUMNS:
        values = [one[column.key] for one in rounds if column.key in one]
        if values:
            found[column.key] = median(values)
    found["find"] = all(one["find"] for one in rounds)
    return found


def summarise(rounds: Rounds) -> dict[str, dict[str, Any]]:
    """Medians by peer, each with its ratios to qsync: 0.5 is half of what qsync has."""
    result = {name: medians(measured) for name, measured in rounds.items() if measured}
    for name, own in result.items():
        base = result.get(BY_NAME[name].baseline, {})
        own["ratio"] = {
            column.key: own[column.key] / base[column.key]
            for column in COLUMNS
            if column.key in own and base.get(column.key)
        }
    return result


def by_drain(summary: Mapping[str, Mapping[str, Any]]) -> list[tuple[Peer, Mapping[str, Any]]]:
    """The peers and their medians, the fastest first."""
    order = sorted(summary, key=lambda name: -summary[name]["drain"])
    return [(BY_NAME[name], summary[name]) for name in order]


def cell(column: Column, measured: Mapping[str, Any]) -> str:
    """A median and in brackets its ratio to qsync's, or a dash."""
    if column.key not in measured:
        return "–"
    text = f"{measured[column.key]:,.{column.digits}f}"
    ratio = measured["ratio"].get(column.key)
    return text if ratio is None or ratio == 1 else f"{text} ({ratio:.2g})"
