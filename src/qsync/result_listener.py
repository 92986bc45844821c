"""Wakes callers when a task that they wait for ends; uses one connection per node of the store.

When a task ends, its id is published on a channel of its queue, on the node that holds the queue. A
channel stays subscribed while callers wait for tasks of its queue, and LINGER seconds longer.
Messages may be lost, so waiting callers also poll.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from qsync.backoff import Backoff
from qsync.broker.aio import AsyncBroker
from qsync.broker.blocking import Broker
from qsync.errors import QsyncError
from qsync.subscriptions import AsyncPlacement, Listener, Placement

if TYPE_CHECKING:
    from qsync.broker.listeners import Subscription

log: Final = logging.getLogger("qsync.client")

LINGER: Final = 1.0
"""How long a channel stays subscribed after the last caller has gone, in seconds."""

_TICK: Final = 0.25
"""Maximum time, in seconds, for which a listening thread blocks before it checks whether to
stop."""


READS: Final = 64
"""Number of messages that a thread reads before it checks whether its channels have changed."""


class _Event(Protocol):
    def set(self) -> object: ...


E = TypeVar("E", bound=_Event)


class _Waits(Placement, Generic[E]):
    """The waiting callers, by task. Does no I/O and takes no locks."""

    def __init__(self, broker: Broker | AsyncBroker) -> None:
        super().__init__(broker)
        self._waiting: dict[str, dict[str, set[E]]] = {}
        """Events of the waiting callers, by channel and task id."""
        self._left: dict[str, float] = {}
        """Channels without waiting callers, with the monotonic time at which the last caller
        left."""

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

    def _expire(self) -> None:
        """Drop the channels that have had no waiting callers for LINGER seconds."""
        now = time.monotonic()
        for channel in [name for name, since in self._left.items() if now - since > LINGER]:
            del self._left[channel]
            self._drop(channel)

    def _on_message(self, channel: str, text: str) -> None:
        for event in self._waiting.get(channel, {}).get(text, ()):
            event.set()

    def _on_subscribed(self, channel: str) -> None:
        for events in self._waiting.get(channel, {}).values():
            for event in events:
                event.set()

    def _on_refused(self, channel: str, error: Exception) -> None:
        _tell(channel, error)

    def _on_broken(self, node: str, error: Exception) -> None:
        _tell(node, error)

    def _wake_all(self) -> None:
        for channel in self._waiting:
            self._on_subscribed(channel)


class Listeners(_Waits[threading.Event]):
    """Wakes threads when the tasks that they wait for end.

    One daemon thread listens per node that holds a queue with waiting callers. Threads do not
    survive a fork, so a forked child needs new Listeners.

    `_lock` guards all state. Only a listener's own thread uses its subscription; other threads call
    only its `wake` and `confirmed`.
    """

    def __init__(self, broker: Broker) -> None:
        super().__init__(broker)
        self._broker = broker
        self._lock = threading.Lock()
        self._closed = threading.Event()

    @contextmanager
    def waiting(self, channel: str, id: str) -> Iterator[threading.Event]:
        """Yield an event that is set when the caller should read the task again."""
        woken = threading.Event()
        with self._lock:
            self._add(channel, id, woken)
        try:
            yield woken
        finally:
            with self._lock:
                self._discard(channel, id, woken)

    def close(self) -> None:
        """Wake all waiting callers and stop the threads; a thread that is connecting stops later.

        Waits at most 1 s for the threads to end.
        """
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

    def _start(self, listener: Listener) -> None:
        if not self._closed.is_set():
            thread = threading.Thread(
                target=self._run, args=(listener,), name=listener.name, daemon=True
            )
            thread.start()
            listener.runs = thread

    def _changed(self, listener: Listener) -> None:
        if listener.subscription is not None:
            listener.subscription.wake()

    def _run(self, listener: Listener) -> None:
        backoff = Backoff()
        while self._session(listener, backoff):
            self._closed.wait(backoff.next())

    def _session(self, listener: Listener, backoff: Backoff) -> bool:
        """Listen until the connection breaks; return False when the thread is to end."""
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
                    channels = listener.wanted()
                subscription.follow(channels)
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

    def _read(self, listener: Listener, subscription: Subscription) -> None:
        """Handle messages until none arrives for _TICK seconds, or READS messages have arrived."""
        for _ in range(READS):
            if (heard := subscription.read(_TICK)) is None:
                return
            with self._lock:
                self._handle_event(listener, heard)

    def _locate(self, listener: Listener) -> None:
        """Move channels to the listeners of the nodes that hold them now."""
        with self._lock:
            channels = sorted(listener.channels)
        for channel in channels:
            try:
                node = self._broker.locate(channel)
            except QsyncError:
                if listener.node is None:
                    raise
                return  # stop here: assume that no channel has moved
            with self._lock:
                self._follow_slot(channel, listener, node)

    def _retire(self, listener: Listener) -> bool:
        """Return whether the thread should end; if so, remove the listener."""
        with self._lock:
            self._expire()
            if listener.channels and not self._closed.is_set():
                return False
            self._forget(listener)
            return True


class AsyncListeners(_Waits[asyncio.Event], AsyncPlacement):
    """Wakes coroutines when the tasks that they wait for end.

    One asyncio task listens per node that holds a queue with waiting callers.
    """

    def __init__(self, broker: AsyncBroker) -> None:
        super().__init__(broker)
        self._sweep: asyncio.TimerHandle | None = None

    @contextmanager
    def waiting(self, channel: str, id: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set when the caller should read the task again."""
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()
        self._add(channel, id, woken)
        try:
            yield woken
        finally:
            self._discard(channel, id, woken)
            self._sweep_later(loop)

    async def aclose(self) -> None:
        """Wake all waiting callers, and stop listening."""
        if self._sweep is not None:
            self._sweep.cancel()
        self._wake_all()
        await super().aclose()

    def _sweep_later(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._left and self._sweep is None and not loop.is_closed():
            self._sweep = loop.call_later(LINGER, self._sweep_in, loop)

    def _sweep_in(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweep = None
        self._expire()
        self._sweep_later(loop)


def _tell(place: str, error: Exception) -> None:
    """Log that listening has failed; callers still get their results by polling."""
    log.info(
        "cannot listen on %s: %s; polling for results every 1 to 5 s until listening works again",
        place, error, exc_info=None if isinstance(error, QsyncError) else error,
    )  # fmt: skip
