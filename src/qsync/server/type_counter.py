"""Counts the runs of a server by queue and type, for the statistics of types.

The counter counts whole batches as they are settled, and times only a few runs, since a busy server
ends a task every few microseconds. (RunMetrics times every run, for the metrics.) It is used only
on the event loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from qsync.histogram import Histogram
from qsync.server.queue_state import RUNNING, LeasedTask, QueueState
from qsync.slow_runs import DaySlowest, SlowRun
from qsync.type_counts import OUTCOMES, TypeCounts
from qsync.type_rolls import OTHER
from qsync.version import __version__

TYPES: Final = 200
"""Maximum number of types of a queue that are counted separately; further types count as
`OTHER`."""

TIMED: Final = 32
"""Sampling interval: one of this many consecutive tasks is timed."""

_COMPLETED: Final = OUTCOMES.index("completed")
_HANDED_BACK: Final = OUTCOMES.index("handed_back")
_LOST: Final = OUTCOMES.index("lost")
_COLUMNS: Final = {
    "complete": _COMPLETED, "retry": OUTCOMES.index("retried"), "kill": OUTCOMES.index("dead"),
    "cancel": OUTCOMES.index("cancelled"), "hand back": _HANDED_BACK,
    "snooze": OUTCOMES.index("snoozed"),
}  # fmt: skip
"""Columns that count outcomes, by the verb with which the settler names the outcome."""


class TypeCounter:
    """The counts of a server's queues, which only grow.

    `types` are the types for which the server has handlers; `version` is that of its program.
    """

    def __init__(self, types: Sequence[str] = (), version: str | None = None) -> None:
        self.types: Sequence[str] = types
        self.version: str = version or f"qsync {__version__}"
        self._rows: dict[str, dict[str, TypeCounts]] = {}
        self._slowest: dict[str, DaySlowest] = {}

    def settled(
        self, queue: str, verb: str, tasks: Sequence[LeasedTask | None], outcomes: Sequence[str]
    ) -> None:
        """Count tasks that one call settled."""
        rows, column = self._rows.setdefault(queue, {}), _COLUMNS[verb]
        if column == _HANDED_BACK or "lost" in outcomes:
            self._count_each(rows, column, tasks, outcomes)
            return
        for type, count in Counter(
            [leased.message.type for leased in tasks if leased is not None]
        ).items():
            row = rows.get(type) or _new_row(rows, type)
            row.outcomes[column] += count

    def _count_each(
        self, rows: dict[str, TypeCounts], column: int, tasks: Sequence[LeasedTask | None],
        outcomes: Sequence[str],
    ) -> None:  # fmt: skip
        for leased, outcome in zip(tasks, outcomes, strict=True):
            if leased is not None and leased.has_started:
                row = rows.get(leased.message.type) or _new_row(rows, leased.message.type)
                row.outcomes[_LOST if outcome == "lost" else column] += 1

    def timed(self, queue: QueueState, runs: Iterable[tuple[LeasedTask, float]]) -> None:
        """Record the durations and waits of some runs, each with its end time by the clock
        `boot_s`."""
        rows = self._rows.setdefault(queue.name, {})
        for leased, ended_s in runs:
            if not leased.has_started:
                continue
            message = leased.message
            row = rows.get(message.type) or _new_row(rows, message.type)
            row.runs.count(ended_s - leased.begun_s)
            if leased.failure.attempts or leased.crashes:
                continue
            due_us = leased.since_us or (
                message.enqueued_at_us if message.options is None else message.due_us
            )
            began_us = queue.store_now_us + (leased.begun_s - queue.store_now_read_at) * 1e6
            row.waits.count((began_us - due_us) / 1e6)

    def slowest(self, queue: str) -> DaySlowest:
        """Return the slowest completed runs of a queue."""
        return self._slowest.setdefault(queue, DaySlowest())

    def completed_slowly(self, queue: QueueState, leased: LeasedTask, ended_s: float) -> None:
        """Record a completed run that may be among the slowest; `ended_s` is by the clock
        `boot_s`."""
        type = leased.message.type
        if leased.has_started and type in self._rows.get(queue.name, ()):
            run_us = round((ended_s - leased.begun_s) * 1e6)
            ended_us = queue.store_now_us + round((ended_s - queue.store_now_read_at) * 1e6)
            self.slowest(queue.name).add(type, SlowRun(run_us, leased.id, ended_us))

    def counts(self, queues: Iterable[QueueState]) -> dict[tuple[str, str], TypeCounts]:
        """Return a copy of the counts, by queue and type; running tasks count as started."""
        counts: dict[tuple[str, str], TypeCounts] = {}
        for queue in queues:
            rows = self._rows.setdefault(queue.name, {})
            running = Counter(
                leased.message.type for leased in queue.held.values() if leased.phase is RUNNING
            )
            for type in running:
                _new_row(rows, type)
            for type, row in rows.items():
                started = row.ended + running.pop(type, 0)
                waits, runs = Histogram({**row.waits.cells}), Histogram({**row.runs.cells})
                counts[queue.name, type] = TypeCounts(started, [*row.outcomes], waits, runs)
            if running:
                counts[queue.name, OTHER].started += running.total()
        return counts


def _new_row(rows: dict[str, TypeCounts], type: str) -> TypeCounts:
    """Return the row of a type; create it if there is none."""
    name = type if type in rows or len(rows) < TYPES else OTHER
    return rows.setdefault(name, TypeCounts())
