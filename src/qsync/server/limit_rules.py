"""Publishes the limits of a server's app in its queues."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from qsync.broker import limit_ops
from qsync.broker.aio import AsyncBroker
from qsync.errors import QsyncError
from qsync.limit import LimitRule
from qsync.server.outage_log import Outage
from qsync.server.queue_state import QueueState
from qsync.server.server_parts import cancel


class LimitRules:
    """Puts the rules of `app.limit` into each queue before the first fetch, and again after the
    store has lost its data."""

    def __init__(
        self,
        broker: AsyncBroker,
        lanes: Sequence[QueueState],
        rules: Mapping[str, LimitRule],
        outage: Outage,
    ) -> None:
        self._broker = broker
        self._lanes = lanes
        self._rules = rules
        self._outage = outage
        self._again: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Publish the rules. Raise QsyncError if the store does not take them."""
        for lane in self._lanes if self._rules else ():
            await self._broker.run(limit_ops.put_limit_rules(lane.keys, self._rules))

    async def stop(self) -> None:
        """Stop publishing."""
        await cancel(self._again)

    def publish_again(self, lane: QueueState) -> None:
        """Publish the rules of a queue in the background, until the store has them."""
        if self._rules:
            self._again = [task for task in self._again if not task.done()]
            self._again.append(asyncio.get_running_loop().create_task(self._publish(lane)))

    async def _publish(self, lane: QueueState) -> None:
        try:
            await self._broker.run(limit_ops.put_limit_rules(lane.keys, self._rules), patience=None)
        except QsyncError as error:
            self._outage.note(f"publish limits of queue {lane.queue}", error)
