"""`qsync schedule`: list, pause, resume, trigger, delete."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Annotated, Any

import typer

from qsync.cli import completion
from qsync.cli.change_report import Outcome, finish
from qsync.cli.command import USAGE, Group, exit_with
from qsync.cli.options import By, Json, OnlyQueue, StoreOptions, Why, Yes
from qsync.cli.output import Cell, Column, Row, print_json, print_line, print_table
from qsync.cli.prompts import confirm, current_user
from qsync.cli.queue_tables import pause_note
from qsync.cli.store import StoreSession, check_queue, open_store, unknown_name
from qsync.formatting import local_time, relative
from qsync.inspector import Change, Inspector, ScheduleInfo

schedule = Group(
    name="schedule",
    help="List, pause, trigger and delete the schedules of periodic tasks.",
    no_args_is_help=True,
)

Name = Annotated[
    str,
    typer.Argument(
        metavar="SCHEDULE", help="Schedule name.", show_default=False,
        autocompletion=completion.schedules,
    ),
]  # fmt: skip


@schedule.command("list")
def list_schedules(*, queue: OnlyQueue = None, store: StoreOptions, as_json: Json = False) -> None:
    """List the schedules that servers have published, with their next runs."""
    with open_store(store) as session:
        if queue is not None:
            session.run(check_queue(session.inspector, queue))
        schedules = session.run(session.inspector.schedules())
    schedules = [info for info in schedules if queue in (None, info.queue)]
    if as_json:
        print_json(schedules)
    elif not schedules:
        print_line("There are no schedules. Servers publish those of their app: @app.periodic.")
    else:
        _print(schedules)


def _print(schedules: list[ScheduleInfo]) -> None:
    columns = [
        Column("NAME", shrink=True), Column("QUEUE", shrink=True), Column("SCHEDULE", shrink=True),
        Column("NEXT"), Column("LAST ENQUEUED"), Column("STATE"),
    ]  # fmt: skip
    print_table(columns, [_row(info) for info in schedules])
    for info in schedules:
        for note in _notes(info):
            print_line(f"{info.name}: {note}", "yellow")


def _row(info: ScheduleInfo) -> Row:
    next_run = relative(info.next_at[0]) if info.next_at else "?"
    shown = Cell("paused", "yellow") if info.paused else Cell(next_run)
    last_run = relative(info.last_tick)
    return [info.name, info.queue, info.schedule, shown, last_run, info.last_state or ""]


def _notes(info: ScheduleInfo) -> list[str]:
    notes = [pause_note(info.paused)] if info.paused else []
    if not info.live:
        since = f" since {local_time(info.seen_at)}" if info.seen_at else ""
        notes.append(f"no running server has published it{since}")
    if info.problem:
        notes.append(info.problem)
    return notes


@schedule.command()
def pause(
    *,
    name: Name,
    queue: OnlyQueue = None,
    why: Why = "",
    by: By = None,
    store: StoreOptions,
    as_json: Json = False,
) -> None:
    """Skip the runs of a schedule until it is resumed.

    Survives restarts.
    """
    author = current_user() if by is None else by
    with open_store(store) as session:
        owner, inspector = _queue_of(session, name, queue), session.inspector
        work = inspector.pause_schedule(name, queue=owner, by=author, why=why)
        _finish(session, name, owner, work, "paused", as_json)


@schedule.command()
def resume(
    *, name: Name, queue: OnlyQueue = None, store: StoreOptions, as_json: Json = False
) -> None:
    """Resume a schedule with its next run; missed runs are not caught up."""
    with open_store(store) as session:
        owner = _queue_of(session, name, queue)
        work = _resume(session.inspector, name, owner)
        _finish(session, name, owner, work, "resumed", as_json)


async def _resume(inspector: Inspector, name: str, queue: str) -> Change:
    change = await inspector.resume_schedule(name, queue=queue)
    return change if change.ok else Change(outcome="refused", why="it is not paused")


@schedule.command()
def trigger(
    *, name: Name, queue: OnlyQueue = None, store: StoreOptions, as_json: Json = False
) -> None:
    """Enqueue the task of a schedule once, now, in addition to its regular runs."""
    with open_store(store) as session:
        owner = _queue_of(session, name, queue)
        work = _trigger(session.inspector, name, owner)
        _finish(session, name, owner, work, "enqueued as", as_json)


async def _trigger(inspector: Inspector, name: str, queue: str) -> Change:
    change = await inspector.trigger(name, queue=queue)
    if change.outcome != "duplicate":
        return change
    why = f"task {change.holder} holds its unique lock"
    return Change(outcome="refused", holder=change.holder, why=why)


@schedule.command()
def delete(
    *,
    name: Name,
    queue: OnlyQueue = None,
    yes: Yes = False,
    store: StoreOptions,
    as_json: Json = False,
) -> None:
    """Delete a schedule that no running server publishes any more."""
    with open_store(store) as session:
        owner = _queue_of(session, name, queue)
        confirm(f"Delete schedule {name} of queue {owner}?", yes=yes)
        work = session.inspector.forget_schedule(name, queue=owner)
        _finish(session, name, owner, work, "deleted", as_json)


def _queue_of(session: StoreSession, name: str, queue: str | None) -> str:
    """Return the queue of the schedule; exit if there is none, or more than one."""
    if queue is not None:
        session.run(check_queue(session.inspector, queue))
    schedules = session.run(session.inspector.schedules())
    schedules = [info for info in schedules if queue in (None, info.queue)]
    queues = [info.queue for info in schedules if info.name == name]
    if not queues:
        exit_with(unknown_name(sorted({info.name for info in schedules}), name, "schedule"))
    if len(queues) > 1:
        queue_list = ", ".join(queues)
        exit_with(f"queues {queue_list} have a schedule {name}: choose one with --queue", USAGE)
    return queues[0]


def _finish(
    session: StoreSession,
    name: str,
    queue: str,
    work: Coroutine[Any, Any, Change],
    done: str,
    as_json: bool,
) -> None:
    change = session.run(work)
    message = f"{done} {change.holder}" if change.holder else done
    finish([Outcome(name, queue, change)], message, as_json=as_json, key="schedule")
