"""`--sort` of lists of tasks: reads all matching tasks and keeps the first ones."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from heapq import nsmallest
from typing import Annotated, Any, Final

from qsync.cli.options import sort_option
from qsync.inspector import TaskRow

SORTED_TASKS: Final = 100_000
"""Number of tasks after which a sorted list reads no further."""


def _time(time: datetime | None) -> float:
    return float("inf") if time is None else time.timestamp()


def _latest(time: datetime | None) -> float:
    return float("inf") if time is None else -time.timestamp()


SORTS: Final[dict[str, Callable[[TaskRow], Any]]] = {
    "age": lambda row: _time(row.enqueued_at),
    "due": lambda row: _time(row.due_at),
    "ended": lambda row: _latest(row.ended_at or row.died_at),
    "type": lambda row: row.type,
    "queue": lambda row: row.queue,
    "attempts": lambda row: -row.ended_attempts,
    "priority": lambda row: -row.priority,
    "size": lambda row: -row.size,
}
"""Sort keys by name; equal tasks follow in the order of their ids."""

SortTasks = Annotated[str | None, sort_option(
    SORTS,
    "Read all matching tasks and sort them: age (oldest first), due (soonest first), ended (latest "
    "first), type, queue, or attempts, priority or size (largest first).  [default: as they are "
    "stored, state by state]",
)]  # fmt: skip


def first_sorted(rows: list[TaskRow], sort: str, limit: int) -> list[TaskRow]:
    """Return the first rows in the order of a column."""
    key = SORTS[sort]
    return nsmallest(limit, rows, key=lambda row: (key(row), row.id))
