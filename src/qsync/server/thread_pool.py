"""Where handlers run that are not coroutines: a pool of threads, and a pool of processes."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from functools import partial
from queue import SimpleQueue
from typing import Any, Final

from qsync.server import fork_guard
from qsync.server.hung_handlers import HUNG_AFTER_S, HungHandlers
from qsync.server.pool_process import HandlerError
from qsync.server.process_pool import ProcessPool
from qsync.server.queue_state import Claim, NotBegun

__all__ = ["HandlerError", "ProcessPool", "ThreadPool"]

log = logging.getLogger("qsync.server")

REPLACE_S: Final = 0.25
"""Delay before another thread replaces one whose call was abandoned. Calls that are abandoned
together, or shortly after one another, leave the queue before it looks for work."""


class _Call:
    """One call of a function in a thread. The thread writes `started`, `value` and `error`."""

    __slots__ = (
        "abandoned", "claim", "counted_lost", "error", "future", "hung", "perform", "replaced",
        "started", "thread_ended", "value",
    )  # fmt: skip

    def __init__(
        self, perform: Callable[[], Any], future: asyncio.Future[Any], claim: Claim | None
    ) -> None:
        self.perform = perform
        self.future = future
        self.claim = claim
        self.value: Any = None
        self.error: BaseException | None = None
        self.started = False
        self.abandoned = False
        self.counted_lost = False
        self.replaced = False
        self.hung = False
        self.thread_ended = False


class ThreadPool:
    """Runs functions in up to `threads` daemon threads, for one event loop.

    Threads are started on demand and then kept. All counting is done on the loop, so no call takes
    a lock; results that come in while the loop is busy are delivered together. A thread whose call
    was abandoned counts as `lost` until its function returns, and another may take its place: so
    there are always `threads` that can be used, whatever hangs. One that is lost for long is hung.
    """

    def __init__(self, threads: int, hung: HungHandlers | None = None) -> None:
        self._threads = threads
        self._hung = hung
        self.lost = 0
        """Threads that run a function for which nobody waits any more."""
        self._live = 0
        self._unreplaced = 0
        """Lost threads that no other has replaced yet."""
        self._names = 0
        self._queue: SimpleQueue[_Call | None] = SimpleQueue()
        self._calls: dict[asyncio.Future[Any], _Call] = {}
        self._finished: deque[_Call] = deque()
        self._woken = False
        self._closed = False
        self._quiet = asyncio.Event()
        self._generation = fork_guard.generation
        self._loop = asyncio.get_running_loop()

    def submit(
        self,
        context: Context,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        claim: Claim | None = None,
    ) -> asyncio.Future[Any]:
        """Call the function in a thread, within the context; the future has what becomes of it.

        The thread asks `claim` first whether the task may still begin; NotBegun if not.

        Whatever the function raises is the future's exception, SystemExit and KeyboardInterrupt
        too; StopIteration, which no future can carry, comes as RuntimeError with it as the cause.
        Raises RuntimeError when the pool is closed, or not one thread can be started.
        """
        if self._closed:
            msg = "the pool of threads is closed"
            raise RuntimeError(msg)
        future = self._loop.create_future()
        call = _Call(partial(context.run, function, *args, **kwargs), future, claim)
        self._calls[future] = call
        try:
            self._start_threads()
        except BaseException:
            del self._calls[future]
            raise
        self._queue.put(call)
        return future

    def abandon(self, future: asyncio.Future[Any]) -> bool:
        """Nobody waits for this call any more: cancel its future, and let it hold up no other.

        A function that has begun cannot be stopped; its thread is `lost` until it returns. One that
        has not begun never will: False.
        """
        future.cancel()
        call = self._calls.get(future)
        if call is None:
            return True
        if call.abandoned:
            return call.started
        call.abandoned = True  # before `started` is read: the thread does both the other way round
        if not call.started:
            return False
        call.counted_lost = True
        self.lost += 1
        if self._hung is not None:
            self._loop.call_later(HUNG_AFTER_S, self._still_lost, call, self._hung)
        self._unreplaced += 1
        self._loop.call_later(REPLACE_S, self._replace, call)
        return True

    def abandon_waiting(self) -> None:
        """Abandon all calls that no thread has taken yet."""
        for call in list(self._calls.values()):
            if not call.started:
                self.abandon(call.future)

    def _replace(self, call: _Call) -> None:
        """Let another thread take the place of a lost one, unless that has returned."""
        if call.future not in self._calls:
            return
        call.replaced = True
        self._unreplaced -= 1
        if self._closed:
            return
        try:
            self._start_threads()
        except RuntimeError as error:  # the next call tries again
            log.warning("cannot replace a thread whose handler does not stop: %s", error)

    def _still_lost(self, call: _Call, hung: HungHandlers) -> None:
        """The function was told to stop a good while ago."""
        if call.future in self._calls:
            log.error("a handler in a thread does not stop; another thread is in its place")
            call.hung = True
            hung.add()

    async def close(self, timeout: float) -> bool:  # noqa: ASYNC109 - it is no error to reach it
        """Take no more calls, drop those that wait, and give running ones so many seconds to end.

        False when some still run; their threads are daemons and hold up nobody's exit.
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
            log.warning("%d handlers still run in threads", running)
        for _ in range(self._live):
            self._queue.put(None)
        return not self._calls

    def _start_threads(self) -> None:
        """Have a thread for each call that was not abandoned, up to the number of `threads`."""
        usable = self._live - self.lost + self._unreplaced
        missing = min(self._threads, len(self._calls) - self.lost) - usable
        for _ in range(missing):
            name = f"qsync-{self._names + 1}"
            try:
                threading.Thread(target=self._work, name=name, daemon=True).start()
            except RuntimeError:
                if self._live <= self.lost:
                    raise
                log.warning("cannot start thread %s: going on with %d", name, self._live)
                return
            self._names += 1
            self._live += 1

    def _work(self) -> None:
        """Body of a thread."""
        get, finished = self._queue.get, self._finished
        while (call := get()) is not None:
            call.started = True
            if not call.abandoned:
                try:
                    if call.claim is not None and not call.claim.may_begin():
                        raise NotBegun
                    call.value = call.perform()
                except BaseException as error:
                    call.error = error
                if fork_guard.generation != self._generation:
                    fork_guard.end()
            # A thread that was lost may have been replaced meanwhile.
            over = call.thread_ended = call.replaced
            finished.append(call)
            del call  # while it waits for the next one, the thread keeps nothing alive
            if not self._woken:
                self._woken = True
                try:
                    self._loop.call_soon_threadsafe(self._deliver)
                except RuntimeError:  # the loop is closed
                    return
            if over:
                return

    def _deliver(self) -> None:
        """Hand over whatever has finished by now."""
        self._woken = False  # before looking: what comes later wakes the loop again
        finished = self._finished
        while finished:
            call = finished.popleft()
            del self._calls[call.future]
            if call.counted_lost:
                self._found(call)
            if not call.future.done():
                _settle(call)
        if self._closed and len(self._calls) <= self.lost:
            self._quiet.set()

    def _found(self, call: _Call) -> None:
        """A lost thread is back: one of those that now are too many ends."""
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


def _settle(call: _Call) -> None:
    error, call.error = call.error, None  # else the traceback and the call hold each other
    if error is None:
        call.future.set_result(call.value)
    elif isinstance(error, StopIteration):
        raised = RuntimeError("the handler raised StopIteration")
        raised.__cause__ = error
        call.future.set_exception(raised)
    else:
        call.future.set_exception(error)
