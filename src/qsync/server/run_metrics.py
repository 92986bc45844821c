"""Counts the runs of a server by queue and type, if metrics are enabled.

The number of labels is limited: a type without a handler, or beyond the limit, counts as "other".
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from time import monotonic
from typing import Any, Final

from qsync.broker.op_values import Completion, HandedBack, Killed, LeaseRef, Retried
from qsync.server.metrics import BOUNDS, OTHER, OUTCOMES, MetricRow, merged
from qsync.server.outcome import Snoozed
from qsync.server.queue_state import RUNNING, LeasedTask, QueueState
from qsync.type_rolls import TYPES

_OUTCOME: Final[dict[type, int]] = {
    kind: OUTCOMES.index(name)
    for kind, name in (
        (Completion, "completed"), (Retried, "retried"), (Killed, "dead"), (LeaseRef, "cancelled"),
        (HandedBack, "handed_back"), (Snoozed, "snoozed"), (type(None), "lost"),
    )
}  # fmt: skip


class _QueueMetrics:
    """The metrics of one queue; `ahead_s` is the store's clock minus `monotonic` at the last fetch,
    in seconds."""

    __slots__ = ("ahead_s", "by_type", "dropped", "queue", "seen", "unknown")

    def __init__(self, queue: QueueState) -> None:
        self.queue = queue
        self.by_type: dict[str, MetricRow] = {}
        self.seen = -1.0
        self.unknown = 0
        self.dropped = 0
        self.ahead_s = 0.0


class RunMetrics:
    """Counts on the event loop of a server; any thread may read the counts.

    An outcome counts once it has been settled in the store. If the server dies before that, the
    task runs again and is counted only then. All calls for a task together cost about a
    microsecond.
    """

    def __init__(self, types: Iterable[str], *, limit: int = TYPES) -> None:
        self._counted_types = frozenset(list(types)[:limit])
        self._by_queue: dict[str, _QueueMetrics] = {}

    def started(self, leased: LeasedTask) -> None:
        """Count a run that starts."""
        queue, message = leased.queue, leased.message
        metrics = self._by_queue.get(queue.name) or self._metrics_of(queue)
        leased.row = row = metrics.by_type.get(message.type) or self._row(metrics, message.type)
        leased.began = now = monotonic()
        if leased.failure.attempts or leased.crashes:
            return
        if metrics.seen != queue.store_now_read_at:
            metrics.seen = queue.store_now_read_at
            metrics.ahead_s = queue.store_time_us() / 1e6 - monotonic()
        due_us = leased.since_us or (
            message.enqueued_at_us if message.options is None else message.due_us
        )
        wait_s = now + metrics.ahead_s - due_us / 1e6
        if wait_s > 0.0:
            row.waits[bisect_left(BOUNDS, wait_s)] += 1
            row.wait_s += wait_s
        else:
            row.waits[0] += 1

    def unknown(self, leased: LeasedTask) -> None:
        """Count a task that is handed back because the server has no handler for its type."""
        self._metrics_of(leased.queue).unknown += 1

    def dropped(self, queue: QueueState, runs: int) -> None:
        """Count runs whose statistics the store did not accept."""
        self._metrics_of(queue).dropped += runs

    def finished(self, leased: LeasedTask) -> None:
        """Count a handler that has ended, and how long it took."""
        if (row := leased.row) is not None:
            took_s = monotonic() - leased.began
            row.runs[bisect_left(BOUNDS, took_s)] += 1
            row.run_s += took_s

    def settled(self, leased: LeasedTask, record: Any) -> None:
        """Count an outcome that has been settled in the store; None means that the lease was
        lost."""
        if (row := leased.row) is not None:
            row.outcomes[_OUTCOME[type(record)]] += 1

    def rows(self) -> list[MetricRow]:
        """Return a copy of the metrics, with the number of running tasks."""
        rows = []
        for metrics in list(self._by_queue.values()):
            of_queue = list({id(row): row for row in list(metrics.by_type.values())}.values())
            rows += of_queue
            if (
                metrics.unknown or metrics.dropped
            ):  # counted under an existing label, to avoid another time series
                name, type = metrics.queue.name, of_queue[0].type if of_queue else OTHER
                rows.append(MetricRow(name, type, unknown=metrics.unknown, dropped=metrics.dropped))
            for leased in metrics.queue.held.copy().values():
                if leased.phase is RUNNING and leased.row is not None:
                    name, type, began = metrics.queue.name, leased.row.type, leased.began
                    rows.append(MetricRow(name, type, running=1, oldest_began=began))
        return merged(rows)

    def _metrics_of(self, queue: QueueState) -> _QueueMetrics:
        return self._by_queue.setdefault(queue.name, _QueueMetrics(queue))

    def _row(self, metrics: _QueueMetrics, type: str) -> MetricRow:
        """Return the row of a type; types beyond the limit share one row."""
        name = type if type in self._counted_types else OTHER
        row = metrics.by_type.setdefault(name, MetricRow(metrics.queue.name, name))
        metrics.by_type[type] = row
        return row
