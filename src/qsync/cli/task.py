"""`qsync task`: list, show, run, cancel, delete, explain."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import typer

from qsync.cli.bulk import BulkJob
from qsync.cli.change_report import Outcome, finish
from qsync.cli.command import Command
from qsync.cli.new_task import payload_of, task_of
from qsync.cli.options import (
    App,
    Cursor,
    DryRun,
    InQueue,
    Json,
    Limit,
    NewerThan,
    OfQueue,
    OfType,
    OlderThan,
    Prefix,
    State,
    TaskId,
    TaskIds,
    Url,
    WithError,
    WithId,
    Yes,
    duration_of,
)
from qsync.cli.prompts import confirm
from qsync.cli.store import EXITS, WRONG, exit_with, open_store, queue_of, task_missing
from qsync.cli.tables import print_line
from qsync.cli.task_detail import print_task
from qsync.cli.task_list import ORDER, TaskQuery, collect_tasks, print_tasks
from qsync.cli.text import clock, lines_of, print_json, print_out
from qsync.inspector import Change, Explanation, Filter, Inspector, Step, TaskDetail
from qsync.inspector.bulk import WAITING
from qsync.state import UNFINISHED, TaskState

task = typer.Typer(
    name="task", help="Look at tasks, run, cancel and delete them.", no_args_is_help=True
)

MEASURE_S = 0.5
"""How long the rate of a queue is measured, to tell when a task's turn comes."""


def filter_of(
    type: str | None, error: str | None, id: str | None, older: float | None, newer: float | None
) -> Filter | None:
    """What the options say, None for nothing."""
    if all(value is None for value in (type, error, id, older, newer)):
        return None
    return Filter(type=type, error=error, id=id, older_than=older, newer_than=newer)


@task.command("list", cls=Command, epilog=EXITS)
def list_tasks(
    queue: OfQueue = None,
    states: State = None,
    type: OfType = None,
    error: WithError = None,
    id: WithId = None,
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    newest_first: Annotated[
        bool | None,
        typer.Option(
            "--newest-first/--oldest-first",
            help="Begin at this end.  [default: dead and completed ones the newest first, others "
            "in the order in which they will run]",
            show_default=False,
        ),
    ] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
    url: Url = None,
    prefix: Prefix = None,
    app: App = None,
    as_json: Json = False,
) -> None:
    """Show tasks by queue and state.

    For example: qsync task list --state retry --type 'mail.*'
    """
    meant = filter_of(type, error, id, older_than, newer_than)
    wanted = TaskQuery(queue, states or ORDER, meant, limit, cursor, newest_first)
    with open_store(url, prefix, app) as store:
        listing = store.do(collect_tasks(store.inspector, wanted))
    if as_json:
        print_json(listing)
    else:
        print_tasks(listing, limit=limit)


@task.command(cls=Command, epilog=EXITS)
def show(
    id: TaskId,
    queue: InQueue = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Write the bytes of the payload, and nothing else.")
    ] = False,
    url: Url = None,
    prefix: Prefix = None,
    app: App = None,
    as_json: Json = False,
) -> None:
    """Show all that the store has of a task: payload, attempts, timeline, error.

    A payload that is a Python value is shown as JSON; its bytes are msgpack.
    """
    if raw and as_json:
        exit_with("--raw does not go with --json, in which the payload is, as base64", WRONG)
    with open_store(url, prefix, app) as store:
        detail, why = store.do(_whole(store.inspector, id, queue, explained=not (raw or as_json)))
    if raw:
        _write(detail.payload)
    elif as_json:
        print_json(detail)
    else:
        print_task(detail, why)


async def _whole(
    inspector: Inspector, id: str, queue: str | None, *, explained: bool
) -> tuple[TaskDetail, Explanation | None]:
    name = await queue_of(inspector, id, queue)
    detail = await inspector.task(id, queue=name)
    if detail is None:
        exit_with(task_missing(id, name))
    if not explained or detail.row.state not in UNFINISHED:
        return detail, None
    return detail, await inspector.explain(id, queue=name, measure=MEASURE_S)


def _write(data: bytes) -> None:
    """The bytes as they are; a terminal takes them for orders, so only text goes there."""
    if sys.stdout.isatty() and not _is_text(data):
        exit_with("--raw: the payload is no plain text: write it to a file or a pipe", WRONG)
    sys.stdout.buffer.write(data)
    sys.stdout.flush()


def _is_text(data: bytes) -> bool:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    return all(char.isprintable() or char in "\n\t" for char in text)


@task.command(cls=Command, epilog=EXITS)
def explain(
    id: TaskId,
    queue: InQueue = None,
    url: Url = None,
    prefix: Prefix = None,
    app: App = None,
    as_json: Json = False,
) -> None:
    """Say why a task is not running yet, and when it will."""
    with open_store(url, prefix, app) as store:
        found = store.do(_explain(store.inspector, id, queue))
    if as_json:
        print_json(found)
        return
    for line in lines_of(found.sentence):
        print_out(line)
    for name, at in (("due or ended", found.at), ("lease until", found.lease_until)):
        if at is not None:
            print_line(f"{name}: {clock(at)}")


async def _explain(inspector: Inspector, id: str, queue: str | None) -> Explanation:
    name = await queue_of(inspector, id, queue)
    found = await inspector.explain(id, queue=name, measure=MEASURE_S)
    if found.state is None:
        exit_with(task_missing(id, name))
    return found


@task.command(cls=Command, epilog=EXITS)
def enqueue(
    type: Annotated[
        str, typer.Argument(metavar="TYPE", help="Type of the task.", show_default=False)
    ],
    arguments: Annotated[
        str | None,
        typer.Option(
            "--json", metavar="ARGS", show_default=False,
            help="Its payload as JSON; for a task that is a function, an object of its arguments "
            "by name. -: read it from standard input.  [default: no payload]",
        ),
    ] = None,
    queue: Annotated[
        str | None,
        typer.Option(
            "--queue", "-q", metavar="NAME", help="The queue.  [default: the task's, or default]",
            show_default=False,
        ),
    ] = None,
    id: Annotated[
        str | None,
        typer.Option("--id", metavar="ID", help="Id of the task.", show_default=False),
    ] = None,
    delay: Annotated[
        float | None,
        typer.Option(
            parser=duration_of, metavar="DURATION", show_default=False,
            help="Time to wait before it runs, e.g. 90s, 2h.",
        ),
    ] = None,
    url: Url = None,
    prefix: Prefix = None,
    app: App = None,
) -> None:  # fmt: skip
    """Enqueue one task, and print its id.

    For example: qsync task enqueue shop.tasks.send --json '{"invoice": 7}'

    With --app, arguments are checked against the function, and the task has the function's options.
    """
    with open_store(url, prefix, app) as store:
        options = {"queue": queue, "id": id, "delay": delay}
        given = {name: value for name, value in options.items() if value is not None}
        made = task_of(type, payload_of(arguments), given, store.app)
        with store.connections.client() as client:
            handle = client.enqueue(made)
        print_line(f"{handle.id} in queue {handle.queue}")


@task.command(cls=Command, epilog=EXITS)
def run(
    ids: TaskIds,
    queue: InQueue = None,
    url: Url = None,
    prefix: Prefix = None,
    app: App = None,
    as_json: Json = False,
) -> None:
    """Run tasks now that are scheduled, in retry or dead.

    A dead one has all its attempts again.
    """
    _change(ids, queue, url, prefix, app, as_json, lambda inspector: inspector.run, "pending now")


@task.command(cls=Command, epilog=EXITS)
def run_waiting(
    state: Annotated[
        TaskState,
        typer.Option("--state", "-s", metavar="STATE", help="In this state: scheduled or retry."),
    ] = TaskState.RETRY,
    queue: OfQueue = None,
    type: OfType = None,
    error: WithError = None,
    id: WithId = None,
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    dry_run: DryRun = False,
    url: Url = None,
    prefix: Prefix = None,
    app: App = None,
    as_json: Json = False,
) -> None:
    """Run all tasks now that wait for their next attempt, or for their time.

    For example, once the provider is back: qsync task run-waiting --error Timeout

    It goes in steps of 250. What fails again meanwhile is left alone.
    """
    meant = filter_of(type, error, id, older_than, newer_than)
    with open_store(url, prefix, app) as store:
        inspector = store.inspector

        async def step(queue: str, filter: Filter | None, *, cursor: str | None = None) -> Step:
            return await inspector.run_waiting(queue, state, filter, cursor=cursor)

        if state not in WAITING:
            exit_with(
                f"--state {state}: it does not wait for its time; scheduled and retry do", WRONG
            )
        found = BulkJob(store, queue, state, meant, "pending now", as_json)
        if dry_run:
            found.report_dry()
        else:
            found.work(step)


@task.command(cls=Command, epilog=EXITS)
def cancel(
    ids: TaskIds,
    queue: InQueue = None,
    url: Url = None,
    prefix: Prefix = None,
    app: App = None,
    as_json: Json = False,
) -> None:
    """Cancel tasks, waiting or running.

    The server of a running one stops its handler at once when it listens, and within a third of its
    lease otherwise.
    """
    _change(ids, queue, url, prefix, app, as_json, lambda inspector: inspector.cancel, "cancelled")


@task.command(cls=Command, epilog=EXITS)
def delete(
    ids: TaskIds,
    queue: InQueue = None,
    yes: Yes = False,
    url: Url = None,
    prefix: Prefix = None,
    app: App = None,
    as_json: Json = False,
) -> None:
    """Delete tasks that do not run, with all that is kept of them."""
    confirm(f"Delete {'task' if len(ids) == 1 else 'tasks'} {', '.join(ids)}?", yes=yes)
    _change(ids, queue, url, prefix, app, as_json, lambda inspector: inspector.delete, "deleted")


def _change(
    ids: list[str],
    queue: str | None,
    url: str | None,
    prefix: str | None,
    app: str | None,
    as_json: bool,
    verb: Callable[[Inspector], Callable[..., Awaitable[Change]]],
    done: str,
) -> None:
    """Change each of the tasks, say what became of it, and end with 1 if one is not changed."""

    async def change(inspector: Inspector, id: str) -> Outcome:
        options: dict[str, Any] = {"queue": queue}
        if queue is None:
            found = [row.queue for row in await inspector.find(id)]
            if len(found) > 1:
                why = f"queues {', '.join(found)} have it: say which by --queue"
                return Outcome(id, None, Change(outcome="refused", why=why))
            if not found:
                return Outcome(id, None, Change(outcome="not_found"))
            options = {"queue": found[0]}
        return Outcome(id, options["queue"], await verb(inspector)(id, **options))

    with open_store(url, prefix, app) as store:
        outcomes = [store.do(change(store.inspector, id)) for id in dict.fromkeys(ids)]
    finish(outcomes, done, as_json=as_json)
