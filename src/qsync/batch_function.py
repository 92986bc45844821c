"""Batch functions, which `@app.batch` creates: one call of the function runs several tasks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, Generic, ParamSpec, Protocol, TypeVar, Unpack, cast

from qsync.backoff import ExponentialBackoff
from qsync.client import AsyncHandle, Handle
from qsync.connections import Connections
from qsync.limit import LimitTemplates, check_literal_keys
from qsync.mux import Handler, Middleware, make_batch_handler
from qsync.retry_policy import ErrorClasses, retry_rules
from qsync.task import Task, TaskInfo
from qsync.task_function import (
    TaskOptions,
    check_function,
    need_loop,
    need_no_loop,
    overridden,
    task_name,
)
from qsync.times import Duration

P = ParamSpec("P")
V = TypeVar("V")


class BatchFunction(Generic[V]):
    """A function that takes a list of tasks. Callers enqueue single tasks; a server builds the
    list.

    V is the type of the function's return value.
    """

    __name__: str
    __wrapped__: Callable[[list[TaskInfo]], V]

    def __init__(
        self,
        function: Callable[[list[TaskInfo]], V],
        connections: Connections,
        *,
        name: str | None = None,
        max_size: int,
        max_wait: Duration,
        middleware: Iterable[Middleware] = (),
        retry_for: ErrorClasses | None = None,
        dont_retry_for: ErrorClasses | None = None,
        options: TaskOptions,
    ) -> None:
        if name is None or getattr(function, "__name__", None) != "<lambda>":
            check_function(function, "batch")
        stored = options.copy()
        delay = options.get("retry_delay")
        if callable(delay) and not isinstance(delay, ExponentialBackoff):
            del stored["retry_delay"]  # a callable cannot be stored with the task
        else:
            delay = None
        functools.update_wrapper(self, function)
        self._function: Callable[[list[TaskInfo]], V] = function
        self._connections = connections
        self.name: Final = task_name(function) if name is None else name
        """Type of the tasks."""
        self.handler: Final[Handler] = make_batch_handler(
            self.name, function, max_size=max_size, max_wait=max_wait, middleware=middleware,
            rules=retry_rules(
                retry_delay=delay, retry_for=retry_for, dont_retry_for=dont_retry_for
            ),
        )  # fmt: skip
        """Handler that servers run."""
        self._options = overridden(self.name, {}, stored)
        check_literal_keys(self.name, stored, None)
        _ = self.limits  # checks them

    def __repr__(self) -> str:
        return f"<batch {self.name}>"

    def __call__(self, tasks: list[TaskInfo], /) -> V:
        """Call the function in this process; nothing is enqueued."""
        return self._function(tasks)

    def options(self, /, **options: Unpack[TaskOptions]) -> BatchFunction[V]:
        """Return a copy with other options.

        Raise InvalidTask if an option is unknown or invalid, or if the app declares other limits.
        """
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        copied._options = overridden(self.name, self._options, options)
        names = copied.limits.names  # checks them
        if "limits" in options and self._connections.declared is not None:
            self._connections.declared.check_names(self.name, names)
        return copied

    @property
    def defaults(self) -> TaskOptions:
        """The options that were passed to `@app.batch` and `.options()`."""
        return self._options.copy()

    @property
    def limits(self) -> LimitTemplates:
        """Limits of the tasks. Raise InvalidTask for a placeholder, since batch tasks have no
        arguments."""
        return LimitTemplates(self._options.get("limits") or (), ())

    def build(self, payload: Any = b"", /) -> Task[Any]:
        """Return a Task with this payload, e.g. for `client.enqueue_many`.

        The payload is bytes, or any value that msgpack can encode; the function reads it with
        `task.value()`.
        """
        return Task(self.name, payload, **cast("dict[str, Any]", self._options))

    def enqueue(self, payload: Any = b"", /) -> Coroutine[Any, Any, AsyncHandle[Any]]:
        """Enqueue one task with this payload when awaited, and return its AsyncHandle.

        Raises what `AsyncClient.enqueue` raises, and ConfigError when no event loop is running in
        this thread (use `enqueue_sync`).
        """
        need_loop(self.name)
        return self._connections.aenqueue(self.build(payload))

    def enqueue_sync(self, payload: Any = b"", /) -> Handle[Any]:
        """Enqueue one task with this payload, and return its Handle; the call blocks.

        Raises what `Client.enqueue` raises, and ConfigError when an event loop is running in this
        thread (use `await enqueue()`).
        """
        need_no_loop(self.name)
        return self._connections.enqueue(self.build(payload))


class BatchDecorator(Protocol):
    """The type of the decorator that `app.batch(...)` returns."""

    def __call__(self, function: Callable[[list[TaskInfo]], V], /) -> BatchFunction[V]: ...
