"""The connections on which a server blocks until tasks arrive.

Outside a cluster, one connection covers all queues of the server. In a cluster, each queue whose
tasks arrive without wake messages has its own connection (see wake_channel.py). A server with only
one queue always has a connection for it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Final

from qsync.backoff import AWAY_CAP_S, Backoff
from qsync.broker.aio import AsyncBroker
from qsync.broker.listeners import BlockingPop
from qsync.server.clock import boot_s
from qsync.server.queue_state import QueueState

UNSENT_S: Final = 3600.0
"""How long a server blocks on a queue after a task arrived there without a wake message, in
seconds."""

PROBE_S: Final = 0.001
"""Length of the first wait after a failed wait, in seconds. A short wait is enough to find out
whether the store is back."""


class Waiters:
    """The blocking connections of a server, each with the queues that it covers."""

    def __init__(self, broker: AsyncBroker, queues: Sequence[QueueState]) -> None:
        self._broker = broker
        self._queues = {queue.keys.key("wake"): queue for queue in queues}
        self.tasks: dict[BlockingPop, asyncio.Task[None] | None] = {}
        """asyncio task that is waiting on each connection, or None."""
        self.backoffs: dict[BlockingPop, Backoff] = {}
        """Back-off of the waits on each connection. Fetches have a separate back-off. If a network
        link keeps resetting connections, fetches between the resets succeed, and would reset a
        shared back-off."""
        self._until: dict[BlockingPop, float] = {}

    def block_on_all(self) -> None:
        """Block on all queues without a time limit."""
        for waiter in self._broker.blocking_pops(list(self._queues)):
            self._add(waiter, math.inf)

    def block_on(self, queue: QueueState, seconds: float) -> None:
        """Block on a queue for at least `seconds` from now."""
        key = queue.keys.key("wake")
        waiter = next((each for each in self.tasks if key in each.keys), None)
        if waiter is None:
            [waiter] = self._broker.blocking_pops([key])
            self._add(waiter, 0.0)
        self._until[waiter] = max(self._until[waiter], boot_s() + seconds)

    def queues_of(self, waiter: BlockingPop) -> list[QueueState]:
        """Return the queues that a connection can block on."""
        return [self._queues[key] for key in waiter.keys]

    def queue_of(self, key: str) -> QueueState:
        """Return the queue with this wake list."""
        return self._queues[key]

    def remove_expired(self, now: float) -> list[BlockingPop]:
        """Remove the connections that are no longer needed, and return them for closing."""
        expired = [
            waiter
            for waiter, until in self._until.items()
            if until <= now and self.tasks[waiter] is None
        ]
        for waiter in expired:
            del self.tasks[waiter], self.backoffs[waiter], self._until[waiter]
        return expired

    async def aclose(self) -> None:
        """Close the connections."""
        for waiter in self.tasks:
            await waiter.aclose()

    def _add(self, waiter: BlockingPop, until: float) -> None:
        self.tasks[waiter] = None
        self.backoffs[waiter] = Backoff(cap=AWAY_CAP_S)
        self._until[waiter] = until
