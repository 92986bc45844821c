"""Bounds that operators set for queues, and weights of fairness keys."""

from __future__ import annotations

from qsync.bounds import QueueBounds, WhenFull, bounds_of, check_weight
from qsync.broker import bounds_ops
from qsync.broker.event_ops import recorded
from qsync.errors import InvalidTask
from qsync.inspector.live_servers import _LiveServersMixin
from qsync.inspector.values import Change
from qsync.phrase import phrase
from qsync.value_text import shorten


class _BoundsMixin(_LiveServersMixin):
    """Operations on the bounds of queues and on the weights of fairness keys."""

    async def bounds(self, queue: str) -> QueueBounds:
        """Return the bounds of a queue and how close the queue is to them."""
        return await self._broker.run(bounds_ops.queue_bounds(self._keys(queue)))

    async def set_bounds(
        self,
        queue: str,
        *,
        max_tasks: int | None = None,
        max_bytes: int | None = None,
        when_full: WhenFull = "raise",
        by: str = "",
    ) -> Change:
        """Set the bounds of a queue; they override the program's until `reset_bounds`.

        None means no such bound. Nothing is removed from a queue that exceeds a bound. Setting
        `max_bytes` for the first time reads the size of each message, which takes about a second
        per million messages. From then on the queue has layout 2, and servers of versions without
        flow control stop serving it. Raises InvalidTask for an invalid bound.
        """
        bounds = bounds_of(max_tasks=max_tasks, max_bytes=max_bytes, when_full=when_full)
        if not await self._is_queue(queue):
            return Change(outcome="not_found")
        call = bounds_ops.set_bounds(self._keys(queue), bounds, by=by or self._actor.by)
        event = self._actor.event("bounds.set", detail=str(bounds), by=by)
        await self._broker.run(recorded(call, event))
        return Change(outcome="done")

    async def reset_bounds(self, queue: str) -> Change:
        """Remove an operator's bounds, so that the program's apply; `not_found` if there are
        none."""
        call = bounds_ops.set_bounds(self._keys(queue), None)
        changed = await self._broker.run(recorded(call, self._actor.event("bounds.reset")))
        return Change(outcome="done" if changed else "not_found")

    async def weights(self, queue: str) -> dict[str, float]:
        """Return the weights other than 1, by fairness key; at most about 100,000."""
        weights: dict[str, float] = {}
        cursor = ""
        while cursor != "0" and len(weights) < WEIGHTS:
            call = bounds_ops.weights(self._keys(queue), cursor=cursor or "0")
            cursor, part = await self._broker.run(call)
            weights |= part
        return dict(sorted(weights.items()))

    async def set_weight(self, queue: str, key: str, weight: float) -> Change:
        """Set a fairness key's share of the throughput, 0.001 to 1000; the default is 1.

        The weight applies to tasks that are enqueued or become due from now on. Raises InvalidTask
        for an invalid weight or key.
        """
        checked, name = check_weight(weight), _check_key(key)
        if not await self._is_queue(queue):
            return Change(outcome="not_found")
        call = bounds_ops.set_weight(self._keys(queue), name, checked)
        event = self._actor.event("weight.set", name, f"{checked:g}")
        await self._broker.run(recorded(call, event))
        return Change(outcome="done")

    async def reset_weight(self, queue: str, key: str) -> Change:
        """Reset the weight of a fairness key to 1; `not_found` if the weight is already 1."""
        call = bounds_ops.set_weight(self._keys(queue), _check_key(key), None)
        event = self._actor.event("weight.reset", key)
        changed = await self._broker.run(recorded(call, event))
        return Change(outcome="done" if changed else "not_found")


WEIGHTS = 100_000
"""Maximum number of weights that are read."""


def _check_key(key: object) -> str:
    if not isinstance(key, str) or not 0 < len(key) <= 256:
        raise InvalidTask(
            phrase(
                "fairness key: must be a string of 1 to 256 characters, not %(key)s",
                key=shorten(key),
            )
        )
    return key
