"""The slowest completed runs of each type, as servers report them and as the store keeps them.
Pure.

For each type, the ten slowest runs of today and of yesterday (UTC) are kept. A server reports a run
that is among its own ten slowest of the day, so the ten slowest of all servers are among the
reported runs.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from qsync import codec
from qsync.times import DAY_US

SLOWEST: Final = 10
"""Number of runs that are kept per type and day."""

STORED_LIMIT: Final = 64 * 1024
"""Maximum decompressed size of a type's record, in bytes."""


class SlowRun(msgspec.Struct, frozen=True, array_like=True, order=True):
    """A completed run; runs are sorted by their duration."""

    run_us: int
    id: str
    ended_us: int
    server: str = ""


class DaySlowest:
    """The slowest runs of one server on one day, for each type of a queue."""

    def __init__(self) -> None:
        self.floors: dict[str, float] = {}
        """Thresholds in seconds, by type. Only a run that takes longer is among the slowest."""
        self._day = 0
        self._runs: dict[str, list[SlowRun]] = {}
        self._fresh: dict[str, list[SlowRun]] = {}

    def add(self, type: str, run: SlowRun) -> None:
        """Add a run if it is among the slowest of its day."""
        self.begin_day(run.ended_us)
        runs = self._runs.setdefault(type, [])
        if len(runs) == SLOWEST and run < runs[0]:
            return
        insort(runs, run)
        del runs[:-SLOWEST]
        if len(runs) == SLOWEST:
            self.floors[type] = runs[0].run_us / 1e6
        fresh = self._fresh.setdefault(type, [])
        insort(fresh, run)
        del fresh[:-SLOWEST]

    def begin_day(self, now_us: int) -> None:
        """Forget all runs if the day is over."""
        if (day := now_us // DAY_US) != self._day:
            self._day = day
            self._runs.clear()
            self.floors.clear()

    def fresh(self) -> dict[str, list[SlowRun]]:
        """Return the runs that were added since the last call of `forget_fresh`, by type."""
        return self._fresh

    def forget_fresh(self) -> None:
        """Forget which runs are fresh; called at the end of each minute."""
        self._fresh = {}


def encode_slow_report(runs: Mapping[str, Iterable[SlowRun]]) -> bytes:
    """Encode a server's report on the slow runs of one minute, by type."""
    return codec.encode({type: list(each) for type, each in runs.items()})


def decode_slow_report(data: bytes) -> dict[str, list[SlowRun]]:
    """Return the runs in a report, by type; empty if the report is damaged."""
    try:
        runs: dict[str, list[SlowRun]] = codec.decode(data, dict[str, list[SlowRun]])
    except codec.CodecError:
        return {}
    return runs


def encode_slow_runs(runs: Iterable[SlowRun]) -> bytes:
    """Return the stored form of the slowest runs of a type."""
    return codec.encode_compressed(list(runs))


def decode_slow_runs(data: bytes | None) -> list[SlowRun]:
    """Decode stored runs; the result is empty if there are none or they are damaged."""
    if not data:
        return []
    try:
        runs: list[SlowRun] = codec.decode_compressed(data, list[SlowRun], STORED_LIMIT)
    except codec.CodecError:
        return []
    return runs


def slowest(runs: Iterable[SlowRun], day: int) -> list[SlowRun]:
    """Return the slowest runs of a day and of the day before, without duplicates, slowest first."""
    chosen: dict[int, list[SlowRun]] = {day: [], day - 1: []}
    for run in sorted(set(runs), reverse=True):
        of_day = chosen.get(run.ended_us // DAY_US)
        if of_day is not None and len(of_day) < SLOWEST:
            of_day.append(run)
    return sorted([run for of_day in chosen.values() for run in of_day], reverse=True)
