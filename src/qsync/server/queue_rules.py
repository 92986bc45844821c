"""Publishes the limits and bounds of a server's app in its queues."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qsync.bounds import Bounds
from qsync.broker import bounds_ops, limit_ops
from qsync.broker.aio import AsyncBroker
from qsync.broker.call import Call
from qsync.errors import QsyncError
from qsync.keys import QueueKeys
from qsync.limit import LimitRule
from qsync.server.outage_log import Outage
from qsync.server.queue_state import QueueState
from qsync.server.server_parts import cancel


class QueueRules:
    """Puts the rules of `app.limit` and `app.queue` into the store before the first fetch, and
    again when the store may have lost them."""

    def __init__(
        self,
        broker: AsyncBroker,
        prefix: str,
        queues: Sequence[QueueState],
        limits: Mapping[str, LimitRule],
        bounds: Mapping[str, Bounds],
        outage: Outage,
    ) -> None:
        self._broker = broker
        self._prefix = prefix
        self._served = [queue.name for queue in queues]
        self._limits = limits
        self._bounds = bounds
        self._outage = outage
        self._due: set[str] = set()
        self._again: dict[str, asyncio.Task[None]] = {}
        """asyncio tasks that publish the rules again, one per queue: an unreachable node delays no
        others."""

    async def start(self) -> None:
        """Publish the rules. Raise QsyncError if the store does not take them."""
        for queue in dict.fromkeys([*self._served, *self._bounds]):
            for call in self._calls(queue):
                await self._broker.run(call)

    async def stop(self) -> None:
        """Stop publishing."""
        await cancel([*self._again.values()])

    def publish_again(self, queue: str) -> None:
        """Publish the rules of a queue in the background, until the store has them; and the bounds
        of queues that this server does not serve, since it would not see their loss."""
        due = {*self._bounds} - {*self._served} | ({queue} if self._has_rules(queue) else set())
        self._due |= due
        for name in due - self._again.keys():
            self._again[name] = asyncio.get_running_loop().create_task(self._publish(name))

    async def _publish(self, queue: str) -> None:
        try:
            while queue in self._due:
                self._due.discard(queue)
                for call in self._calls(queue):
                    await self._broker.run(call, patience=None)
        except QsyncError as error:
            self._outage.note(f"publish limits and bounds of queue {queue}", error)
        finally:
            del self._again[queue]

    def _has_rules(self, queue: str) -> bool:
        return bool(self._limits) or queue in self._bounds

    def _calls(self, queue: str) -> Iterator[Call[Any]]:
        keys = QueueKeys(self._prefix, queue)
        if queue in self._bounds:
            yield bounds_ops.put_program_bounds(keys, self._bounds[queue])
        if self._limits and queue in self._served:
            yield limit_ops.put_limit_rules(keys, self._limits)
