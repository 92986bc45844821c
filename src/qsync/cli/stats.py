"""`qsync stats`: the tasks and counters of queues."""

from __future__ import annotations

from typing import Annotated

import typer

from qsync.cli import completion
from qsync.cli.command import argument
from qsync.cli.listing import Format, OutputOptions
from qsync.cli.options import StoreOptions
from qsync.cli.output import print_line
from qsync.cli.problems import print_problems, read_problems
from qsync.cli.queue_tables import (
    SortQueues,
    print_counters,
    print_more,
    print_queues,
    sorted_queues,
)
from qsync.cli.store import exit_unknown_queue, no_queue_yet, note_later, open_store
from qsync.formatting import plural, size
from qsync.inspector import Inspector, Overview, QueueInfo


def stats(
    *,
    names: Annotated[list[str] | None, argument(
        metavar="QUEUE", autocompletion=completion.queues, help="Only these queues.",
    )] = None,
    days: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, max=90, help="Also show the counters of the last N days."
        ),
    ] = 0,
    sort: SortQueues = "name",
    store: StoreOptions,
    output: OutputOptions,
) -> None:  # fmt: skip
    """Show the tasks of queues by state, the age of the oldest pending task, and counters.

    For example: qsync stats default --days 7

    Days are in UTC, according to the store's clock.
    """
    with open_store(store) as session:
        source = f"{session.inspector.prefix} at {session.address}"

        def show() -> None:
            overview, infos = session.run(_read(session.inspector, names or [], days))
            note_later(overview.later)
            queues = infos if names and sort == "name" else sorted_queues(infos, sort)

            def print_table(whole: bool) -> None:
                print_line(f"{source}: {_summary(overview, queues)}")
                if not queues:
                    print_line(session.run(no_queue_yet(session.inspector)))
                    return
                print_line("")
                print_queues(queues, whole=whole)
                if not names:
                    print_more(overview)
                print_problems(session.run(read_problems(session.inspector, queues)))
                _print_counters(queues, days)

            document: dict[str, object] | None = None
            if output.format is Format.JSON:
                problems = session.run(read_problems(session.inspector, queues))
                document = {"at": overview.at, "servers": overview.servers, "queues": queues,
                            "problems": problems}  # fmt: skip
            output.print_rows(queues, print_table, document)

        output.repeat(show)


def _print_counters(queues: list[QueueInfo], days: int) -> None:
    for title, field in (("TODAY", "today"), ("ALL TIME", "counters")):
        print_line("")
        print_counters([(queue.name, getattr(queue, field)) for queue in queues], title)
    for queue in queues if days else []:
        print_line("")
        print_counters([(str(day.day), day.counters) for day in queue.days], queue.name)


def _summary(overview: Overview, queues: list[QueueInfo]) -> str:
    sizes = [queue.bytes for queue in queues if queue.bytes is not None]
    memory = f", {size(sum(sizes))} of memory" if sizes else ""
    return f"{plural(len(overview.servers), 'running server')}{memory}"


async def _read(
    inspector: Inspector, names: list[str], days: int
) -> tuple[Overview, list[QueueInfo]]:
    overview = await inspector.overview(names=names or None)
    if not days and not names:
        return overview, overview.queues
    queues = []
    for name in names or [queue.name for queue in overview.queues]:
        queue = await inspector.queue(name, days=days)
        if queue is None:
            await exit_unknown_queue(inspector, name)
        queues.append(queue)
    return overview, queues
