"""Wakes callers that wait for ends of tasks: of all queues on one connection a node.

The end of a task is published on a channel of its queue, at the node that holds the queue. A
channel is subscribed while somebody waits for a task of its queue, and LINGER longer. When its slot
moves, the old node refuses the channel and names the new one. Messages may be lost, so whoever
waits looks at the task now and then as well.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, Generic, Protocol, TypeVar

from qsync.backoff import Backoff
from qsync.broker.channels import Heard
from qsync.broker.faults import no_answer
from qsync.broker.listen import AsyncSubscription, Subscription
from qsync.broker.shell import AsyncBroker, Broker
from qsync.broker.slots import Node
from qsync.errors import QsyncError

log = logging.getLogger("qsync.client")

LINGER: Final = 1.0
"""How long a channel stays subscribed when nobody waits any more, seconds."""

REFUSED_S: Final = 1.0
"""After so many seconds a channel that was refused is tried again."""

_TICK: Final = 0.25
"""How often a thread that listens looks whether it still should, seconds."""


READS: Final = 64
"""After so many messages in a row a thread looks whether it has other channels by now."""


class _Event(Protocol):
    def set(self) -> object: ...


E = TypeVar("E", bound=_Event)


class _Listener:
    """What is listened to at one node. `subscription` is None while it is not connected."""

    def __init__(self, node: Node | None) -> None:
        self.node = node
        self.channels: set[str] = set()
        self.refused: dict[str, float] = {}
        """Channels that the node refused: when to try them again."""
        self.broken = False
        """Connecting failed, and the log says so."""
        self.subscription: Any = None
        self.runs: Any = None
        """The thread or asyncio task that listens."""
        self.changed: asyncio.Event | None = None
        """Of a task: its channels are others than a moment ago."""

    def listens(self, channel: str) -> bool:
        return self.subscription is not None and channel in self.subscription.confirmed

    def wanted(self) -> frozenset[str]:
        """The channels to be subscribed now."""
        return frozenset(self.channels.difference(self.refused))


class _AnyListeners(Generic[E]):
    """Who waits for which task, and which listener has which channel. No I/O, no locks."""

    def __init__(self, broker: Broker | AsyncBroker) -> None:
        self._address = broker.address
        self._node_of = broker.node_of
        self._waiting: dict[str, dict[str, set[E]]] = {}
        """By channel and id."""
        self._left: dict[str, float] = {}
        """Channels for which nobody waits any more: since when."""
        self._listeners: dict[Node | None, _Listener] = {}
        self._by_channel: dict[str, _Listener] = {}
        self._moved: dict[str, float] = {}
        """When a channel last went to another node."""
        self._told: set[str] = set()
        """Channels of which the log says that they were refused."""

    def _start(self, listener: _Listener) -> None:
        """Begin to listen at another node."""
        raise NotImplementedError

    def _changed(self, listener: _Listener) -> None:
        """Make the listener look at its channels."""
        raise NotImplementedError

    def _add(self, channel: str, id: str, event: E) -> None:
        listener = self._by_channel.get(channel) or self._place(channel, self._node_of(channel))
        self._waiting.setdefault(channel, {}).setdefault(id, set()).add(event)
        self._left.pop(channel, None)
        if listener.listens(channel):
            event.set()

    def _discard(self, channel: str, id: str, event: E) -> None:
        events = self._waiting[channel]
        events[id].discard(event)
        if not events[id]:
            del events[id]
        if not events:
            del self._waiting[channel]
            self._left[channel] = time.monotonic()

    def _place(self, channel: str, node: Node | None) -> _Listener:
        listener = self._listeners.get(node)
        if listener is None:
            listener = _Listener(node)
            listener.channels.add(channel)
            self._start(listener)
            self._listeners[node] = listener
        else:
            listener.channels.add(channel)
            self._changed(listener)
        self._by_channel[channel] = listener
        return listener

    def _remove(self, channel: str, listener: _Listener) -> None:
        listener.channels.discard(channel)
        listener.refused.pop(channel, None)
        self._changed(listener)

    def _expire(self) -> None:
        """Forget the channels for which nobody has waited for a while."""
        now = time.monotonic()
        for channel in [name for name, since in self._left.items() if now - since > LINGER]:
            del self._left[channel]
            self._remove(channel, self._by_channel.pop(channel))
            self._moved.pop(channel, None)
            self._told.discard(channel)

    def _follow_slot(self, channel: str, listener: _Listener, node: Node | None) -> bool:
        """Have another listener take the channel if it is now at another node."""
        if self._by_channel.get(channel) is not listener or node in (None, listener.node):
            return False
        self._moved[channel] = time.monotonic()
        self._place(channel, node)
        self._remove(channel, listener)
        return True

    def _retry(self, listener: _Listener) -> bool:
        """Try refused channels again that have waited long enough; whether there were any."""
        now = time.monotonic()
        due = [channel for channel, at in listener.refused.items() if now >= at]
        for channel in due:
            del listener.refused[channel]
            self._follow_slot(channel, listener, self._node_of(channel))
        return bool(due)

    def _heed(self, listener: _Listener, heard: Heard) -> None:
        """Act on what a connection heard."""
        channel = heard.channel
        if heard.kind == "ended":
            for event in self._waiting.get(channel, {}).get(heard.id, ()):
                event.set()
        elif heard.kind == "on":
            self._told.discard(channel)
            self._wake(channel)
        elif heard.kind == "off":
            self._changed(listener)
        elif self._by_channel.get(channel) is listener:
            self._refused(channel, listener, heard.error)

    def _refused(self, channel: str, listener: _Listener, error: Exception | None) -> None:
        now = time.monotonic()
        node = self._node_of(channel)
        # Two nodes may name each other while a slot moves.
        settled = now - self._moved.get(channel, 0.0) > REFUSED_S
        if settled and self._follow_slot(channel, listener, node):
            return
        listener.refused[channel] = now + REFUSED_S
        self._changed(listener)
        if settled and channel not in self._told:
            self._told.add(channel)
            _tell(channel, no_answer(error or TimeoutError(), self._address))

    def _wake(self, channel: str) -> None:
        for events in self._waiting.get(channel, {}).values():
            for event in events:
                event.set()

    def _wake_all(self) -> None:
        for channel in self._waiting:
            self._wake(channel)

    def _failed(self, listener: _Listener, error: Exception) -> None:
        if not listener.broken or not isinstance(error, QsyncError):
            node = self._address if listener.node is None else ":".join(map(str, listener.node))
            _tell(str(node), error)
        listener.broken = True

    def _forget(self, listener: _Listener) -> None:
        if self._listeners.get(listener.node) is listener:
            del self._listeners[listener.node]


class Listeners(_AnyListeners[threading.Event]):
    """Wakes threads that wait for ends of tasks.

    A daemon thread listens at each node that holds a queue for whose tasks somebody waits. None
    lives on in a forked child: there other listeners have to be made.

    All state is guarded by `_lock`. A subscription is used by its listener's thread alone, but for
    `wake` and `confirmed`.
    """

    def __init__(self, broker: Broker) -> None:
        super().__init__(broker)
        self._broker = broker
        self._lock = threading.Lock()
        self._closed = threading.Event()

    @contextmanager
    def waiting(self, channel: str, id: str) -> Iterator[threading.Event]:
        """Yield an event that is set when the task should be looked at."""
        woken = threading.Event()
        with self._lock:
            self._add(channel, id, woken)
        try:
            yield woken
        finally:
            with self._lock:
                self._discard(channel, id, woken)

    def close(self) -> None:
        """Wake everybody, and stop listening: at once, or when a connect that is under way ends."""
        self._closed.set()
        with self._lock:
            self._wake_all()
            listeners = list(self._listeners.values())
            for listener in listeners:
                self._changed(listener)
        ends = time.monotonic() + 4 * _TICK
        for listener in listeners:
            if listener.runs is not None:
                listener.runs.join(timeout=max(ends - time.monotonic(), 0.0))

    def _start(self, listener: _Listener) -> None:
        if not self._closed.is_set():
            name = f"qsync listener {':'.join(map(str, listener.node or ()))}".rstrip()
            thread = threading.Thread(target=self._run, args=(listener,), name=name, daemon=True)
            thread.start()
            listener.runs = thread

    def _changed(self, listener: _Listener) -> None:
        if listener.subscription is not None:
            listener.subscription.wake()

    def _run(self, listener: _Listener) -> None:
        backoff = Backoff()
        while self._session(listener, backoff):
            self._closed.wait(backoff.next())

    def _session(self, listener: _Listener, backoff: Backoff) -> bool:
        """Listen until the connection breaks; False when nobody has needed it for a while."""
        subscription: Subscription | None = None
        try:
            self._locate(listener)
            if self._retire(listener):
                return False
            subscription = self._broker.subscribe(listener.node)
            subscription.open()
            backoff.reset()
            with self._lock:
                listener.broken = False
                listener.subscription = subscription
            while not self._retire(listener):
                with self._lock:
                    self._retry(listener)
                    wanted = listener.wanted()
                subscription.follow(wanted)
                self._read(listener, subscription)
        except Exception as error:
            with self._lock:
                self._failed(listener, error)
        finally:
            with self._lock:
                listener.subscription = None
            if subscription is not None:
                subscription.close()
        return not self._retire(listener)

    def _read(self, listener: _Listener, subscription: Subscription) -> None:
        """Heed what is heard until nothing is, or READS messages came."""
        for _ in range(READS):
            if (heard := subscription.read(_TICK)) is None:
                return
            with self._lock:
                self._heed(listener, heard)

    def _locate(self, listener: _Listener) -> None:
        """Give away the channels that are at other nodes by now."""
        with self._lock:
            channels = sorted(listener.channels)
        for channel in channels:
            try:
                node = self._broker.locate(channel)
            except QsyncError:
                if listener.node is None:
                    raise
                return  # the others are where they were, as far as is known
            with self._lock:
                self._follow_slot(channel, listener, node)

    def _retire(self, listener: _Listener) -> bool:
        """Whether the thread is to end; then it counts as ended."""
        with self._lock:
            self._expire()
            if listener.channels and not self._closed.is_set():
                return False
            self._forget(listener)
            return True


class AsyncListeners(_AnyListeners[asyncio.Event]):
    """Wakes coroutines that wait for ends of tasks.

    An asyncio task listens at each node that holds a queue for whose tasks somebody waits.
    """

    def __init__(self, broker: AsyncBroker) -> None:
        super().__init__(broker)
        self._broker = broker
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweep: asyncio.TimerHandle | None = None

    @contextmanager
    def waiting(self, channel: str, id: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set when the task should be looked at."""
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()
        self._add(channel, id, woken)
        try:
            yield woken
        finally:
            self._discard(channel, id, woken)
            self._sweep_later(loop)

    async def aclose(self) -> None:
        """Wake everybody, and stop listening."""
        if self._sweep is not None:
            self._sweep.cancel()
        self._wake_all()
        for task in self._tasks:
            self._cancel(task)
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _cancel(self, task: asyncio.Task[None]) -> None:
        # Once, so that its connection is closed; a listener itself sees that it has no channels.
        if task is not asyncio.current_task() and not task.cancelling():
            task.cancel()

    def _begin(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _start(self, listener: _Listener) -> None:
        listener.changed = asyncio.Event()
        name = f"qsync listener {':'.join(map(str, listener.node or ()))}".rstrip()
        listener.runs = self._begin(self._run(listener), name)

    def _changed(self, listener: _Listener) -> None:
        if not listener.channels:
            # Forgotten before it has ended, so that another can begin meanwhile.
            self._forget(listener)
            self._cancel(listener.runs)
        elif listener.changed is not None:
            listener.changed.set()

    def _sweep_later(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._left and self._sweep is None and not loop.is_closed():
            self._sweep = loop.call_later(LINGER, self._sweep_now, loop)

    def _sweep_now(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweep = None
        self._expire()
        self._sweep_later(loop)

    async def _run(self, listener: _Listener) -> None:
        backoff = Backoff()
        try:
            while listener.channels:
                await self._session(listener, backoff)
                if listener.channels:
                    await asyncio.sleep(backoff.next())
        finally:
            self._forget(listener)

    async def _session(self, listener: _Listener, backoff: Backoff) -> None:
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
                self._heed(listener, await subscription.read())
        except Exception as error:
            self._failed(listener, error)
        finally:
            listener.subscription = None
            if following is not None:
                following.cancel()
            if subscription is not None:
                await subscription.aclose()

    async def _follow(self, listener: _Listener, subscription: AsyncSubscription) -> None:
        """Keep the connection subscribed to the listener's channels."""
        changed = listener.changed = asyncio.Event()
        while True:
            changed.clear()
            self._retry(listener)
            await subscription.follow(listener.wanted())
            with suppress(TimeoutError):
                async with asyncio.timeout(REFUSED_S if listener.refused else None):
                    await changed.wait()

    async def _locate(self, listener: _Listener) -> None:
        """Give away the channels that are at other nodes by now."""
        for channel in sorted(listener.channels):
            try:
                node = await self._broker.locate(channel)
            except QsyncError:
                if listener.node is None:
                    raise
                return  # the others are where they were, as far as is known
            self._follow_slot(channel, listener, node)


def _tell(place: str, error: Exception) -> None:
    """Say that listening broke off: results are still seen, but later."""
    log.info(
        "listening on %s: %s; results are looked for every 1 to 5 s until it works again",
        place, error, exc_info=None if isinstance(error, QsyncError) else error,
    )  # fmt: skip
