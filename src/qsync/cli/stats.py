"""`qsync stats`: what the queues hold and what they have done."""

from __future__ import annotations

from typing import Annotated

import typer

from qsync.cli import completion
from qsync.cli.options import (
    App,
    Json,
    Prefix,
    Url,
)
from qsync.cli.queue_tables import print_counters, print_more, print_queues
from qsync.cli.store import exit_unknown_queue, no_queue_yet, open_store
from qsync.cli.tables import print_line
from qsync.cli.text import print_json, size
from qsync.inspector import Inspector, Overview, QueueInfo


def stats(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="QUEUE", help="These queues alone.", show_default=False,
            autocompletion=completion.queues,
        ),
    ] = None,
    days: Annotated[
        int,
        typer.Option(metavar="N", min=0, max=90, help="Show the counters of so many days, too."),
    ] = 0,
    url: Url = None,
    prefix: Prefix = None,
    app: App = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Show what the queues hold, how long the oldest task waits, and counters.

    For example: qsync stats default --days 7

    Days are those of UTC, by the clock of the store.
    """
    with open_store(url, prefix, app) as store:
        overview, queues = store.do(_look(store.inspector, names or [], days))
        where = f"{store.inspector.prefix} at {store.where}"
        nothing = "" if queues or as_json else store.do(no_queue_yet(store.inspector))
    if as_json:
        found = {"at": overview.at, "servers": overview.servers, "queues": queues}
        print_json(found)
        return
    print_line(f"{where}: {_summary(overview, queues)}")
    if not queues:
        print_line(nothing)
        return
    print_line("")
    print_queues(queues)
    if not names:
        print_more(overview)
    for title, which in (("TODAY", "today"), ("EVER", "counters")):
        print_line("")
        print_counters([(queue.name, getattr(queue, which)) for queue in queues], title)
    for queue in queues if days else []:
        print_line("")
        print_counters([(str(day.day), day.counters) for day in queue.days], queue.name)


def _summary(overview: Overview, queues: list[QueueInfo]) -> str:
    servers = len(overview.servers)
    sizes = [queue.bytes for queue in queues if queue.bytes is not None]
    memory = f", {size(sum(sizes))} of memory" if sizes else ""
    return f"{servers or 'no'} live server{'s' if servers > 1 else ''}{memory}"


async def _look(
    inspector: Inspector, names: list[str], days: int
) -> tuple[Overview, list[QueueInfo]]:
    overview = await inspector.overview(names=names or None)
    if not days and not names:
        return overview, overview.queues
    found = []
    for name in names or [queue.name for queue in overview.queues]:
        queue = await inspector.queue(name, days=days)
        if queue is None:
            await exit_unknown_queue(inspector, name)
        found.append(queue)
    return overview, found
