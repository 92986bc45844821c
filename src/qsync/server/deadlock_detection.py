"""Detects a deadlock: all slots hold tasks that wait for results of tasks that need a slot."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Final

from qsync.server.queue_state import LeasedTask

log: Final = logging.getLogger("qsync.server")

DEADLOCK_AFTER_S: Final = 1.0
"""How long all slots must hold waiting tasks before a warning is logged, in seconds. The warning is
delayed because another server may run the awaited tasks soon."""


class Waits:
    """The running tasks that wait for other tasks on the queues of their own server. Thread-safe.

    `on_stuck` is called when no further task can start.
    """

    def __init__(
        self, queues: Collection[str], slots: int, threads: int, on_stuck: Callable[[], None]
    ) -> None:
        self._queues = queues
        self._slots = slots
        self._threads = threads
        self._lock = threading.Lock()
        self._waiting: dict[LeasedTask, tuple[str, str, bool]] = {}
        """Queue and id of the task that each waiting task awaits, and whether the waiting task
        occupies a thread."""
        self._said = False
        self._on_stuck = on_stuck
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()

    @property
    def count(self) -> int:
        """Return the number of waiting tasks."""
        return len(self._waiting)

    @property
    def stuck(self) -> bool:
        """Return whether the waiting tasks occupy all slots or all threads."""
        with self._lock:
            in_threads = sum(threaded for _, _, threaded in self._waiting.values())
            return len(self._waiting) >= self._slots or in_threads >= self._threads

    @contextlib.contextmanager
    def waiting(self, leased: LeasedTask, queue: str, id: str) -> Iterator[None]:
        """Count the task as waiting for another task while the `with` block runs."""
        if queue not in self._queues:
            yield
            return
        threaded = threading.get_ident() != self._loop_thread
        with self._lock:
            self._waiting[leased] = (queue, id, threaded)
        if not self._said and self.stuck:
            self._loop.call_soon_threadsafe(
                self._loop.call_later, DEADLOCK_AFTER_S, self._warn_if_stuck
            )
        try:
            yield
        finally:
            with self._lock:
                self._waiting.pop(leased, None)

    def _warn_if_stuck(self) -> None:
        if self._said or not self.stuck:
            return
        self._said = True
        with self._lock:
            parent, (queue, id, _) = next(iter(self._waiting.items()))
        log.warning(
            "all slots of this server hold tasks that wait for results of tasks on its own queues: "
            "none of those tasks can start here. Task %s of queue %s waits for task %s of queue "
            "%s. Do not wait for child tasks inside a handler, or give them their own queue and "
            "server", parent.id, parent.queue.name, id, queue, extra=parent.fields,
        )  # fmt: skip
        self._on_stuck()
