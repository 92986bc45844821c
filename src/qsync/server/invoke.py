"""How handlers are called: on the loop, in a thread or in a process, with middleware around."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from typing import Any

from qsync import codec
from qsync.errors import InvalidTask
from qsync.mux import Handler, Middleware, Mux
from qsync.server.config import Config
from qsync.server.executors import ThreadPool
from qsync.server.outcome import BadPayload
from qsync.server.processes import ProcessPool
from qsync.task import NONE_RESULT, PAYLOAD_LIMIT, Result, TaskInfo

Invoke = Callable[[TaskInfo], Awaitable[Any]]


class Invoker:
    """Makes, once for each type, the function that calls its handler."""

    def __init__(self, config: Config, mux: Mux) -> None:
        self._mux = mux
        self._middleware = config.middleware
        self._invokes: dict[str, Invoke] = {}
        self._threads = ThreadPool(config.threads or config.concurrency)
        self._config = config
        needed = any(handler.place == "process" for handler in mux.handlers)
        self._processes = ProcessPool(config.processes) if needed else None

    def find(self, type: str) -> Invoke | None:
        """What calls the handler of a type; None when there is no handler."""
        invoke = self._invokes.get(type)
        if invoke is None and (handler := self._mux.find(type)) is not None:
            invoke = self._core(handler)
            for middleware in reversed((*self._middleware, *handler.middleware)):
                invoke = _wrap(middleware, invoke)
            self._invokes[type] = invoke
        return invoke

    async def aclose(self) -> None:
        """Close the pools; what runs in a thread is left to itself."""
        await self._threads.close(0.0)
        if self._processes is not None:
            await self._processes.close(1.0)

    def _core(self, handler: Handler) -> Invoke:
        match handler.place:
            case "loop":
                return _on_loop(handler)
            case "thread":
                return _in_thread(handler, self._threads)
            case "process":
                return self._in_process(handler)

    def _in_process(self, handler: Handler) -> Invoke:
        async def invoke(info: TaskInfo) -> Any:
            if self._processes is None:
                self._processes = ProcessPool(self._config.processes)
            try:
                return await self._processes.run(handler, info, None)
            except InvalidTask as error:
                raise BadPayload(str(error)) from error

        return invoke


def _on_loop(handler: Handler) -> Invoke:
    function, arguments = handler.function, handler.arguments

    async def invoke(info: TaskInfo) -> Any:
        try:
            args, kwargs = arguments(info)
        except InvalidTask as error:
            raise BadPayload(str(error)) from error
        return await function(*args, **kwargs)

    return invoke


def _in_thread(handler: Handler, threads: ThreadPool) -> Invoke:
    function, arguments = handler.function, handler.arguments

    async def invoke(info: TaskInfo) -> Any:
        try:
            args, kwargs = arguments(info)
        except InvalidTask as error:
            raise BadPayload(str(error)) from error
        future = threads.submit(contextvars.copy_context(), function, args, kwargs)
        try:
            return await future
        except asyncio.CancelledError:
            threads.abandon(future)
            raise

    return invoke


def _wrap(middleware: Middleware, inner: Invoke) -> Invoke:
    async def invoke(info: TaskInfo) -> Any:
        def call_next(task: TaskInfo | None = None) -> Awaitable[Any]:
            return inner(info if task is None else task)

        return await middleware(info, call_next)

    return invoke


def encode_result(value: Any) -> bytes:
    """The result record for what a handler returned; one that says why when it cannot be kept."""
    if value is None:
        return NONE_RESULT
    if isinstance(value, bytes):
        record = Result(value, is_value=False)
    else:
        try:
            codec.check_depth(value)
            record = Result(codec.encode(value))
        except codec.CodecError as error:
            return codec.encode(Result(error=f"the result could not be kept: {error}"))
    if len(record.value) > PAYLOAD_LIMIT:
        text = f"the result of {len(record.value)} bytes is over the limit of {PAYLOAD_LIMIT}"
        record = Result(error=text)
    return codec.encode(record)
