"""Checks a history of leases for slots that were granted twice and for excess starts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LATENESS: Final = 0.5
"""Number of starts by which a window may exceed its rate and burst. The tolerance is needed because
a task may start half an interval late without delaying the next task."""


@dataclass
class Run:
    """A lease on a task whose handler started. Times are Unix times in microseconds."""

    id: str
    leased_us: int
    ended_us: int | None = None
    """Time at which the handler ended; None if the server was killed or the task is still
    running."""


def read_runs(path: Path) -> list[Run]:
    """Return the leases for which a handler started, ordered by the time at which they began.

    Leases from a repeated fetch are left out, because the time of the first fetch is unknown.
    """
    leased: dict[tuple[str, str], int] = {}
    runs: dict[tuple[str, str], Run] = {}
    started: list[Run] = []
    for line in path.read_text().splitlines():
        kind, at_us, token, id = line.split(" ")
        if kind == "lease":
            leased[token, id] = int(at_us)
        elif kind == "start" and (token, id) in leased:
            runs[token, id] = Run(id, leased[token, id])
            started.append(runs[token, id])
        elif kind == "end" and (token, id) in runs:
            runs[token, id].ended_us = int(at_us)
    return sorted(started, key=lambda run: run.leased_us)


def read_ends(path: Path) -> set[str]:
    """Return the ids of the tasks whose handlers ended."""
    lines = path.read_text().splitlines()
    return {line.split(" ")[3] for line in lines if line.startswith("end ")}


def given_twice(
    runs: Sequence[Run],
    limits: Mapping[str, Sequence[str]],
    slots: Mapping[str, int],
    lease_us: int,
) -> list[str]:
    """Return the leases that were granted while all slots of a limit were certainly held.

    A lease certainly lasts for its initial duration, or until its handler ends if that is earlier.
    """
    found = []
    held: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for run in runs:
        until_us = run.leased_us + lease_us
        until_us = until_us if run.ended_us is None else min(until_us, run.ended_us)
        for limit in limits[run.id]:
            if limit not in slots:
                continue
            held[limit] = [row for row in held[limit] if row[0] > run.leased_us]
            if len(held[limit]) >= slots[limit]:
                found.append(
                    f"{run.id} was given {limit}, already held by {[id for _, id in held[limit]]}"
                )
            held[limit].append((until_us, run.id))
    return found


def most_above_rate(times_us: Iterable[int], rate: float) -> float:
    """Return the largest number of starts by which any window exceeds the rate."""
    excess = most = 0.0
    before_us = None
    for at_us in times_us:
        if before_us is not None:
            excess = max(0.0, excess - (at_us - before_us) * rate / 1e6)
        excess, before_us = excess + 1, at_us
        most = max(most, excess)
    return most


def used(times_us: Sequence[int], rate: float, burst: int) -> float:
    """Return the actual starts as a share of those allowed between the first and the last start."""
    if len(times_us) < 2:
        return 0.0
    return len(times_us) / ((times_us[-1] - times_us[0]) * rate / 1e6 + burst)
