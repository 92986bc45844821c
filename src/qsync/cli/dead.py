"""`qsync dead`: list, retry or delete dead tasks."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from qsync.cli.bulk import BulkJob
from qsync.cli.command import USAGE, CommandGroup, exit_with
from qsync.cli.listing import OutputOptions
from qsync.cli.options import (
    Cursor,
    DryRun,
    FilterOptions,
    Json,
    Limit,
    StoreOptions,
    Yes,
)
from qsync.cli.store import open_store
from qsync.cli.task_changes import check_everything
from qsync.cli.task_list import SortTasks, TaskQuery, list_matching
from qsync.state import TaskState

dead: Final = CommandGroup(
    name="dead", help="List, retry and delete dead tasks.", no_args_is_help=True
)

All = Annotated[
    bool,
    typer.Option("--all", help="Apply to all dead tasks (required when no filter is given)."),
]


@dead.command("list")
def list_dead(
    *,
    filters: FilterOptions,
    sort: SortTasks = None,
    limit: Limit = 50,
    cursor: Cursor = None,
    store: StoreOptions,
    output: OutputOptions,
) -> None:
    """List dead tasks, the latest first.

    For example: qsync dead list --error "no such customer" --newer-than 2h
    """
    _check_state(filters)
    query = TaskQuery(filters.queue, [TaskState.DEAD], filters.filter, limit, cursor, sort=sort)
    list_matching(query, store, output)


@dead.command("run", hidden=True)
@dead.command()
def retry(
    *,
    filters: FilterOptions,
    everything: All = False,
    dry_run: DryRun = False,
    store: StoreOptions,
    as_json: Json = False,
) -> None:
    """Retry dead tasks, the oldest first, with a fresh set of attempts.

    For example: qsync dead retry --type mail.send --error Timeout --dry-run

    The command works in batches of 250, and skips tasks that die after it started. A task stays
    dead if another task holds its unique lock. To retry single tasks, use qsync task retry ID.
    """
    _check(filters, everything)
    with open_store(store) as session:
        job = BulkJob(session, filters, TaskState.DEAD, "re-queued", as_json)
        job.carry_out(session.inspector.retry_matching, dry_run=dry_run)


@dead.command()
def delete(
    *,
    filters: FilterOptions,
    everything: All = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    store: StoreOptions,
    as_json: Json = False,
) -> None:
    """Delete dead tasks, the oldest first.

    For example: qsync dead delete --older-than 30d

    The command works in batches of 250, as `dead retry` does. To delete single tasks, use qsync
    task delete ID.
    """
    _check(filters, everything)
    with open_store(store) as session:
        job = BulkJob(session, filters, TaskState.DEAD, "deleted", as_json)
        question = None if yes else "Delete"
        job.carry_out(session.inspector.delete_matching, dry_run=dry_run, question=question)


def _check_state(filters: FilterOptions) -> None:
    if filters.states not in ([], [TaskState.DEAD]):
        exit_with("the query names states other than dead: use `qsync task`", USAGE)


def _check(filters: FilterOptions, everything: bool) -> None:
    _check_state(filters)
    check_everything(filters, everything)
