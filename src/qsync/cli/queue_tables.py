"""Tables of queues that several commands print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

from qsync.cli.options import sort_option
from qsync.cli.output import COLOURS, Cell, Column, Row, count_cell, print_line, print_table
from qsync.formatting import duration, relative
from qsync.inspector import Overview, Pause, QueueInfo
from qsync.keys import COUNTERS
from qsync.state import TaskState

STATES: Final = (
    TaskState.PENDING, TaskState.LIMITED, TaskState.ACTIVE, TaskState.SCHEDULED, TaskState.RETRY,
    TaskState.COMPLETED, TaskState.CANCELLED, TaskState.DEAD,
)  # fmt: skip
"""States in the order of the columns; `limited` is left out if no task is limited."""

SORTS: Final = ("name", "total", *STATES, "oldest")

_RARE: Final = ("crashed", "cancelled", "trimmed", "lost", "dropped")
"""Counters whose columns are left out if they are 0 in all rows."""


SortQueues = Annotated[str, sort_option(
    SORTS, f"Column to sort by, the largest first: {', '.join(SORTS)}.  [default: name]",
)]  # fmt: skip


def sorted_queues(queues: Sequence[QueueInfo], by: str) -> list[QueueInfo]:
    """Sort the queues by name, or by a column with its largest value first."""
    named = sorted(queues, key=lambda queue: queue.name)
    if by == "name":
        return named
    values = {"total": lambda queue: queue.total, "oldest": lambda queue: queue.latency}
    value = values.get(by, lambda queue: queue.states.get(TaskState(by), 0))
    return sorted(named, key=value, reverse=True)


def print_queues(queues: Sequence[QueueInfo], *, whole: bool = False) -> None:
    """Print each queue's tasks by state, the totals, and who paused which queue."""
    states = shown_states(queues, STATES)
    columns = [
        Column("QUEUE", shrink=True),
        *(Column(state.upper(), right=True) for state in states),
        Column("OLDEST", right=True),
    ]
    rows: list[Row] = [
        [*queue_cells(queue, states), duration(queue.latency) if queue.latency else ""]
        for queue in queues
    ]
    if len(queues) > 1:
        sums = [sum(queue.states.get(state, 0) for queue in queues) for state in states]
        rows.append([Cell("all", "bold"), *(count_cell(total, "bold") for total in sums), ""])
    print_table(columns, rows, whole=whole)
    for queue in queues:
        if queue.paused is not None:
            print_line(f"{queue.name} is {pause_note(queue.paused)}", "yellow")
        if queue.is_late and queue.latency_target is not None:
            target = duration(queue.latency_target)
            print_line(f"{queue.name} misses its latency target of {target}", "yellow")
        if queue.bounds.note:
            print_line(f"{queue.name} is {queue.bounds.note}", "yellow")


def shown_states(queues: Sequence[QueueInfo], states: Sequence[TaskState]) -> list[TaskState]:
    """Return the states to show, without `limited` if no task is limited."""
    limited = any(queue.states.get(TaskState.LIMITED) for queue in queues)
    return [state for state in states if limited or state is not TaskState.LIMITED]


def print_more(overview: Overview) -> None:
    """If not all queues are shown, print how many are, and how to see the others."""
    if overview.more:
        shown = f"{len(overview.queues):,} of {overview.total:,} queues"
        print_line(f"Showing {shown}. For others: qsync stats QUEUE")


def queue_cells(queue: QueueInfo, states: Sequence[TaskState]) -> list[Cell]:
    """Return cells with the name of a queue and its number of tasks in each of the states."""
    counts = [count_cell(queue.states.get(state, 0), COLOURS.get(state, "")) for state in states]
    return [Cell(queue.name, "yellow" if queue.paused else ""), *counts]


def print_counters(rows: Sequence[tuple[str, dict[str, int]]], title: str) -> None:
    """Print a table of counters, one row per queue or day; `title` heads the first column."""
    shown = [
        name
        for name in COUNTERS
        if name != "bytes" and (name not in _RARE or any(row.get(name) for _, row in rows))
    ]
    columns = [
        Column(title, shrink=True), *(Column(name.upper(), right=True) for name in shown),
    ]  # fmt: skip
    table: list[Row] = [
        [name, *(_counter(counter, counters.get(counter, 0)) for counter in shown)]
        for name, counters in rows
    ]
    print_table(columns, table)


def _counter(name: str, count: int) -> Cell:
    return count_cell(count, "red" if name in ("dead", "crashed", "lost", "dropped") else "")


def pause_note(pause: Pause) -> str:
    """Return who paused something, when and why, e.g. `paused by ann 3 min 4 s ago: deploy`."""
    by = f" by {pause.by}" if pause.by else ""
    ago = f" {relative(pause.at)}" if pause.at else ""
    why = f": {pause.why}" if pause.why else ""
    return f"paused{by}{ago}{why}"
