"""Computes the medians of the rounds and their ratios to qsync's."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.peers.table import BY_NAME, Peer

Rounds = Mapping[str, list[dict[str, Any]]]
"""Measurements of each round, by peer."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table: the key of a measure, its title, and its number of decimal places."""

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
    """Return the median of each measure, over the rounds in which it was taken."""
    rounds = list(rounds)
    found: dict[str, Any] = {}
    for column in COLUMNS:
        values = [one[column.key] for one in rounds if column.key in one]
        if values:
            found[column.key] = median(values)
    found["find"] = all(one["find"] for one in rounds)
    return found


def summarise(rounds: Rounds) -> dict[str, dict[str, Any]]:
    """Return medians by peer, with their ratios to qsync: 0.5 means half of qsync's value."""
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
    """Return the peers and their medians, fastest first."""
    order = sorted(summary, key=lambda name: -summary[name]["drain"])
    return [(BY_NAME[name], summary[name]) for name in order]


def cell(column: Column, measured: Mapping[str, Any]) -> str:
    """Return a median and, in brackets, its ratio to that of qsync; return a dash if there is no
    median."""
    if column.key not in measured:
        return "–"
    text = f"{measured[column.key]:,.{column.digits}f}"
    ratio = measured["ratio"].get(column.key)
    return text if ratio is None or ratio == 1 else f"{text} ({ratio:.2g})"
