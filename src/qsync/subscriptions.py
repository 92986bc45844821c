"""Keeps channels subscribed, on one connection per node for all queues.

Each channel is subscribed on the node that holds its queue. When the queue's slot moves, the old
node refuses the channel and names the new node. Messages that are sent while a connection is down
are lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from qsync.backoff import Backoff
from qsync.broker.aio import AsyncBroker
from qsync.broker.blocking import Broker
from qsync.broker.channels import ChannelEvent
from qsync.broker.error_mapping import unavailable
from qsync.broker.slot_map import Node, name_of
from qsync.errors import QsyncError

if TYPE_CHECKING:
    from qsync.broker.listeners import AsyncSubscription

REFUSED_S: Final = 1.0
"""Time after which a refused channel is retried, in seconds."""


class Listener:
    """The channels of one node. `subscription` is None while there is no connection."""

    def __init__(self, node: Node | None) -> None:
        self.node = node
        self.channels: set[str] = set()
        self.refused: dict[str, float] = {}
        """Channels that the node refused, with the monotonic time of the next attempt."""
        self.broken = False
        """True while the connection is down and the failure has been logged."""
        self.subscription: Any = None
        self.runs: Any = None
        """Thread or asyncio task of the listener."""
        self.changed: asyncio.Event | None = None
        """Event that is set when `channels` changes; None for a thread."""

    @property
    def name(self) -> str:
        """Name of the listener's thread or asyncio task."""
        return f"qsync listener {name_of(self.node)}".rstrip()

    def listens(self, channel: str) -> bool:
        """Return whether the store has confirmed the subscription of this channel."""
        return self.subscription is not None and channel in self.subscription.confirmed

    def wanted(self) -> frozenset[str]:
        """Return the channels to subscribe to now: all except those that were refused."""
        return frozenset(self.channels.difference(self.refused))


class Placement:
    """Assigns channels to listeners. Does no I/O and takes no locks."""

    def __init__(self, broker: Broker | AsyncBroker) -> None:
        self._address = broker.address
        self._node_of = broker.node_of
        self._listeners: dict[Node | None, Listener] = {}
        self._by_channel: dict[str, Listener] = {}
        self._moved: dict[str, float] = {}
        """Monotonic time at which each channel last moved to another node."""
        self._logged: set[str] = set()
        """Channels whose refusal has been logged."""

    # Hooks for subclasses.

    def _start(self, listener: Listener) -> None:
        """Start listening at the listener's node."""
        raise NotImplementedError

    def _changed(self, listener: Listener) -> None:
        """Wake the listener, since its channels have changed."""
        raise NotImplementedError

    def _on_message(self, channel: str, text: str) -> None:
        """Handle a message."""
        raise NotImplementedError

    def _on_subscribed(self, channel: str) -> None:
        """Handle a new subscription; messages sent earlier are lost."""
        raise NotImplementedError

    def _on_refused(self, channel: str, error: Exception) -> None:
        """Handle a refusal by the node that holds the channel. Only the first of several
        consecutive refusals calls this method."""
        raise NotImplementedError

    def _on_broken(self, node: str, error: Exception) -> None:
        """Handle a connection error. Only the first of several consecutive errors calls this
        method."""
        raise NotImplementedError

    # Nodes.

    def _place(self, channel: str, node: Node | None) -> Listener:
        listener = self._listeners.get(node)
        if listener is None:
            listener = Listener(node)
            listener.channels.add(channel)
            self._start(listener)
            self._listeners[node] = listener
        else:
            listener.channels.add(channel)
            self._changed(listener)
        self._by_channel[channel] = listener
        return listener

    def _remove(self, channel: str, listener: Listener) -> None:
        listener.channels.discard(channel)
        listener.refused.pop(channel, None)
        self._changed(listener)

    def _drop(self, channel: str) -> None:
        """Stop listening to a channel."""
        self._remove(channel, self._by_channel.pop(channel))
        self._moved.pop(channel, None)
        self._logged.discard(channel)

    def _follow_slot(self, channel: str, listener: Listener, node: Node | None) -> bool:
        """Move the channel to the listener of `node`; return False if it need not move."""
        if self._by_channel.get(channel) is not listener or node in (None, listener.node):
            return False
        self._moved[channel] = time.monotonic()
        self._place(channel, node)
        self._remove(channel, listener)
        return True

    def _retry(self, listener: Listener) -> bool:
        """Retry channels that were refused over REFUSED_S ago; return whether there were any."""
        now = time.monotonic()
        due = [channel for channel, due_at in listener.refused.items() if now >= due_at]
        for channel in due:
            del listener.refused[channel]
            self._follow_slot(channel, listener, self._node_of(channel))
        return bool(due)

    def _handle_event(self, listener: Listener, event: ChannelEvent) -> None:
        """Handle an event that a connection received."""
        channel = event.channel
        if event.kind == "ended":
            self._on_message(channel, event.id)
        elif event.kind == "on":
            self._logged.discard(channel)
            self._on_subscribed(channel)
        elif event.kind == "off":
            self._changed(listener)
        elif self._by_channel.get(channel) is listener:
            self._refused(channel, listener, event.error or TimeoutError())

    def _refused(self, channel: str, listener: Listener, error: Exception) -> None:
        now = time.monotonic()
        node = self._node_of(channel)
        # Do not move a channel again soon after a move, because two nodes may refer to each other
        # while a slot moves.
        settled = now - self._moved.get(channel, 0.0) > REFUSED_S
        if settled and self._follow_slot(channel, listener, node):
            return
        listener.refused[channel] = now + REFUSED_S
        self._changed(listener)
        if settled and channel not in self._logged:
            self._logged.add(channel)
            self._on_refused(channel, unavailable(error, self._address))

    def _failed(self, listener: Listener, error: Exception) -> None:
        if not listener.broken or not isinstance(error, QsyncError):
            self._on_broken(name_of(listener.node) or str(self._address), error)
        listener.broken = True

    def _forget(self, listener: Listener) -> None:
        if self._listeners.get(listener.node) is listener:
            del self._listeners[listener.node]


class AsyncPlacement(Placement):
    """Listens on each node that holds a channel, in one asyncio task per node."""

    def __init__(self, broker: AsyncBroker) -> None:
        super().__init__(broker)
        self._broker = broker
        self._tasks: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        """Stop listening."""
        for task in self._tasks:
            self._cancel(task)
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _cancel(self, task: asyncio.Task[None]) -> None:
        # Cancel a task only once, so that its `finally` can close the connection. The listener's
        # own task ends without being cancelled, since it sees that it has no channels.
        if task is not asyncio.current_task() and not task.cancelling():
            task.cancel()

    def _begin(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _start(self, listener: Listener) -> None:
        listener.changed = asyncio.Event()
        listener.runs = self._begin(self._run(listener), listener.name)

    def _changed(self, listener: Listener) -> None:
        if not listener.channels:
            # Remove the listener before it has ended, so that a new one can start for the node.
            self._forget(listener)
            self._cancel(listener.runs)
        elif listener.changed is not None:
            listener.changed.set()

    async def _run(self, listener: Listener) -> None:
        backoff = Backoff()
        try:
            while listener.channels:
                await self._session(listener, backoff)
                if listener.channels:
                    await asyncio.sleep(backoff.next())
        finally:
            self._forget(listener)

    async def _session(self, listener: Listener, backoff: Backoff) -> None:
        """Listen until the connection breaks."""
        subscription: AsyncSubscription | None = None
        following: asyncio.Task[None] | None = None
        try:
            await self._locate(listener)
            if not listener.channels:
                return
            subscription = self._broker.subscribe(listener.node)
            await subscription.open()
            backoff.reset()
            listener.broken = False
            listener.subscription = subscription
            following = self._begin(self._follow(listener, subscription), "qsync channels")
            while listener.channels:
                self._handle_event(listener, await subscription.read())
        except Exception as error:
            self._failed(listener, error)
        finally:
            listener.subscription = None
            if following is not None:
                following.cancel()
            if subscription is not None:
                await subscription.aclose()

    async def _follow(self, listener: Listener, subscription: AsyncSubscription) -> None:
        """Keep the connection subscribed to the listener's channels."""
        changed = listener.changed = asyncio.Event()
        while True:
            changed.clear()
            self._retry(listener)
            await subscription.follow(listener.wanted())
            with suppress(TimeoutError):
                async with asyncio.timeout(REFUSED_S if listener.refused else None):
                    await changed.wait()

    async def _locate(self, listener: Listener) -> None:
        """Move channels to the listeners of the nodes that hold them now."""
        for channel in sorted(listener.channels):
            try:
                node = await self._broker.locate(channel)
            except QsyncError:
                if listener.node is None:
                    raise
                return  # stop here: assume that no channel has moved
            self._follow_slot(channel, listener, node)
