"""Registers the queues in use in the store, so that operators can list them.

Enqueues do not wait for the registration, since in a cluster the set of queues may be on another
node.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from qsync.broker.base import ends_in
from qsync.broker.call import Call

REGISTER_EVERY: Final = 60.0
"""Interval, in seconds, at which a queue in use is registered again, in case the store was
emptied."""

REGISTER_AGAIN: Final = 1.0
"""Delay before a failed registration is retried, in seconds."""

REGISTER_S: Final = 1.0
"""Time limit for an attempt in the background, in seconds; closing a client waits at most twice as
long."""


class QueueAnnouncer:
    """Decides when to register each queue. `clock` returns seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next: dict[str, float] = {}
        self.unconfirmed: set[str] = set()
        """Queues that the store may not list yet."""

    def is_due(self, queue: str) -> bool:
        """Return whether `due` would return True now."""
        now = self._clock()
        return now >= self._next.get(queue, now)

    def due(self, queue: str) -> bool:
        """Return whether to register the queue now; of concurrent callers, only one gets True."""
        now = self._clock()
        if now < self._next.get(queue, now):
            return False
        self._next[queue] = now + REGISTER_EVERY
        self.unconfirmed.add(queue)
        return True

    def registered(self, queue: str) -> None:
        """Record that the store lists the queue."""
        self.unconfirmed.discard(queue)

    def failed(self, queue: str) -> None:
        """Schedule a retry after REGISTER_AGAIN, since a registration failed."""
        self._next[queue] = self._clock() + REGISTER_AGAIN


Note = Callable[[str, Any], None]
"""A function that takes the name of a queue and the reply to its registration."""


class Registrations:
    """Registers queues in a thread, which ends when all queues are registered.

    The thread is not a daemon, so a program that ends right after an enqueue still registers the
    queue.
    """

    def __init__(self, run_many: Callable[..., Sequence[Any]], note: Note) -> None:
        self._run_many, self._note = run_many, note
        self._waiting: dict[str, Call[Any]] = {}
        self._thread: threading.Thread | None = None

    def add(self, queue: str, call: Call[Any]) -> None:
        """Register a queue in the background."""
        self._waiting[queue] = call
        thread = self._thread
        if thread is None or not thread.is_alive():  # or forked
            self._thread = thread = threading.Thread(target=self._work, name="qsync-register")
            with suppress(RuntimeError):  # the interpreter is shutting down
                thread.start()

    def close(self) -> None:
        """Wait for registrations in flight, but at most 2 * REGISTER_S."""
        if (thread := self._thread) is not None:
            thread.join(2 * REGISTER_S)

    def _work(self) -> None:
        while True:
            try:
                queue, call = self._waiting.popitem()
            except KeyError:
                self._thread = None
                if not self._waiting:  # otherwise, `add` relied on this thread
                    return
            else:
                [reply] = self._run_many([call], ends=ends_in(REGISTER_S))
                self._note(queue, reply)


class AsyncRegistrations:
    """Registers queues in asyncio tasks."""

    def __init__(self, run_many: Callable[..., Awaitable[Sequence[Any]]], note: Note) -> None:
        self._run_many, self._note = run_many, note
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, queue: str, call: Call[Any]) -> None:
        """Register a queue in the background."""
        task = asyncio.get_running_loop().create_task(self._work(queue, call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self, within: float = 2 * REGISTER_S) -> None:
        """Wait for registrations in flight, at most `within` seconds, and cancel the rest."""
        tasks = list(self._tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=within)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, queue: str, call: Call[Any]) -> None:
        [reply] = await self._run_many([call], ends=ends_in(REGISTER_S))
        self._note(queue, reply)
