"""The types and fairness keys of pending tasks, from bounded samples, and the latency target."""

from __future__ import annotations

from collections import Counter
from typing import Final

import msgspec

from qsync.broker import bounds_ops, views
from qsync.broker.event_ops import recorded
from qsync.formatting import duration
from qsync.inspector.live_servers import _LiveServersMixin
from qsync.inspector.task_rows import decode_row
from qsync.inspector.values import Change
from qsync.state import TaskState
from qsync.times import Duration, duration_us

TASKS_SAMPLED: int = 250
"""Number of pending tasks that are read at each end of the queue."""


KEYS_SAMPLED: Final = 200
"""Number of pending tasks whose fairness key is read."""


class KeyShares(msgspec.Struct, frozen=True, kw_only=True):
    """The fairness keys of pending tasks, read at positions spread over the queue.

    pending  number of pending tasks
    read     number of pending tasks whose key was read: all of them, or 200
    keys     number of tasks read, by fairness key, the largest first; tasks without a key are left
             out
    """

    pending: int
    read: int
    keys: dict[str, int]

    def share(self, key: str) -> float:
        """Return the share of a fairness key, from 0 to 1."""
        return self.keys.get(key, 0) / self.read if self.read else 0.0

    def estimate(self, key: str) -> int:
        """Estimate how many pending tasks have this fairness key; exact if all were read."""
        return round(self.share(key) * self.pending)


class Composition(msgspec.Struct, frozen=True, kw_only=True):
    """The pending tasks of a queue by type, the most frequent first; KeyShares has their keys.

    pending  number of pending tasks
    sampled  number of tasks that were counted: at most the first 250 and the last 250
    types    number of sampled tasks by type
    """

    pending: int
    sampled: int
    types: dict[str, int]


class _CompositionMixin(_LiveServersMixin):
    """Operations on the types and fairness keys of pending tasks, and on the latency target."""

    async def composition(self, queue: str) -> Composition:
        """Return the types of a queue's pending tasks, from a sample of up to 500 of them."""
        keys, state = self._keys(queue), TaskState.PENDING
        first, last = await self._run_all(
            [
                views.list_tasks(keys, state, count=TASKS_SAMPLED),
                views.list_tasks(keys, state, count=TASKS_SAMPLED, backwards=True),
            ]
        )
        tasks = {row.id: decode_row(row) for row in (*first.rows, *last.rows)}
        types = Counter(task.message.type for task in tasks.values() if task.message)
        return Composition(
            pending=first.total,
            sampled=len(tasks),
            types=dict(types.most_common()),
        )

    async def set_latency_target(
        self, queue: str, target: Duration | None, *, by: str = ""
    ) -> Change:
        """Set the longest time that a pending task should wait; None removes the target.

        The overview and lists of queues mark a queue that misses its target. `not_found` if the
        queue does not exist.
        """
        target_us = None if target is None else duration_us("latency target", target)
        if not await self._is_queue(queue):
            return Change(outcome="not_found")
        call = bounds_ops.set_latency_target(self._keys(queue), target_us)
        detail = "" if target_us is None else duration(target_us / 1_000_000)
        event = self._actor.event("target.set", detail=detail, by=by)
        await self._broker.run(recorded(call, event))
        return Change(outcome="done")

    async def key_shares(self, queue: str = "default") -> KeyShares:
        """Return the fairness keys of all pending tasks if there are at most 200, or else of a
        sample."""
        call = bounds_ops.sample_keys(self._keys(queue), count=KEYS_SAMPLED)
        pending, keys = await self._broker.run(call)
        counts = Counter(key for key in keys if key)
        return KeyShares(pending=pending, read=len(keys), keys=dict(counts.most_common()))
