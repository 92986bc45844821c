"""A pool of processes for `def` handlers that use much CPU time or may have to be killed.

Each process has its own sockets, so killing it in the middle of a message affects no other process.
If the tasks of a process are quick, the pool sends it a few more tasks in advance, and can take
them back until they begin.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections import deque
from typing import Any, Final

import msgspec

from qsync import codec
from qsync.errors import InvalidTask, RateLimited, Retry, SkipRetry, Snooze
from qsync.mux import Handler
from qsync.server import process_pool_child
from qsync.server.child_context import ChildSetup
from qsync.server.process_pool_child import Reply
from qsync.server.process_pool_member import (
    WINDOW,
    HandlerCall,
    HandlerError,
    ProcessNotStarted,
    WorkerProcess,
    fail,
)
from qsync.server.queue_state import Claim, HandlerNotStarted, LeasedTask
from qsync.server.rebuilt_errors import original_of
from qsync.task import TaskInfo

__all__ = ["HandlerError", "ProcessPool"]

log: Final = logging.getLogger("qsync.server")

IDLE_S: Final = 60.0
"""How long a process may be idle before the pool ends it, in seconds."""

REUSE: Final = 10_000
"""Number of tasks after which the pool ends a process, to free memory that the tasks leaked."""

TAKE_BACK_AFTER_S: Final = 0.01
"""How long a process may send no reply before the pool takes back tasks that have not begun, in
seconds."""

SMALL: Final = 8 * 1024
"""Maximum size of a task that may wait in a process behind other tasks, in bytes."""

_CLOSED: Final = "the pool of processes is closed"

_reply_decoder = msgspec.msgpack.Decoder(Reply)


class ProcessPool:
    """Runs handlers in up to `processes` spawned processes, for one event loop.

    Processes are started on demand and reused. The processes ignore SIGINT and SIGTERM. The pool
    ends a process on a timeout or a cancellation, when the process has been idle for IDLE_S, after
    REUSE tasks, and when the pool is closed. All processes end when the server's process ends.
    """

    def __init__(self, processes: int | None = None, setup: ChildSetup | None = None) -> None:
        self._setup = setup
        self._most = processes or os.cpu_count() or 1
        self._processes: list[WorkerProcess] = []
        self._waiting: deque[HandlerCall] = deque()
        """Calls that have not been sent to a process."""
        self._feeding = False
        self._preparing: set[asyncio.Task[None]] = set()
        self._reapers: list[threading.Thread] = []
        self._closed = False
        self._changed = asyncio.Event()

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    async def run(
        self,
        handler: Handler,
        info: TaskInfo,
        timeout: float | None,  # noqa: ASYNC109 - a timeout has to end the process
        claim: Claim | None = None,
    ) -> Any:
        """Run a process handler with a task; return its value as decoded from msgpack.

        The timeout, in seconds, begins when the handler starts in a process that has imported it.
        If the timeout passes (TimeoutError) or the caller is cancelled, the process is killed.
        Raises NotBegun if `claim` does not let the task start once a process is ready. Raises
        Retry, SkipRetry, Snooze and InvalidTask like the handler, and HandlerError for any other
        exception and for a process that died.
        """
        if self._closed:
            raise HandlerError(_CLOSED)
        call = HandlerCall(
            handler.path, codec.encode(info), timeout, claim, self._loop.create_future()
        )
        self._waiting.append(call)
        self._feed_soon()
        try:
            reply = await call.future
        except asyncio.CancelledError:
            self._abandon(call)
            raise
        return _outcome(_reply_decoder.decode(reply))

    @property
    def room(self) -> int:
        """Number of further calls that a process can begin at once."""
        busy = sum(bool(process.sent or process.preparing) for process in self._processes)
        return max(0, self._most - busy - len(self._waiting))

    async def stack(self, leased: LeasedTask) -> str:
        """Return the stack of a task's handler; empty if the process does not reply."""
        for process in self._processes:
            call = process.sent[0] if process.sent else None
            if call is not None and call.claim is not None and call.claim.is_of(leased):
                return await process.stack()
        return ""

    def _feed_soon(self) -> None:
        """Schedule `_feed`, so that calls made in one turn of the loop are sent together."""
        if not self._feeding:
            self._feeding = True
            self._loop.call_soon(self._feed)

    def _feed(self) -> None:
        """Send waiting calls, in order, to processes that can accept them."""
        self._feeding = False
        fed: dict[WorkerProcess, list[HandlerCall]] = {}
        while self._closed and self._waiting:
            fail(self._waiting.popleft(), HandlerError(_CLOSED))
        while self._waiting:
            call = self._waiting[0]
            if not call.future.done():
                if (process := self._place(call, fed)) is None:
                    break
                if not process.is_prepared(call.path):
                    self._start_preparing(process, call)
                elif self._may_begin(call, waits=bool(process.sent) or process in fed):
                    fed.setdefault(process, []).append(call)
            self._waiting.popleft()
        for process, calls in fed.items():
            process.send(calls)
            self._watch(process)

    def _place(
        self, call: HandlerCall, fed: dict[WorkerProcess, list[HandlerCall]]
    ) -> WorkerProcess | None:
        """Return a free or new process for a call; if there is none, return the least busy process
        whose calls are quick, or None."""
        unprepared, best, fewest = None, None, WINDOW
        for process in self._processes:
            prepared = process.is_prepared(call.path)
            ahead = len(process.sent) + len(fed.get(process, ()))
            if not ahead and not process.preparing:
                if prepared:
                    return process
                unprepared = process
            elif prepared and ahead < fewest and process.takes_more and process.calls < REUSE:
                best, fewest = process, ahead
        if unprepared is not None:
            return unprepared
        if len(self._processes) < self._most:
            process = WorkerProcess(self._answered, self._died, self._setup)
            self._processes.append(process)
            return process
        return best if len(call.info) <= SMALL else None

    def _may_begin(self, call: HandlerCall, *, waits: bool) -> bool:
        claim = call.claim
        if claim is None:
            return True
        if not claim.may_begin():
            fail(call, HandlerNotStarted())
            return False
        if waits:  # the process runs the earlier calls first
            claim.wait()
        return True

    def _start_preparing(self, process: WorkerProcess, call: HandlerCall) -> None:
        process.preparing = True
        preparing = self._loop.create_task(self._prepare(process, call))
        self._preparing.add(preparing)
        preparing.add_done_callback(self._prepared)

    async def _prepare(self, process: WorkerProcess, call: HandlerCall) -> None:
        """Import the handler in the process, and then send the call.

        The import continues if the caller is cancelled, because otherwise a handler whose import
        takes longer than its timeout would never run.
        """
        try:
            await process.prepare(call.path)
        except asyncio.CancelledError:  # by `close`
            fail(call, HandlerError(_CLOSED))
            raise
        except ProcessNotStarted as error:
            call.tries += 1
            self._retry([call], error)
            return
        except Exception as error:
            self._end(process, kill=True)
            fail(call, error)
            return
        process.preparing = False
        if process.dead:
            self._wait_again([call])
        elif not call.future.done() and self._may_begin(call, waits=False):
            process.send([call])
        self._watch(process)

    def _prepared(self, preparing: asyncio.Task[None]) -> None:
        self._preparing.discard(preparing)
        self._changed.set()
        self._feed_soon()

    def _answered(self, process: WorkerProcess) -> None:
        """Send more calls to a process that has answered some, or end the process."""
        if process.dead:
            return
        if not process.sent and not process.preparing:
            self._changed.set()
            if self._closed or process.calls >= REUSE:
                self._end(process, kill=False)
        if self._waiting:
            self._feed()
        self._watch(process)

    def _watch(self, process: WorkerProcess) -> None:
        """Set the timer of a process for its next check, unless the timer is due earlier."""
        if process.dead or process.preparing:
            return
        due = self._due(process)
        if due is None or (process.timer is not None and process.timer.when() <= due):
            return
        if process.timer is not None:
            process.timer.cancel()
        process.timer = self._loop.call_at(due, self._check_process, process)

    def _due(self, process: WorkerProcess) -> float | None:
        """Return the loop time of the next check of a process; None if it needs none."""
        if not process.sent:
            return process.since + IDLE_S
        if len(process.sent) > 1:
            return process.since + TAKE_BACK_AFTER_S
        limit = process.sent[0].limit
        return None if limit is None else process.since + limit

    def _check_process(self, process: WorkerProcess) -> None:
        process.timer = None
        process.receive()
        if process.dead or process.preparing:
            return
        now = self._loop.time()
        limit = process.sent[0].limit if process.sent else None
        if limit is not None and now >= process.since + limit:
            self._kill(process, process.sent[0], TimeoutError())
        elif not process.sent:
            if now >= process.since + IDLE_S:
                self._end(process, kill=False)
        elif len(process.sent) > 1 and now >= process.since + TAKE_BACK_AFTER_S:
            process.quick = False
            self._wait_again(process.recall())
        self._watch(process)

    def _wait_again(self, calls: list[HandlerCall]) -> None:
        """Put calls that have not begun at the front of the queue."""
        self._waiting.extendleft(reversed(calls))
        self._feed_soon()

    def _abandon(self, call: HandlerCall) -> None:
        """Drop a call whose caller was cancelled; if the call has begun, kill its process."""
        for process in self._processes:
            if call in process.sent:
                process.receive()
                self._kill(process, call, asyncio.CancelledError())
                return

    def _kill(self, process: WorkerProcess, call: HandlerCall, error: BaseException) -> None:
        """Take back the calls that have not begun; kill the process if `call` has begun or timed
        out."""
        recalled = process.recall()
        begun = call in process.sent
        if begun:
            fail(call, error)
        if begun or isinstance(error, TimeoutError):  # the process may hang between two tasks
            self._end(process, kill=True)
        self._wait_again(recalled)

    def _died(self, process: WorkerProcess, recalled: list[HandlerCall]) -> None:
        """Remove a process that has ended on its own, and retry the calls that had not begun."""
        self._end(process, kill=False)
        self._retry(recalled)

    def _retry(self, calls: list[HandlerCall], cause: BaseException | None = None) -> None:
        """Requeue calls whose process died before the calls began; if this happens twice, fail the
        calls."""
        for call in calls:
            if call.tries > 1:
                error = HandlerError(f"the process died before it could run {call.path}")
                error.__cause__ = cause
                fail(call, error)
        self._wait_again(calls)

    def _end(self, process: WorkerProcess, *, kill: bool) -> None:
        if process in self._processes:
            self._processes.remove(process)
        self._reapers = [reaper for reaper in self._reapers if reaper.is_alive()]
        self._reapers.append(process.end(kill=kill))
        self._changed.set()
        self._feed_soon()

    async def close(self, timeout: float) -> None:  # noqa: ASYNC109 - it is not an error to reach it
        """Take no more tasks, end the idle processes, and wait for running tasks.

        After `timeout` seconds, kill the processes that are still running a task.
        """
        self._closed = True
        for process in [*self._processes]:
            if not process.preparing:
                self._waiting += process.recall()
                if not process.sent:
                    self._end(process, kill=False)
        self._feed()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._preparing or any(process.sent for process in self._processes):
                    self._changed.clear()
                    await self._changed.wait()
        for preparing in self._preparing:
            preparing.cancel()
        for process in [*self._processes]:
            self._end(process, kill=True)
            for call in process.sent:
                fail(call, HandlerError("the process was killed because the server is stopping"))
        await asyncio.to_thread(self._reap, 5.0)

    def _reap(self, patience: float) -> None:
        ends = time.monotonic() + patience
        for thread in self._reapers:
            thread.join(max(0.0, ends - time.monotonic()))


def _outcome(reply: Reply) -> Any:
    """Return the value that the handler returned, or raise the exception that it raised."""
    match reply:
        case process_pool_child.Value(encoded):
            return codec.decode(encoded)
        case process_pool_child.Unencodable(name):
            # Return a value of a type with the same name, so that the encoder's error names the
            # handler's type.
            return type(name, (), {})()
        case process_pool_child.AskedRetry(text, delay_s):
            raise Retry(text, delay=delay_s)
        case process_pool_child.AskedSkipRetry(text):
            raise SkipRetry(text)
        case process_pool_child.AskedSnooze(text, delay_s, True, limit):
            raise RateLimited(delay_s, limit=limit, message=text)
        case process_pool_child.AskedSnooze(text, delay_s):
            raise Snooze(delay_s, text)
        case process_pool_child.PayloadMismatch(text):
            raise InvalidTask(text)
        case process_pool_child.Raised(name, text, traceback):
            error = HandlerError(f"{name}: {text}" if text else name, traceback)
            error.original = original_of(reply)
            raise error
