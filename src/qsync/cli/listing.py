"""Lists of tasks: of several queues and states in turn, page by page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from msgspec import Struct

from qsync.cli.ask import Progress
from qsync.cli.reach import no_queue
from qsync.cli.table import Cell, Column, Row, print_line, print_table, state_cell
from qsync.cli.text import progress, relative
from qsync.errors import InvalidTask
from qsync.inspector import Filter, Inspector, TaskRow
from qsync.inspector.tasks import LIMIT
from qsync.state import TaskState

ORDER: Final = (
    TaskState.ACTIVE, TaskState.PENDING, TaskState.SCHEDULED, TaskState.RETRY, TaskState.DEAD,
    TaskState.COMPLETED,
)  # fmt: skip


class Listing(Struct, frozen=True, kw_only=True):
    """Tasks, how many there are in the queues and states looked at, and where it goes on."""

    tasks: list[TaskRow]
    total: int
    scanned: int
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to list."""

    queue: str | None
    states: Sequence[TaskState]
    filter: Filter | None
    limit: int
    cursor: str | None = None
    newest_first: bool | None = None


async def collect(inspector: Inspector, wanted: Wanted) -> Listing:
    """The tasks, up to the limit; the end when there is no such queue."""
    counts = await _counts(inspector, wanted.queue)
    places = [
        (name, state)
        for name, states in counts.items()
        for state in ORDER
        if state in wanted.states and states.get(state)
    ]
    total = sum(counts[name][state] for name, state in places)
    places, inner = _go_on(places, wanted.cursor)
    found, scanned, told = list[TaskRow](), 0, Progress()
    try:
        while places:
            (name, state), left = places[0], wanted.limit - len(found)
            page = await inspector.tasks(
                name, state, limit=min(left, LIMIT), cursor=inner, filter=wanted.filter,
                newest_first=wanted.newest_first,
            )  # fmt: skip
            found, scanned, inner = [*found, *page.tasks], scanned + page.scanned, page.cursor
            if inner is None:
                places = places[1:]
            if len(found) >= wanted.limit:
                break
            told.tell(f"{scanned:,} of {total:,} looked at, {len(found):,} found")
    finally:
        told.end()
    cursor = "/".join((*places[0], inner or "")) if places else None
    return Listing(tasks=found, total=total, scanned=scanned, cursor=cursor)


async def _counts(inspector: Inspector, queue: str | None) -> dict[str, dict[TaskState, int]]:
    if queue is None:
        return {info.name: info.states for info in (await inspector.overview()).queues}
    found = await inspector.queue(queue)
    if found is None:
        await no_queue(inspector, queue)
    return {queue: found.states}


def _go_on(
    places: list[tuple[str, TaskState]], cursor: str | None
) -> tuple[list[tuple[str, TaskState]], str | None]:
    """The places that are left, and the cursor in the first of them."""
    if cursor is None:
        return places, None
    name, slash, rest = cursor.partition("/")
    state, slash, inner = rest.partition("/")
    if not slash or state not in ORDER:
        raise InvalidTask(f"--cursor: {cursor} is not one that an earlier listing gave")
    at = (name, ORDER.index(TaskState(state)))
    left = [place for place in places if (place[0], ORDER.index(place[1])) >= at]
    here = bool(left) and left[0] == (name, state)
    return left, (inner or None) if here else None


def print_tasks(listing: Listing, *, limit: int) -> None:
    """The tasks as a table, and how to see more of them."""
    rows = listing.tasks
    queues = len({row.queue for row in rows}) > 1
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
            head.append(state_cell("cancelled" if row.cancelled else row.state))
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
    if states == {TaskState.COMPLETED}:
        return "KEPT"
    return "DUE" if states and states <= {TaskState.SCHEDULED, TaskState.RETRY} else "WHEN"


def _time(row: TaskRow) -> str:
    return relative(row.died_at or row.due_at or row.kept_until or row.enqueued_at)


def _note(row: TaskRow) -> str:
    if row.state is TaskState.ACTIVE:
        share = progress(row.progress)
        return f"{share}{', ' if share else ''}on {row.server or 'nobody knows where'}"
    crashes = f"crashed {row.crashes} times" if row.crashes > 1 else "crashed once"
    notes = [crashes] if row.crashes else []
    if row.error:
        notes.append(row.error)
    return "; ".join(notes)
