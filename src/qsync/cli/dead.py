"""`qsync dead`: list, run again, delete the tasks that are given up."""

from __future__ import annotations

from typing import Annotated

import typer

from qsync.cli.bulk import BulkJob
from qsync.cli.command import Command
from qsync.cli.options import (
    App,
    Cursor,
    DryRun,
    Json,
    Limit,
    NewerThan,
    OfQueue,
    OfType,
    OlderThan,
    Prefix,
    Url,
    WithError,
    WithId,
    Yes,
)
from qsync.cli.prompts import confirm
from qsync.cli.store import EXITS, WRONG, exit_with, open_store
from qsync.cli.task import filter_of
from qsync.cli.task_list import TaskQuery, collect_tasks, print_tasks
from qsync.cli.text import print_json
from qsync.inspector import Filter
from qsync.state import TaskState

dead = typer.Typer(
    name="dead", help="Find dead tasks, run them again, delete them.", no_args_is_help=True
)

All = Annotated[bool, typer.Option("--all", help="All of them, when nothing else says which.")]


@dead.command("list", cls=Command, epilog=EXITS)
def list_dead(
    queue: OfQueue = None,
    type: OfType = None,
    error: WithError = None,
    id: WithId = None,
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    limit: Limit = 50,
    cursor: Cursor = None,
    url: Url = None,
    prefix: Prefix = None,
    app: App = None,
    as_json: Json = False,
) -> None:
    """Show dead tasks, the latest first.

    For example: qsync dead list --error "no such customer" --newer-than 2h
    """
    meant = filter_of(type, error, id, older_than, newer_than)
    wanted = TaskQuery(queue, [TaskState.DEAD], meant, limit, cursor)
    with open_store(url, prefix, app) as store:
        listing = store.do(collect_tasks(store.inspector, wanted))
    if as_json:
        print_json(listing)
    else:
        print_tasks(listing, limit=limit)


@dead.command(cls=Command, epilog=EXITS)
def run(
    queue: OfQueue = None,
    type: OfType = None,
    error: WithError = None,
    id: WithId = None,
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    everything: All = False,
    dry_run: DryRun = False,
    url: Url = None,
    prefix: Prefix = None,
    app: App = None,
    as_json: Json = False,
) -> None:
    """Run dead tasks again, the oldest first, with all their attempts.

    For example: qsync dead run --type mail.send --error Timeout --dry-run

    It goes in steps of 250, and ends with what was dead when it began. Filters must all fit. One
    whose unique lock another task has stays dead. For single tasks: qsync task run ID.
    """
    meant = filter_of(type, error, id, older_than, newer_than)
    _check(meant, everything)
    with open_store(url, prefix, app) as store:
        found = BulkJob(store, queue, TaskState.DEAD, meant, "run again", as_json)
        if dry_run:
            found.report_dry()
        else:
            found.work(store.inspector.run_dead)


@dead.command(cls=Command, epilog=EXITS)
def delete(
    queue: OfQueue = None,
    type: OfType = None,
    error: WithError = None,
    id: WithId = None,
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    everything: All = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    url: Url = None,
    prefix: Prefix = None,
    app: App = None,
    as_json: Json = False,
) -> None:
    """Delete dead tasks, the oldest first.

    For example: qsync dead delete --older-than 30d

    As `dead run` otherwise. For single tasks: qsync task delete ID.
    """
    meant = filter_of(type, error, id, older_than, newer_than)
    _check(meant, everything)
    with open_store(url, prefix, app) as store:
        found = BulkJob(store, queue, TaskState.DEAD, meant, "deleted", as_json)
        if dry_run:
            found.report_dry()
            return
        if not yes:
            count, _ = found.count()
            one = "dead task" if count == 1 else "dead tasks"
            if count:
                confirm(f"Delete {count:,} {one}?", yes=yes)
        found.work(store.inspector.delete_dead)


def _check(filter: Filter | None, everything: bool) -> None:
    if filter is None and not everything:
        exit_with("say which: --type, --error, --id, --older-than, --newer-than, or --all", WRONG)
    if filter is not None and everything:
        exit_with("--all does not go with what says which", WRONG)
