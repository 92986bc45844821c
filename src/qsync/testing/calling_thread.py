"""Runs coroutines on an event loop in a thread, and `def` handlers in the thread that waits for
them.

A plain test and its handlers therefore share what belongs to a thread, such as the transaction of a
database connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextvars import Context
from functools import cache, partial
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from qsync.server.queue_state import Claim, HandlerNotStarted

T = TypeVar("T")

Call = Callable[[], None]

STOP_S: Final = 10.0
"""Maximum time to wait for a cancelled coroutine to end, in seconds."""


class CallingThread:
    """Runs `def` handlers in the thread that waits for a coroutine.

    Replaces a server's ThreadPool, and runs one handler after another.
    """

    room: Final = 1_000_000
    """Number of further calls that are accepted at once."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Call | None] = SimpleQueue()

    def submit(
        self,
        context: Context,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        claim: Claim | None = None,
    ) -> asyncio.Future[Any]:
        """Pass the function to the waiting thread, which calls it; return a future of its
        result."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def call() -> None:
            try:
                if claim is not None and not claim.may_begin():
                    raise HandlerNotStarted
                settle = partial(_set_result, future, context.run(function, *args, **kwargs))
            except BaseException as error:
                settle = partial(_set_error, future, error)
            loop.call_soon_threadsafe(settle)

        self._calls.put(call)
        return future

    def abandon(self, future: asyncio.Future[Any]) -> bool:
        """Cancel the future of a call; a function that has already started continues."""
        return future.cancel()

    def take_back(self, waited_s: float) -> None:
        """Do nothing, because the waiting thread runs all calls."""

    async def close(self, timeout: float) -> bool:  # noqa: ASYNC109 - as ThreadPool.close
        """Do nothing, since the thread does not belong to a pool."""
        return True

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run the coroutine on the session's event loop, and submitted calls in this thread; return
        the coroutine's value."""
        done = run_on_loop(self._ended(coroutine))
        try:
            while (call := self._calls.get()) is not None:
                call()
        except BaseException:  # e.g. KeyboardInterrupt, or the time limit of a test
            done.cancel()
            with contextlib.suppress(Empty):
                while self._calls.get(timeout=STOP_S) is not None:
                    pass
            raise
        return done.result()

    async def _ended(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            return await coroutine
        finally:
            self._calls.put(None)


def _set_result(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _set_error(future: asyncio.Future[Any], error: BaseException) -> None:
    if future.done():
        return
    if isinstance(error, StopIteration):
        raised = RuntimeError("the handler raised StopIteration")
        raised.__cause__ = error
        error = raised
    future.set_exception(error)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """Return an event loop that runs in a thread until the process ends."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="qsync-test-loop", daemon=True).start()
    return loop


def run_on_loop(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """Run a coroutine on that loop; return a future of its value."""
    return asyncio.run_coroutine_threadsafe(coroutine, _loop())
