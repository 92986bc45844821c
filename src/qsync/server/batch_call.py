"""One call of a batch handler, and its `current()`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from qsync.errors import LeaseLost
from qsync.server.handler_context import HandlerContext
from qsync.server.progress_values import checked_progress
from qsync.server.queue_state import RUNNING, LeasedTask, Stop
from qsync.task import TaskInfo


class BatchCall:
    """Tasks that one call of a batch handler runs. Each task keeps its own lease and outcome."""

    def __init__(self, tasks: Sequence[LeasedTask], limit: float | None, *, plain: bool) -> None:
        self.tasks = tasks
        self.limit = limit
        """Timeout of the call in seconds, which is the shortest timeout of its tasks; None means no
        limit."""
        self.plain: bool = plain
        """True while no task of the call has options and none has been stopped."""
        self.handler: asyncio.Task[None] | None = None
        """asyncio task that runs the call; None while the call must not be cancelled."""
        self.stopped: Stop | None = None
        """Reason to stop the call; None while it should continue."""
        self.ended: bool = False

    def stop(self, why: Stop) -> bool:
        """Stop the call if none of its tasks should continue; return whether it was stopped.

        A timeout or a shutdown stops all tasks. If only some tasks are cancelled or lost, the call
        continues for the remaining tasks.
        """
        self.plain = False
        if why in ("timeout", "shutdown"):
            for leased in self.tasks:
                leased.stop = leased.stop or why
        if self.stopped == why or not all(leased.stop for leased in self.tasks):
            return False
        self.stopped = why
        if self.handler is not None:
            self.handler.cancel()
        return True


class BatchContext(HandlerContext, eq=False, kw_only=True):
    """The `Current` of a batch handler's call; `task` is the first task of the call."""

    _infos: Sequence[TaskInfo]
    _call: BatchCall

    @property
    def tasks(self) -> Sequence[TaskInfo]:
        """The tasks of the call."""
        return self._infos

    @property
    def cancelled(self) -> bool:
        """True once the call should stop."""
        return self._call.stopped is not None

    @property
    def stopped(self) -> Stop | None:
        """Reason to stop the call; None while it should continue."""
        return self._call.stopped

    def may_begin(self) -> bool:
        """Record that a thread is free; return False if a task of the call may no longer start."""
        self._leased.turn = time.monotonic()
        # Clear `waits` before reading `stop`: a stopping server reads `waits`, then sets `stop`.
        self._leased.waits = False
        started = [leased.begins() and not leased.past_deadline() for leased in self._call.tasks]
        return self._call.stopped is None and all(started)

    def check_lease(self) -> None:
        """Raise LeaseLost once the leases on all tasks are known to be lost."""
        if self._call.stopped == "lost":
            raise LeaseLost(
                f"the leases on all {len(self._infos)} tasks of this call are lost: other servers "
                "may run the tasks, and the outcome of this call is discarded"
            )

    def progress(self, done: float, total: float) -> None:
        """Report the progress of all tasks; raise LeaseLost once their leases are lost."""
        self.check_lease()
        progress = checked_progress(done, total)
        for leased in self._call.tasks:
            if leased.phase is RUNNING:
                self._tell(leased, *progress)
