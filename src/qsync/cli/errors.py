"""`qsync errors`: list, show, retry, delete and acknowledge failed tasks, grouped by error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer

from qsync.cli.bulk import BulkJob
from qsync.cli.command import (
    EXIT_CODES,
    USAGE,
    CommandGroup,
    argument,
    exit_with,
    lists_alone,
    option,
)
from qsync.cli.listing import OutputOptions
from qsync.cli.options import (
    DryRun,
    Json,
    NewerThan,
    OfType,
    OnlyQueue,
    Preview,
    StoreOptions,
    Yes,
    sort_option,
)
from qsync.cli.output import (
    Column,
    Row,
    count_cell,
    print_facts,
    print_json,
    print_line,
    print_table,
)
from qsync.cli.prompts import ProgressLine
from qsync.cli.store import (
    StoreSession,
    check_queue,
    note_no_queue,
    open_store,
    state_counts,
)
from qsync.cli.task_detail import print_error
from qsync.fingerprint import FAILING
from qsync.formatting import local_time, plural, relative
from qsync.inspector import ErrorGroup, Filter, Inspector, merge_groups
from qsync.state import TaskState

HELP: Final = "List, show, retry and delete failed tasks by error. Without a command, list them."

errors: Final = CommandGroup(
    name="errors", help=HELP, invoke_without_command=True, epilog=EXIT_CODES
)


def failing_state(text: str) -> TaskState:
    """Return the state with this name; raise BadParameter if its tasks have no errors."""
    if text in FAILING:
        return TaskState(text)
    raise typer.BadParameter(f"{text!r} is not one of {', '.join(FAILING)}")


States = Annotated[list[TaskState] | None, option(
    "--state", "-s", metavar="STATE", parser=failing_state, autocompletion=lambda: list(FAILING),
    help="Only dead tasks, or only those waiting for a retry.  [default: both]",
)]  # fmt: skip

State = Annotated[TaskState, option(
    "--state", "-s", metavar="STATE", parser=failing_state, autocompletion=lambda: list(FAILING),
    help="State of the tasks: dead, or retry (waiting for a retry).  [default: dead]",
)]  # fmt: skip

NEVER: Final = datetime.fromtimestamp(0, UTC)

SORTS: Final[dict[str, Callable[[ErrorGroup], Any]]] = {
    "tasks": lambda group: -group.count,
    "type": lambda group: (group.type, group.text),
    "first": lambda group: group.first_at or NEVER,
    "last": lambda group: NEVER - (group.last_at or NEVER),
}
"""Sort key for each column of the list."""

Sort = Annotated[str, sort_option(
    SORTS, "Column to sort by: tasks (most first), type, first (oldest first) or last (latest "
    "first).  [default: tasks]",
)]  # fmt: skip

GroupId = Annotated[str, argument(
    metavar="GROUP", help="Error id from `qsync errors list`, or the first characters of one.",
)]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Selected:
    """The tasks of an error group, or all tasks that match the filters."""

    queue: str | None
    filter: Filter | None


@errors.command("list")
def list_errors(
    *,
    queue: OnlyQueue = None,
    type: OfType = None,
    newer_than: NewerThan = None,
    states: States = None,
    sort: Sort = "tasks",
    store: StoreOptions,
    output: OutputOptions,
) -> None:
    """List the errors of dead and retried tasks, the most frequent first.

    Tasks have the same error if their type, the class of the exception and the function that raised
    it are the same. The command counts about 300,000 tasks per second, or 20,000 with
    --newer-than or for errors recorded by an older version of qsync.
    """
    filter = Filter(type=type, newer_than=newer_than)
    selected = Selected(queue, None if filter == Filter() else filter)
    with open_store(store) as session:

        def show() -> None:
            groups = sorted(_read(session, selected, states or FAILING), key=SORTS[sort])
            output.print_rows(groups, lambda whole: _print(groups, whole=whole))
            note_no_queue(session, groups)

        output.repeat(show)


lists_alone(errors, list_errors, HELP)


def _read(
    session: StoreSession, selected: Selected, states: Sequence[TaskState]
) -> list[ErrorGroup]:
    return session.run(_groups(session.inspector, selected, states))


async def _groups(
    inspector: Inspector, selected: Selected, states: Sequence[TaskState]
) -> list[ErrorGroup]:
    counts = await state_counts(inspector, selected.queue)
    total = sum(counts[name].get(state, 0) for name in counts for state in states)
    groups, scanned = list[ErrorGroup](), 0
    with ProgressLine() as progress:
        for name, state in [(name, state) for name in counts for state in states]:
            cursor: str | None = None
            while counts[name].get(state):
                part = await inspector.errors(name, state, selected.filter, cursor=cursor)
                groups, scanned = merge_groups([*groups, *part.groups]), scanned + part.scanned
                progress.show(f"searched {scanned:,} of {total:,}")
                cursor = part.cursor
                if cursor is None:
                    break
    return groups


def _print(groups: Sequence[ErrorGroup], *, whole: bool) -> None:
    if not groups:
        print_line("No task has failed.")
        return
    columns = [
        Column("GROUP"), Column("TASKS", right=True), Column("DEAD", right=True),
        Column("TYPE", shrink=True), Column("ERROR", shrink=True), Column("WHERE", shrink=True),
        Column("FIRST"), Column("LAST"),
    ]  # fmt: skip
    rows: list[Row] = []
    for group in groups:
        dead = count_cell(group.states.get(TaskState.DEAD, 0), "red")
        times = [relative(group.first_at), relative(group.last_at)]
        cells = [group.type or "?", group.text, group.where]
        rows.append([group.id, count_cell(group.count), dead, *cells, *times])
    print_table(columns, rows, whole=whole)


@errors.command()
def show(
    *, id: GroupId, queue: OnlyQueue = None, store: StoreOptions, as_json: Json = False
) -> None:
    """Show an error: its tasks by queue and key, and the traceback of the latest."""
    with open_store(store) as session:
        group = _find_group(session, id, queue)
        detail = session.run(session.inspector.task(group.sample, queue=group.queue))
    if as_json:
        print_json({"group": group, "sample": detail})
        return
    print_line(f"Error {group.id}", "bold")
    print_facts(_facts(group))
    if detail is not None:
        print_error(detail)


def _facts(group: ErrorGroup) -> list[tuple[str, str]]:
    states = ", ".join(
        f"{group.states[state]:,} {state}" for state in FAILING if state in group.states
    )
    queues = ", ".join(f"{name} {count:,}" for name, count in group.queues.items())
    keys = ", ".join(f"{name or 'others'} {count:,}" for name, count in group.keys.items())
    return [
        ("tasks", states), ("type", group.type or "?"), ("error", group.text),
        ("where", group.where), ("queues", queues), ("keys", keys),
        ("first", local_time(group.first_at) if group.first_at else ""),
        ("last", local_time(group.last_at) if group.last_at else ""), ("sample", group.sample),
    ]  # fmt: skip


def _find_group(session: StoreSession, id: str, queue: str | None) -> ErrorGroup:
    """Return the group whose id begins with `id`; exit unless there is exactly one."""
    matches = [
        group for group in _read(session, Selected(queue, None), FAILING) if group.id.startswith(id)
    ]
    if len(matches) > 1:
        exit_with(f"{id} matches several errors: {', '.join(group.id for group in matches)}", USAGE)
    if not matches:
        exit_with(f"no task has the error {id}: see qsync errors list")
    return matches[0]


@errors.command("run", hidden=True)
@errors.command()
def retry(
    *,
    id: GroupId,
    queue: OnlyQueue = None,
    state: State = TaskState.DEAD,
    dry_run: DryRun = False,
    store: StoreOptions,
    as_json: Json = False,
) -> None:
    """Make the tasks that failed with an error pending now; dead tasks get a fresh set of attempts.

    For example, once the provider is back: qsync errors retry 1f0c2a9b
    """
    with open_store(store) as session:
        job = _job(session, id, queue, state, "pending now", as_json)
        job.carry_out(session.inspector.retry_matching, dry_run=dry_run)


@errors.command()
def delete(
    *,
    id: GroupId,
    queue: OnlyQueue = None,
    state: State = TaskState.DEAD,
    dry_run: DryRun = False,
    yes: Yes = False,
    store: StoreOptions,
    as_json: Json = False,
) -> None:
    """Delete the tasks that failed with an error."""
    with open_store(store) as session:
        job = _job(session, id, queue, state, "deleted", as_json)
        question = None if yes else "Delete"
        job.carry_out(session.inspector.delete_matching, dry_run=dry_run, question=question)


@errors.command()
def acknowledge(
    *,
    names: Annotated[
        list[str], typer.Argument(metavar="QUEUE...", help="Queue names.", show_default=False)
    ],
    dry_run: Preview = False,
    store: StoreOptions,
    as_json: Json = False,
) -> None:
    """Acknowledge the dead tasks of a queue.

    The tasks stay dead, but `qsync stats` and the dashboard no longer report them as a problem. For
    example: qsync errors acknowledge mail
    """
    with open_store(store) as session:
        for name in names:
            session.run(check_queue(session.inspector, name))
        numbers = {
            name: session.run(_acknowledge(session.inspector, name, dry_run)) for name in names
        }
    if as_json:
        print_json(numbers)
        return
    for name, number in numbers.items():
        verb = "would be acknowledged" if dry_run else "acknowledged"
        print_line(f"{plural(number, 'dead task')} of queue {name} {verb}")


async def _acknowledge(inspector: Inspector, name: str, dry_run: bool) -> int:
    """Acknowledge the dead tasks of a queue, or only count them; return their number."""
    if not dry_run:
        return await inspector.acknowledge_dead(name)
    info = await inspector.queue(name)
    return 0 if info is None or info.died is None else info.died.number


def _job(
    session: StoreSession, id: str, queue: str | None, state: TaskState, verb: str, as_json: bool
) -> BulkJob:
    """Return a job that changes the tasks of the error group `id` in this state."""
    selected = Selected(queue, Filter(group=_find_group(session, id, queue).id))
    return BulkJob(session, selected, state, verb, as_json)
