"""Lists tasks of several queues and states, page by page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from heapq import nsmallest
from typing import Annotated, Any, Final

import typer
from msgspec import Struct

from qsync import store_clock
from qsync.cli.command import USAGE, exit_with
from qsync.cli.listing import Format, OutputOptions
from qsync.cli.options import StoreOptions, sort_option
from qsync.cli.output import Cell, Column, Row, print_line, print_table, state_cell
from qsync.cli.prompts import ProgressLine
from qsync.cli.store import note_no_queue, open_store, state_counts
from qsync.errors import InvalidTask
from qsync.formatting import percent, relative
from qsync.inspector import Filter, Inspector, TaskRow
from qsync.inspector.tasks import MAX_PAGE_SIZE
from qsync.message import NORMAL_PRIORITY
from qsync.state import TaskState

SORTED_TASKS: Final = 100_000
"""Maximum number of tasks that a sorted list reads."""


def _sort_time(time: datetime | None) -> float:
    return float("inf") if time is None else time.timestamp()


def _latest(time: datetime | None) -> float:
    return float("inf") if time is None else -time.timestamp()


SORTS: Final[dict[str, Callable[[TaskRow], Any]]] = {
    "age": lambda row: _sort_time(row.enqueued_at),
    "due": lambda row: _sort_time(row.due_at),
    "ended": lambda row: _latest(row.ended_at or row.died_at),
    "type": lambda row: row.type,
    "queue": lambda row: row.queue,
    "attempts": lambda row: -row.ended_attempts,
    "priority": lambda row: -row.priority,
    "size": lambda row: -row.size,
}
"""Functions that return a task's sort key, by name; tasks with equal keys are ordered by id."""

SortTasks = Annotated[str | None, sort_option(
    SORTS,
    "Read all matching tasks and sort them: age (oldest first), due (soonest first), ended (latest "
    "first), type, queue, or attempts, priority or size (largest first).  [default: as they are "
    "stored, state by state]",
)]  # fmt: skip


def first_sorted(rows: list[TaskRow], sort: str, limit: int) -> list[TaskRow]:
    """Return the first `limit` rows in the order of the column `sort`."""
    key = SORTS[sort]
    return nsmallest(limit, rows, key=lambda row: (key(row), row.id))


ORDER: Final = (
    TaskState.ACTIVE, TaskState.PENDING, TaskState.LIMITED, TaskState.SCHEDULED, TaskState.RETRY,
    TaskState.DEAD, TaskState.COMPLETED, TaskState.CANCELLED,
)  # fmt: skip

ENDED: Final = frozenset({TaskState.COMPLETED, TaskState.CANCELLED})


class Listing(Struct, frozen=True, kw_only=True):
    """A page of tasks.

    total    number of tasks in the listed queues and states, regardless of the filter
    scanned  number of tasks read for this page
    cursor   where the next page begins; None after the last one
    queues   number of listed queues
    """

    tasks: list[TaskRow]
    total: int
    scanned: int
    cursor: str | None
    queues: int


@dataclass(frozen=True, slots=True)
class TaskQuery:
    """Which tasks to list; a `queue` of None means all queues."""

    queue: str | None
    states: Sequence[TaskState]
    filter: Filter | None
    limit: int
    cursor: str | None = None
    newest_first: bool | None = None
    sort: str | None = None

    def __post_init__(self) -> None:
        """Exit if the options conflict."""
        if self.sort is not None and self.cursor is not None:
            exit_with(
                "--sort and --cursor cannot be used together, since a sorted list has one page",
                USAGE,
            )
        if self.sort is not None and self.newest_first is not None:
            exit_with("--sort and --newest-first or --oldest-first cannot be used together", USAGE)


async def collect_tasks(inspector: Inspector, query: TaskQuery) -> Listing:
    """Return a page of tasks, state by state or sorted; exit if the queue does not exist."""
    counts = await state_counts(inspector, query.queue)
    queues_by_state = {
        state: [name for name, states in counts.items() if states.get(state)]
        for state in ORDER
        if state in query.states
    }
    total = sum(counts[name][state] for state, names in queues_by_state.items() for name in names)
    occupied = [state for state, names in queues_by_state.items() if names]
    states, cursor = _resume(occupied, query.cursor)
    tasks, scanned = list[TaskRow](), 0
    with ProgressLine() as progress:
        while states:
            most = MAX_PAGE_SIZE if query.sort else min(query.limit - len(tasks), MAX_PAGE_SIZE)
            page = await inspector.tasks_of(
                queues_by_state[states[0]], states[0], limit=most,
                cursor=cursor, filter=query.filter, newest_first=query.newest_first,
            )  # fmt: skip
            tasks, scanned, cursor = [*tasks, *page.tasks], scanned + page.scanned, page.cursor
            if cursor is None:
                states = states[1:]
            if query.sort:
                tasks = first_sorted(tasks, query.sort, query.limit)
            if scanned >= SORTED_TASKS if query.sort else len(tasks) >= query.limit:
                break
            progress.show(f"searched {scanned:,} of {total:,}, {len(tasks):,} match")
    end = f"{states[0]}/{cursor or ''}" if states and not query.sort else None
    return Listing(tasks=tasks, total=total, scanned=scanned, cursor=end, queues=len(counts))


def _resume(states: list[TaskState], cursor: str | None) -> tuple[list[TaskState], str | None]:
    """Return the states that are still to be listed, and the cursor within the first of them."""
    if cursor is None:
        return states, None
    name, slash, inner = cursor.partition("/")
    if not slash or name not in ORDER:
        raise InvalidTask(f"--cursor: {cursor} is not a cursor that an earlier page printed")
    index = ORDER.index(TaskState(name))
    remaining = [state for state in states if ORDER.index(state) >= index]
    in_first = bool(remaining) and remaining[0] == name
    return remaining, (inner or None) if in_first else None


def list_matching(query: TaskQuery, store: StoreOptions, output: OutputOptions) -> None:
    """Print the tasks that a query selects, in the chosen order and format."""
    with open_store(store) as session:

        def show() -> None:
            listing = session.run(collect_tasks(session.inspector, query))
            output.print_rows(
                listing.tasks, lambda whole: print_tasks(listing, query, whole=whole), listing
            )
            note_no_queue(session, listing.tasks)
            if listing.cursor and output.format in (Format.JSONL, Format.CSV):
                typer.echo(f"More: --cursor {listing.cursor}", err=True)

        output.repeat(show)


def print_tasks(listing: Listing, query: TaskQuery, *, whole: bool = False) -> None:
    """Print the tasks as a table, and how to see more of them."""
    states = {row.state for row in listing.tasks}
    columns = [Column("ID")]
    if query.queue is None:
        columns.append(Column("QUEUE", shrink=True))
    if len(states) > 1:
        columns.append(Column("STATE"))
    columns += [Column("TYPE", shrink=True), Column(_time_heading(states)), Column("ATTEMPTS")]
    columns.append(Column("ERROR" if states == {TaskState.DEAD} else "NOTE", shrink=True))
    table: list[Row] = []
    for row in listing.tasks:
        start: list[str | Cell] = [row.id]
        if query.queue is None:
            start.append(row.queue)
        if len(states) > 1:
            start.append(state_cell(row.state))
        ended = row.ended_attempts
        attempts = f"{ended} / {row.retry + 1}" if ended else ""
        table.append([*start, row.type or "?", _time(row), attempts, _note(row)])
    print_table(columns, table, whole=whole)
    if not listing.tasks:
        print_line(f"No tasks match (searched {listing.scanned:,}).")
    elif query.sort and listing.scanned < listing.total:
        print_line(f"Sorted among the first {listing.scanned:,} of {listing.total:,} tasks.")
    elif listing.cursor:
        print_line("")
        shown = f"{len(listing.tasks):,} of {listing.total:,}"
        if listing.scanned > len(listing.tasks):
            shown = f"{len(listing.tasks):,} (searched {listing.scanned:,} of {listing.total:,})"
        print_line(f"Showing {shown}. More: add --limit {query.limit * 10}, or")
        print_line(f"--cursor {listing.cursor}")


def _time_heading(states: set[TaskState]) -> str:
    if states == {TaskState.DEAD}:
        return "DIED"
    if states and states <= ENDED:
        return "ENDED"
    return "DUE" if states and states <= {TaskState.SCHEDULED, TaskState.RETRY} else "WHEN"


def _time(row: TaskRow) -> str:
    if row.state in ENDED:
        return relative(row.ended_at)
    return relative(row.died_at or row.due_at or row.enqueued_at)


def _note(row: TaskRow) -> str:
    if row.state is TaskState.ACTIVE:
        progress = percent(row.progress)
        server = row.server or "an unknown server"
        return f"{progress} on {server}" if progress else f"on {server}"
    if row.state in ENDED:
        if row.kept_until is not None and row.kept_until <= store_clock.now():
            return "due to be deleted"
        return f"deleted {relative(row.kept_until)}"
    crashes = f"crashed {row.crashes} times" if row.crashes > 1 else "crashed once"
    notes = [crashes] if row.crashes else []
    if row.priority != NORMAL_PRIORITY:
        notes.insert(0, f"priority {row.priority}")
    # The error of a task that died of its crashes says how often it crashed.
    if row.error == f"crashed {row.crashes} times":
        notes.remove(crashes)
    if row.error:
        notes.append(row.error)
    return "; ".join(notes)
