"""The data that `qsync top` has read so far, and the frame that shows them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from qsync.cli.column_widths import PADDING
from qsync.cli.output import Column, Row, shown_widths, table
from qsync.cli.queue_tables import queue_cells, shown_states
from qsync.cli.servers import SERVER_COLUMNS, server_row
from qsync.formatting import coarse_duration, duration, local_time, percent, relative
from qsync.inspector import Inspector, Overview, QueueInfo, ServerInfo, TaskRow
from qsync.state import TaskState
from qsync.worker.logs import escape

if TYPE_CHECKING:  # rich is slow to import
    from rich.console import RenderableType

RATES: Final = ("enqueued", "completed", "failed")
"""Counters shown as rates per second."""

RATE_COLUMNS: Final = ("in/s", "ok/s", "fail/s")
"""Names of the columns that show RATES, in the same order."""

BUSIEST: Final = 10
"""Number of queues whose running tasks are read. The queues with the most running tasks come
first."""

TASKS_READ: Final = 100
"""Number of running tasks read per queue."""

TITLE_LINES: Final = 3
"""Number of lines that the title takes, including the empty lines around it."""

HEADER_LINES: Final = 2
"""Number of lines that each table takes in addition to its rows."""

STATES: Final = (
    TaskState.PENDING, TaskState.LIMITED, TaskState.ACTIVE, TaskState.SCHEDULED, TaskState.RETRY,
    TaskState.DEAD,
)  # fmt: skip
"""States in the order of the columns; `limited` is left out if no task is limited."""

_TASK_COLUMNS: Final = (
    Column("RUNNING"), Column("QUEUE", shrink=True), Column("TYPE", shrink=True),
    Column("FOR", right=True), Column("ENQUEUED", right=True), Column("PROGRESS", right=True),
)  # fmt: skip


SORTS: Final = ("queue", *(state.value for state in STATES), "oldest", *RATE_COLUMNS)
"""Columns by which queues can be sorted; numbers are sorted with the largest first."""

MARK: Final = "v"
"""Mark beside the name of the column by which queues are sorted."""


class Running(Struct, frozen=True, kw_only=True):
    """A running task; `seen` is how long this view has seen it run, in seconds."""

    task: TaskRow
    seen: float


class TopModel:
    """Reads queues, servers and running tasks, and keeps earlier readings to compute rates and
    ages."""

    def __init__(self, inspector: Inspector, address: str, *, sort: str = "queue") -> None:
        self.sort: str = sort
        """The column in SORTS by which queues are sorted."""
        self._inspector = inspector
        self._address = address
        self.trouble: str = ""
        """Why the last read failed; empty if it succeeded."""
        self._overview: Overview | None = None
        self._servers: list[ServerInfo] = []
        self._running: list[Running] = []
        self._first_seen: dict[tuple[str, str], float] = {}
        self._rates: dict[str, dict[str, float]] = {}
        self._counters: tuple[float, dict[str, dict[str, int]]] = (0.0, {})

    async def read(self) -> None:
        """Read the store."""
        overview, servers = await asyncio.gather(
            self._inspector.overview(), self._inspector.servers(tasks=False)
        )
        self._overview, self._servers, self.trouble = overview, servers, ""
        self._update_rates(overview)
        busy = sorted(overview.queues, key=lambda queue: -queue.states[TaskState.ACTIVE])
        names = [queue.name for queue in busy[:BUSIEST] if queue.states[TaskState.ACTIVE]]
        pages = await asyncio.gather(
            *(self._inspector.tasks(name, "active", limit=TASKS_READ) for name in names)
        )
        self._update_running([row for page in pages for row in page.tasks])

    def _update_rates(self, overview: Overview) -> None:
        now, (then, earlier) = time.monotonic(), self._counters
        counters = {queue.name: queue.counters for queue in overview.queues}
        self._rates = {
            name: {
                rate: max(0, counts[rate] - earlier[name][rate]) / (now - then) for rate in RATES
            }
            for name, counts in counters.items()
            if name in earlier
        }
        self._counters = (now, counters)

    def _update_running(self, rows: list[TaskRow]) -> None:
        now, earlier = time.monotonic(), self._first_seen
        self._first_seen = {key: earlier.get(key, now) for key in map(_run_key, rows)}
        running = [Running(task=row, seen=now - self._first_seen[_run_key(row)]) for row in rows]
        self._running = sorted(running, key=_longest_first)

    def as_dict(self) -> dict[str, Any]:
        """Return the data that was read, for JSON output."""
        overview = self._overview
        return {
            "at": overview.at if overview else None,
            "queues": overview.queues if overview else [],
            "rates": self._rates,
            "servers": self._servers,
            "running": self._running,
        }

    def frame(self, height: int | None, width: int) -> RenderableType:
        """Return the view for a width in characters.

        The view is limited to `height` lines; None means no limit.
        """
        from rich.console import Group
        from rich.text import Text

        parts: list[RenderableType] = [Text(escape(self._title()), "bold", no_wrap=True)]
        if self.trouble:
            parts.append(Text(escape(self.trouble), "red"))
        tables = [
            (self._queue_columns(), self._queue_rows(), "no queues yet"),
            (SERVER_COLUMNS, [server_row(server) for server in self._servers], "no servers"),
            (_TASK_COLUMNS, [_task_row(running) for running in self._running], "no running tasks"),
        ]
        heights = _share_lines([len(rows) for _, rows, _ in tables], height)
        for (columns, rows, if_empty), lines in zip(tables, heights, strict=True):
            parts.append(Text(""))
            if not rows:
                parts.append(Text(if_empty, "dim"))
            elif lines:
                shown = shown_widths(columns, rows[:lines], width - PADDING)
                parts.append(table(columns, rows[:lines], shown))
        return Group(*parts)

    def _title(self) -> str:
        overview = self._overview
        read_at = local_time(overview.at) if overview else ""
        more = ""
        if overview and overview.more:
            more = f"  {len(overview.queues):,} of {overview.total:,} queues"
        return f"qsync top  {self._inspector.prefix} at {self._address}  {read_at}{more}"

    @property
    def _states(self) -> list[TaskState]:
        return shown_states(self._overview.queues if self._overview else [], STATES)

    def _queue_columns(self) -> list[Column]:
        names = ("queue", *self._states, "oldest", *RATE_COLUMNS)
        return [
            Column(
                f"{name.upper()} {MARK}" if name == self.sort else name.upper(),
                right=name != "queue",
                shrink=name == "queue",
            )
            for name in names
        ]

    def _sorted_queues(self) -> list[QueueInfo]:
        queues = self._overview.queues if self._overview else []
        return queues if self.sort == "queue" else sorted(queues, key=self._size, reverse=True)

    def _size(self, queue: QueueInfo) -> float:
        """Return the queue's value in the column by which queues are sorted."""
        if self.sort == "oldest":
            return queue.latency or 0.0
        if self.sort in RATE_COLUMNS:
            rates = self._rates.get(queue.name)
            return rates[RATES[RATE_COLUMNS.index(self.sort)]] if rates else 0.0
        return queue.states.get(TaskState(self.sort), 0)

    def sort_by_next(self, step: int) -> None:
        """Sort queues by the next shown column, or by the previous one with a step of -1."""
        shown = [name for name in SORTS if name not in STATES or name in self._states]
        index = shown.index(self.sort) if self.sort in shown else 0
        self.sort = shown[(index + step) % len(shown)]

    def _queue_rows(self) -> list[Row]:
        rows: list[Row] = []
        for queue in self._sorted_queues():
            rates = self._rates.get(queue.name)
            shown = [_per_second(rates[rate]) if rates else "" for rate in RATES]
            oldest = coarse_duration(queue.latency) if queue.latency else ""
            name, *counts = queue_cells(queue, self._states)
            if queue.paused:
                name = name._replace(text=f"{name.text} (paused)")
            rows.append([name, *counts, oldest, *shown])
        return rows


def _task_row(running: Running) -> Row:
    row = running.task
    seen = f"> {duration(running.seen)}" if running.seen else ""
    return [row.id, row.queue, row.type, seen, relative(row.enqueued_at), percent(row.progress)]


def _run_key(row: TaskRow) -> tuple[str, str]:
    """Return the key of a run; a task that has moved to another server counts as a new run."""
    return f"{row.queue}/{row.id}", row.server or ""


def _longest_first(running: Running) -> tuple[float, float]:
    enqueued = running.task.enqueued_at
    return -round(running.seen), enqueued.timestamp() if enqueued else 0.0


def _per_second(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 or not rate else f"{rate:.1f}"


def _share_lines(lengths: list[int], height: int | None) -> list[int]:
    """Return how many rows of each table fit; a long table also gets the lines that a short one
    does not need."""
    if height is None:
        return lengths
    free_lines = max(0, height - TITLE_LINES - HEADER_LINES * len(lengths))
    shares = [0] * len(lengths)
    shortest_first = sorted(range(len(lengths)), key=lambda index: lengths[index])
    for number, index in enumerate(shortest_first):
        shares[index] = min(lengths[index], free_lines // (len(lengths) - number))
        free_lines -= shares[index]
    return shares
