"""Stops tasks when they time out, are cancelled or lose their lease, and when the server stops.

A handler may keep running although it was stopped; its slot then goes to another task. Such hung
handlers hold memory, connections and locks until the process ends, so their number is limited.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final
from weakref import WeakSet

from qsync.broker.op_values import HandedBack
from qsync.formatting import plural
from qsync.server.asyncio_internals import abandon
from qsync.server.batch_call import BatchCall
from qsync.server.capacity import Capacity
from qsync.server.clock import boot_s
from qsync.server.config import Config, seconds
from qsync.server.crash_isolation import CrashIsolation
from qsync.server.queue_state import QUEUED, RUNNING, LeasedTask, QueueState, Stop
from qsync.server.timeouts import Timeouts

log: Final = logging.getLogger("qsync.server")

TASKS_NAMED: Final = 10
"""Maximum number of tasks that the log of a shutdown names."""

HUNG_AFTER_S: Final = 5.0
"""How long a stopped handler may keep running before it counts as hung, in seconds."""


class HungHandlers:
    """Counts hung handlers; `on_too_many` is called with the number each time it exceeds
    `maximum`."""

    def __init__(self, maximum: int, on_too_many: Callable[[int], None]) -> None:
        self._maximum = maximum
        self._on_too_many = on_too_many
        self.count: int = 0

    def add(self) -> None:
        """Count one more hung handler."""
        self.count += 1
        if self.count > self._maximum:
            self._on_too_many(self.count)

    def ended(self, *_: object) -> None:
        """Subtract a hung handler that has ended after all."""
        self.count -= 1


class Stopping:
    """Stops tasks.

    Calls `settle` to end a task that has not started, and `on_give_up` to end a task whose handler
    keeps running.
    """

    def __init__(
        self,
        config: Config,
        queues: Sequence[QueueState],
        capacity: Capacity,
        suspects: CrashIsolation,
        hung: HungHandlers,
        *,
        settle: Callable[[LeasedTask, Any], None],
        on_give_up: Callable[[LeasedTask], None],
        on_lost: Callable[[int], None],
    ) -> None:
        self._queues = queues
        self._capacity = capacity
        self._suspects = suspects
        self._hung = hung
        self._settle = settle
        self._on_give_up = on_give_up
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._owner = asyncio.current_task()
        """The asyncio task that has started the server."""
        self._waits_for_threads = config.threads is None
        self.default_timeout: float | None = (
            None if config.timeout is None else seconds(config.timeout)
        )
        self.timeouts: Timeouts = Timeouts(self._on_timeout)
        self._unresponsive: WeakSet[asyncio.Task[None]] = WeakSet()
        """asyncio tasks of handlers that keep running although they were cancelled."""

    @property
    def interrupted(self) -> bool:
        """Whether the asyncio task that has started the server is being cancelled, as asyncio does
        with all tasks after an exit in one of them."""
        return self._owner is not None and not self._owner.done() and self._owner.cancelling() > 0

    # One task.

    def stop(self, leased: LeasedTask, why: Stop) -> None:
        """Stop a running task, or settle or drop a task that has not started."""
        if leased.phase is QUEUED and why == "cancelled":
            self._settle(leased, leased.held)
            return
        if leased.phase is QUEUED:
            leased.queue.drop([leased])
            return
        if leased.phase is not RUNNING:
            return
        if leased.call is not None:
            if not self._stop_in_call(leased, leased.call, why):
                return
        elif leased.stop == "lost":
            return
        else:
            leased.stop = why
            if leased.task is not None:
                leased.task.cancel()
        if why == "lost" or why == "timeout":
            leased.timer = self._loop.call_later(HUNG_AFTER_S, self._give_up, leased)

    def _stop_in_call(self, leased: LeasedTask, call: BatchCall, why: Stop) -> bool:
        """Stop a task that a batch handler runs with other tasks; return whether the handler's call
        stops."""
        if why in ("cancelled", "lost") and leased.stop != "lost":
            leased.stop = why
        return call.stop(why)

    def lose(self, leased: LeasedTask) -> None:
        """Stop a task whose lease this server no longer holds, according to the store.

        A task that is being settled is ignored, since the reply to its settlement will state its
        outcome.
        """
        if leased.call is not None and leased.stop == "lost":
            return  # the loss is already recorded; the call continues for its other tasks
        if leased.phase in (QUEUED, RUNNING):
            self._on_lost(1)
            log.warning(
                "the lease on task %s of queue %s was lost", leased.id, leased.queue.name,
                extra=leased.fields,
            )  # fmt: skip
            self.stop(leased, "lost")

    def limit_of(self, leased: LeasedTask) -> float | None:
        """Return the timeout of a task's run in seconds; for a batch, the call's timeout."""
        call: BatchCall | None = leased.call
        return self.timeout_of(leased) if call is None else call.limit

    def timeout_of(self, leased: LeasedTask) -> float | None:
        """Return the timeout of a task in seconds; None means no limit."""
        options = leased.message.options
        if options is not None and options.timeout_us is not None:
            return options.timeout_us / 1_000_000
        return self.default_timeout

    def _on_timeout(self, leased: LeasedTask) -> None:
        """Stop a task at its timeout, unless it waited for a thread.

        With the default number of threads, which may be less than `concurrency`, the timeout begins
        when the task gets its thread.
        """
        limit = self.limit_of(leased)
        if self._waits_for_threads and limit is not None:
            remaining_s = leased.turn + limit - time.monotonic() if leased.turn else 0.0
            if leased.waits or remaining_s > 0.0:
                self.timeouts.add(leased, limit if leased.waits else remaining_s)
                return
        self.stop(leased, "timeout")

    def _give_up(self, leased: LeasedTask) -> None:
        """Free the slot of a handler that keeps running although it was stopped.

        Also frees the slot of a task that could not start because the store did not reply.
        """
        if leased.phase is not RUNNING:
            return
        handler = leased.task if leased.call is None else leased.call.handler
        if not isinstance(handler, asyncio.Task):  # the pool counts hung handlers in threads
            handler = None
        if handler is not None:
            log.error(
                "handler of task %s (%s) does not stop; "
                "its slot is freed, and it may still be running",
                leased.id,
                ascii(leased.message.type)[1:-1],
                extra=leased.fields,
            )
        self._on_give_up(leased)
        if handler is not None:
            self._unresponsive.add(handler)
            handler.add_done_callback(self._hung.ended)
            self._hung.add()

    # All tasks.

    def stop_accepting(self) -> None:
        """Start no more tasks, and hand back those that have not started."""
        self._capacity.accepting = False
        self.hand_back_ready()

    def hand_back_ready(self, *, older_than: float = -1e9) -> None:
        """Hand back the tasks that have not started.

        With `older_than`, hand back only the tasks that were fetched over `older_than` seconds ago.
        """
        limit = boot_s() - older_than
        young: list[LeasedTask] = []
        for leased in [*self._capacity.take_ready(), *self._take_suspects(older_than)]:
            if leased.phase is not QUEUED:
                continue
            if leased.fetched > limit:
                young.append(leased)
            else:
                self._settle(leased, HandedBack(leased.id, leased.token))
        self._capacity.ready.extendleft(reversed(young))
        overdue_s = older_than if older_than > 0 else None
        for leased in self._capacity.gathering.take(overdue_s=overdue_s):
            self._settle(leased, HandedBack(leased.id, leased.token))
        self._capacity.signal_idle()

    def _take_suspects(self, older_than: float) -> list[LeasedTask]:
        if older_than > 0:
            return []  # Suspects are held back deliberately, so they never count as stale
        taken = list(self._suspects.waiting)
        self._suspects.waiting.clear()
        return taken

    def hand_back_waiting(self) -> None:
        """Hand back the tasks that have a slot but are still waiting for a thread or a process."""
        for leased in self._running():
            if leased.waits:
                self.stop(leased, "shutdown")

    def stop_all(self, why: Stop) -> None:
        """Stop every running handler."""
        running = self._running()
        if why == "shutdown":
            _log_unfinished([leased for leased in running if not leased.waits])
        for leased in running:
            self.stop(leased, why)

    def give_up_all(self) -> None:
        """Settle the tasks whose handlers keep running although they were stopped, so that other
        servers can run these tasks."""
        for leased in self._running():
            self._give_up(leased)

    def _running(self) -> list[LeasedTask]:
        """Return the tasks that have a slot.

        Tasks that wait for a thread or a process come first, so that none of them starts while the
        other tasks are being stopped.
        """
        held = [leased for queue in self._queues for leased in queue.held.copy().values()]
        running = [leased for leased in held if leased.phase is RUNNING]
        return sorted(running, key=lambda leased: not leased.waits)

    def close(self) -> None:
        """Cancel all timeouts, and let asyncio forget the handlers that keep running although they
        were stopped."""
        self.timeouts.close()
        for task in self._unresponsive:
            abandon(task)


def _log_unfinished(running: Sequence[LeasedTask]) -> None:
    """Log the tasks whose handlers are still running when `shutdown_timeout` is over."""
    if not running:
        return
    named = [
        f"{leased.id} ({ascii(leased.message.type)[1:-1]})" for leased in running[:TASKS_NAMED]
    ]
    more = f", and {len(running) - TASKS_NAMED} more" if len(running) > TASKS_NAMED else ""
    log.warning(
        "shutdown_timeout is over, so the handlers of %s are stopped and the tasks handed back "
        "to run again: %s%s", plural(len(running), "task"), ", ".join(named), more,
    )  # fmt: skip
