"""What `qsync top` shows: what it has seen so far, and the picture of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from qsync.cli.queue_tables import queue_cells
from qsync.cli.servers import server_row
from qsync.cli.tables import Column, Row, build
from qsync.cli.text import clock, coarse_duration, progress, relative, short_duration
from qsync.inspector import Inspector, Overview, ServerInfo, TaskRow
from qsync.state import TaskState
from qsync.worker.logs import escape

if TYPE_CHECKING:  # rich takes long to import
    from rich.console import RenderableType

RATED: Final = ("enqueued", "completed", "failed")
QUEUES: Final = 10
"""Of so many queues the running tasks are looked at, those with most of them."""

LOOKED_AT: Final = 100
HEAD: Final = 3
TABLE_HEAD: Final = 2
STATES: Final = (
    TaskState.PENDING, TaskState.ACTIVE, TaskState.SCHEDULED, TaskState.RETRY, TaskState.DEAD,
)  # fmt: skip


class Running(Struct, frozen=True, kw_only=True):
    """A task that runs, and for how long this view has seen it, seconds: it is that at least."""

    task: TaskRow
    seen: float


class TopModel:
    """Looks at the store now and then."""

    def __init__(self, inspector: Inspector, where: str) -> None:
        self._inspector = inspector
        self._where = where
        self.trouble = ""
        self._overview: Overview | None = None
        self._servers: list[ServerInfo] = []
        self._running: list[Running] = []
        self._first_seen: dict[tuple[str, str], float] = {}
        self._rates: dict[str, dict[str, float]] = {}
        self._counted: tuple[float, dict[str, dict[str, int]]] = (0.0, {})

    async def look(self) -> None:
        """See how it is now."""
        overview, servers = await asyncio.gather(
            self._inspector.overview(), self._inspector.servers(tasks=False)
        )
        self._overview, self._servers, self.trouble = overview, servers, ""
        self._rate(overview)
        busy = sorted(overview.queues, key=lambda queue: -queue.states[TaskState.ACTIVE])
        names = [queue.name for queue in busy[:QUEUES] if queue.states[TaskState.ACTIVE]]
        pages = await asyncio.gather(
            *(self._inspector.tasks(name, "active", limit=LOOKED_AT) for name in names)
        )
        self._see([row for page in pages for row in page.tasks])

    def _rate(self, overview: Overview) -> None:
        now, (before, counted) = time.monotonic(), self._counted
        counters = {queue.name: queue.counters for queue in overview.queues}
        self._rates = {
            name: {
                what: max(0, found[what] - counted[name][what]) / (now - before) for what in RATED
            }
            for name, found in counters.items()
            if name in counted
        }
        self._counted = (now, counters)

    def _see(self, rows: list[TaskRow]) -> None:
        now, before = time.monotonic(), self._first_seen
        # A lease on another server is another run.
        self._first_seen = {key: before.get(key, now) for key in map(_run, rows)}
        found = [Running(task=row, seen=now - self._first_seen[_run(row)]) for row in rows]
        self._running = sorted(found, key=_longest)

    def as_dict(self) -> dict[str, Any]:
        """What was seen, for JSON."""
        overview = self._overview
        return {
            "at": overview.at if overview else None,
            "queues": overview.queues if overview else [],
            "rates": self._rates,
            "servers": self._servers,
            "running": self._running,
        }

    def picture(self, width: int, height: int | None) -> RenderableType:
        """All of it, so wide and so high; None: as high as it takes."""
        from rich.console import Group
        from rich.text import Text

        parts: list[RenderableType] = [Text(escape(self._head()), "bold", no_wrap=True)]
        if self.trouble:
            parts.append(Text(escape(self.trouble), "red"))
        tables = [
            (self._queue_columns(), self._queue_rows(), "no queue yet"),
            (_SERVER_COLUMNS, [server_row(one) for one in self._servers], "no live server"),
            (_RUNNING_COLUMNS, [_running_row(one) for one in self._running], "nothing runs"),
        ]
        heights = _share([len(rows) for _, rows, _ in tables], height)
        for (columns, rows, nothing), room in zip(tables, heights, strict=True):
            parts.append(Text(""))
            if not rows:
                parts.append(Text(nothing, "dim"))
            elif room:
                table, _ = build(columns, rows[:room], width)
                parts.append(table)
        return Group(*parts)

    def _head(self) -> str:
        overview = self._overview
        at = clock(overview.at) if overview else ""
        more = ""
        if overview and overview.more:
            more = f"  {len(overview.queues):,} of {overview.total:,} queues"
        return f"qsync top  {self._inspector.prefix} at {self._where}  {at}{more}"

    def _queue_columns(self) -> Sequence[Column]:
        return [
            Column("QUEUE", flexible=True),
            *(Column(state.upper(), right=True) for state in STATES),
            Column("OLDEST", right=True),
            Column("IN/S", right=True), Column("OK/S", right=True), Column("FAIL/S", right=True),
        ]  # fmt: skip

    def _queue_rows(self) -> list[Row]:
        rows: list[Row] = []
        for queue in self._overview.queues if self._overview else []:
            rates = self._rates.get(queue.name)
            shown = [_per_second(rates[what]) if rates else "" for what in RATED]
            oldest = coarse_duration(queue.latency) if queue.latency else ""
            name, *counts = queue_cells(queue, STATES)
            if queue.paused:
                name = name._replace(text=f"{name.text} (paused)")
            rows.append([name, *counts, oldest, *shown])
        return rows


_SERVER_COLUMNS: Final = (
    Column("SERVER"), Column("PID", right=True), Column("RUNS", right=True),
    Column("UP", right=True), Column("QUEUES", flexible=True),
)  # fmt: skip

_RUNNING_COLUMNS: Final = (
    Column("RUNNING"), Column("QUEUE", flexible=True), Column("TYPE", flexible=True),
    Column("FOR", right=True), Column("ENQUEUED", right=True), Column("PROGRESS", right=True),
)  # fmt: skip


def _running_row(one: Running) -> Row:
    row = one.task
    seen = f"> {short_duration(one.seen)}" if one.seen else ""
    return [row.id, row.queue, row.type, seen, relative(row.enqueued_at), progress(row.progress)]


def _run(row: TaskRow) -> tuple[str, str]:
    return f"{row.queue}/{row.id}", row.server or ""


def _longest(one: Running) -> tuple[float, float]:
    enqueued = one.task.enqueued_at
    return -round(one.seen), enqueued.timestamp() if enqueued else 0.0


def _per_second(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 or not rate else f"{rate:.1f}"


def _share(wanted: list[int], height: int | None) -> list[int]:
    """How many rows of each table there is room for; those that want few leave more to others."""
    if height is None:
        return wanted
    left = max(0, height - HEAD - TABLE_HEAD * len(wanted))
    shares = [0] * len(wanted)
    for number, at in enumerate(sorted(range(len(wanted)), key=lambda at: wanted[at])):
        shares[at] = min(wanted[at], left // (len(wanted) - number))
        left -= shares[at]
    return shares
