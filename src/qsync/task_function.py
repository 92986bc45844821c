"""Task functions, which `@app.task` creates.

Producers and servers must agree on the name of a task. The default is the function's module and
qualified name. A module that runs as a program is `__main__` in that process, but has its own name
in a server that imports it. A function in `__main__` therefore gets the module name that was passed
to `python -m`, or else the name of the file and of its packages: `folder.tasks` for
`folder/tasks.py` next to `folder/__init__.py`. A function that is defined in an interactive session
needs an explicit name.
"""

from __future__ import annotations

import copy
import functools
import inspect
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from types import CoroutineType
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypedDict,
    TypeVar,
    Unpack,
    cast,
    overload,
)

from qsync.backoff import ExponentialBackoff, RetryPolicy
from qsync.callbacks import NEVER_RUNS, yields
from qsync.client import AsyncHandle, Handle
from qsync.connections import Connections
from qsync.declared_limits import DeclaredLimits
from qsync.errors import ConfigError, InvalidTask
from qsync.limit import LimitTemplates
from qsync.loop_internals import running_loop
from qsync.mux import Handler, Middleware, make_handler
from qsync.retry_policy import ErrorClasses, retry_rules
from qsync.server.current import running
from qsync.server.standalone_context import awaited_within, ensure_context
from qsync.signature import Signature
from qsync.suggestions import no_attribute, no_option
from qsync.task import Task, TaskInfo
from qsync.times import Duration
from qsync.uniqueness import OnDuplicate
from qsync.value_text import shorten

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
V = TypeVar("V")


class TaskOptions(TypedDict, total=False):
    """The options that `@app.task` and `.options()` accept; see `Task`."""

    queue: str
    id: str | None
    retry: int
    retry_delay: RetryPolicy
    delay: Duration | None
    process_at: datetime | None
    timeout: Duration | None
    deadline: datetime | None
    unique: bool | Duration | None
    unique_key: str | None
    on_duplicate: OnDuplicate | None
    debounce: Duration | None
    debounce_max: Duration | None
    priority: int
    retention: Duration | None
    fairness_key: str | None
    headers: Mapping[str, str] | None
    limits: list[str] | tuple[str, ...] | None


HANDLER_OPTIONS: Final = ("executor", "middleware", "retry_for", "dont_retry_for")
"""Options of `@app.task` that stay with the handler; `.options()` does not accept them."""

PERIODIC: Final = ("cron", "every", "tz", "missed", "arguments")
"""Options of `@app.periodic` in addition to those of `@app.task`."""


class TaskFunction(Generic[P, R, Q, V]):
    """A function that can be enqueued as a task, and called like any function.

    Q are the parameters of the function, and P those that a producer passes, i.e. all but TaskInfo.
    R is the type of `Handle.result()`; V is the type of a call: R, or a coroutine that returns R.
    """

    __name__: str
    __wrapped__: Callable[Q, V]

    def __init__(
        self,
        function: Callable[Q, V],
        connections: Connections,
        *,
        declared: DeclaredLimits,
        name: str | None = None,
        executor: Literal["process"] | None = None,
        middleware: Iterable[Middleware] = (),
        retry_for: ErrorClasses | None = None,
        dont_retry_for: ErrorClasses | None = None,
        options: TaskOptions,
    ) -> None:
        check_function(function)
        stored = options.copy()
        delay = options.get("retry_delay")
        if callable(delay) and not isinstance(delay, ExponentialBackoff):
            del stored["retry_delay"]  # a callable cannot be stored with the task
        else:
            delay = None
        functools.update_wrapper(self, function)
        self._function = function
        self._connections = connections
        self.name: Final = task_name(function) if name is None else name
        """Type of the tasks."""
        self._signature = Signature(self.name, function)
        self.handler: Final[Handler] = make_handler(
            self.name,
            function,
            executor=executor,
            middleware=middleware,
            arguments=self._signature.arguments,
            carry_result=self._signature.carried_result,
            rules=retry_rules(
                retry_delay=delay, retry_for=retry_for, dont_retry_for=dont_retry_for
            ),
        )
        """Handler that servers run."""
        if executor == "process":
            # A new process imports the name, which may refer to this object or to the bare
            # function, so both need the handler.
            function.handler = self.handler  # type: ignore[attr-defined]
        self._declared = declared
        self._options: TaskOptions = {}
        self.limits: LimitTemplates = LimitTemplates((), ())
        self._override(stored)

    def __repr__(self) -> str:
        return f"<task {self.name}>"

    if not TYPE_CHECKING:  # hidden from type checkers, which would accept any attribute

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(no_attribute(self.__dict__.get("name", ""), name))

    def __call__(self, /, *args: Q.args, **kwargs: Q.kwargs) -> V:
        """Call the function in this process; nothing is enqueued.

        Outside of a handler, `current()` returns a plain context, which has no state and no client,
        and ignores progress. `qsync.testing.context` provides a context with a state and a client.
        """
        context = ensure_context(self.name)
        if context is None:
            return self._function(*args, **kwargs)
        token = running.set(context)
        try:
            value = self._function(*args, **kwargs)
        finally:
            running.reset(token)
        if isinstance(value, CoroutineType):
            within: Any = awaited_within(context, value)
            within.__name__ = self.__name__  # for error messages about the coroutine
            return cast("V", within)
        return value

    def options(self, /, **options: Unpack[TaskOptions]) -> TaskFunction[P, R, Q, V]:
        """Return the same task with other options; `delay` and `process_at` replace each other, and
        `headers` all headers. Raise InvalidTask for a wrong option or an undeclared limit."""
        copied = copy.copy(self)
        copied._options = self._options.copy()
        copied._override(options)
        if "limits" in options:
            self._declared.check_names(self.name, copied.limits.names)
        self._declared.check_queue(self.name, copied._options.get("queue"), copied.limits.names)
        return copied

    def build(self, /, *args: P.args, **kwargs: P.kwargs) -> Task[R]:
        """Return a Task for these arguments, e.g. for `client.enqueue_many`.

        Raises InvalidTask if the arguments do not match the parameters, or if msgpack cannot encode
        a value. With `unique=`, sets and dicts are sorted, so that equal arguments make the same
        task.
        """
        options = self._options
        sort = bool(options.get("unique")) and options.get("unique_key") is None
        payload = self._signature.bind(args, kwargs, sort=sort)
        payload.decode = self._signature.result_of
        if not self.limits.names:
            return Task(self.name, payload, **self._task_options)
        limits = self.limits.fill(self._signature.named(args, kwargs))
        return Task(self.name, payload, **{**self._task_options, "limits": limits})

    def enqueue(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, AsyncHandle[R]]:
        """Enqueue a task for these arguments when awaited, and return its AsyncHandle.

        The call itself checks and encodes the arguments. The call raises InvalidTask as `build`
        does, and ConfigError if no event loop is running in this thread (use `enqueue_sync`).
        Awaiting the coroutine raises what `AsyncClient.enqueue` raises, e.g. DuplicateTask and
        StoreUnavailable.
        """
        need_loop(self.name)
        return self._enqueue(self.build(*args, **kwargs))

    async def _enqueue(self, task: Task[R]) -> AsyncHandle[R]:
        return await self._connections.aenqueue(task)

    def enqueue_sync(self, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Enqueue a task for these arguments, and return its Handle; the call blocks.

        Raises InvalidTask as `build` does, ConfigError if an event loop is running in this thread
        (use `await enqueue()`), and whatever `Client.enqueue` raises, e.g. DuplicateTask and
        StoreUnavailable.
        """
        need_no_loop(self.name)
        return self._connections.enqueue(self.build(*args, **kwargs))

    @property
    def required(self) -> list[str]:
        """Names of the parameters that have no default and must be passed, except TaskInfo."""
        return self._signature.required

    @property
    def defaults(self) -> TaskOptions:
        """The options that were passed to `@app.task` and `.options()`."""
        return self._options.copy()

    @property
    def _task_options(self) -> dict[str, Any]:
        return cast("dict[str, Any]", self._options)

    def _override(self, options: TaskOptions) -> None:
        self._options = overridden(self.name, self._options, options)
        if "limits" in options:
            self.limits = LimitTemplates(options["limits"] or (), self._signature.single)


def overridden(name: str, known: TaskOptions, options: TaskOptions) -> TaskOptions:
    """Return a task's `known` options, overridden by `options`.

    Raise InvalidTask if an option is wrong.

    `delay` replaces `process_at`, and `process_at` replaces `delay`.
    """
    for option in options:
        if option in HANDLER_OPTIONS:
            msg = f"task {name!r}: {option} is fixed; set it with @app.task({option}=...)"
            raise InvalidTask(msg)
        if option not in TaskOptions.__annotations__:
            raise no_option(f"task {name!r}", option, TaskOptions.__annotations__)
    both = known.copy()
    if options.get("delay") is not None:
        both.pop("process_at", None)
    if options.get("process_at") is not None:
        both.pop("delay", None)
    both |= options
    Task(name, **cast("dict[str, Any]", both))  # checks them
    return both


def need_loop(name: str) -> None:
    """Raise ConfigError unless an event loop runs in this thread, which `enqueue` needs."""
    if running_loop() is None:
        raise ConfigError(
            f"task {name!r}: enqueue() needs a running asyncio event loop, and there is none in "
            "this thread; use enqueue_sync(), or await enqueue() in an async function"
        )


def need_no_loop(name: str) -> None:
    """Raise ConfigError if an event loop runs in this thread, which `enqueue_sync` would block."""
    if running_loop() is None:
        return
    raise ConfigError(
        f"task {name!r}: enqueue_sync() would block the event loop that runs in this "
        "thread; use await enqueue()"
    )


def check_options(where: str, settings: Mapping[str, Any], *others: str) -> None:
    """Raise InvalidTask unless all settings are options of a task or of its handler.

    `others` are further options that the caller accepts; the message also names them.
    """
    for option in settings:
        if option not in HANDLER_OPTIONS and option not in TaskOptions.__annotations__:
            names = [*others, *HANDLER_OPTIONS, *TaskOptions.__annotations__]
            raise no_option(where, option, names)


def task_name(function: Callable[..., Any]) -> str:
    """Return the default name of a function's task.

    Raises ConfigError if no server could import the function.
    """
    module: str | None = function.__module__
    if module in ("__main__", "__mp_main__"):
        module = _main_name(getattr(inspect.unwrap(function), "__globals__", {}))
    if module is None or module == "__main__":
        raise ConfigError(
            f"name: {function.__qualname__} is not in a module that a server could import"
            f"{_FROM_INPUT if sys.argv[0] not in ('-c', '-m') else ''}; give it a name, "
            "@app.task(name=...)"
        )
    return f"{module}.{function.__qualname__.replace('<locals>.', '')}"


def _main_name(module: Mapping[str, Any]) -> str | None:
    """Return the name by which the main module would be imported; None when it has no file."""
    spec, file = module.get("__spec__"), module.get("__file__")
    if spec is not None and spec.name not in ("__main__", "__mp_main__"):
        return str(spec.name)
    if file is None or file.startswith(("<", "/dev/", "/proc/")):  # standard input
        return None
    path = Path(file).absolute()
    parts, folder = [path.stem], path.parent
    while (folder / "__init__.py").exists():
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts)


def check_function(function: Any, where: str = "task") -> None:
    """Raise ConfigError unless the function is a plain function that a server can call."""
    if isinstance(function, TaskFunction):
        problem = "is a task already"
    elif inspect.ismethod(function) or isinstance(function, staticmethod | classmethod):
        problem = f"is a method; {_METHOD}"
    elif not inspect.isfunction(function):
        problem = "is not a plain function (def or async def)"
    elif _is_in_class(function):
        problem = f"is a method of class {function.__qualname__.split('.')[-2]}; {_METHOD}"
    elif function.__name__ == "<lambda>":
        problem = "has no name; use def"
    elif yields(function):
        problem = NEVER_RUNS
    else:
        return
    raise ConfigError(f"{where}: {shorten(function)} {problem}")


_FROM_INPUT: Final = (
    ", since the program came from standard input or it was defined in an interactive session: "
    "move it to a file"
)

_METHOD: Final = (
    "no server has the object that it belongs to: make it a function at the top of its module (a "
    "static method has @staticmethod above the decorator)"
)


def _is_in_class(function: Any) -> bool:
    """Return whether the function is defined in a class and takes `self` or `cls` first."""
    owner = function.__qualname__.rpartition(".")[0]
    first = next(iter(inspect.signature(function).parameters), "")
    return bool(owner) and not owner.endswith("<locals>") and first in ("self", "cls")


class Decorator(Protocol):
    """The type of the decorator `@app.task(...)`, which turns a function into a task."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[TaskInfo, P], Coroutine[Any, Any, R]], /
    ) -> TaskFunction[P, R, Concatenate[TaskInfo, P], Coroutine[Any, Any, R]]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[TaskInfo, P], R], /
    ) -> TaskFunction[P, R, Concatenate[TaskInfo, P], R]: ...

    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> TaskFunction[P, R, P, Coroutine[Any, Any, R]]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> TaskFunction[P, R, P, R]: ...


class ArgumentlessTask(Protocol):
    """A task that can be built without arguments."""

    def build(self) -> Task[Any]:
        """Return the Task; see TaskFunction."""


B = TypeVar("B", bound=ArgumentlessTask)


class PeriodicDecorator(Protocol):
    """Type of `@app.periodic(...)`, which decorates tasks and functions that need no arguments."""

    @overload
    def __call__(self, function: B, /) -> B: ...

    @overload
    def __call__(
        self, function: Callable[[TaskInfo], Coroutine[Any, Any, R]], /
    ) -> TaskFunction[..., R, ..., Coroutine[Any, Any, R]]: ...

    @overload
    def __call__(self, function: Callable[[TaskInfo], R], /) -> TaskFunction[..., R, ..., R]: ...

    @overload
    def __call__(
        self, function: Callable[[], Coroutine[Any, Any, R]], /
    ) -> TaskFunction[..., R, ..., Coroutine[Any, Any, R]]: ...

    @overload
    def __call__(self, function: Callable[[], R], /) -> TaskFunction[..., R, ..., R]: ...


class ArgumentsDecorator(Protocol):
    """The type of the decorator `@app.periodic(arguments=...)`, which returns a task unchanged."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a task is callable: the others match, too
        self, function: TaskFunction[P, R, Q, V], /
    ) -> TaskFunction[P, R, Q, V]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[TaskInfo, P], Coroutine[Any, Any, R]], /
    ) -> TaskFunction[P, R, Concatenate[TaskInfo, P], Coroutine[Any, Any, R]]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[TaskInfo, P], R], /
    ) -> TaskFunction[P, R, Concatenate[TaskInfo, P], R]: ...

    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> TaskFunction[P, R, P, Coroutine[Any, Any, R]]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> TaskFunction[P, R, P, R]: ...
