"""`qsync task edit`: replaces the payload of a task, or enqueues a changed copy of it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from qsync.cli.change_report import Outcome, finish
from qsync.cli.command import USAGE, exit_with, option
from qsync.cli.new_task import payload_of
from qsync.cli.options import (
    By,
    Delay,
    StoreOptions,
    TaskId,
    TaskQueue,
)
from qsync.cli.output import print_line
from qsync.cli.prompts import current_user
from qsync.cli.store import StoreSession, open_store, queue_of
from qsync.inspector import Change, Inspector
from qsync.inspector.edit_values import differences


def edit(
    *,
    id: TaskId,
    payload: Annotated[str | None, option(
        "--json", metavar="ARGS", help="The whole new payload as JSON; - reads it from standard "
        "input.",
    )] = None,
    queue: TaskQueue = None,
    retry: Annotated[bool, typer.Option("--retry", help="Run the task now.")] = False,
    copy: Annotated[
        bool, typer.Option("--copy", help="Enqueue a changed copy; this task stays unchanged.")
    ] = False,
    into: Annotated[str | None, option(
        "--into", metavar="QUEUE", help="Queue of the copy.  [default: the queue of the task]",
    )] = None,
    delay: Delay = None,
    by: By = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the payload and print what would change.")
    ] = False,
    store: StoreOptions,
) -> None:  # fmt: skip
    """Replace the payload of a scheduled, retrying or dead task, or enqueue a changed copy.

    For example: qsync task edit ID --json '{"invoice": 7}' --retry

    The task keeps its id, options and unique lock; its previous payload is stored beside the new
    one. A copy has the options of the task and a fresh set of attempts.
    """
    _check(payload, retry=retry, copy=copy, into=into)
    with open_store(store) as session:
        value = msgspec.UNSET if payload is None else payload_of(payload)
        name = session.run(queue_of(session.inspector, id, queue))
        if dry_run and payload is not None:
            _print_differences(session, id, name, value)
        change = session.run(
            _change(session.inspector, id, name, value, retry=retry, copy=copy, into=into,
                    delay=delay, by=by or current_user(), dry_run=dry_run)
        )  # fmt: skip
    done = _done(change, retry=retry, dry_run=dry_run)
    finish([Outcome(id, name, change)], done, as_json=False)


def _check(payload: str | None, *, retry: bool, copy: bool, into: str | None) -> None:
    if payload is None and not copy:
        exit_with("pass the new payload with --json, or use --copy", USAGE)
    if retry and copy:
        exit_with("--retry and --copy cannot be used together", USAGE)
    if into is not None and not copy:
        exit_with("--into needs --copy: a task cannot move to another queue", USAGE)


async def _change(
    inspector: Inspector, id: str, queue: str, value: Any, *, retry: bool, copy: bool,
    into: str | None, delay: float | None, by: str, dry_run: bool,
) -> Change:  # fmt: skip
    if copy:
        return await inspector.copy_task(
            id, value, queue=queue, into=into, delay=delay, dry_run=dry_run
        )
    return await inspector.edit_task(
        id, value, queue=queue, retry=retry, delay=delay, by=by, dry_run=dry_run
    )


def _print_differences(session: StoreSession, id: str, queue: str, value: Any) -> None:
    """Print which arguments are added (+), removed (-) or changed (~)."""
    detail = session.run(session.inspector.task(id, queue=queue))
    if detail is not None and detail.message_error is None:
        for line in differences(detail.payload, value, is_value=detail.is_value):
            print_line(line)


def _done(change: Change, *, retry: bool, dry_run: bool) -> str:
    would = "would be " if dry_run else ""
    if change.queue is not None:
        return f"{would}copied to {change.id or 'a new task'} in queue {change.queue}"
    return f"{would}edited{' and pending now' if retry else ''}"
