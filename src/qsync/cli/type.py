"""`qsync type`: list, show, pause, resume."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final

import msgspec
import typer

from qsync.cli.command import (
    EXIT_CODES,
    CommandGroup,
    argument,
    exit_with,
    lists_alone,
)
from qsync.cli.listing import OutputOptions
from qsync.cli.options import By, Json, Preview, StoreOptions, Why, queue_option, sort_option
from qsync.cli.output import (
    Cell,
    Column,
    Row,
    count_cell,
    print_json,
    print_line,
    print_table,
    state_cell,
)
from qsync.cli.prompts import current_user
from qsync.cli.queue_tables import pause_note
from qsync.cli.store import StoreSession, check_queue, exit_unknown_queue, open_store
from qsync.formatting import duration, local_time, plural
from qsync.inspector import Period, RunStats, ServerStart, SlowTask, TypeInfo, TypeList, TypeStats
from qsync.inspector.slow_tasks import SLOW_TASKS_READ
from qsync.inspector.type_values import PERIODS
from qsync.inspector.types import LISTED_PERIODS
from qsync.worker.logs import escape

HELP: Final = "List, show, pause and resume task types. Without a command, list them."

type_: Final = CommandGroup(name="type", help=HELP, invoke_without_command=True, epilog=EXIT_CODES)

SORTS: Final = ("name", "started", "failed", "share", "wait", "run", "pending", "dead")


def period_of(text: str) -> Period:
    """Return the period with this name; raise BadParameter if it is unknown."""
    for period in PERIODS:
        if period == text:
            return period
    raise typer.BadParameter(f"{text!r} is not one of {', '.join(PERIODS)}")


SortTypes = Annotated[str, sort_option(
    SORTS, f"Column to sort by, the largest first: {', '.join(SORTS)}.  [default: name]",
)]  # fmt: skip


def period_option(names: Iterable[str]) -> Any:
    """Return the option --period for a command that supports these periods."""
    periods = list(names)
    return typer.Option(
        "--period", metavar="TIME", parser=period_of, show_default=False,
        autocompletion=lambda: periods,
        help=f"Period of the statistics: {', '.join(periods)}.  [default: 1h]",
    )  # fmt: skip


ListPeriod = Annotated[Period, period_option(LISTED_PERIODS)]

ShowPeriod = Annotated[Period, period_option(PERIODS)]

TypeName = Annotated[str, argument(metavar="TYPE", help="Type of the tasks.")]

TypeQueue = Annotated[str, queue_option("Queue of the type.")]


@type_.command("list")
def list_types(
    *,
    queue: TypeQueue = "default",
    period: ListPeriod = "1h",
    sort: SortTypes = "name",
    store: StoreOptions,
    output: OutputOptions,
) -> None:
    """List the task types of a queue, each with its runs, failures, times and backlog.

    For example: qsync types --queue mail --period 24h --sort failed

    WAIT and RUN show the median and the 95th percentile. PENDING and DEAD are counts among the
    first 1,000 tasks in the state; a + means that there are more tasks.
    """
    with open_store(store) as session:

        def show() -> None:
            listing = session.run(session.inspector.types(queue, period=period))
            types = sorted_types(listing.types, sort)

            def print_types(whole: bool) -> None:
                if types:
                    _print_table(listing, types, whole=whole)
                else:
                    session.run(check_queue(session.inspector, queue))
                    print_line(f"Queue {queue} has no statistics of types yet.")

            output.print_rows(types, print_types)

        output.repeat(show)


lists_alone(type_, list_types, HELP)


def sorted_types(types: Sequence[TypeInfo], by: str) -> list[TypeInfo]:
    """Sort the types by name, or by a column with its largest value first."""
    named = sorted(types, key=lambda info: info.type)
    values = {
        "started": lambda info: info.stats.started, "failed": lambda info: info.stats.failed,
        "share": lambda info: info.stats.failure_share, "wait": lambda info: info.stats.wait_p95,
        "run": lambda info: info.stats.run_p95, "pending": lambda info: info.pending + info.waiting,
        "dead": lambda info: info.dead,
    }  # fmt: skip
    if by not in values:
        return named
    return sorted(named, key=lambda info: values[by](info) or 0, reverse=True)


def _print_table(listing: TypeList, types: Sequence[TypeInfo], *, whole: bool) -> None:
    columns = [
        Column("TYPE", shrink=True),
        *(
            Column(name, right=True)
            for name in ("STARTED", "FAILED", "SHARE", "WAIT", "RUN", "PENDING", "DEAD")
        ),
    ]
    rows: list[Row] = [
        [
            Cell(info.type, "yellow" if info.paused else ""),
            count_cell(info.stats.started, ""),
            count_cell(info.stats.failed, "red"),
            _share(info.stats),
            _times(info.stats.wait_p50, info.stats.wait_p95),
            _times(info.stats.run_p50, info.stats.run_p95),
            _count(info.pending + info.waiting, info.pending_whole),
            _count(info.dead, info.dead_whole),
        ]
        for info in types
    ]
    print_table(columns, rows, whole=whole)
    print_line(ESTIMATES)
    for state, sample in (("pending", listing.pending), ("dead", listing.dead)):
        if not sample.whole:
            read = f"among the first {sample.read:,} of {sample.total:,} {state} tasks"
            print_line(f"{state.upper()}: {read}.")
    for info in types:
        if info.paused is not None:
            waiting = f"; {plural(info.waiting, 'task')} set aside"
            print_line(f"{info.type} is {pause_note(info.paused)}{waiting}", "yellow")


ESTIMATES: Final = "WAIT and RUN are estimates, off by at most about 15 %."


def _share(stats: RunStats) -> str:
    return "" if stats.failure_share is None else f"{stats.failure_share:.1%}"


def _times(median: float | None, high: float | None) -> str:
    if median is None or high is None:
        return ""
    return f"{duration(median)} / {duration(high)}"


def _count(count: int, is_whole: bool) -> str:
    return f"{count:,}{'' if is_whole else '+'}" if count else ""


@type_.command()
def show(
    *,
    name: TypeName,
    queue: TypeQueue = "default",
    period: ShowPeriod = "1h",
    store: StoreOptions,
    as_json: Json = False,
) -> None:
    """Show a type: its runs over time, when its servers started, and its slowest tasks.

    For example: qsync type show send_mail --queue mail --period 24h
    """
    with open_store(store) as session:
        stats = session.run(session.inspector.type_stats(name, queue=queue, period=period))
        session.run(check_queue(session.inspector, queue))
        slow = session.run(session.inspector.slow_tasks(name, queue=queue))
    if as_json:
        print_json({**msgspec.structs.asdict(stats), "slowest": slow})
        return
    _print_stats(stats)
    print_starts(stats.starts)
    print_slowest(slow)


def _print_stats(stats: TypeStats) -> None:
    print_line(f"Type {stats.type} of queue {stats.queue}, last {stats.period}", "bold")
    if stats.paused is not None:
        waiting = f"; {plural(stats.waiting, 'task')} set aside"
        print_line(f"{pause_note(stats.paused)}{waiting}", "yellow")
    if not stats.stats.started and not stats.stats.failed:
        print_line(
            "No task of this type has started in this period. `qsync type list` lists the types.",
            "yellow",
        )
        return
    columns = [
        Column("FROM"),
        *(Column(name, right=True) for name in ("STARTED", "FAILED", "SHARE", "WAIT", "RUN")),
    ]
    lines = [(local_time(point.at), point.stats) for point in stats.points if point.stats]
    lines.append(("all", stats.stats))
    rows: list[Row] = [
        [
            when,
            count_cell(run_stats.started, ""),
            count_cell(run_stats.failed, "red"),
            _share(run_stats),
            _times(run_stats.wait_p50, run_stats.wait_p95),
            _times(run_stats.run_p50, run_stats.run_p95),
        ]
        for when, run_stats in lines
    ]
    print_table(columns, rows)
    print_line(ESTIMATES)


@type_.command()
def pause(
    *,
    name: TypeName,
    queue: TypeQueue = "default",
    why: Why = "",
    by: By = None,
    dry_run: Preview = False,
    store: StoreOptions,
    as_json: Json = False,
) -> None:
    """Start no further tasks of a type until it is resumed; other types continue.

    For example: qsync type pause send_mail --queue mail --reason "provider is down"

    Survives restarts. Running tasks continue. Tasks can still be enqueued; they wait in
    the state `limited`.
    """
    author = current_user() if by is None else by
    with open_store(store) as session:
        if dry_run:
            session.run(check_queue(session.inspector, queue))
        else:
            note = _unknown_note(session, name, queue)
            pausing = session.inspector.pause_type(name, queue=queue, by=author, why=why)
            if not session.run(pausing).ok:
                session.run(exit_unknown_queue(session.inspector, queue))
            if note:
                typer.echo(escape(note), err=True)
    if as_json:
        print_json({"queue": queue, "type": name, "outcome": "done", "dry_run": dry_run})
    else:
        print_line(f"{name}: {'would be ' if dry_run else ''}paused in queue {queue}")


def _unknown_note(session: StoreSession, name: str, queue: str) -> str:
    """Return a note if no task of the type is known in the queue; "" otherwise."""
    known = [info.type for info in session.run(session.inspector.types(queue)).types]
    if name in known:
        return ""
    close = difflib.get_close_matches(name, known, 1)
    meant = f"; did you mean {close[0]}?" if close else ""
    return f"note: queue {queue} has had no task of type {name} yet{meant}"


@type_.command()
def resume(
    *,
    name: TypeName,
    queue: TypeQueue = "default",
    dry_run: Preview = False,
    store: StoreOptions,
    as_json: Json = False,
) -> None:
    """Resume a type, so that its tasks start again, in their original order.

    For example: qsync type resume send_mail --queue mail
    """
    with open_store(store) as session:
        paused = session.run(session.inspector.paused_types(queue))
        waiting = sum(pause.waiting for pause in paused if pause.type == name)
        is_paused = name in [pause.type for pause in paused]
        if not dry_run:
            is_paused = session.run(session.inspector.resume_type(name, queue=queue)).ok
        if not is_paused:
            session.run(check_queue(session.inspector, queue))
            others = f"; paused: {', '.join(pause.type for pause in paused)}" if paused else ""
            exit_with(f"type {name} is not paused in queue {queue}{others}")
    if as_json:
        document = {"queue": queue, "type": name, "outcome": "done", "waiting": waiting}
        print_json({**document, "dry_run": dry_run})
    elif dry_run:
        print_line(
            f"{name}: would be resumed in queue {queue}; {plural(waiting, 'task')} set aside"
        )
    else:
        print_line(f"{name}: resumed in queue {queue}; {plural(waiting, 'task')} waited")


STARTS_SHOWN: Final = 10


def print_starts(starts: Sequence[ServerStart]) -> None:
    """Print the last ten starts of servers that run the type, with their versions."""
    if not starts:
        return
    print_line("")
    print_line("Starts of servers, e.g. after a deploy:", "bold")
    columns = [Column("FROM"), Column("VERSION", shrink=True), Column("SERVERS", right=True)]
    rows: list[Row] = [
        [local_time(start.at), start.version, f"{start.servers:,}"]
        for start in starts[-STARTS_SHOWN:]
    ]
    print_table(columns, rows)


def print_slowest(slow: Sequence[SlowTask]) -> None:
    """Print the slowest tasks of the type."""
    if not slow:
        return
    print_line("")
    print_line("Slowest tasks: running, dead, or completed today or yesterday:", "bold")
    columns = [
        Column("ID"), Column("STATE"), Column("DURATION", right=True), Column("STARTED"),
        Column("SERVER", shrink=True),
    ]  # fmt: skip
    rows: list[Row] = [
        [task.id, state_cell(task.state), duration(task.seconds), local_time(task.at), task.server]
        for task in slow
    ]
    print_table(columns, rows)
    print_line(
        f"Searched: up to {SLOW_TASKS_READ:,} running tasks and the newest {SLOW_TASKS_READ:,} "
        "dead tasks of the queue."
    )
