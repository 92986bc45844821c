"""Tables of queues, as several commands show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from qsync.cli.tables import COLOURS, Cell, Column, Row, number, print_line, print_table
from qsync.cli.text import relative, short_duration
from qsync.inspector import Overview, Pause, QueueInfo
from qsync.keys import COUNTERS
from qsync.state import TaskState

STATES: Final = (
    TaskState.PENDING, TaskState.ACTIVE, TaskState.SCHEDULED, TaskState.RETRY, TaskState.COMPLETED,
    TaskState.CANCELLED, TaskState.DEAD,
)  # fmt: skip
"""In the order in which they are shown."""

_RARE: Final = ("crashed", "cancelled", "trimmed", "lost")
"""Counters that are shown when there is anything to count."""


def print_queues(queues: Sequence[QueueInfo]) -> None:
    """What the queues hold, with a sum when there are several, and who paused which."""
    columns = [
        Column("QUEUE", flexible=True),
        *(Column(state.upper(), right=True) for state in STATES),
        Column("OLDEST", right=True),
    ]
    rows: list[Row] = [
        [*queue_cells(queue, STATES), short_duration(queue.latency) if queue.latency else ""]
        for queue in queues
    ]
    if len(queues) > 1:
        sums = [sum(queue.states.get(state, 0) for queue in queues) for state in STATES]
        rows.append([Cell("all", "bold"), *(number(total, "bold") for total in sums), ""])
    print_table(columns, rows)
    for queue in queues:
        if queue.paused is not None:
            print_line(f"{queue.name} is paused{_note(queue.paused)}", "yellow")


def print_more(overview: Overview) -> None:
    """Say that there are more queues than were read."""
    if overview.more:
        shown = f"{len(overview.queues):,} of {overview.total:,} queues"
        print_line(f"These are {shown}. For others: qsync stats QUEUE")


def queue_cells(queue: QueueInfo, states: Sequence[TaskState]) -> list[Cell]:
    """The name of a queue and how many tasks it has in these states."""
    counts = [number(queue.states.get(state, 0), COLOURS.get(state, "")) for state in states]
    return [Cell(queue.name, "yellow" if queue.paused else ""), *counts]


def print_counters(rows: Sequence[tuple[str, dict[str, int]]], first: str) -> None:
    """Counters, a row for each name or day; those of rare things only when there are any."""
    shown = [
        name
        for name in COUNTERS
        if name != "bytes" and (name not in _RARE or any(row.get(name) for _, row in rows))
    ]
    columns = [
        Column(first, flexible=True), *(Column(name.upper(), right=True) for name in shown),
    ]  # fmt: skip
    table: list[Row] = [
        [title, *(_counter(name, counters.get(name, 0)) for name in shown)]
        for title, counters in rows
    ]
    print_table(columns, table)


def _counter(name: str, count: int) -> Cell:
    return number(count, "red" if name in ("dead", "crashed", "lost") else "")


def pause_note(pause: Pause | None) -> str:
    """`paused by ann 3 min 4 s ago: deploy`."""
    return "" if pause is None else f"paused{_note(pause)}"


def _note(pause: Pause) -> str:
    by = f" by {pause.by}" if pause.by else ""
    ago = f" {relative(pause.at)}" if pause.at else ""
    why = f": {pause.why}" if pause.why else ""
    return f"{by}{ago}{why}"
