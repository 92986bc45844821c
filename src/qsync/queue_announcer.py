"""How the store is told which queues are in use, so that operators find them.

Nobody waits for it: in a cluster the set of queues is on one node, and a queue may be on another.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from qsync.broker.call import Call
from qsync.broker.shell import ends_in

REGISTER_EVERY: Final = 60.0
"""A queue that is used is put into the set of queues so often, seconds: a store may be emptied."""

REGISTER_AGAIN: Final = 1.0
"""How soon that is tried again when it failed, seconds."""

REGISTER_S: Final = 1.0
"""How long a try may take in the background, seconds, and how long a client waits to be closed."""


class QueueAnnouncer:
    """When to tell the store which queues are in use."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next: dict[str, float] = {}

    def due(self, queue: str) -> bool:
        """Whether the store is to be told now; true for one of those who ask at the same time."""
        now = self._clock()
        if now < self._next.get(queue, now):
            return False
        self._next[queue] = now + REGISTER_EVERY
        return True

    def failed(self, queue: str) -> None:
        """The store could not be told: try again soon."""
        self._next[queue] = self._clock() + REGISTER_AGAIN


Note = Callable[[str, Any], None]
"""Takes the name of a queue and the reply to its registration."""


class Registrations:
    """Registers queues in a thread, which ends when there is nothing left to do.

    It is no daemon: a program that ends right after an enqueue registers its queue all the same.
    """

    def __init__(self, run_many: Callable[..., Sequence[Any]], note: Note) -> None:
        self._run_many, self._note = run_many, note
        self._waiting: dict[str, Call[Any]] = {}
        self._thread: threading.Thread | None = None

    def add(self, queue: str, call: Call[Any]) -> None:
        """Register a queue soon."""
        self._waiting[queue] = call
        thread = self._thread
        if thread is None or not thread.is_alive():  # nor is one of a parent, in a forked child
            self._thread = thread = threading.Thread(target=self._work, name="qsync-register")
            with suppress(RuntimeError):  # the program ends: the next one registers the queue
                thread.start()

    def close(self) -> None:
        """Wait for what is under way."""
        if (thread := self._thread) is not None:
            thread.join(2 * REGISTER_S)

    def _work(self) -> None:
        while True:
            try:
                queue, call = self._waiting.popitem()
            except KeyError:
                self._thread = None
                if not self._waiting:  # else it came just before, and nobody started a thread
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
        """Register a queue soon."""
        task = asyncio.get_running_loop().create_task(self._work(queue, call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self, within: float = 2 * REGISTER_S) -> None:
        """Wait for what is under way, at most so many seconds; then it is given up."""
        tasks = list(self._tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=within)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, queue: str, call: Call[Any]) -> None:
        [reply] = await self._run_many([call], ends=ends_in(REGISTER_S))
        self._note(queue, reply)
