"""Maps task types to handlers, with the middleware around them."""

from __future__ import annotations

import builtins
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeVar

from qsync.callbacks import NEVER_RUNS, takes, yields
from qsync.errors import ConfigError, InvalidTask, at_definition
from qsync.retry_policy import NO_RULES, DelayCallable, ErrorClasses, RetryRules, retry_rules
from qsync.running_task import running
from qsync.task import TaskInfo, check_type
from qsync.times import Duration, duration_us
from qsync.value_text import shorten

F = TypeVar("F", bound=Callable[..., Any])

Executor = Literal["loop", "thread", "process"]
"""Where a handler runs: on the event loop, in a thread of the pool, or in a process of a pool."""


class CallNext(Protocol):
    """The function by which an `async def` middleware calls the next middleware or the handler."""

    def __call__(self, task: TaskInfo | None = None) -> Awaitable[Any]:
        """Run the rest of the chain, with this task if one is passed; return its value."""


class CallNextInThread(Protocol):
    """The function by which a `def` middleware calls the next middleware or the handler."""

    def __call__(self, task: TaskInfo | None = None) -> Any:
        """Run the rest of the chain, with this task if one is passed; return its value."""


AsyncMiddleware = Callable[[TaskInfo, CallNext], Awaitable[Any]]
ThreadMiddleware = Callable[[TaskInfo, CallNextInThread], Any]

Middleware = AsyncMiddleware | ThreadMiddleware
"""A function `(task, call_next) -> value`; its value replaces the value of the handler.

An `async def` middleware runs on the event loop, around handlers of every kind. A `def` middleware
runs only around `def` handlers, in the handler's thread, e.g. to manage a database connection that
is bound to the thread.
"""

Arguments = Callable[[TaskInfo], tuple[Sequence[Any], Mapping[str, Any]]]
"""A function that returns a handler's arguments; raises InvalidTask if the task does not match."""


CarryResult = Callable[[Any], Any]
"""A function that converts a handler's value to the stored result. The function raises CodecError
if a reader would receive a different value.
"""


BATCH_SIZE: Final = 100
"""Default maximum number of tasks per call of a batch handler."""

BATCH_SIZE_LIMIT: Final = 10_000

BATCH_WAIT_S: Final = 0.5
"""Default maximum time that a batch waits for more tasks, in seconds."""

BATCH_WAIT_LIMIT_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The limits at which a batch of tasks is complete."""

    max_size: int
    max_wait_s: float


def _task_itself(task: TaskInfo) -> tuple[Sequence[Any], Mapping[str, Any]]:
    return (task,), {}


def _tasks_of_call(task: TaskInfo) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Return the tasks of the running batch; the first is the one that the middleware passed on."""
    _, *others = running.get().tasks
    return ([task, *others],), {}


@dataclass(frozen=True, slots=True)
class Handler:
    """A function that runs tasks of a type, and how to run it."""

    type: str
    function: Callable[..., Any]
    place: Executor
    middleware: tuple[Middleware, ...] = ()
    arguments: Arguments = _task_itself
    path: str = ""
    """Import path of a process handler, `module:name`; empty for other handlers."""
    carry_result: CarryResult | None = None
    rules: RetryRules = NO_RULES
    batch: BatchLimits | None = None
    """Limits of a batch handler, which takes a list of tasks; None if it takes one task."""

    @property
    def takes_task(self) -> bool:
        """Whether the function takes its task as the only argument."""
        return self.arguments is _task_itself


class Mux:
    """Maps task types to handlers.

    A handler takes a TaskInfo. An `async def` handler runs on the event loop, and a `def` handler
    runs in a thread. The handler's return value is the task's result; an exception makes the
    attempt fail.
    """

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}

    def __repr__(self) -> str:
        return f"<Mux {', '.join(sorted(self._handlers)) or 'without handlers'}>"

    def handle(
        self,
        type: str,
        *,
        executor: Literal["process"] | None = None,
        middleware: Iterable[Middleware] = (),
        retry_delay: DelayCallable | None = None,
        retry_for: ErrorClasses | None = None,
        dont_retry_for: ErrorClasses | None = None,
    ) -> Callable[[F], F]:
        """Register the decorated function as the handler of a type; return it unchanged.

        `executor="process"` runs a `def` function in a separate process, for CPU-bound work. The
        process receives only the import path and bytes, and a timeout really stops the work. Each
        process begins by importing the program. A program that starts a server itself, without
        `qsync worker`, must do so under `if __name__ == "__main__":`.

        `retry_for` limits retries to errors of these classes. After an error of a class in
        `dont_retry_for`, the task becomes dead immediately. A timeout counts as a TimeoutError.
        `retry_delay` is a `def (attempt, error)` that returns the delay before the next attempt, in
        seconds or as a timedelta; a `retry_delay` of the task takes precedence.

        Raises ConfigError if the type already has a handler, or if the function cannot be a
        handler.
        """
        _check_type(type)
        rules = retry_rules(
            retry_delay=retry_delay, retry_for=retry_for, dont_retry_for=dont_retry_for
        )

        def register(function: F) -> F:
            handler = make_handler(
                type, function, executor=executor, middleware=middleware, rules=rules
            )
            self.add(handler)
            return function

        return register

    def batch(
        self,
        type: str,
        *,
        max_size: int = BATCH_SIZE,
        max_wait: Duration = BATCH_WAIT_S,
        middleware: Iterable[Middleware] = (),
        retry_delay: DelayCallable | None = None,
        retry_for: ErrorClasses | None = None,
        dont_retry_for: ErrorClasses | None = None,
    ) -> Callable[[F], F]:
        """Register the decorated function as the batch handler of a type; return it unchanged.

        The function takes a list of TaskInfo; see `Qsync.batch` for the limits and what it may
        return. The other options work as in `handle`.

        Raises ConfigError if the type already has a handler, the function cannot be a batch
        handler, or an option is wrong.
        """
        _check_type(type, "batch")
        rules = retry_rules(
            retry_delay=retry_delay, retry_for=retry_for, dont_retry_for=dont_retry_for
        )

        def register(function: F) -> F:
            handler = make_batch_handler(
                type, function, max_size=max_size, max_wait=max_wait, middleware=middleware,
                rules=rules,
            )  # fmt: skip
            self.add(handler)
            return function

        return register

    def add(self, handler: Handler) -> None:
        """Register a handler. Raise ConfigError if another handler has the same type."""
        existing = self._handlers.setdefault(handler.type, handler)
        if existing is not handler:
            raise ConfigError(
                f"type {handler.type!r} already has a handler: {_name(existing.function)}; give "
                "one of them another type (name= of a task function)"
            )

    def include(self, other: Mux) -> None:
        """Register all handlers of another mux. Raise ConfigError if a type has another handler."""
        for handler in check_mux(other)._handlers.values():
            self.add(handler)

    def find(self, type: str) -> Handler | None:
        """Return the handler of a type, or None."""
        return self._handlers.get(type)

    @property
    def handlers(self) -> tuple[Handler, ...]:
        """All handlers."""
        return tuple(self._handlers.values())

    @property
    def types(self) -> tuple[str, ...]:
        """The types that have a handler, sorted."""
        return tuple(sorted(self._handlers))


def make_handler(
    type: str,
    function: Callable[..., Any],
    *,
    executor: Literal["process"] | None = None,
    middleware: Iterable[Middleware] = (),
    arguments: Arguments = _task_itself,
    carry_result: CarryResult | None = None,
    rules: RetryRules = NO_RULES,
) -> Handler:
    """Return a Handler for a function. Raise ConfigError if the function cannot be a handler."""
    _check_type(type)
    if why := _handler_problem(function, takes_task=arguments is _task_itself):
        raise ConfigError(f"handler of {type!r}: {shorten(function)} {why}")
    around = check_middlewares(middleware)
    place: Executor = "loop" if _is_async(function) else "thread"
    if (executor or place) != "thread" and any(map(in_thread, around)):
        msg = f"handler of {type!r}: a `def` middleware works only with `def` handlers in threads"
        raise ConfigError(f"{msg}; make it `async def`")
    if executor is None:
        return Handler(type, function, place, around, arguments, "", carry_result, rules)
    if executor != "process":
        raise ConfigError(f"executor: {shorten(executor)} is neither None nor 'process'")
    path = _import_path(type, function)
    return Handler(type, function, "process", around, arguments, path, carry_result, rules)


def make_batch_handler(
    type: str,
    function: Callable[..., Any],
    *,
    max_size: int = BATCH_SIZE,
    max_wait: Duration = BATCH_WAIT_S,
    middleware: Iterable[Middleware] = (),
    rules: RetryRules = NO_RULES,
) -> Handler:
    """Return a Handler for a function that takes a list of tasks, or raise ConfigError."""
    _check_type(type)
    if builtins.type(max_size) is not int or not 1 <= max_size <= BATCH_SIZE_LIMIT:
        msg = f"max_size: {shorten(max_size)} is not a whole number from 1 to {BATCH_SIZE_LIMIT}"
        raise ConfigError(msg)
    with at_definition():
        wait_us = duration_us("max_wait", max_wait, maximum=BATCH_WAIT_LIMIT_S)
    why = _handler_problem(function, takes_task=False)
    if why is None and not takes(function, 1):
        why = "cannot be called with a list of tasks alone; a batch handler is `def (tasks)`"
    if why is not None:
        raise ConfigError(f"batch handler of {type!r}: {shorten(function)} {why}")
    around = check_middlewares(middleware)
    place: Executor = "loop" if _is_async(function) else "thread"
    if place != "thread" and any(map(in_thread, around)):
        msg = f"batch handler of {type!r}: a `def` middleware works only with `def` handlers"
        raise ConfigError(f"{msg}; make it `async def`")
    return Handler(
        type, function, place, around, _tasks_of_call, rules=rules,
        batch=BatchLimits(max_size, wait_us / 1_000_000),
    )  # fmt: skip


def in_thread(middleware: Middleware) -> bool:
    """Return whether a middleware is a plain `def`, which runs in the threads of `def` handlers."""
    return not _is_async(middleware)


def check_mux(mux: object) -> Mux:
    """Check and return the mux. Raise ConfigError if it is not a Mux."""
    if not isinstance(mux, Mux):
        raise ConfigError(f"mux: {shorten(mux)} is not a Mux")
    return mux


def check_middlewares(middleware: object) -> tuple[Middleware, ...]:
    """Return the middleware as a tuple. Raise ConfigError unless each takes `(task, call_next)`."""
    if not isinstance(middleware, Iterable):
        msg = f"middleware: {shorten(middleware)} is not a list of `async def (task, call_next)`"
        raise ConfigError(msg)
    around = tuple(middleware)
    for inner in around:
        if yields(inner):
            raise ConfigError(
                f"middleware: {shorten(inner)} {NEVER_RUNS}: return the value of `call_next()`, "
                "without `yield`"
            )
        if not takes(inner, 2):
            raise ConfigError(
                f"middleware: {shorten(inner)} is neither `def (task, call_next)`, for handlers in "
                "threads, nor `async def (task, call_next)`"
            )
    return around


def _check_type(type: object, decorator: str = "handle") -> None:
    try:
        check_type(type)
    except InvalidTask as error:
        raise ConfigError(f'{error}; e.g. @mux.{decorator}("reindex-file")') from None


def _handler_problem(function: object, *, takes_task: bool) -> str | None:
    """Return why the function cannot be a handler; None if it can."""
    if not callable(function):
        return "is not callable"
    if inspect.isclass(function):
        return "is a class; pass an instance of it, or a function"
    if yields(function):
        return NEVER_RUNS
    if takes_task and not takes(function, 1):
        return "cannot be called with the task alone; a handler is `def (task)`"
    return None


def _is_async(function: Callable[..., Any]) -> bool:
    while hasattr(function, "func") and not inspect.isfunction(function):
        function = function.func  # a functools.partial
    called = function if inspect.isroutine(function) else type(function).__call__
    return inspect.iscoroutinefunction(called)


def _import_path(type: str, function: Callable[..., Any]) -> str:
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", "<no name>")
    if _is_async(function):
        msg = f"handler of {type!r}: executor='process' takes a plain def, not an async one"
        raise ConfigError(msg)
    if module in (None, "__main__") or "<" in name:
        raise ConfigError(
            f"handler of {type!r}: executor='process' needs a function that a fresh process can "
            f"import by name; {module}:{name} is not one"
        )
    return f"{module}:{name}"


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", None) or type(function).__qualname__
