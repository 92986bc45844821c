"""Lists of tasks: of several queues in one order, state by state, page by page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from msgspec import Struct

from qsync.cli.prompts import Progress
from qsync.cli.store import all_queues, exit_unknown_queue
from qsync.cli.tables import Cell, Column, Row, print_line, print_table, state_cell
from qsync.cli.text import progress, relative
from qsync.errors import InvalidTask
from qsync.inspector import Filter, Inspector, TaskRow
from qsync.inspector.tasks import LIMIT
from qsync.state import TaskState

ORDER: Final = (
    TaskState.ACTIVE, TaskState.PENDING, TaskState.SCHEDULED, TaskState.RETRY, TaskState.DEAD,
    TaskState.COMPLETED, TaskState.CANCELLED,
)  # fmt: skip


KEPT: Final = frozenset({TaskState.COMPLETED, TaskState.CANCELLED})


class Listing(Struct, frozen=True, kw_only=True):
    """Tasks, how many there are in the queues and states looked at, and where it goes on."""

    tasks: list[TaskRow]
    total: int
    scanned: int
    cursor: str | None
    queues: int
    """How many queues were listed."""


@dataclass(frozen=True, slots=True)
class TaskQuery:
    """What to list."""

    queue: str | None
    states: Sequence[TaskState]
    filter: Filter | None
    limit: int
    cursor: str | None = None
    newest_first: bool | None = None


async def collect_tasks(inspector: Inspector, wanted: TaskQuery) -> Listing:
    """The tasks, up to the limit; the end when there is no such queue."""
    counts = await _counts(inspector, wanted.queue)
    places = {
        state: [name for name, states in counts.items() if states.get(state)]
        for state in ORDER
        if state in wanted.states
    }
    total = sum(counts[name][state] for state, names in places.items() for name in names)
    states, inner = _go_on([state for state, names in places.items() if names], wanted.cursor)
    found, scanned, told = list[TaskRow](), 0, Progress()
    try:
        while states:
            page = await inspector.tasks_of(
                places[states[0]], states[0], limit=min(wanted.limit - len(found), LIMIT),
                cursor=inner, filter=wanted.filter, newest_first=wanted.newest_first,
            )  # fmt: skip
            found, scanned, inner = [*found, *page.tasks], scanned + page.scanned, page.cursor
            if inner is None:
                states = states[1:]
            if len(found) >= wanted.limit:
                break
            told.tell(f"{scanned:,} of {total:,} looked at, {len(found):,} found")
    finally:
        told.end()
    cursor = f"{states[0]}/{inner or ''}" if states else None
    return Listing(tasks=found, total=total, scanned=scanned, cursor=cursor, queues=len(counts))


async def _counts(inspector: Inspector, queue: str | None) -> dict[str, dict[TaskState, int]]:
    if queue is None:
        return {info.name: info.states for info in await all_queues(inspector)}
    found = await inspector.queue(queue)
    if found is None:
        await exit_unknown_queue(inspector, queue)
    return {queue: found.states}


def _go_on(states: list[TaskState], cursor: str | None) -> tuple[list[TaskState], str | None]:
    """The states that are left, and the cursor in the first of them."""
    if cursor is None:
        return states, None
    name, slash, inner = cursor.partition("/")
    if not slash or name not in ORDER:
        raise InvalidTask(f"--cursor: {cursor} is not one that an earlier listing gave")
    at = ORDER.index(TaskState(name))
    left = [state for state in states if ORDER.index(state) >= at]
    here = bool(left) and left[0] == name
    return left, (inner or None) if here else None


def print_tasks(listing: Listing, *, limit: int) -> None:
    """The tasks as a table, and how to see more of them."""
    rows = listing.tasks
    queues = listing.queues > 1
    states = {row.state for row in rows}
    columns = [Column("ID")]
    if queues:
        columns.append(Column("QUEUE", flexible=True))
    if len(states) > 1:
        columns.append(Column("STATE"))
    columns += [Column("TYPE", flexible=True), Column(_heading(states)), Column("TRIED")]
    columns.append(Column("NOTE", flexible=True))
    table: list[Row] = []
    for row in rows:
        head: list[str | Cell] = [row.id]
        if queues:
            head.append(row.queue)
        if len(states) > 1:
            head.append(state_cell(row.state))
        tried = f"{row.attempts}/{row.retry + 1}" if row.attempts else ""
        table.append([*head, row.type or "?", _time(row), tried, _note(row)])
    print_table(columns, table)
    if not rows:
        looked = f"; {listing.scanned:,} looked at" if listing.scanned else ""
        print_line(f"No such task{looked}.")
    elif listing.cursor:
        print_line("")
        print_line(f"There may be more, of {listing.total:,} in all: --limit {limit * 10}, or")
        print_line(f"--cursor {listing.cursor}")


def _heading(states: set[TaskState]) -> str:
    if states == {TaskState.DEAD}:
        return "DIED"
    if states and states <= KEPT:
        return "ENDED"
    return "DUE" if states and states <= {TaskState.SCHEDULED, TaskState.RETRY} else "WHEN"


def _time(row: TaskRow) -> str:
    if row.state in KEPT:
        return relative(row.ended_at)
    return relative(row.died_at or row.due_at or row.enqueued_at)


def _note(row: TaskRow) -> str:
    if row.state is TaskState.ACTIVE:
        share = progress(row.progress)
        return f"{share}{', ' if share else ''}on {row.server or 'nobody knows where'}"
    if row.state in KEPT:
        return f"deleted {relative(row.kept_until)}"
    crashes = f"crashed {row.crashes} times" if row.crashes > 1 else "crashed once"
    notes = [crashes] if row.crashes else []
    if row.error:
        notes.append(row.error)
    return "; ".join(notes)
