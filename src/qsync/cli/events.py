"""`qsync events`: the record of operators' actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Annotated, Any, Final

import typer

from qsync import store_clock
from qsync.broker.event_ops import MOST_EVENTS
from qsync.cli.command import option
from qsync.cli.listing import OutputOptions
from qsync.cli.options import OnlyQueue, StoreOptions, duration_of, sort_option
from qsync.cli.output import Column, print_line, print_table
from qsync.cli.store import check_queue, note_no_queue, open_store
from qsync.formatting import local_time
from qsync.inspector import OperatorEvent
from qsync.inspector.event_values import ACTIONS
from qsync.times import MAX_SECONDS

EVENTS_SHOWN: Final = 50

SORTS: Final[dict[str, Callable[[OperatorEvent], Any]]] = {
    "time": lambda event: -event.at.timestamp(),
    "by": lambda event: event.by,
    "action": lambda event: event.action,
    "queue": lambda event: event.queue or "",
    "number": lambda event: -event.number,
}
"""Sort key for each column of the list; actions with equal keys stay in order of time."""


def events(
    *,
    queue: OnlyQueue = None,
    action: Annotated[str | None, option(
        metavar="ACTION", autocompletion=lambda: list(ACTIONS), help="Only this action, "
        "e.g. queue.pause, or only this kind of action, e.g. queue.",
    )] = None,
    task: Annotated[str | None, option(metavar="ID", help="Only actions on this task.")] = None,
    since: Annotated[float | None, option(
        parser=duration_of, metavar="AGE", help="Only actions less than AGE ago, e.g. 90s, 15m, "
        "2h.",
    )] = None,
    limit: Annotated[
        int,
        typer.Option(
            "--limit", "-n", metavar="N", min=1, max=MOST_EVENTS, help="Show at most N actions."
        ),
    ] = EVENTS_SHOWN,
    sort: Annotated[str, sort_option(
        SORTS, "Column to sort by: time (latest first), by, action, queue or number (largest "
        "first).  [default: time]",
    )] = "time",
    store: StoreOptions,
    output: OutputOptions,
) -> None:  # fmt: skip
    """Show the latest actions of operators: who did what, when, and to how many tasks.

    For example: qsync events --queue mail --action task --since 2h

    The store keeps 500 actions per queue, and 500 that belong to no queue. A bulk change is one
    action, even if it needs many steps.
    """
    with open_store(store) as session:
        if queue is not None:
            session.run(check_queue(session.inspector, queue))

        def show() -> None:
            age = None if since is None else timedelta(seconds=min(since, MAX_SECONDS))
            from_time = None
            if age is not None:
                session.follow_clock()
                from_time = store_clock.now() - age
            events = session.run(
                session.inspector.events(
                    queue=queue, action=action, task=task, since=from_time, limit=limit
                )
            )
            events = sorted(events, key=SORTS[sort])
            output.print_rows(events, lambda whole: _print(events, whole=whole))
            note_no_queue(session, events)

        output.repeat(show)


def _print(events: Sequence[OperatorEvent], *, whole: bool) -> None:
    if not events:
        print_line("No recorded actions match.")
        return
    columns = [
        Column("TIME"), Column("BY", shrink=True), Column("ACTION"), Column("QUEUE", shrink=True),
        Column("NUMBER", right=True), Column("TARGET", shrink=True), Column("DETAIL", shrink=True),
    ]  # fmt: skip
    rows = [
        [
            local_time(event.at), event.by or "-", event.action, event.queue or "-",
            f"{event.number:,}", event.target, event.detail,
        ]
        for event in events
    ]  # fmt: skip
    print_table(columns, rows, whole=whole)
