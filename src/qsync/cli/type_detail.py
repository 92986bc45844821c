"""What `qsync type show` prints below the runs: starts of servers, and the slowest tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from qsync.cli.output import Column, Row, print_line, print_table, state_cell
from qsync.formatting import duration, local_time
from qsync.inspector import ServerStart, SlowTask

STARTS_SHOWN: Final = 10


def print_starts(starts: Sequence[ServerStart]) -> None:
    """Print when servers of the type started, and with which version: the last ten times."""
    if not starts:
        return
    print_line("")
    print_line("Servers started, as after a deploy:", "bold")
    columns = [Column("FROM"), Column("VERSION", shrink=True), Column("SERVERS", right=True)]
    rows: list[Row] = [
        [local_time(start.at), start.version, f"{start.servers:,}"]
        for start in starts[-STARTS_SHOWN:]
    ]
    print_table(columns, rows)


def print_slowest(slow: Sequence[SlowTask]) -> None:
    """Print the slowest tasks of the type."""
    if not slow:
        return
    print_line("")
    print_line("Slowest tasks: running, dead, or completed today or yesterday:", "bold")
    columns = [
        Column("ID"), Column("STATE"), Column("DURATION", right=True), Column("STARTED"),
        Column("SERVER", shrink=True),
    ]  # fmt: skip
    rows: list[Row] = [
        [task.id, state_cell(task.state), duration(task.seconds), local_time(task.at), task.server]
        for task in slow
    ]
    print_table(columns, rows)
