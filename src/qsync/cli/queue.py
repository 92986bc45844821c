"""`qsync queue`: list, pause, resume, purge, delete."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
import typer

from qsync.cli.command import Command
from qsync.cli.options import (
    App,
    By,
    DryRun,
    Json,
    Prefix,
    Purged,
    QueueName,
    QueueNames,
    Url,
    Why,
    Yes,
)
from qsync.cli.prompts import Progress, confirm
from qsync.cli.queue_tables import print_more, print_queues
from qsync.cli.store import (
    EXITS,
    check_queue,
    exit_unknown_queue,
    exit_with,
    no_queue_yet,
    open_store,
)
from qsync.cli.tables import print_line
from qsync.cli.text import current_user, print_json, tasks
from qsync.errors import InvalidTask
from qsync.inspector import Change, Forgotten, Inspector, Step
from qsync.inspector.queues import PURGED, purged_with
from qsync.state import TaskState

queue = typer.Typer(
    name="queue", help="Look at queues, pause and empty them.", no_args_is_help=True
)

REPEATS: Final = 1_000_000
"""A queue that fills as fast as it is emptied is not emptied for ever."""


@queue.command("list", cls=Command, epilog=EXITS)
def list_queues(
    url: Url = None, prefix: Prefix = None, app: App = None, as_json: Json = False
) -> None:
    """Show all queues, what they hold and who paused them.

    OLDEST is how long the oldest pending task has been waiting for a server.
    """
    with open_store(url, prefix, app) as store:
        overview = store.do(store.inspector.overview())
        if as_json:
            print_json(overview.queues)
        elif overview.queues:
            print_queues(overview.queues)
            print_more(overview)
        else:
            print_line(store.do(no_queue_yet(store.inspector)))


@queue.command(cls=Command, epilog=EXITS)
def pause(
    names: QueueNames,
    why: Why = "",
    by: By = None,
    url: Url = None,
    prefix: Prefix = None,
    app: App = None,
    as_json: Json = False,
) -> None:
    """Let no further task of a queue start, until it is resumed.

    For example: qsync queue pause mail --why "provider is down"

    It holds whatever is restarted. What runs goes on, and tasks may be enqueued.
    """
    who = current_user() if by is None else by

    async def change(inspector: Inspector, name: str) -> Change:
        return await inspector.pause(name, by=who, why=why)

    with open_store(url, prefix, app) as store:
        found = {name: store.do(change(store.inspector, name)) for name in names}
        _report(store.inspector, found, "paused", as_json)
        for name, one in found.items():
            if not one.ok:
                store.do(exit_unknown_queue(store.inspector, name))


@queue.command(cls=Command, epilog=EXITS)
def resume(
    names: QueueNames,
    url: Url = None,
    prefix: Prefix = None,
    app: App = None,
    as_json: Json = False,
) -> None:
    """Let tasks of a queue start again."""
    with open_store(url, prefix, app) as store:
        found = {name: store.do(store.inspector.resume(name)) for name in names}
        _report(store.inspector, found, "resumed", as_json)
        for name, one in found.items():
            if not one.ok:
                store.do(check_queue(store.inspector, name))
                exit_with(f"queue {name} is not paused")


def _report(inspector: Inspector, found: dict[str, Change], verb: str, as_json: bool) -> None:
    if as_json:
        print_json([{"queue": name, "outcome": one.outcome} for name, one in found.items()])
        return
    for name, one in found.items():
        if one.ok:
            print_line(f"{name}: {verb}")


@queue.command(cls=Command, epilog=EXITS)
def purge(
    name: QueueName,
    states: Purged = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    url: Url = None,
    prefix: Prefix = None,
    app: App = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Delete all tasks of a queue that are in a state.

    For example: qsync queue purge mail --state pending --state retry

    It goes in steps of 100, and others of the store hardly notice. What runs is not purged: cancel
    it.
    """
    with open_store(url, prefix, app) as store:
        if not states:
            raise InvalidTask(f"say --state: one or more of {', '.join(PURGED)}")
        info = store.do(store.inspector.queue(name))
        if info is None:
            store.do(exit_unknown_queue(store.inspector, name))
        wanted = list(dict.fromkeys(states))
        parts = [purged_with(state, info.states) for state in wanted]
        held = sum(count for _, count in parts)
        named = " and ".join(part for part, _ in parts)
        what = f"{named} {'task' if held == 1 else 'tasks'} of queue {name}"
        deleted = 0
        if not dry_run and held:
            confirm(f"Delete {held:,} {what}?", yes=yes)
            deleted = store.do(_purge(store.inspector, name, wanted, held))
    if as_json:
        print_json({"queue": name, "states": wanted, "found": held, "deleted": deleted})
    elif dry_run:
        print_line(f"{held:,} {what} would be deleted")
    else:
        print_line(f"{deleted:,} {what} deleted")


async def _purge(inspector: Inspector, name: str, states: list[TaskState], held: int) -> int:
    progress, total = Progress(), Step(scanned=0, done=0, cursor=None)
    try:
        for state in states:
            async for step in inspector.steps(inspector.purge, name, state):
                total += step
                progress.tell(f"{total.done:,} of {held:,} deleted")
    finally:
        progress.end()
    return total.done


@queue.command(cls=Command, epilog=EXITS)
def delete(
    name: QueueName,
    force: Annotated[
        bool, typer.Option("--force", help="Also when it holds tasks: delete them first.")
    ] = False,
    yes: Yes = False,
    url: Url = None,
    prefix: Prefix = None,
    app: App = None,
    as_json: Json = False,
) -> None:
    """Forget a queue, with its counters and schedules.

    Refused while a live server takes from it; and without --force while it holds tasks.
    """
    with open_store(url, prefix, app) as store:
        info = store.do(store.inspector.queue(name))
        if info is None:
            store.do(exit_unknown_queue(store.inspector, name))
        holds = f" and its {tasks(info.total)}" if info.total else ""
        if force or not info.total:  # or else it is refused below, and there is nothing to ask
            confirm(f"Delete queue {name}{holds}?", yes=yes)
        found = store.do(_forget(store.inspector, name, force=force))
    if as_json:
        print_json({"queue": name, **msgspec.structs.asdict(found)})
    elif found.outcome == "done":
        print_line(f"{name}: deleted{f', with {tasks(found.deleted)}' if found.deleted else ''}")
    if found.outcome != "done":
        exit_with(_refusal(name, found))


async def _forget(inspector: Inspector, name: str, *, force: bool) -> Forgotten:
    progress, deleted = Progress(), 0
    try:
        for _ in range(REPEATS):
            found = await inspector.forget(name, force=force)
            deleted += found.deleted
            if found.outcome != "more":
                break
            progress.tell(f"{deleted:,} deleted, {found.left:,} left")
    finally:
        progress.end()
    return Forgotten(outcome=found.outcome, deleted=deleted, left=found.left, server=found.server)


def _refusal(name: str, found: Forgotten) -> str:
    match found.outcome:
        case "served":
            return f"queue {name}: server {found.server} takes from it: stop that first"
        case "running":
            return f"queue {name}: {tasks(found.left)} of it run: cancel them first"
        case "not_empty":
            return f"queue {name} holds {tasks(found.left)}: --force deletes them, too"
        case "more":
            return f"queue {name} fills faster than it is emptied; {found.deleted:,} deleted"
        case _:
            return f"queue {name} is gone already"
