"""`qsync task`: list, show, explain, enqueue, reschedule."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Annotated, Final

import typer

from qsync.cli import task_changes, task_edit
from qsync.cli.command import USAGE, CommandGroup, argument, exit_with, option
from qsync.cli.listing import OutputOptions
from qsync.cli.new_task import payload_of, task_of
from qsync.cli.options import (
    Arguments,
    Cursor,
    Delay,
    DryRun,
    EnqueueOptions,
    FilterOptions,
    IntoQueue,
    Json,
    Limit,
    SearchText,
    States,
    StoreOptions,
    TaskId,
    TaskIds,
    TaskQueue,
    duration_of,
    moment_of,
)
from qsync.cli.output import escaped_lines, print_json, print_line, print_raw
from qsync.cli.store import open_store, queue_of, task_missing
from qsync.cli.task_detail import print_stack, print_task
from qsync.cli.task_list import ORDER, SortTasks, TaskQuery, list_matching
from qsync.formatting import local_time
from qsync.inspector import Change, Explanation, Inspector, TaskDetail
from qsync.state import UNFINISHED

task: Final = CommandGroup(
    name="task", help="List, show, enqueue, retry, cancel and delete tasks.", no_args_is_help=True
)

RATE_INTERVAL_S: Final = 0.5
"""How long to measure a queue's rate to estimate when a task will start, in seconds."""


@task.command("list")
def list_tasks(
    *,
    text: SearchText = None,
    filters: FilterOptions,
    states: States = None,
    newest_first: Annotated[
        bool | None,
        typer.Option(
            "--newest-first/--oldest-first",
            help="Order of the tasks.  [default: newest first for tasks that have ended; for "
            "others, the order in which they will start]",
            show_default=False,
        ),
    ] = None,
    sort: SortTasks = None,
    limit: Limit = 50,
    cursor: Cursor = None,
    store: StoreOptions,
    output: OutputOptions,
) -> None:
    """List tasks by queue and state.

    For example: qsync task list 'state:retry type:mail.* age:>1h'
    """
    if text is not None:
        if filters.query is not None:
            exit_with("pass the query either as an argument or with --query", USAGE)
        filters = replace(filters, query=text)
    if states and filters.states:
        exit_with("--state and state: in the query cannot be used together", USAGE)
    states = states or filters.states
    query = TaskQuery(
        filters.queue, states or ORDER, filters.filter, limit, cursor, newest_first, sort
    )
    list_matching(query, store, output)


@task.command()
def show(
    *,
    id: TaskId,
    queue: TaskQueue = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Write the bytes of the payload, and nothing else.")
    ] = False,
    stack: Annotated[
        bool,
        typer.Option("--stack", help="Print the stack of the running handler, and nothing else."),
    ] = False,
    store: StoreOptions,
    as_json: Json = False,
) -> None:
    """Show everything about a task: payload, attempts, timeline, error.

    A payload that is a Python value is stored as msgpack and shown as JSON.
    """
    if stack:
        if raw:
            exit_with("--stack and --raw cannot be used together", USAGE)
        print_stack(id, queue, store, as_json=as_json)
        return
    if raw and as_json:
        exit_with(
            "--raw and --json cannot be used together; --json prints the payload as base64", USAGE
        )
    with open_store(store) as session:
        detail, why = session.run(
            _detail(session.inspector, id, queue, explained=not (raw or as_json))
        )
    if raw:
        _write(detail.payload)
    elif as_json:
        print_json(detail)
    else:
        print_task(detail, why)


async def _detail(
    inspector: Inspector, id: str, queue: str | None, *, explained: bool
) -> tuple[TaskDetail, Explanation | None]:
    name = await queue_of(inspector, id, queue)
    detail = await inspector.task(id, queue=name)
    if detail is None:
        exit_with(task_missing(id, name))
    if not explained or detail.row.state not in UNFINISHED:
        return detail, None
    return detail, await inspector.explain(id, queue=name, measure=RATE_INTERVAL_S)


def _write(data: bytes) -> None:
    """Write bytes to standard output; refuse to write them to a terminal if they are not plain
    text."""
    if sys.stdout.isatty() and not _is_text(data):
        exit_with("--raw: the payload is not plain text; redirect it to a file or a pipe", USAGE)
    sys.stdout.buffer.write(data)
    sys.stdout.flush()


def _is_text(data: bytes) -> bool:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    return all(char.isprintable() or char in "\n\t" for char in text)


@task.command()
def explain(
    *, id: TaskId, queue: TaskQueue = None, store: StoreOptions, as_json: Json = False
) -> None:
    """Explain why a task is not running yet, and when it will run."""
    with open_store(store) as session:
        explanation = session.run(_explain(session.inspector, id, queue))
    if as_json:
        print_json(explanation)
        return
    for line in escaped_lines(explanation.sentence):
        print_raw(line)
    for name, time in (
        ("due or ended", explanation.at), ("lease expires", explanation.lease_until),
    ):  # fmt: skip
        if time is not None:
            print_line(f"{name}: {local_time(time)}")


async def _explain(inspector: Inspector, id: str, queue: str | None) -> Explanation:
    name = await queue_of(inspector, id, queue)
    explanation = await inspector.explain(id, queue=name, measure=RATE_INTERVAL_S)
    if explanation.state is None:
        exit_with(task_missing(id, name))
    return explanation


@task.command()
def enqueue(
    *,
    type: Annotated[str, argument(metavar="TYPE", help="Type of the task.")],
    arguments: Arguments = None,
    queue: IntoQueue = None,
    id: Annotated[str | None, option("--id", metavar="ID", help="Id of the task.")] = None,
    delay: Delay = None,
    flow: EnqueueOptions,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only check the task, and print the queue it would go to."),
    ] = False,
    store: StoreOptions,
) -> None:  # fmt: skip
    """Enqueue one task, and print its id.

    For example: qsync task enqueue shop.tasks.send --json '{"invoice": 7}'

    With --app, arguments are checked against the task function, and its options are used.
    """
    with open_store(store) as session:
        options = {"queue": queue, "id": id, "delay": delay, **flow.options}
        task_options = {name: value for name, value in options.items() if value is not None}
        new_task = task_of(type, payload_of(arguments), task_options, session.app)
        if dry_run:
            print_line(f"would enqueue a task of type {new_task.type} in queue {new_task.queue}")
            return
        with session.connections.client() as client:
            handle = client.enqueue(new_task)
        print_line(f"{handle.id} in queue {handle.queue}")


@task.command()
def reschedule(
    *,
    ids: TaskIds,
    delay: Annotated[float | None, option(
        parser=duration_of, metavar="DURATION", help="New delay from now, e.g. 90s, 2h; with 0, "
        "the task runs now.",
    )] = None,
    at: Annotated[datetime | None, option(
        parser=moment_of, metavar="TIME", help="New start time, e.g. 2026-12-01T08:00 in your "
        "time zone, or 2026-12-01T08:00+01:00.",
    )] = None,
    queue: TaskQueue = None,
    dry_run: DryRun = False,
    store: StoreOptions,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Change when scheduled tasks, or tasks that wait for a retry, are due.

    For example: qsync task reschedule ID --delay 15m
    """
    if (delay is None) == (at is None):
        exit_with("pass either --delay or --at", USAGE)

    def verb(inspector: Inspector) -> Callable[..., Awaitable[Change]]:
        return partial(inspector.reschedule_task, delay=delay, process_at=at, dry_run=dry_run)

    done = "would be due" if dry_run else "due"
    task_changes.change_each(ids, queue, store, as_json, verb, done)


for _change in (task_changes.retry, task_changes.cancel, task_changes.delete, task_edit.edit):
    task.command()(_change)
task.command("run", hidden=True)(task_changes.retry)
