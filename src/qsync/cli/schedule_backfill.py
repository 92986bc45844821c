"""`qsync schedule history` shows the last runs; `backfill` enqueues the tasks of past ticks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Final

import typer

from qsync.cli.command import USAGE, exit_with, option
from qsync.cli.listing import OutputOptions
from qsync.cli.options import Json, OnlyQueue, StoreOptions, Yes, moment_of, sort_option
from qsync.cli.output import print_json, print_line
from qsync.cli.prompts import confirm
from qsync.cli.schedule import Name, queue_of_schedule
from qsync.cli.schedule import schedule as schedule
from qsync.cli.schedule_runs import print_runs
from qsync.cli.store import open_store
from qsync.formatting import plural
from qsync.inspector import Backfill, ScheduleRun

RUN_SORTS: Final[dict[str, Callable[[ScheduleRun], Any]]] = {
    "tick": lambda run: -run.tick.timestamp(),
    "duration": lambda run: -(run.duration or 0.0),
    "outcome": lambda run: (run.outcome, -run.tick.timestamp()),
}
"""Sort key for each column of the history."""


@schedule.command()
def history(
    *,
    name: Name,
    queue: OnlyQueue = None,
    sort: Annotated[str, sort_option(
        RUN_SORTS, "Column to sort by: tick (latest first), duration (longest first) or outcome.  "
        "[default: tick]",
    )] = "tick",
    store: StoreOptions,
    output: OutputOptions,
) -> None:  # fmt: skip
    """Show the last 20 runs of a schedule: when and how they started and ended, and missed ticks.

    For example: qsync schedule history nightly_report
    """
    with open_store(store) as session:
        owner = queue_of_schedule(session, name, queue)

        def show() -> None:
            runs = session.run(session.inspector.schedule_history(name, queue=owner))
            runs = sorted(runs, key=RUN_SORTS[sort])
            output.print_rows(runs, lambda whole: print_runs(runs, whole=whole))

        output.repeat(show)


@schedule.command()
def backfill(
    *,
    name: Name,
    start: Annotated[datetime | None, option(
        "--from", parser=moment_of, metavar="TIME", help="Start of the interval, e.g. "
        "2026-11-01T00:00 in the local time zone, or 2026-11-01T00:00+03:00. Required.",
    )] = None,
    end: Annotated[datetime | None, option(
        "--to", parser=moment_of, metavar="TIME", help="End of the interval, exclusive. Required.",
    )] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count the ticks; enqueue nothing.")
    ] = False,
    queue: OnlyQueue = None,
    yes: Yes = False,
    store: StoreOptions,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Enqueue the task of a schedule for each tick of a past interval (1,000 at most).

    For example: qsync schedule backfill nightly --from 2026-11-01 --to 2026-11-08 --dry-run

    The command skips ticks that have already run, according to the store.
    """
    if start is None or end is None:
        exit_with("--from and --to are required", USAGE)
    with open_store(store) as session:
        owner, inspector = queue_of_schedule(session, name, queue), session.inspector
        plan = session.run(
            inspector.backfill(name, queue=owner, start=start, end=end, dry_run=True)
        )
        if plan is not None and not plan.refused and plan.enqueued and not dry_run:
            confirm(
                f"Enqueue {plural(plan.enqueued, 'task')} of schedule {name}?",
                yes=yes,
                effect="enqueues tasks",
            )
            plan = session.run(inspector.backfill(name, queue=owner, start=start, end=end))
    if plan is None:
        exit_with(f"schedule {name} was deleted in the meantime")
    if plan.refused:
        done = f"{plural(plan.enqueued, 'task')} enqueued, then: " if plan.enqueued else ""
        exit_with(f"schedule {name}: {done}{plan.refused}")
    if as_json:
        print_json(plan)
        return
    _print(plan, dry_run=dry_run)


def _print(plan: Backfill, *, dry_run: bool) -> None:
    would = " would be" if dry_run else ""
    skipped = f"; {plural(plan.skipped, 'tick')} skipped, already run" if plan.skipped else ""
    print_line(f"{plural(plan.enqueued, 'task')}{would} enqueued{skipped}")
