"""A pool of threads for `def` handlers."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, Protocol

import msgspec

from qsync.server import fork_guard
from qsync.server.process_pool import ProcessPool
from qsync.server.process_pool_member import HandlerError
from qsync.server.queue_state import Claim, HandlerNotStarted
from qsync.server.stopping import HUNG_AFTER_S, HungHandlers

__all__ = ["HandlerError", "ProcessPool", "ThreadPool", "Threads", "fail"]

log: Final = logging.getLogger("qsync.server")

REPLACE_S: Final = 0.25
"""Delay before another thread replaces a thread whose call was abandoned, in seconds. Queued calls
that are abandoned within that time are gone before the new thread looks for work."""


class _Call(msgspec.Struct, eq=False):
    """One call of a function in a thread. The thread writes `started`, `value` and `error`."""

    perform: Callable[[], Any]
    future: asyncio.Future[Any]
    claim: Claim | None
    submitted: float
    """Time at which the call was submitted, by the event loop's clock."""
    value: Any = None
    error: BaseException | None = None
    started: bool = False
    withdrawn: bool = False
    abandoned: bool = False
    counted_lost: bool = False
    replaced: bool = False
    hung: bool = False
    thread_ended: bool = False


class Threads(Protocol):
    """The threads in which `def` handlers run."""

    @property
    def room(self) -> int:
        """Number of further calls that a thread can begin at once."""

    def submit(
        self,
        context: Context,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        claim: Claim | None = None,
    ) -> asyncio.Future[Any]:
        """Call the function in a thread and in the context; return a future for its result."""

    def abandon(self, future: asyncio.Future[Any]) -> bool:
        """Cancel the future of a call; return False if its function will never begin."""

    def take_back(self, waited_s: float) -> None:
        """Fail the calls that have waited for a thread for over `waited_s` seconds with
        HandlerNotStarted."""

    async def close(self, timeout: float) -> bool:  # noqa: ASYNC109 - it is not an error to reach it
        """Take no more calls; return False if some are still running after `timeout` seconds."""


class ThreadPool:
    """Runs functions in up to `threads` daemon threads, for one event loop.

    Threads are started on demand and then kept. All counting happens on the loop, so no call takes
    a lock. Results that arrive while the loop is busy are delivered together. A thread whose call
    was abandoned counts as `lost` until its function returns, and another thread may replace it. So
    `threads` threads stay usable even if some threads hang. A thread that has been lost for
    HUNG_AFTER_S counts as hung.
    """

    def __init__(self, threads: int, hung: HungHandlers | None = None) -> None:
        self._threads = threads
        self._hung = hung
        self.lost: int = 0
        """Number of threads that run an abandoned function."""
        self._live = 0
        self._unreplaced = 0
        """Number of lost threads that are not replaced yet."""
        self._names = 0
        self._queue: SimpleQueue[_Call | None] = SimpleQueue()
        self._calls: dict[asyncio.Future[Any], _Call] = {}
        self._finished: deque[_Call] = deque()
        self._woken = False
        self._closed = False
        self._quiet = asyncio.Event()
        self._generation = fork_guard.generation
        self._loop = asyncio.get_running_loop()

    @property
    def room(self) -> int:
        """Number of further calls that a thread can begin at once."""
        return max(0, self._threads - (len(self._calls) - self.lost))

    def submit(
        self,
        context: Context,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        claim: Claim | None = None,
    ) -> asyncio.Future[Any]:
        """Call the function in a thread and in the context; return a future for its result.

        The thread first asks `claim` whether the task may still start; if not, the future fails
        with HandlerNotStarted. Any exception that the function raises becomes the future's, even
        SystemExit and KeyboardInterrupt. A future cannot carry StopIteration, which becomes the
        cause of a RuntimeError instead.

        Raises RuntimeError if the pool is closed, or if there is no thread and none can be started.
        """
        if self._closed:
            raise RuntimeError("the pool of threads is closed")
        future = self._loop.create_future()
        perform = partial(context.run, function, *args, **kwargs)
        call = _Call(perform, future, claim, self._loop.time())
        self._calls[future] = call
        try:
            self._start_threads()
        except BaseException:
            del self._calls[future]
            raise
        self._queue.put(call)
        return future

    def abandon(self, future: asyncio.Future[Any]) -> bool:
        """Cancel the future of a call, so that the call delays no other calls.

        A function that has begun cannot be stopped; its thread is `lost` until it returns. Return
        False if the function has not begun, and make sure that it never does.
        """
        future.cancel()
        call = self._calls.get(future)
        if call is None:
            return True
        if call.abandoned:
            return call.started
        # Set `abandoned` first, because the thread sets `started` before it reads `abandoned`.
        call.abandoned = True
        if not call.started:
            return False
        call.counted_lost = True
        self.lost += 1
        if self._hung is not None:
            self._loop.call_later(HUNG_AFTER_S, self._still_lost, call, self._hung)
        self._unreplaced += 1
        self._loop.call_later(REPLACE_S, self._replace, call)
        return True

    def take_back(self, waited_s: float) -> None:
        """Fail the calls that have waited for a thread for over `waited_s` seconds with
        HandlerNotStarted. A call that begins in the meantime runs as usual."""
        limit = self._loop.time() - waited_s
        for call in list(self._calls.values()):
            if call.submitted >= limit:
                return  # later calls have waited for a shorter time
            if call.started or call.claim is None or call.future.done():
                continue
            # Set `withdrawn` first, because the thread sets `started` before it reads `withdrawn`.
            call.withdrawn = True
            if not call.started:
                call.future.set_exception(HandlerNotStarted())

    def abandon_waiting(self) -> None:
        """Abandon all calls that no thread has begun."""
        for call in list(self._calls.values()):
            if not call.started:
                self.abandon(call.future)

    def _replace(self, call: _Call) -> None:
        """Replace a lost thread, unless its function has returned."""
        if call.future not in self._calls:
            return
        call.replaced = True
        self._unreplaced -= 1
        if self._closed:
            return
        try:
            self._start_threads()
        except RuntimeError as error:  # the next call will try to start a thread again
            log.warning("cannot replace a thread whose handler does not stop: %s", error)

    def _still_lost(self, call: _Call, hung: HungHandlers) -> None:
        """Count a function as hung if it is still running HUNG_AFTER_S after it was stopped."""
        if call.future in self._calls:
            log.error("a handler in a thread does not stop; another thread replaces its thread")
            call.hung = True
            hung.add()

    async def close(self, timeout: float) -> bool:  # noqa: ASYNC109 - it is not an error to reach it
        """Accept no more calls, drop waiting calls, and wait up to `timeout` seconds for running
        calls.

        Return False if some calls are still running; their threads are daemons and do not delay the
        exit of the process.
        """
        self._closed = True
        self.abandon_waiting()
        try:
            async with asyncio.timeout(timeout):
                while len(self._calls) > self.lost:
                    self._quiet.clear()
                    await self._quiet.wait()
        except TimeoutError:
            running = sum(call.started for call in self._calls.values())
            log.warning("%d handlers are still running in threads", running)
        for _ in range(self._live):
            self._queue.put(None)
        return not self._calls

    def _start_threads(self) -> None:
        """Start threads, up to `threads`, until each call that was not abandoned has a thread."""
        usable = self._live - self.lost + self._unreplaced
        if usable >= self._threads:
            return
        missing = min(self._threads, len(self._calls) - self.lost) - usable
        for _ in range(missing):
            name = f"qsync-{self._names + 1}"
            try:
                threading.Thread(target=self._work, name=name, daemon=True).start()
            except RuntimeError:
                if self._live <= self.lost:
                    raise
                log.warning("cannot start thread %s; %d threads remain", name, self._live)
                return
            self._names += 1
            self._live += 1

    def _work(self) -> None:
        """The body of each thread: run calls until the pool ends the thread."""
        get, finished = self._queue.get, self._finished
        while (call := get()) is not None:
            call.started = True
            if not call.abandoned:
                try:
                    if call.withdrawn or (call.claim is not None and not call.claim.may_begin()):
                        raise HandlerNotStarted
                    call.value = call.perform()
                except BaseException as error:
                    call.error = error
                if fork_guard.generation != self._generation:
                    fork_guard.end()
            # End this thread if another one has replaced it in the meantime.
            over = call.thread_ended = call.replaced
            finished.append(call)
            del call  # so that an idle thread keeps no objects alive
            if not self._woken:
                self._woken = True
                try:
                    self._loop.call_soon_threadsafe(self._deliver)
                except RuntimeError:  # the loop is closed
                    return
            if over:
                return

    def _deliver(self) -> None:
        """Deliver the results of finished calls to their futures."""
        self._woken = False  # reset first, so that calls that finish later wake the loop again
        finished = self._finished
        while finished:
            call = finished.popleft()
            del self._calls[call.future]
            if call.counted_lost:
                self._count_recovered(call)
            if not call.future.done():
                _settle(call)
        if self._closed and len(self._calls) <= self.lost:
            self._quiet.set()

    def _count_recovered(self, call: _Call) -> None:
        """Count a lost thread as usable again; end one thread if there are now too many."""
        self.lost -= 1
        if not call.replaced:
            self._unreplaced -= 1
        if call.hung and self._hung is not None:
            self._hung.ended()
        if call.thread_ended:
            self._live -= 1
        elif self._live - self.lost > self._threads:
            self._live -= 1
            self._queue.put(None)


def fail(future: asyncio.Future[Any], error: BaseException) -> None:
    """Set the exception of a future.

    A future cannot carry StopIteration, which becomes the cause of a RuntimeError instead.
    """
    if isinstance(error, StopIteration):
        raised = RuntimeError("the handler raised StopIteration")
        raised.__cause__ = error
        error = raised
    future.set_exception(error)


def _settle(call: _Call) -> None:
    error, call.error = call.error, None  # avoids a reference cycle of traceback and call
    if error is None:
        call.future.set_result(call.value)
    else:
        fail(call.future, error)
