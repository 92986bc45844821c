"""`qsync queue`: list, pause, resume, purge, delete."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
import typer

from qsync.cli.command import CommandGroup, exit_with
from qsync.cli.listing import OutputOptions
from qsync.cli.options import (
    By,
    DryRun,
    Json,
    Preview,
    Purged,
    QueueName,
    QueueNames,
    StoreOptions,
    Why,
    Yes,
)
from qsync.cli.output import print_json, print_line
from qsync.cli.prompts import ProgressLine, confirm, current_user
from qsync.cli.queue_tables import SortQueues, print_more, print_queues, sorted_queues
from qsync.cli.store import (
    check_queue,
    exit_unknown_queue,
    no_queue_yet,
    note_later,
    open_store,
)
from qsync.errors import InvalidTask
from qsync.formatting import plural
from qsync.inspector import Change, Forgotten, Inspector, QueueInfo, Step
from qsync.inspector.queues import PURGED, purged_with
from qsync.state import TaskState

queue: Final = CommandGroup(
    name="queue", help="List, pause, purge and delete queues.", no_args_is_help=True
)

MAX_STEPS: Final = 1_000_000
"""Maximum number of steps to delete a queue, in case it fills as fast as it is emptied."""


@queue.command("list")
def list_queues(*, sort: SortQueues = "name", store: StoreOptions, output: OutputOptions) -> None:
    """List all queues, with their tasks by state and who paused each queue.

    OLDEST is how long the oldest pending task has waited for a server.
    """
    with open_store(store) as session:

        def show() -> None:
            overview = session.run(session.inspector.overview())
            note_later(overview.later)
            queues = sorted_queues(overview.queues, sort)

            def print_table(whole: bool) -> None:
                if queues:
                    print_queues(queues, whole=whole)
                    print_more(overview)
                else:
                    print_line(session.run(no_queue_yet(session.inspector)))

            output.print_rows(queues, print_table)

        output.repeat(show)


@queue.command()
def pause(
    *,
    names: QueueNames,
    why: Why = "",
    by: By = None,
    dry_run: Preview = False,
    store: StoreOptions,
    as_json: Json = False,
) -> None:
    """Start no further tasks of a queue until it is resumed.

    For example: qsync queue pause mail --why "provider is down"

    Survives restarts. Running tasks continue, and tasks can still be enqueued.
    """
    author = current_user() if by is None else by

    async def change(inspector: Inspector, name: str) -> Change:
        if dry_run:
            return Change(outcome="not_found" if await inspector.queue(name) is None else "done")
        return await inspector.pause(name, by=author, why=why)

    with open_store(store) as session:
        changes = {name: session.run(change(session.inspector, name)) for name in names}
        _report(changes, "would be paused" if dry_run else "paused", as_json)
        for name, outcome in changes.items():
            if not outcome.ok:
                session.run(exit_unknown_queue(session.inspector, name))


@queue.command()
def resume(
    *, names: QueueNames, dry_run: Preview = False, store: StoreOptions, as_json: Json = False
) -> None:
    """Resume a queue, so that its tasks start again."""

    async def change(inspector: Inspector, name: str) -> Change:
        if dry_run:
            info = await inspector.queue(name)
            return Change(outcome="done" if info is not None and info.paused else "not_found")
        return await inspector.resume(name)

    with open_store(store) as session:
        changes = {name: session.run(change(session.inspector, name)) for name in names}
        _report(changes, "would be resumed" if dry_run else "resumed", as_json)
        for name, outcome in changes.items():
            if not outcome.ok:
                session.run(check_queue(session.inspector, name))
                exit_with(f"queue {name} is not paused")


def _report(changes: dict[str, Change], verb: str, as_json: bool) -> None:
    if as_json:
        print_json([{"queue": name, "outcome": change.outcome} for name, change in changes.items()])
        return
    for name, change in changes.items():
        if change.ok:
            print_line(f"{name}: {verb}")


@queue.command()
def purge(
    *,
    name: QueueName,
    states: Purged = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    store: StoreOptions,
    as_json: Json = False,
) -> None:
    """Delete all tasks of a queue that are in the given states.

    For example: qsync queue purge mail --state pending --state retry

    Deletes in batches of 100. Running tasks are not affected; use `qsync task cancel`.
    """
    with open_store(store) as session:
        if not states:
            raise InvalidTask(f"--state is missing: use one or more of {', '.join(PURGED)}")
        info = session.run(check_queue(session.inspector, name))
        purged = list(dict.fromkeys(states))
        parts = [purged_with(state, info.states) for state in purged]
        held = sum(count for _, count in parts)
        subject = f"{' and '.join(part for part, _ in parts)} {'task' if held == 1 else 'tasks'}"
        subject += f" of queue {name}"
        deleted = 0
        if not dry_run and held:
            confirm(f"Delete {held:,} {subject}?", yes=yes)
            deleted = session.run(_purge(session.inspector, name, purged, held))
    if as_json:
        print_json({"queue": name, "states": purged, "found": held, "deleted": deleted})
    elif dry_run:
        print_line(f"{held:,} {subject} would be deleted")
    else:
        print_line(f"{deleted:,} {subject} deleted")


async def _purge(inspector: Inspector, name: str, states: list[TaskState], held: int) -> int:
    total = Step(scanned=0, done=0, cursor=None)
    with ProgressLine() as progress:
        for state in states:
            async for step in inspector.steps(inspector.purge, name, state):
                total += step
                progress.show(f"deleted {total.done:,} of {held:,}")
    return total.done


@queue.command()
def delete(
    *,
    name: QueueName,
    force: Annotated[bool, typer.Option("--force", help="Also delete the queue's tasks.")] = False,
    dry_run: Preview = False,
    yes: Yes = False,
    store: StoreOptions,
    as_json: Json = False,
) -> None:
    """Delete a queue, its counters and schedules.

    The command fails while a running server takes tasks from the queue. To delete a queue that has
    tasks, add --force.
    """
    with open_store(store) as session:
        info = session.run(check_queue(session.inspector, name))
        tasks = f" and its {plural(info.total, 'task')}" if info.total else ""
        if dry_run:
            serving = session.run(session.inspector.fleet()).of_queue(name)
            _print_dry_run(info, len(serving), force=force, as_json=as_json)
            return
        if force or not info.total:  # otherwise the deletion is refused, so do not ask
            confirm(f"Delete queue {name}{tasks}?", yes=yes)
        outcome = session.run(_forget(session.inspector, name, force=force))
    if as_json:
        print_json({"queue": name, **msgspec.structs.asdict(outcome)})
    elif outcome.outcome == "done":
        tasks = f", with {plural(outcome.deleted, 'task')}" if outcome.deleted else ""
        print_line(f"{name}: deleted{tasks}")
    if outcome.outcome != "done":
        exit_with(_refusal(name, outcome))


def served_by(servers: int) -> str:
    """Return the reason why a queue cannot be deleted: how many servers take tasks from it."""
    takes = "takes" if servers == 1 else "take"
    return f"{plural(servers, 'running server')} {takes} tasks from it"


def _print_dry_run(info: QueueInfo, servers: int, *, force: bool, as_json: bool) -> None:
    """Print what `delete` would do; exit with 1 if the deletion would be refused."""
    why = ""
    if servers:
        why = served_by(servers)
    elif info.total and not force:
        why = f"it holds {plural(info.total, 'task')}; --force also deletes them"
    if as_json:
        outcome = {"tasks": info.total, "would_be_deleted": not why, "why": why}
        print_json({"queue": info.name, **outcome})
    elif not why:
        tasks = f", with {plural(info.total, 'task')}" if info.total else ""
        print_line(f"{info.name}: would be deleted{tasks}")
    if why:
        exit_with(f"{info.name} would not be deleted: {why}")


async def _forget(inspector: Inspector, name: str, *, force: bool) -> Forgotten:
    deleted = 0
    with ProgressLine() as progress:
        for _ in range(MAX_STEPS):
            step = await inspector.forget(name, force=force)
            deleted += step.deleted
            if step.outcome != "more":
                break
            progress.show(f"deleted {deleted:,}, {step.left:,} left")
    return msgspec.structs.replace(step, deleted=deleted)


def _refusal(name: str, refused: Forgotten) -> str:
    match refused.outcome:
        case "served":
            return f"server {refused.server} takes tasks from queue {name}: stop the server first"
        case "running":
            return f"queue {name}: {plural(refused.left, 'task')} running: cancel them first"
        case "not_empty":
            return f"queue {name} holds {plural(refused.left, 'task')}: delete them with --force"
        case "more":
            return (
                f"queue {name} was not deleted: tasks arrive faster than they can be deleted "
                f"({refused.deleted:,} so far); stop enqueueing to it, and try again"
            )
        case _:
            return f"queue {name} is already deleted"
