"""`qsync dead`: list, run again, delete the tasks that are given up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import typer

from qsync.cli.ask import Progress, confirm
from qsync.cli.command import Command
from qsync.cli.listing import Wanted, collect, print_tasks
from qsync.cli.options import (
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
from qsync.cli.reach import EXITS, INTERRUPTED, WRONG, Reached, fail, no_queue, reach
from qsync.cli.table import print_line
from qsync.cli.task import filter_of
from qsync.cli.text import print_json
from qsync.inspector import Filter, Inspector, Step
from qsync.inspector.tasks import LIMIT
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
    as_json: Json = False,
) -> None:
    """Show dead tasks, the latest first.

    For example: qsync dead list --error "no such customer" --newer-than 2h
    """
    meant = filter_of(type, error, id, older_than, newer_than)
    wanted = Wanted(queue, [TaskState.DEAD], meant, limit, cursor)
    with reach(url, prefix) as store:
        listing = store.do(collect(store.inspector, wanted))
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
    as_json: Json = False,
) -> None:
    """Run dead tasks again, the oldest first, with all their attempts.

    For example: qsync dead run --type mail.send --error Timeout --dry-run

    It goes in steps of 500, and ends with what was dead when it began. Filters must all fit. One
    whose unique lock another task has stays dead. For single tasks: qsync task run ID.
    """
    meant = filter_of(type, error, id, older_than, newer_than)
    _check(meant, everything)
    with reach(url, prefix) as store:
        if dry_run:
            _report_dry(store, queue, meant, "run again", as_json)
        else:
            _work(store, queue, meant, store.inspector.run_dead, "run again", as_json)


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
    as_json: Json = False,
) -> None:
    """Delete dead tasks, the oldest first.

    For example: qsync dead delete --older-than 30d

    As `dead run` otherwise. For single tasks: qsync task delete ID.
    """
    meant = filter_of(type, error, id, older_than, newer_than)
    _check(meant, everything)
    with reach(url, prefix) as store:
        if dry_run:
            _report_dry(store, queue, meant, "deleted", as_json)
            return
        if not yes:
            count, _ = store.do(_count(store.inspector, queue, meant))
            one = "dead task" if count == 1 else "dead tasks"
            if count:
                confirm(f"Delete {count:,} {one}?", yes=yes)
        _work(store, queue, meant, store.inspector.delete_dead, "deleted", as_json)


def _check(filter: Filter | None, everything: bool) -> None:
    if filter is None and not everything:
        fail("say which: --type, --error, --id, --older-than, --newer-than, or --all", WRONG)
    if filter is not None and everything:
        fail("--all does not go with what says which", WRONG)


async def _queues(inspector: Inspector, queue: str | None) -> dict[str, int]:
    """The queues meant, with how many dead tasks they hold."""
    if queue is None:
        found = (await inspector.overview()).queues
        return {info.name: info.states[TaskState.DEAD] for info in found}
    info = await inspector.queue(queue)
    if info is None:
        await no_queue(inspector, queue)
    return {queue: info.states[TaskState.DEAD]}


async def _count(inspector: Inspector, queue: str | None, filter: Filter | None) -> tuple[int, int]:
    """How many tasks are meant, and of how many."""
    held = await _queues(inspector, queue)
    total = sum(held.values())
    if filter is None:
        return total, total
    progress, count, scanned = Progress(), 0, 0
    try:
        for name, many in held.items():
            cursor: str | None = None
            while many:
                page = await inspector.tasks(
                    name, TaskState.DEAD, limit=LIMIT, cursor=cursor, filter=filter,
                    newest_first=False,
                )  # fmt: skip
                count, scanned, cursor = (
                    count + len(page.tasks),
                    scanned + page.scanned,
                    page.cursor,
                )
                progress.tell(f"{scanned:,} of {total:,} looked at, {count:,} found")
                if cursor is None:
                    break
    finally:
        progress.end()
    return count, total


def _report_dry(
    store: Reached, queue: str | None, filter: Filter | None, verb: str, as_json: bool
) -> None:
    count, total = store.do(_count(store.inspector, queue, filter))
    if as_json:
        print_json({"scanned": total, "found": count, "dry_run": True})
    else:
        print_line(f"{count:,} of {total:,} dead tasks would be {verb}")


def _work(
    store: Reached,
    queue: str | None,
    filter: Filter | None,
    step: Callable[..., Awaitable[Step]],
    verb: str,
    as_json: bool,
) -> None:
    """Do all steps for all queues, and report them, also when they are interrupted."""
    steps: list[Step] = []
    try:
        store.do(_steps(store.inspector, queue, filter, step, verb, steps))
    except KeyboardInterrupt:
        _report(steps, verb, as_json)
        typer.echo("interrupted: the rest is as it was", err=True)
        raise typer.Exit(INTERRUPTED) from None
    _report(steps, verb, as_json)


async def _steps(
    inspector: Inspector,
    queue: str | None,
    filter: Filter | None,
    step: Callable[..., Awaitable[Step]],
    verb: str,
    steps: list[Step],
) -> None:
    held = await _queues(inspector, queue)
    progress, total, scanned, done = Progress(), sum(held.values()), 0, 0
    try:
        for name, many in held.items():
            if not many:
                continue
            async for made in inspector.steps(step, name, filter):
                steps.append(made)
                scanned, done = scanned + made.scanned, done + made.done
                progress.tell(f"{scanned:,} of {total:,} looked at, {done:,} {verb}")
    finally:
        progress.end()


def _report(steps: list[Step], verb: str, as_json: bool) -> None:
    names = ("scanned", "done", "duplicate", "too_late")
    sums: dict[str, Any] = {name: sum(getattr(one, name) for one in steps) for name in names}
    if as_json:
        print_json(sums)
        return
    print_line(f"{sums['done']:,} of {sums['scanned']:,} dead tasks {verb}")
    if sums["duplicate"]:
        print_line(f"{sums['duplicate']:,} stay dead: other tasks have their unique locks")
    if sums["too_late"]:
        print_line(f"{sums['too_late']:,} were changed by somebody else meanwhile")
