"""`qsync schedule`: list, pause, resume, trigger, delete."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Annotated, Any

import typer

from qsync.cli import completion
from qsync.cli.change_report import Outcome, finish
from qsync.cli.command import Command
from qsync.cli.options import (
    App,
    By,
    Json,
    OfQueue,
    Prefix,
    Url,
    Why,
    Yes,
)
from qsync.cli.prompts import confirm
from qsync.cli.queue_tables import pause_note
from qsync.cli.store import (
    EXITS,
    WRONG,
    StoreSession,
    check_queue,
    exit_with,
    open_store,
    unknown_name,
)
from qsync.cli.tables import Cell, Column, Row, print_line, print_table
from qsync.cli.text import clock, current_user, print_json, relative
from qsync.inspector import Change, Inspector, ScheduleInfo

schedule = typer.Typer(
    name="schedule", help="Look at periodic tasks, pause and trigger them.", no_args_is_help=True
)

Name = Annotated[
    str,
    typer.Argument(
        metavar="SCHEDULE", help="Its name.", show_default=False,
        autocompletion=completion.schedules,
    ),
]  # fmt: skip


@schedule.command("list", cls=Command, epilog=EXITS)
def list_schedules(
    queue: OfQueue = None,
    url: Url = None,
    prefix: Prefix = None,
    app: App = None,
    as_json: Json = False,
) -> None:
    """Show the periodic tasks that servers have published, and when they are next."""
    with open_store(url, prefix, app) as store:
        if queue is not None:
            store.do(check_queue(store.inspector, queue))
        found = store.do(store.inspector.schedules())
    found = [one for one in found if queue in (None, one.queue)]
    if as_json:
        print_json(found)
    elif not found:
        print_line("There is no schedule: servers publish those of their app, @app.periodic.")
    else:
        _print(found)


def _print(found: list[ScheduleInfo]) -> None:
    columns = [
        Column("NAME", flexible=True), Column("QUEUE", flexible=True),
        Column("SCHEDULE", flexible=True), Column("NEXT"), Column("LAST ENQUEUED"), Column("STATE"),
    ]  # fmt: skip
    print_table(columns, [_row(one) for one in found])
    for one in found:
        for note in _notes(one):
            print_line(f"{one.name}: {note}", "yellow")


def _row(one: ScheduleInfo) -> Row:
    next_at = relative(one.next_at[0]) if one.next_at else "?"
    shown = Cell("paused", "yellow") if one.paused else Cell(next_at)
    return [one.name, one.queue, one.schedule, shown, relative(one.last_tick), one.last_state or ""]


def _notes(one: ScheduleInfo) -> list[str]:
    notes = [pause_note(one.paused)] if one.paused else []
    if not one.live:
        seen = f" since {clock(one.seen_at)}" if one.seen_at else ""
        notes.append(f"no live server has published it{seen}")
    if one.problem:
        notes.append(one.problem)
    return notes


@schedule.command(cls=Command, epilog=EXITS)
def pause(
    name: Name,
    queue: OfQueue = None,
    why: Why = "",
    by: By = None,
    url: Url = None,
    prefix: Prefix = None,
    app: App = None,
    as_json: Json = False,
) -> None:
    """Let the ticks of a schedule pass without a task, until it is resumed.

    It holds whatever is restarted.
    """
    who = current_user() if by is None else by
    with open_store(url, prefix, app) as store:
        at, inspector = _place(store, name, queue), store.inspector
        work = inspector.pause_schedule(name, queue=at, by=who, why=why)
        _finish(store, name, at, work, "paused", as_json)


@schedule.command(cls=Command, epilog=EXITS)
def resume(
    name: Name,
    queue: OfQueue = None,
    url: Url = None,
    prefix: Prefix = None,
    app: App = None,
    as_json: Json = False,
) -> None:
    """Let a schedule go on with its next tick; none is made up for."""
    with open_store(url, prefix, app) as store:
        at = _place(store, name, queue)
        work = _resume(store.inspector, name, at)
        _finish(store, name, at, work, "resumed", as_json)


async def _resume(inspector: Inspector, name: str, queue: str) -> Change:
    change = await inspector.resume_schedule(name, queue=queue)
    return change if change.ok else Change(outcome="refused", why="it is not paused")


@schedule.command(cls=Command, epilog=EXITS)
def trigger(
    name: Name,
    queue: OfQueue = None,
    url: Url = None,
    prefix: Prefix = None,
    app: App = None,
    as_json: Json = False,
) -> None:
    """Enqueue the task of a schedule once, now; the ticks go on as ever."""
    with open_store(url, prefix, app) as store:
        at = _place(store, name, queue)
        work = _trigger(store.inspector, name, at)
        _finish(store, name, at, work, "enqueued as", as_json)


async def _trigger(inspector: Inspector, name: str, queue: str) -> Change:
    change = await inspector.trigger(name, queue=queue)
    if change.outcome != "duplicate":
        return change
    why = f"task {change.holder} has its unique lock"
    return Change(outcome="refused", holder=change.holder, why=why)


@schedule.command(cls=Command, epilog=EXITS)
def delete(
    name: Name,
    queue: OfQueue = None,
    yes: Yes = False,
    url: Url = None,
    prefix: Prefix = None,
    app: App = None,
    as_json: Json = False,
) -> None:
    """Forget a schedule that no server has any more; refused while one publishes it."""
    with open_store(url, prefix, app) as store:
        at = _place(store, name, queue)
        confirm(f"Delete schedule {name} of queue {at}?", yes=yes)
        work = store.inspector.forget_schedule(name, queue=at)
        _finish(store, name, at, work, "deleted", as_json)


def _place(store: StoreSession, name: str, queue: str | None) -> str:
    """The queue of the schedule; the end when there is none, or more than one."""
    if queue is not None:
        store.do(check_queue(store.inspector, queue))
    found = store.do(store.inspector.schedules())
    mine = [one for one in found if queue in (None, one.queue)]
    places = [one.queue for one in mine if one.name == name]
    if not places:
        exit_with(unknown_name(sorted({one.name for one in mine}), name, "schedule"))
    if len(places) > 1:
        exit_with(f"queues {', '.join(places)} have a schedule {name}: say which by --queue", WRONG)
    return places[0]


def _finish(
    store: StoreSession,
    name: str,
    queue: str,
    work: Coroutine[Any, Any, Change],
    done: str,
    as_json: bool,
) -> None:
    change = store.do(work)
    said = f"{done} {change.holder}" if change.holder else done
    finish([Outcome(name, queue, change)], said, as_json=as_json, key="schedule")
