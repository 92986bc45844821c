"""Waits for tasks in many queues of a cluster, with one connection per node instead of per queue.

One blocking pop cannot wait on keys in several hash slots, so messages wake a server that has many
queues. For each queue, the server subscribes to a channel of its own and then registers as idle
(`mark_idle`). A script that adds a task removes the id of one idle server and sends that server a
message. The server then does not count as idle in that queue until it registers again.

Messages may be lost with the connection, or when a slot moves. So a server registers again once per
`sweep`, and as soon as it has subscribed again; registering also checks the queue for work. The
server blocks on a queue's wake list if it may not subscribe to the queue's channel, or if clients
add tasks without sending messages.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from qsync.backoff import AWAY_CAP_S, Backoff
from qsync.broker import ops
from qsync.broker.aio import AsyncBroker
from qsync.broker.call import Call
from qsync.broker.error_mapping import Fault, classify
from qsync.broker.ops import IdleCheck
from qsync.errors import QsyncError
from qsync.server.outage_log import Outage
from qsync.server.queue_state import QueueState
from qsync.subscriptions import AsyncPlacement, Listener

log: Final = logging.getLogger("qsync.server")

KEPT_US: Final = 3600 * 1_000_000
"""How long a queue keeps the id of an idle server that does not register again, in microseconds."""

DENIED_S: Final = 60.0
"""Delay before the next attempt to subscribe to a channel if permission was denied, in seconds."""


class Wakes(AsyncPlacement):
    """Receives wake messages, and records in which queues the server is registered as idle."""

    def __init__(
        self,
        broker: AsyncBroker,
        holder: str,
        queues: Sequence[QueueState],
        outage: Outage,
        *,
        lease_us: int,
        on_wake: Callable[[QueueState], None],
        on_change: Callable[[], None],
        on_denied: Callable[[QueueState], None],
    ) -> None:
        super().__init__(broker)
        self._holder = holder
        self._queues = {queue.keys.wake_channel(holder): queue for queue in queues}
        self._channels = {queue.name: channel for channel, queue in self._queues.items()}
        self._lease_us = lease_us
        self._outage = outage
        self._unlisted: dict[str, QueueState] = {}
        self._messages = dict.fromkeys(self._channels, 0)
        """Number of messages and new subscriptions, by queue."""
        self._backoff = Backoff(cap=AWAY_CAP_S)
        self._later: set[asyncio.TimerHandle] = set()
        self.on_wake = on_wake
        """Callback for each wake message; it is called with the queue to fetch from."""
        self._on_change = on_change
        """Callback for each queue that is added to `unlisted`."""
        self._on_denied = on_denied
        """Callback for each queue to whose channel the user may not subscribe."""

    def start(self) -> None:
        """Subscribe to the channels of all queues."""
        for channel in self._queues:
            self._place(channel, self._node_of(channel))

    def ready(self, queue: QueueState) -> bool:
        """Return whether the server is subscribed to this queue's channel."""
        channel = self._channels[queue.name]
        listener = self._by_channel.get(channel)
        return listener is not None and listener.listens(channel)

    def unlisted(self) -> list[QueueState]:
        """Return the subscribed queues in which this server is not registered as idle."""
        return list(self._unlisted.values())

    def take(self, queues: Sequence[QueueState]) -> None:
        """Remove these queues from `unlisted` while the server registers in them."""
        for queue in queues:
            self._unlisted.pop(queue.name, None)

    def waits(self, queue: QueueState) -> bool:
        """Return whether this server is registered as idle in a queue, as far as it knows."""
        return self.ready(queue) and queue.name not in self._unlisted

    def call(self, queue: QueueState) -> Call[IdleCheck]:
        """Return the call that registers this server as idle in a queue, and checks the queue."""
        return ops.mark_idle(
            queue.keys, server=self._holder, lease_us=self._lease_us, keep_us=KEPT_US
        )

    def mark(self, queue: QueueState) -> int:
        """Return a number that changes with each message for the queue; pass it to `listed`."""
        return self._messages[queue.name]

    def listed(self, queue: QueueState, answer: IdleCheck, mark: int) -> None:
        """Process the reply to a registration; `mark` is what `mark` returned before the call was
        sent."""
        self._backoff.reset()
        waits = not answer.waits and not answer.woken
        if waits and self._messages[queue.name] == mark:
            self._unlisted.pop(queue.name, None)
        else:  # a message that arrived after the call was sent may have ended the registration
            self._add(queue)

    def failed(self, queue: QueueState) -> None:
        """Repeat a failed call after a delay."""
        loop = asyncio.get_running_loop()

        def again() -> None:
            self._later.discard(timer)
            self._add(queue)

        timer = loop.call_later(self._backoff.next(), again)
        self._later.add(timer)

    def follow_slots(self) -> None:
        """Move subscriptions to the nodes that now hold the queues."""
        for channel, listener in list(self._by_channel.items()):
            self._follow_slot(channel, listener, self._node_of(channel))

    async def aclose(self) -> None:
        """Stop listening; from now on, no message wakes this server."""
        for timer in self._later:
            timer.cancel()
        self._later.clear()
        self._unlisted.clear()
        self._by_channel.clear()
        await super().aclose()

    def _add(self, queue: QueueState) -> None:
        if self.ready(queue):
            self._unlisted[queue.name] = queue
            self._on_change()

    # Callbacks of the subscriptions.

    def _on_message(self, channel: str, text: str) -> None:
        queue = self._queues[channel]
        self._messages[queue.name] += 1
        self._unlisted[queue.name] = queue
        self.on_wake(queue)

    def _on_subscribed(self, channel: str) -> None:
        queue = self._queues[channel]
        self._messages[queue.name] += 1
        self._add(queue)

    def _refused(self, channel: str, listener: Listener, error: Exception) -> None:
        super()._refused(channel, listener, error)
        if channel in listener.refused and classify(error) is not Fault.TRANSIENT:
            listener.refused[channel] = time.monotonic() + DENIED_S
            self._on_denied(self._queues[channel])

    def _on_refused(self, channel: str, error: Exception) -> None:
        log.info("cannot subscribe to %s: %s", channel, error)

    def _on_broken(self, node: str, error: Exception) -> None:
        if isinstance(error, QsyncError):
            self._outage.note(f"wait for tasks of node {node}", error)
        else:
            log.error("waiting for tasks from node %s failed", node, exc_info=error)
