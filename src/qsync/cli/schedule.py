"""`qsync schedule`: list, show, put, pause, resume, trigger, delete.

The module `schedule_backfill` adds `history` and `backfill`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import typer

from qsync import store_clock
from qsync.cli import completion
from qsync.cli.change_report import Outcome, finish
from qsync.cli.command import USAGE, CommandGroup, argument, exit_with, option
from qsync.cli.listing import OutputOptions
from qsync.cli.new_task import payload_of, task_of
from qsync.cli.options import (
    Arguments,
    By,
    IntoQueue,
    Json,
    OnlyQueue,
    Preview,
    StoreOptions,
    Why,
    Yes,
    duration_of,
    sort_option,
)
from qsync.cli.output import Cell, Column, Row, print_facts, print_json, print_line, print_table
from qsync.cli.prompts import confirm, current_user
from qsync.cli.queue_tables import pause_note
from qsync.cli.schedule_runs import SHOWN_RUNS, in_zone, print_runs
from qsync.cli.store import StoreSession, check_queue, note_no_queue, open_store, unknown_name
from qsync.formatting import local_time, relative
from qsync.inspector import Change, Inspector, ScheduleInfo
from qsync.schedules import checked_content
from qsync.task import PAYLOAD_LIMIT, Task
from qsync.times import datetime_us, from_us

schedule: Final = CommandGroup(
    name="schedule",
    help="List, put, pause, trigger and delete schedules.",
    no_args_is_help=True,
)

NEVER: Final = datetime.max.replace(tzinfo=UTC)

SORTS: Final[dict[str, Callable[[ScheduleInfo], Any]]] = {
    "name": lambda info: (info.name, info.queue),
    "queue": lambda info: (info.queue, info.name),
    "next": lambda info: info.next_at[0] if info.next_at and not info.paused else NEVER,
    "last": lambda info: NEVER - info.last_tick if info.last_tick else timedelta.max,
}
"""Sort key for each column of the list."""

Name = Annotated[str, argument(
    metavar="SCHEDULE", autocompletion=completion.schedules, help="Schedule name.",
)]  # fmt: skip


@schedule.command("list")
def list_schedules(
    *,
    queue: OnlyQueue = None,
    name: Annotated[str, option(
        "--name", metavar="PREFIX", help="Only schedules whose names begin with PREFIX, "
        "e.g. report-.",
    )] = "",
    sort: Annotated[str, sort_option(
        SORTS, "Column to sort by: name, queue, next (soonest first) or last (latest first).  "
        "[default: queue]",
    )] = "queue",
    store: StoreOptions,
    output: OutputOptions,
) -> None:  # fmt: skip
    """List the schedules of programs and those in the store, with their next runs.

    The list has up to 1,000 schedules of each kind per queue; use --name to find others.
    """
    with open_store(store) as session:
        if queue is not None:
            session.run(check_queue(session.inspector, queue))

        def show() -> None:
            infos = session.run(session.inspector.schedules(prefix=name))
            of_queue = [info for info in infos if queue in (None, info.queue)]
            schedules = sorted(sorted(of_queue, key=SORTS["name"]), key=SORTS[sort])
            output.print_rows(schedules, lambda whole: _print(schedules, whole=whole))
            note_no_queue(session, infos)

        output.repeat(show)


def _print(schedules: list[ScheduleInfo], *, whole: bool) -> None:
    if not schedules:
        print_line(
            "There are no schedules. Declare one in your app with @app.periodic, or store one with "
            "`qsync schedule put`."
        )
        return
    columns = [
        Column("NAME", shrink=True), Column("QUEUE", shrink=True), Column("KIND"),
        Column("SCHEDULE", shrink=True), Column("NEXT"), Column("LAST TICK"), Column("STATE"),
    ]  # fmt: skip
    print_table(columns, [_row(info) for info in schedules], whole=whole)
    for info in schedules:
        for note in _notes(info):
            print_line(f"{info.name}: {note}", "yellow")


def _row(info: ScheduleInfo) -> Row:
    next_run = relative(info.next_at[0]) if info.next_at else "?"
    shown = Cell("paused", "yellow") if info.paused else Cell(next_run)
    last_run = relative(info.last_tick)
    kind = "store" if info.stored else "program"
    return [info.name, info.queue, kind, info.schedule, shown, last_run, info.last_state or ""]


def _notes(info: ScheduleInfo) -> list[str]:
    notes = [pause_note(info.paused)] if info.paused else []
    if not info.live:
        last = f", last published {local_time(info.seen_at)}" if info.seen_at else ""
        notes.append(f"no running server publishes it{last}")
    if info.problem:
        notes.append(info.problem)
    return notes


@schedule.command()
def show(
    *, name: Name, queue: OnlyQueue = None, store: StoreOptions, as_json: Json = False
) -> None:
    """Show a schedule: its task, its next runs and its last runs."""
    with open_store(store) as session:
        owner = queue_of_schedule(session, name, queue)
        schedules = session.run(session.inspector.schedules(prefix=name))
        runs = session.run(session.inspector.schedule_history(name, queue=owner))
    infos = [info for info in schedules if (info.name, info.queue) == (name, owner)]
    if as_json:
        print_json(infos)
        return
    for info in infos:
        _print_one(info)
    if runs:
        print_line("")
        print_runs(runs[:SHOWN_RUNS], whole=False)


def _print_one(info: ScheduleInfo) -> None:
    origin = "in the store" if info.stored else "from a program"
    times = [
        *(("next", next_at) for next_at in info.next_at),
        ("last", info.last_tick), ("put" if info.stored else "seen", info.seen_at),
    ]  # fmt: skip
    rows = [
        ("schedule", f"{info.schedule}, {origin}"), ("queue", info.queue), ("type", info.type),
        ("missed", info.missed), ("last task", info.last_task), ("state", info.last_state),
        *(
            (field, f"{in_zone(moment, info.tz)} ({relative(moment)})")
            for field, moment in times
            if moment is not None
        ),
    ]  # fmt: skip
    print_line(f"Schedule {info.name}", "bold")
    print_facts(rows, width=9)
    for note in _notes(info):
        print_line(note, "yellow")


@schedule.command()
def put(
    *,
    name: Annotated[str, argument(metavar="SCHEDULE", help="Schedule name, e.g. report-42.")],
    type: Annotated[str, argument(metavar="TYPE", help="Type of the task.")],
    arguments: Arguments = None,
    cron: Annotated[str | None, option(
        "--cron", metavar="EXPRESSION", help="Cron expression for the run times, e.g. "
        "'0 9 * * *': five fields, or six with seconds.",
    )] = None,
    every: Annotated[float | None, option(
        "--every", parser=duration_of, metavar="DURATION", help="Run at multiples of this "
        "interval since 1970 in UTC, e.g. 90s, 2h.",
    )] = None,
    tz: Annotated[str | None, option(
        "--tz", metavar="ZONE", help="Time zone of --cron, e.g. Asia/Tokyo.  [default: UTC]",
    )] = None,
    missed: Annotated[
        str,
        typer.Option(
            "--missed", metavar="POLICY",
            help="What to enqueue for runs that were missed while no server was running: skip "
            "(nothing), once (one task) or all (one task per run).",
        ),
    ] = "skip",
    queue: IntoQueue = None,
    dry_run: Preview = False,
    store: StoreOptions,
) -> None:  # fmt: skip
    """Store a schedule, or replace the stored one with the same name; servers run it from then on.

    For example: qsync schedule put report-42 shop.report --json '{"id": 42}' --cron '0 9 * * *'

    With --app, arguments are checked against the task function, and its options are used.
    """
    if (cron is None) == (every is None):
        exit_with("pass either --cron or --every, e.g. --every 2h", USAGE)
    if tz is not None and cron is None:
        exit_with(f"--tz {tz}: it needs --cron; --every has no time zone", USAGE)
    with open_store(store) as session:
        options = {} if queue is None else {"queue": queue}
        new_task = task_of(type, payload_of(arguments), options, session.app)
        times: dict[str, Any] = {"cron": cron, "every": every, "tz": tz, "missed": missed}
        if dry_run:
            preview_put(session, name, new_task, times)
            return
        put = session.run(session.inspector.put_schedule(name, new_task, **times))
        print_line(f"{put.name} in queue {put.queue}: next {relative(put.next_at)}")


@schedule.command()
def pause(
    *,
    name: Name,
    queue: OnlyQueue = None,
    why: Why = "",
    by: By = None,
    dry_run: Preview = False,
    store: StoreOptions,
    as_json: Json = False,
) -> None:
    """Skip the runs of a schedule until it is resumed.

    Survives restarts.
    """
    author = current_user() if by is None else by
    with open_store(store) as session:
        owner, inspector = queue_of_schedule(session, name, queue), session.inspector
        if dry_run:
            preview(session, name, owner, "would be paused", as_json)
            return
        work = inspector.pause_schedule(name, queue=owner, by=author, why=why)
        _finish(session, name, owner, work, "paused", as_json)


@schedule.command()
def resume(
    *,
    name: Name,
    queue: OnlyQueue = None,
    dry_run: Preview = False,
    store: StoreOptions,
    as_json: Json = False,
) -> None:
    """Resume a schedule from its next run; missed runs are not caught up."""
    with open_store(store) as session:
        owner = queue_of_schedule(session, name, queue)
        if dry_run:
            if not info_of(session, name, owner).paused:
                exit_with(f"{name}: it is not paused")
            preview(session, name, owner, "would be resumed", as_json)
            return
        work = _resume(session.inspector, name, owner)
        _finish(session, name, owner, work, "resumed", as_json)


async def _resume(inspector: Inspector, name: str, queue: str) -> Change:
    change = await inspector.resume_schedule(name, queue=queue)
    return change if change.ok else Change(outcome="refused", why="it is not paused")


@schedule.command()
def trigger(
    *,
    name: Name,
    queue: OnlyQueue = None,
    dry_run: Preview = False,
    store: StoreOptions,
    as_json: Json = False,
) -> None:
    """Enqueue the task of a schedule once, now, in addition to its ticks.

    A triggered run does not count as a tick: LAST TICK in `qsync schedule list` stays the same.
    """
    with open_store(store) as session:
        owner = queue_of_schedule(session, name, queue)
        if dry_run:
            preview(session, name, owner, "its task would be enqueued", as_json)
            return
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
    dry_run: Preview = False,
    yes: Yes = False,
    store: StoreOptions,
    as_json: Json = False,
) -> None:
    """Delete a stored schedule, or a program's schedule that no running server publishes."""
    with open_store(store) as session:
        owner = queue_of_schedule(session, name, queue)
        if dry_run:
            info = info_of(session, name, owner)
            if info.live and not info.stored:
                exit_with(f"{name} would not be deleted: a running server publishes it")
            preview(session, name, owner, "would be deleted", as_json)
            return
        confirm(f"Delete schedule {name} of queue {owner}?", yes=yes)
        work = _delete(session.inspector, name, owner)
        _finish(session, name, owner, work, "deleted", as_json)


async def _delete(inspector: Inspector, name: str, queue: str) -> Change:
    change = await inspector.delete_schedule(name, queue=queue)
    return change if change.ok else await inspector.forget_schedule(name, queue=queue)


def queue_of_schedule(session: StoreSession, name: str, queue: str | None) -> str:
    """Return the queue of the schedule; exit unless exactly one queue has this schedule."""
    if queue is not None:
        session.run(check_queue(session.inspector, queue))
    schedules = session.run(session.inspector.schedules(prefix=name))
    schedules = [info for info in schedules if queue in (None, info.queue)]
    queues = sorted({info.queue for info in schedules if info.name == name})
    if not queues:
        schedules = session.run(session.inspector.schedules())
        schedules = [info for info in schedules if queue in (None, info.queue)]
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


def info_of(session: StoreSession, name: str, queue: str) -> ScheduleInfo:
    """Return a schedule whose queue is known; exit if it has been deleted in the meantime."""
    schedules = session.run(session.inspector.schedules(prefix=name))
    same = [info for info in schedules if (info.name, info.queue) == (name, queue)]
    if not same:
        exit_with(f"schedule {name} was deleted in the meantime")
    return same[0]


def preview(session: StoreSession, name: str, queue: str, done: str, as_json: bool) -> None:
    """Print what would happen to a schedule, e.g. "would be paused"; exit if it is not found."""
    info_of(session, name, queue)
    finish([Outcome(name, queue, Change(outcome="done"))], done, as_json=as_json, key="schedule")


def preview_put(
    session: StoreSession, name: str, new_task: Task[Any], times: dict[str, Any]
) -> None:
    """Print when a schedule would run next, and which schedule it would replace."""
    content = checked_content(
        name, new_task, payload_limit=PAYLOAD_LIMIT, declared=session.connections.declared, **times
    )
    schedules = session.run(session.inspector.schedules(prefix=name))
    same = [info for info in schedules if (info.name, info.queue) == (name, new_task.queue)]
    for info in same:
        if not info.stored:
            exit_with(
                f"{name}: a program already has this schedule for queue {info.queue}; "
                "use another name"
            )
    next_us = content.schedule.next_after(datetime_us("now", store_clock.now()))
    when = relative(from_us(next_us)) if next_us is not None else "never"
    replaced = "".join(f"; it would replace {info.schedule}" for info in same)
    print_line(f"{name} in queue {new_task.queue}: would run next {when}{replaced}")
