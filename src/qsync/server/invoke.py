"""Calls handlers on the event loop, in a thread or in a process, with middleware around them."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import math
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from qsync import codec
from qsync.errors import InvalidTask
from qsync.message import NONE_VALUE, Result
from qsync.mux import (
    AsyncMiddleware,
    BatchLimits,
    CarryResult,
    Executor,
    Handler,
    Middleware,
    Mux,
    ThreadMiddleware,
    in_thread,
)
from qsync.retry_policy import NO_RULES, RetryRules
from qsync.server.batch_outcomes import outcomes_of_call
from qsync.server.child_context import ChildSetup
from qsync.server.config import Config
from qsync.server.current import running
from qsync.server.error_text import BadPayload, ResultNotKept
from qsync.server.handler_context import HandlerContext
from qsync.server.outcome import timed_out
from qsync.server.process_pool import ProcessPool
from qsync.server.process_pool_member import HandlerError
from qsync.server.queue_state import Claim, LeasedTask
from qsync.server.stopping import HungHandlers
from qsync.server.thread_pool import ThreadPool, Threads
from qsync.task import PAYLOAD_LIMIT, TaskInfo

Invoke = Callable[[TaskInfo, float | None], Awaitable[Any]]
"""Calls a handler with a task and a timeout in seconds; the timeout is ignored unless
`enforces_timeout`."""

Submit = Callable[[TaskInfo, contextvars.Context, Claim | None], "asyncio.Future[Any]"]
"""Starts a handler in a thread, within the context, once the claim permits the start; returns a
future for the handler's result."""


@dataclass(slots=True)
class BoundHandler:
    """A task type's handler, ready to be called where it must run."""

    invoke: Invoke
    enforces_timeout: bool
    """True if `invoke` applies the timeout itself.

    A process handler's `invoke` does, because the timeout begins when the process is ready, which
    only the pool knows.
    """
    carry_result: CarryResult | None = None
    """Converter for a stored result; None if none is needed or the handler's process converts
    it."""
    rules: RetryRules = NO_RULES
    direct: Callable[[TaskInfo], Awaitable[Any]] | None = None
    """The handler itself, if it takes only the task and has no middleware around it."""
    submit: Submit | None = None
    """Function that starts the handler in a thread; None if it or a middleware runs elsewhere."""
    suspended_recently: int = 0
    """Number of runs that will still start in a separate asyncio task, because a recent run of the
    handler awaited something."""


@dataclass(slots=True)
class BoundBatch:
    """A task type's batch handler, ready to be called where it must run."""

    limits: BatchLimits
    together: BoundHandler
    """Runs a list of tasks in one call, and returns the handler's return value."""
    alone: BoundHandler
    """Runs one task, and returns its result."""


class Invoker:
    """Builds the function that calls the handler of a type, once for each type."""

    def __init__(
        self,
        config: Config,
        mux: Mux,
        hung: HungHandlers | None = None,
        threads: Threads | None = None,
        setup: ChildSetup | None = None,
    ) -> None:
        self._mux = mux
        self._middleware = config.middleware
        self.bound: dict[str, BoundHandler] = {}
        """The handlers that `find` has returned so far, by type."""
        self._batches: dict[str, BoundBatch] = {}
        self.threads: Threads = threads or ThreadPool(config.thread_count, hung)
        self._config = config
        self._setup = setup
        needed = any(handler.place == "process" for handler in mux.handlers)
        self._processes = ProcessPool(config.processes, setup) if needed else None

    def types(self) -> Sequence[str]:
        """Return the types that have a handler."""
        return self._mux.types

    def add_outer_middleware(self, middleware: AsyncMiddleware) -> None:
        """Add a middleware outside all others. Call this method before the first task runs."""
        self._middleware = (middleware, *self._middleware)

    def find(self, type: str) -> BoundHandler | None:
        """Return the bound handler of a type; None if there is none or it is a batch handler."""
        way = self.bound.get(type)
        if way is None and (handler := self._mux.find(type)) is not None and handler.batch is None:
            apart = handler.place == "process"
            carry_result = None if apart else handler.carry_result
            invoke = self._chain(handler)
            around = (*self._middleware, *handler.middleware)
            bare = handler.place == "loop" and handler.takes_task and not around
            direct = handler.function if bare else None
            threaded = handler.place == "thread" and all(map(in_thread, around))
            submit = _submitter(handler, self.threads, around) if threaded else None
            way = BoundHandler(invoke, apart, carry_result, handler.rules, direct, submit)
            self.bound[type] = way
        return way

    def find_batch(self, type: str) -> BoundBatch | None:
        """Return the bound batch handler of a type; None if there is none."""
        batch = self._batches.get(type)
        if batch is None and (handler := self._mux.find(type)) is not None and handler.batch:
            together = BoundHandler(self._chain(handler), False, None, handler.rules)
            batch = self._batches[type] = BoundBatch(
                handler.batch, together, replace(together, invoke=_one_by_one(together.invoke))
            )
        return batch

    def find_alone(self, type: str) -> BoundHandler | None:
        """Return the handler that runs one task of a type; None if there is none."""
        batch = self.find_batch(type)
        return self.find(type) if batch is None else batch.alone

    def rules_of(self, type: str) -> RetryRules:
        """Return the retry rules of a type's handler."""
        handler = self._mux.find(type)
        return NO_RULES if handler is None else handler.rules

    def _chain(self, handler: Handler) -> Invoke:
        """Return a function that calls the handler with the middleware around it."""
        invoke = self._core(handler)
        for middleware in reversed((*self._middleware, *handler.middleware)):
            if not in_thread(middleware):
                invoke = _wrap(cast("AsyncMiddleware", middleware), invoke)
        return invoke

    async def call_beside(self, type: str, hook: Callable[..., Any], *args: Any) -> Any:
        """Call a hook of a type: in a thread if it is a `def` hook of a thread handler, else on the
        event loop."""
        handler = self._mux.find(type)
        if handler is None or handler.place != "thread" or inspect.iscoroutinefunction(hook):
            return hook(*args)
        try:
            called = self.threads.submit(contextvars.copy_context(), _try, (hook, args), {})
        except RuntimeError:  # the server has closed the pool
            return hook(*args)
        answer, error = await called
        if error is not None:
            raise error
        return answer

    def place_of(self, type: str) -> Executor:
        """Return where the handler of a type runs; "loop" for a type without a handler."""
        handler = self._mux.find(type)
        return "loop" if handler is None else handler.place

    def room_in(self, places: Container[Executor]) -> float:
        """Return how many more tasks can begin at once in any of these places; infinity if there is
        only the event loop."""
        room = math.inf
        if "thread" in places:
            room = self.threads.room
        if "process" in places and self._processes is not None:
            room = min(room, self._processes.room)
        return room

    async def process_stack(self, leased: LeasedTask) -> str:
        """Return the stack of a handler in another process; empty if the process does not
        answer."""
        return "" if self._processes is None else await self._processes.stack(leased)

    async def aclose(self) -> None:
        """Close the pools; handlers that run in threads are not stopped."""
        await self.threads.close(0.0)
        if self._processes is not None:
            await self._processes.close(1.0)

    def _core(self, handler: Handler) -> Invoke:
        match handler.place:
            case "loop":
                return _on_loop(handler)
            case "thread":
                around = (*self._middleware, *handler.middleware)
                return _in_thread(_submitter(handler, self.threads, around), self.threads)
            case "process":
                return self._in_process(handler)

    def _in_process(self, handler: Handler) -> Invoke:
        async def invoke(info: TaskInfo, limit: float | None) -> Any:
            if self._processes is None:
                self._processes = ProcessPool(self._config.processes, self._setup)
            try:
                return await self._processes.run(handler, info, limit, _claim())
            except InvalidTask as error:
                raise BadPayload(str(error)) from error
            except TimeoutError:
                raise timed_out(limit) from None
            except HandlerError as error:
                if error.original is None:
                    raise
                raise error.original from None

        return invoke


def _on_loop(handler: Handler) -> Invoke:
    function, arguments = handler.function, handler.arguments

    def invoke(info: TaskInfo, limit: float | None) -> Awaitable[Any]:
        try:
            args, kwargs = arguments(info)
        except InvalidTask as error:
            raise BadPayload(str(error)) from error
        coroutine: Awaitable[Any] = function(*args, **kwargs)
        return coroutine

    return invoke


def _submitter(handler: Handler, threads: Threads, around: Sequence[Middleware]) -> Submit:
    """Return a function that starts a handler in a thread, inside the `def` middleware of
    `around`."""
    in_its_thread = [*filter(in_thread, around)]
    if not in_its_thread:

        def submit(
            info: TaskInfo, context: contextvars.Context, claim: Claim | None
        ) -> asyncio.Future[Any]:
            args, kwargs = context.run(_arguments, handler, info)
            return threads.submit(context, handler.function, args, kwargs, claim)

        return submit

    call: Callable[[TaskInfo], Any] = partial(_call_in_thread, handler)
    for middleware in reversed(in_its_thread):
        call = partial(_around_call, middleware, call)

    def submit_call(
        info: TaskInfo, context: contextvars.Context, claim: Claim | None
    ) -> asyncio.Future[Any]:
        return threads.submit(context, call, (info,), {}, claim)

    return submit_call


def _in_thread(submit: Submit, threads: Threads) -> Invoke:
    async def invoke(info: TaskInfo, limit: float | None) -> Any:
        future = submit(info, contextvars.copy_context(), _claim())
        try:
            return await future
        except asyncio.CancelledError:
            threads.abandon(future)
            raise

    return invoke


def _arguments(handler: Handler, info: TaskInfo) -> tuple[Sequence[Any], Mapping[str, Any]]:
    try:
        return handler.arguments(info)
    except InvalidTask as error:
        raise BadPayload(str(error)) from error


def _call_in_thread(handler: Handler, info: TaskInfo) -> Any:
    args, kwargs = _arguments(handler, info)
    return handler.function(*args, **kwargs)


def _around_call(
    middleware: ThreadMiddleware, inner: Callable[[TaskInfo], Any], info: TaskInfo
) -> Any:
    def call_next(task: TaskInfo | None = None) -> Any:
        return inner(info if task is None else task)

    return middleware(info, call_next)


def _try(hook: Callable[..., Any], args: Sequence[Any]) -> tuple[Any, BaseException | None]:
    """Return what the hook returns and None, or None and what the hook raises.

    A GeneratorExit in a future would close all coroutines that await the future.
    """
    try:
        return hook(*args), None
    except BaseException as error:
        return None, error


def _claim() -> Claim | None:
    """Mark the current task as waiting and return its claim; return None if no server runs the
    current code."""
    current = running.get(None)
    if not isinstance(current, HandlerContext):
        return None
    current.wait()
    return current


def _one_by_one(invoke: Invoke) -> Invoke:
    """Return a function that calls a batch handler with one task, and returns or raises the task's
    outcome."""

    async def alone(info: TaskInfo, limit: float | None) -> Any:
        [value] = outcomes_of_call(await invoke(info, limit), 1)
        if isinstance(value, BaseException):
            raise value
        return value

    return alone


def _wrap(middleware: AsyncMiddleware, inner: Invoke) -> Invoke:
    async def invoke(info: TaskInfo, limit: float | None) -> Any:
        def call_next(task: TaskInfo | None = None) -> Awaitable[Any]:
            return inner(info if task is None else task, limit)

        return await middleware(info, call_next)

    return invoke


def encode_result(
    value: Any,
    carry: CarryResult | None = None,
    limit: int = PAYLOAD_LIMIT,
    *,
    begun_us: int = 0,
) -> bytes:
    """Encode a handler's return value as a result record; raise ResultNotKept if it cannot be
    encoded or exceeds `limit` bytes."""
    if value is None:
        return codec.encode(Result(NONE_VALUE, begun_us=begun_us))
    if type(value) is bytes:
        record = Result(value, is_value=False, begun_us=begun_us)
    else:
        try:
            if carry is None:
                data = codec.encode_value(value)
            else:
                data = codec.encode_natural(carry(value))
            record = Result(data, begun_us=begun_us)
        except codec.CodecError as error:
            raise ResultNotKept(f"the result could not be stored: {error}") from None
    if len(record.value) > limit:
        size = len(record.value)
        raise ResultNotKept(
            f"the result of {size} bytes exceeds the limit of {limit} (result_limit): return less, "
            "store it elsewhere, or raise the limit"
        )
    return codec.encode(record)
