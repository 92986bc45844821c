"""Which handler runs which type of task, and the middleware around it."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from qsync.errors import ConfigError, InvalidTask
from qsync.keys import shorten
from qsync.retry_policy import NO_RULES, DelayCallable, ErrorClasses, RetryRules, retry_rules
from qsync.task import TaskInfo, check_type

F = TypeVar("F", bound=Callable[..., Any])

Executor = Literal["loop", "thread", "process"]
"""Where a handler runs: on the event loop, in a thread of the pool, in a process of its own."""


class CallNext(Protocol):
    """What a middleware calls to go on: the next one, or the handler itself."""

    def __call__(self, task: TaskInfo | None = None) -> Awaitable[Any]:
        """Go on with the task given, or with the same one when none is."""


class CallNextInThread(Protocol):
    """What a `def` middleware calls to go on; it returns the handler's value."""

    def __call__(self, task: TaskInfo | None = None) -> Any:
        """Go on with the task given, or with the same one when none is."""


AsyncMiddleware = Callable[[TaskInfo, CallNext], Awaitable[Any]]
ThreadMiddleware = Callable[[TaskInfo, CallNextInThread], Any]

Middleware = AsyncMiddleware | ThreadMiddleware
"""`(task, call_next) -> value`: what it returns takes the place of the handler's value.

An `async def` one goes around every handler, on the event loop. A `def` one goes around `def`
handlers alone, in the thread of each: a database connection belongs to its thread.
"""

Arguments = Callable[[TaskInfo], tuple[Sequence[Any], Mapping[str, Any]]]
"""How the arguments of a handler are made from its task; InvalidTask when they do not fit."""


CarryResult = Callable[[Any], Any]
"""Makes of what a handler returned what is kept; CodecError when it would be read as another."""


def _task_itself(task: TaskInfo) -> tuple[Sequence[Any], Mapping[str, Any]]:
    return (task,), {}


@dataclass(frozen=True, slots=True)
class Handler:
    """A function with what is known of how to run it."""

    type: str
    function: Callable[..., Any]
    place: Executor
    middleware: tuple[Middleware, ...] = ()
    arguments: Arguments = _task_itself
    path: str = ""
    """Of a process handler: `module:name`, where a fresh process finds it."""
    carry_result: CarryResult | None = None
    rules: RetryRules = NO_RULES


class Mux:
    """Maps types of tasks to handlers.

    A handler takes a TaskInfo and may be `async def` (it runs on the event loop) or `def` (it runs
    in a thread). What it returns is the task's result, an exception is a failed attempt.
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
        """Register the decorated function for a type; the function itself stays as it is.

        `executor="process"` runs a plain function in a process of its own, for work that needs the
        CPU; only its import path and bytes go there, and a timeout really ends it. A program that
        runs a server itself, rather than by `qsync worker`, needs `if __name__ == "__main__":`
        around it then: each process begins by importing the program.

        Only errors of the classes in `retry_for` are followed by another attempt, and none of those
        in `dont_retry_for`: the task is dead at once. A timeout is a TimeoutError. `retry_delay` is
        `def (attempt, error)` and gives the seconds until the next attempt, unless the task itself
        says it.
        Raises ConfigError when the type has a handler, or the function cannot be one.
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

    def add(self, handler: Handler) -> None:
        """Register a handler; ConfigError when its type has one."""
        known = self._handlers.setdefault(handler.type, handler)
        if known is not handler:
            msg = f"type {handler.type!r} has a handler already: {_name(known.function)}"
            raise ConfigError(msg)

    def include(self, other: Mux) -> None:
        """Register all handlers of another mux here too."""
        for handler in check_mux(other)._handlers.values():
            self.add(handler)

    def find(self, type: str) -> Handler | None:
        """The handler of a type, or None."""
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
    """Check a function and say where it runs; ConfigError when it cannot be a handler."""
    _check_type(type)
    if why := _unfit(function, takes_task=arguments is _task_itself):
        msg = f"handler of {type!r}: {shorten(function)} {why}"
        raise ConfigError(msg)
    around = check_middlewares(middleware)
    place: Executor = "loop" if _is_async(function) else "thread"
    if (executor or place) != "thread" and any(map(in_thread, around)):
        msg = f"handler of {type!r}: a `def` middleware is for `def` handlers in threads alone"
        raise ConfigError(f"{msg}; make it `async def`")
    if executor is None:
        return Handler(type, function, place, around, arguments, "", carry_result, rules)
    if executor != "process":
        msg = f"executor: {shorten(executor)} is neither None nor 'process'"
        raise ConfigError(msg)
    path = _import_path(type, function)
    return Handler(type, function, "process", around, arguments, path, carry_result, rules)


def in_thread(middleware: Middleware) -> bool:
    """Whether it is a `def` one, which goes around `def` handlers in their thread."""
    return not _is_async(middleware)


def check_mux(mux: object) -> Mux:
    """Return the mux, or raise ConfigError."""
    if not isinstance(mux, Mux):
        msg = f"mux: {shorten(mux)} is not a Mux"
        raise ConfigError(msg)
    return mux


def check_middlewares(middleware: object) -> tuple[Middleware, ...]:
    """Return them as a tuple; ConfigError unless they are functions that take two things."""
    if not isinstance(middleware, Iterable):
        msg = f"middleware: {shorten(middleware)} is not a list of `async def (task, call_next)`"
        raise ConfigError(msg)
    around = tuple(middleware)
    for one in around:
        if not callable(one) or not _takes(one, 2):
            msg = (
                f"middleware: {shorten(one)} is neither `def (task, call_next)`, for handlers in "
                "threads, nor `async def (task, call_next)`"
            )
            raise ConfigError(msg)
    return around


def _check_type(type: object) -> None:
    try:
        check_type(type)
    except InvalidTask as error:
        raise ConfigError(f'{error}; @mux.handle("reindex-file") say') from None


def _unfit(function: object, *, takes_task: bool) -> str | None:
    """Why it cannot be a handler."""
    if not callable(function):
        return "is not callable"
    if inspect.isclass(function):
        return "is a class; give an instance of it, or a function"
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        return "is a generator, whose body nobody would run"
    if takes_task and not _takes(function, 1):
        return "cannot be called with the task alone; a handler is `def (task)`"
    return None


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Whether it can be called with so many arguments, as far as its signature tells."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a builtin, say
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


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
        msg = (
            f"handler of {type!r}: executor='process' needs a function that a fresh process can "
            f"import by name; {module}:{name} is not one"
        )
        raise ConfigError(msg)
    return f"{module}:{name}"


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", None) or type(function).__qualname__
