"""The object that `current()` returns in the handlers of a server."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import msgspec

from qsync.errors import LeaseLost
from qsync.server.deadlock_detection import Waits
from qsync.server.progress_values import checked_progress
from qsync.server.queue_state import LeasedTask, Stop
from qsync.task import TaskInfo

TellProgress = Callable[[LeasedTask, float, float], None]


class ServerContext:
    """The context that all handlers of a server share."""

    def __init__(self, async_client: Any, client: Callable[[], Any], waits: Waits) -> None:
        self.async_client = async_client
        self.client = client
        self.waits = waits
        self.state: Any = None


class HandlerContext(msgspec.Struct, eq=False):
    """The Current of one running task."""

    _leased: LeasedTask
    task: TaskInfo
    _server: ServerContext
    _tell: TellProgress

    def __repr__(self) -> str:
        return f"<HandlerContext {self._leased.id!r}>"

    @property
    def tasks(self) -> Sequence[TaskInfo]:
        """The tasks of the call."""
        return (self.task,)

    @property
    def client(self) -> Any:
        """Return an AsyncClient on the event loop, or a Client in a thread."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._server.client()
        return self._server.async_client

    @property
    def state(self) -> Any:
        """Value that the lifespan yielded."""
        return self._server.state

    @property
    def cancelled(self) -> bool:
        """True once this run should stop."""
        return self._leased.stop is not None

    @property
    def stopped(self) -> Stop | None:
        """Reason to stop this run; None while it should continue."""
        return self._leased.stop

    def waiting_for(self, queue: str, id: str) -> AbstractContextManager[None]:
        """Return a context manager to use while the handler waits for this task's result."""
        return self._server.waits.waiting(self._leased, queue, id)

    def wait(self) -> None:
        """Record that the task waits for a thread or a process."""
        self._leased.waits = True

    def may_begin(self) -> bool:
        """Record that a thread or process is free; return False if the task may no longer start.

        A task may not start once it is stopped, its lease has expired or its deadline has passed.
        """
        leased = self._leased
        leased.turn = time.monotonic()
        leased.thread = threading.get_ident()
        # Clear `waits` before reading `stop`: a stopping server reads `waits`, then sets `stop`.
        leased.waits = False
        return leased.stop is None and leased.begins() and not leased.past_deadline()

    def is_of(self, leased: LeasedTask) -> bool:
        """Return whether this is the context of a task."""
        return self._leased is leased

    def check_lease(self) -> None:
        """Raise LeaseLost once the lease is known to be lost."""
        leased = self._leased
        if leased.stop == "lost":
            raise LeaseLost(
                f"the lease on task {leased.id} of queue {leased.queue.name} is lost: another "
                "server may run it, and the outcome of this run is discarded"
            )

    def progress(self, done: float, total: float) -> None:
        """Report the task's progress; raise LeaseLost once its lease is known to be lost."""
        self.check_lease()
        self._tell(self._leased, *checked_progress(done, total))
