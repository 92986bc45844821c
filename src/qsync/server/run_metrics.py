"""Counts what a server does, by queue and type. Only a server that is asked to count has one.

The labels are bounded: types are those that have a handler, and beyond a limit they are "other".
A figure of another process crosses as msgpack; what several have counted can be added up.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from time import monotonic
from typing import Any, Final

from qsync.broker.ops import Completion, HandedBack, Killed, LeaseRef, Retried
from qsync.server.metrics import BOUNDS, OTHER, OUTCOMES, MetricRow, total
from qsync.server.queue_state import RUNNING, LeasedTask, QueueState

TYPES: Final = 100
"""So many types are told apart; the rest are one."""

_OUTCOME: Final[dict[type, int]] = {
    kind: OUTCOMES.index(name)
    for kind, name in (
        (Completion, "completed"), (Retried, "retried"), (Killed, "dead"), (LeaseRef, "cancelled"),
        (HandedBack, "handed_back"), (type(None), "lost"),
    )
}  # fmt: skip


class _Queue:
    """What there is of one queue; the store's time less `monotonic` is as the last fetch said."""

    __slots__ = ("ahead_s", "by_type", "lane", "seen", "unknown")

    def __init__(self, lane: QueueState) -> None:
        self.lane = lane
        self.by_type: dict[str, MetricRow] = {}
        self.seen = -1.0
        self.unknown = 0
        self.ahead_s = 0.0


class RunMetrics:
    """Counts on the event loop of a server; may be read from any thread.

    How a run ended counts once the store has taken it: a server that dies before that leaves no
    count of a task that then runs again. All calls together cost about a microsecond a task.
    """

    def __init__(self, types: Iterable[str], *, limit: int = TYPES) -> None:
        self._told_apart = frozenset(list(types)[:limit])
        self._queues: dict[str, _Queue] = {}

    def started(self, leased: LeasedTask) -> None:
        """A run begins."""
        lane, message = leased.lane, leased.message
        queue = self._queues.get(lane.queue) or self._queue(lane)
        leased.row = row = queue.by_type.get(message.type) or self._row(queue, message.type)
        leased.began = now = monotonic()
        if leased.failure.attempts or leased.crashes:
            return
        if queue.seen != lane.store_seen:
            queue.seen = lane.store_seen
            queue.ahead_s = lane.store_time_us() / 1e6 - monotonic()
        due_us = leased.since_us or (
            message.enqueued_at_us if message.options is None else message.due_us
        )
        wait_s = now + queue.ahead_s - due_us / 1e6
        if wait_s > 0.0:
            row.waits[bisect_left(BOUNDS, wait_s)] += 1
            row.wait_s += wait_s
        else:
            row.waits[0] += 1

    def unknown(self, leased: LeasedTask) -> None:
        """It goes back: the server has no handler for its type."""
        self._queue(leased.lane).unknown += 1

    def finished(self, leased: LeasedTask) -> None:
        """The handler has ended."""
        if (row := leased.row) is not None:
            took_s = monotonic() - leased.began
            row.runs[bisect_left(BOUNDS, took_s)] += 1
            row.run_s += took_s

    def settled(self, leased: LeasedTask, record: Any) -> None:
        """The store has taken this record of a task; None: its lease was lost."""
        if (row := leased.row) is not None:
            row.outcomes[_OUTCOME[type(record)]] += 1

    def rows(self) -> list[MetricRow]:
        """The figures up to now, as a copy, with what runs at this moment."""
        rows = []
        for queue in list(self._queues.values()):
            of_queue = list({id(row): row for row in list(queue.by_type.values())}.values())
            rows += of_queue
            if queue.unknown:  # in a row that is there anyway, so that there is no series for it
                type = of_queue[0].type if of_queue else OTHER
                rows.append(MetricRow(queue.lane.queue, type, unknown=queue.unknown))
            for leased in queue.lane.held.copy().values():
                if leased.phase == RUNNING and leased.row is not None:
                    rows.append(MetricRow(queue.lane.queue, leased.row.type, running=1))
        return total(rows)

    def _queue(self, lane: QueueState) -> _Queue:
        return self._queues.setdefault(lane.queue, _Queue(lane))

    def _row(self, queue: _Queue, type: str) -> MetricRow:
        """The row of a type; types that are not told apart have one together."""
        name = type if type in self._told_apart else OTHER
        row = queue.by_type.setdefault(name, MetricRow(queue.lane.queue, name))
        queue.by_type[type] = row
        return row
