"""`qsync stats`: what the queues hold and what they have done."""

from __future__ import annotations

from typing import Annotated

import typer

from qsync.cli import complete
from qsync.cli.figures import print_counters, print_queues
from qsync.cli.options import Json, Prefix, Url
from qsync.cli.reach import no_queue, reach
from qsync.cli.table import Column, print_line, print_table
from qsync.cli.text import print_json, size
from qsync.inspector import Inspector, Overview, QueueInfo


def stats(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[QUEUE]...", help="These queues alone.", show_default=False,
            autocompletion=complete.queues,
        ),
    ] = None,
    days: Annotated[
        int,
        typer.Option(metavar="N", min=0, max=90, help="Show the counters of so many days, too."),
    ] = 0,
    url: Url = None,
    prefix: Prefix = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Show what the queues hold, how long the oldest task waits, and counters.

    For example: qsync stats default --days 7

    Days are those of UTC, by the clock of the store.
    """
    with reach(url, prefix) as store:
        overview, queues = store.do(_look(store.inspector, names or [], days))
        where = f"{store.inspector.prefix} at {store.where}"
    if as_json:
        found = {"at": overview.at, "servers": overview.servers, "queues": queues}
        print_json(found)
        return
    servers = len(overview.servers)
    print_line(f"{where}: {'no' if not servers else servers} live server{'s' * (servers != 1)}")
    if not queues:
        print_line("There is no queue yet.")
        return
    print_line("")
    print_queues(queues)
    print_line("")
    rows = [[queue.name, size(queue.bytes), _rate(queue)] for queue in queues]
    print_table([Column("QUEUE"), Column("MEMORY", right=True), Column("RATE", right=True)], rows)
    for title, which in (("TODAY", "today"), ("EVER", "counters")):
        print_line("")
        print_counters([(queue.name, getattr(queue, which)) for queue in queues], title)
    for queue in queues if days else []:
        print_line("")
        print_counters([(str(day.day), day.counters) for day in queue.days], queue.name)


def _rate(queue: QueueInfo) -> str:
    return "" if queue.rate is None else f"{queue.rate:,.1f}/s"


async def _look(
    inspector: Inspector, names: list[str], days: int
) -> tuple[Overview, list[QueueInfo]]:
    overview = await inspector.overview()
    if not names and not days:
        return overview, overview.queues
    found = []
    for name in names or [queue.name for queue in overview.queues]:
        queue = await inspector.queue(name, days=days)
        if queue is None:
            await no_queue(inspector, name)
        found.append(queue)
    return overview, found
