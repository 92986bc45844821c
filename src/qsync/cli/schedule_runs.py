"""Prints the runs of schedules, and formats times in the time zones of schedules."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from qsync.cli.output import COLOURS, Cell, Column, print_line, print_table
from qsync.formatting import duration, local_time, relative
from qsync.inspector import ScheduleRun

SHOWN_RUNS: Final = 5
"""Number of runs that `qsync schedule show` prints."""

_COLOURS: Final = {**COLOURS, "failed": "red", "missed": "yellow"}


def in_zone(time: datetime, tz: str | None) -> str:
    """Return a time in the schedule's time zone, or in local time if the schedule has none."""
    if tz is None:
        return local_time(time)
    try:
        return f"{time.astimezone(ZoneInfo(tz)):%Y-%m-%d %H:%M:%S %Z}"
    except (ZoneInfoNotFoundError, ValueError, OverflowError):
        return local_time(time)


def print_runs(runs: Sequence[ScheduleRun], *, whole: bool) -> None:
    """Print runs, the latest first."""
    if not runs:
        print_line("No runs are recorded yet.")
        return
    columns = [
        Column("TICK"), Column("AGO"), Column("MADE"), Column("OUTCOME"),
        Column("DURATION", right=True), Column("TASK", shrink=True),
    ]  # fmt: skip
    print_table(columns, [_row(run) for run in runs], whole=whole)


def _row(run: ScheduleRun) -> list[str | Cell]:
    took = "" if run.duration is None else duration(run.duration)
    outcome = Cell(run.outcome, _COLOURS.get(run.outcome, ""))
    since = "" if run.missed_from in (None, run.tick) else f" since {local_time(run.missed_from)}"
    task = since.strip() if run.outcome == "missed" else run.task
    return [local_time(run.tick), relative(run.tick), run.made, outcome, took, task]
