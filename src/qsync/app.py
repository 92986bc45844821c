"""The app: one object that knows the store, the tasks and the periodic tasks of a program."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, Concatenate, Literal, ParamSpec, Self, TypeVar, Unpack, cast, overload
from zoneinfo import ZoneInfo

from qsync.broker.call import Durability
from qsync.broker.client_objects import AnyClient
from qsync.broker.shell import PATIENCE
from qsync.client import AsyncClient, Client
from qsync.connections import PREFIX, Connections
from qsync.errors import ConfigError, InvalidTask
from qsync.inspector import Inspector
from qsync.instrumentation import Extension
from qsync.keys import check_name, shorten
from qsync.mux import Middleware, Mux, check_middlewares, check_mux
from qsync.retry_policy import ErrorClasses
from qsync.schedule import Cron, Every, Missed, Periodic, Schedule
from qsync.sending import CONFIRM_TIMEOUT
from qsync.server.config import ServerOptions, config_of
from qsync.server.periodic import PeriodicTask
from qsync.server.server import Server
from qsync.task import PAYLOAD_LIMIT, REMEMBER_IDS, Duration, TaskInfo
from qsync.task_function import (
    ArgumentsDecorator,
    Decorator,
    PeriodicDecorator,
    TaskFunction,
    TaskOptions,
)

P = ParamSpec("P")
R = TypeVar("R")


class Qsync:
    """The store, the tasks and the periodic tasks of a program; makes clients and servers.

    `url` is one of

        redis://[user:password@]host[:port][/db]     one node; rediss:// for TLS
        unix:///path/to/socket
        redis+cluster://host:port,host:port          any nodes of a cluster; rediss+cluster://
        redis+sentinel://host:port,host:port/name    the Sentinels and the service that they watch
        embedded://[folder]                          a private Valkey; `.qsync` without a folder

    with options in its query, or a client of redis-py or valkey-py (Redis or RedisCluster, blocking
    or asyncio, made by Sentinel or not): its settings are copied, or refused by name; its pool is
    not used, and it is not closed. docs/addresses.md has all of it. Without `url` the
    environment variable QSYNC_URL counts, without `prefix` QSYNC_PREFIX, and then "qsync". All
    keys in the store begin with the prefix.

    mux             handlers for the servers, besides those of `@app.task`
    payload_limit   how large an encoded payload may be, bytes, and an encoded result unless
                    `result_limit` is given
    patience        how long a client tries again before it raises StoreUnavailable, seconds;
                    `math.inf`: for ever
    durability      what its clients, and with them tasks that are functions, wait for when they
                    enqueue: "fsync" or "replica", see `Client.enqueue`; None: for nothing more
    confirm_timeout how long they wait for it, seconds; then the handle's `confirmed` is False
    remember_ids    how long after its enqueue an id that the caller chose is refused, also when
                    its task has left the queue, an hour by default; 0: only while it is there

    All other options are those of its servers, of `qsync worker` too, unless they are given there:
    `concurrency`, `timeout`, `middleware`, `on_error`, `lifespan` and so on, as described by
    `qsync.server.config.Config`.

    Making one connects to nothing; embedded:// starts on first use, which takes about 0.1 s, and
    runs until `close`. It may be used again after that. ConfigError when a value is wrong.
    """

    def __init__(
        self,
        url: str | AnyClient | None = None,
        *,
        prefix: str | None = None,
        mux: Mux | None = None,
        payload_limit: int = PAYLOAD_LIMIT,
        patience: float = PATIENCE,
        durability: Durability | None = None,
        confirm_timeout: float = CONFIRM_TIMEOUT,
        remember_ids: Duration = REMEMBER_IDS,
        **server: Unpack[ServerOptions],
    ) -> None:
        if prefix is None:
            prefix = os.environ.get(PREFIX) or "qsync"
        with _registering():
            self.prefix = check_name("prefix", prefix)
        self._connections = Connections(
            url,
            prefix=prefix,
            payload_limit=payload_limit,
            patience=patience,
            durability=durability,
            confirm_timeout=confirm_timeout,
            remember_ids=remember_ids,
        )
        self._given_mux = None if mux is None else check_mux(mux)
        self._mux = Mux()
        self.functions: dict[str, TaskFunction[..., Any, ..., Any]] = {}
        """The functions that are tasks, by the type of the task."""

        config = config_of(server)
        self._server_options = {name: getattr(config, name) for name in server}
        self._periodics: dict[str, PeriodicTask] = {}
        self._extensions: list[Extension] = []

    def __repr__(self) -> str:
        return f"<Qsync {self.prefix} at {self._connections}>"

    # Clients and servers.

    def client(self) -> Client:
        """A new blocking client; close it, or use it in `with`."""
        return self._connections.client()

    def async_client(self) -> AsyncClient:
        """A new client for the event loop in which it is used first; close it, or `async with`."""
        return self._connections.async_client()

    def server(self, mux: Mux | None = None, **config: Unpack[ServerOptions]) -> Server:
        """A new server for the app's tasks and periodic tasks, and the handlers of `mux`.

        The options are those of `qsync.server.config.Config`; those that are not given are the
        app's. Tasks that are defined later are not known to it. ConfigError when two handlers have
        one type, or an option is wrong.
        """
        handlers = Mux()
        for one in (self._mux, self._given_mux, mux):
            if one is not None:
                handlers.include(check_mux(one))
        server = Server(
            self._connections.address,
            prefix=self.prefix,
            mux=handlers,
            periodic=self.periodics,
            **self._options(config),
        )
        nested = self._connections.nested
        server.client_type = partial(self._connections.client_type, **nested)
        server.async_client_type = partial(self._connections.async_client_type, **nested)
        for extension in self._extensions:
            extension.server(server)
        return server

    def _options(self, config: ServerOptions) -> dict[str, Any]:
        options: dict[str, Any] = {**self._server_options, **config}
        if options.get("result_limit") is None:
            options["result_limit"] = self._connections.nested["payload_limit"]
        return options

    def extend(self, extension: Extension) -> None:
        """Clients and servers that the app makes from now on have this too.

        ConfigError when tasks have been enqueued already, or another extension has clients of its
        own: of two, only one could be used.
        """
        connections = self._connections
        if extension.client is not Client or extension.async_client is not AsyncClient:
            if connections.in_use:
                raise ConfigError("extend: the app enqueues already; extend it where it is made")
            if connections.client_type is not Client:
                raise ConfigError("extend: there is an extension with clients of its own already")
            connections.client_type = extension.client
            connections.async_client_type = extension.async_client
        self._extensions.append(extension)

    def inspector(self) -> Inspector:
        """A new inspector of the queues, for one event loop; close it, or `async with`."""
        return self._connections.inspector()

    def ping(self) -> float:
        """The seconds that a round trip to the store takes; StoreUnavailable without an answer."""
        return self._connections.ping()

    async def aping(self) -> float:
        """The seconds that a round trip to the store takes; StoreUnavailable without an answer."""
        return await self._connections.aping()

    def close(self) -> None:
        """What the app keeps open is closed, but for clients of event loops: these close their own.

        Clients and servers that it made for you are yours to close.
        """
        self._connections.close()

    async def aclose(self) -> None:
        """What the app keeps open is closed, and its client of the running event loop, too."""
        await self._connections.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    # Tasks.

    @overload
    def task(
        self, function: Callable[Concatenate[TaskInfo, P], Coroutine[Any, Any, R]], /
    ) -> TaskFunction[P, R, Concatenate[TaskInfo, P], Coroutine[Any, Any, R]]: ...

    @overload
    def task(
        self, function: Callable[Concatenate[TaskInfo, P], R], /
    ) -> TaskFunction[P, R, Concatenate[TaskInfo, P], R]: ...

    @overload
    def task(
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> TaskFunction[P, R, P, Coroutine[Any, Any, R]]: ...

    @overload
    def task(self, function: Callable[P, R], /) -> TaskFunction[P, R, P, R]: ...

    @overload
    def task(
        self,
        name: str | None = None,
        *,
        executor: Literal["process"] | None = None,
        middleware: Iterable[Middleware] = (),
        retry_for: ErrorClasses | None = None,
        dont_retry_for: ErrorClasses | None = None,
        **options: Unpack[TaskOptions],
    ) -> Decorator: ...

    def task(self, name: Any = None, **settings: Any) -> Any:
        """The decorated function becomes a task: `fn.enqueue(...)`, and `fn(...)` still calls it.

        Bare `@app.task`, or with the name of its type and with options of Task, which are the
        defaults of what is enqueued; `executor="process"` and `middleware` are as for
        `mux.handle`. Without a name it is the function's module and qualified name; a program's
        main module has the name by which a server would import it (see `qsync.task_function`).

        Only errors of the classes in `retry_for` are followed by another attempt, and none of those
        in `dont_retry_for`: the task is dead at once. A timeout is a TimeoutError. A `retry_delay`
        that is `def (attempt, error)` stays with the function; other ones go with each task.

        The payload is the arguments by name, msgpack's types and whatever msgspec or pydantic makes
        of them: dataclasses, datetime, UUID, Decimal, enums, sets, paths, models. The server checks
        them against the annotations. A first parameter annotated as TaskInfo is filled in by the
        server, and is not among those of `enqueue`.

        ConfigError when the name is taken, the function is not a plain one, an annotation cannot
        be resolved or no payload can hold its type, or an option is wrong.
        """
        if name is not None and not isinstance(name, str):
            return self._add(self._make(name, None, settings))
        return lambda function: self._add(self._make(function, name, settings))

    @overload
    def periodic(
        self,
        *,
        cron: str | None = None,
        every: float | timedelta | None = None,
        tz: str | ZoneInfo | None = None,
        missed: Missed = "skip",
        arguments: None = None,
        name: str | None = None,
        executor: Literal["process"] | None = None,
        middleware: Iterable[Middleware] = (),
        retry_for: ErrorClasses | None = None,
        dont_retry_for: ErrorClasses | None = None,
        **options: Unpack[TaskOptions],
    ) -> PeriodicDecorator: ...

    @overload
    def periodic(
        self,
        *,
        cron: str | None = None,
        every: float | timedelta | None = None,
        tz: str | ZoneInfo | None = None,
        missed: Missed = "skip",
        arguments: Mapping[str, Any],
        name: str | None = None,
        executor: Literal["process"] | None = None,
        middleware: Iterable[Middleware] = (),
        retry_for: ErrorClasses | None = None,
        dont_retry_for: ErrorClasses | None = None,
        **options: Unpack[TaskOptions],
    ) -> ArgumentsDecorator: ...

    def periodic(
        self,
        *,
        cron: str | None = None,
        every: float | timedelta | None = None,
        tz: str | ZoneInfo | None = None,
        missed: Missed = "skip",
        arguments: Mapping[str, Any] | None = None,
        name: str | None = None,
        executor: Literal["process"] | None = None,
        middleware: Iterable[Middleware] = (),
        retry_for: ErrorClasses | None = None,
        dont_retry_for: ErrorClasses | None = None,
        **options: Unpack[TaskOptions],
    ) -> Any:
        """The decorated function, or task, is enqueued by the app's servers, once at each tick.

        `cron` is an expression of five fields, or of six with seconds first, read by the clock of
        the time zone `tz`, UTC by default. `every` is seconds or a timedelta; its ticks are the
        whole multiples of it since 1970, in UTC. `missed` says what becomes of ticks, over 30 s
        late, at which no server was there: nothing ("skip"), one task for all of them ("once"), or
        one for each ("all"). `arguments` are those of each tick, by name. `name` identifies the
        schedule to all servers; it is that of the task unless it is given. A plain function becomes
        a task of this name, with `executor`,
        `middleware` and options as for `task`; of a task the options are overridden.

        ConfigError when the name is taken, the schedule or an option is wrong, the function has
        parameters that get no value (other than TaskInfo first), or an option would be the same for
        all ticks which must not be: id, deadline, process_at.
        """
        with _registering():
            schedule = _schedule(cron, every, tz)
        settings = {
            "executor": executor,
            "middleware": check_middlewares(middleware),
            "retry_for": retry_for,
            "dont_retry_for": dont_retry_for,
            **options,
        }

        def register(function: Any) -> Any:
            known = isinstance(function, TaskFunction)
            given = executor or settings["middleware"] or retry_for or dont_retry_for
            if known and given:
                names = "executor, middleware, retry_for, dont_retry_for"
                raise ConfigError(f"{names}: give them to {function!r} itself")
            if known and self._mux.find(function.name) is not function.handler:
                raise ConfigError(f"periodic: {function!r} is a task of another app")
            task = function if known else self._make(function, name, settings)
            with _registering():
                periodic = Periodic(name or task.name, schedule, missed)
                used = task.options(**options) if known else task
                checked = self._check(used, periodic, arguments)
            if not known:
                self._add(task)
            self._periodics[periodic.name] = checked
            return task

        return register

    @property
    def periodics(self) -> list[PeriodicTask]:
        """The periodic tasks, in the order in which they were defined."""
        return list(self._periodics.values())

    def _make(
        self, function: Any, name: str | None, settings: dict[str, Any]
    ) -> TaskFunction[..., Any, ..., Any]:
        options = dict(settings)
        of_handler = ("executor", "middleware", "retry_for", "dont_retry_for")
        with _registering():
            return TaskFunction(
                function,
                self._connections,
                name=name,
                **{option: options.pop(option) for option in of_handler if option in options},
                options=cast("TaskOptions", options),
            )

    def _add(self, task: TaskFunction[..., Any, ..., Any]) -> TaskFunction[..., Any, ..., Any]:
        self._mux.add(task.handler)
        self.functions[task.name] = task
        return task

    def _check(
        self,
        task: TaskFunction[..., Any, ..., Any],
        periodic: Periodic,
        arguments: Mapping[str, Any] | None,
    ) -> PeriodicTask:
        """ConfigError when it cannot be enqueued at every tick of the schedule."""
        if arguments is not None and not isinstance(arguments, Mapping):
            raise ConfigError(f"arguments: {shorten(arguments)} is not a dict of names to values")
        given = {} if arguments is None else dict(arguments)
        for name in task.required:
            if name not in given:
                msg = f"nobody gives parameter {name!r} a value; give arguments={{{name!r}: ...}}"
                raise ConfigError(f"periodic {periodic.name!r}: {msg}")
        task.build(**given)  # checks them
        for option in ("id", "deadline", "process_at"):
            if task.defaults.get(option) is not None:
                msg = f"periodic {periodic.name!r}: {option} would be the same for every tick"
                raise ConfigError(msg)
        if periodic.name in self._periodics:
            raise ConfigError(f"periodic {periodic.name!r}: there is one already; give a name=")
        return PeriodicTask(periodic, partial(task.build, **given) if given else task.build)


def _schedule(
    cron: str | None, every: float | timedelta | None, tz: str | ZoneInfo | None
) -> Schedule:
    if (cron is None) == (every is None):
        raise ConfigError("periodic: give either cron= or every=")
    if cron is not None:
        name = tz.key if isinstance(tz, ZoneInfo) else tz
        return Cron(cron, tz="UTC" if tz is None else cast("str", name))
    if tz is not None:
        raise ConfigError(f"tz: {shorten(tz)} goes with cron=; every= knows no time zone")
    return Every(cast("float", every))


@contextlib.contextmanager
def _registering() -> Iterator[None]:
    """What cannot be accepted is a mistake in the program, not in a call."""
    try:
        yield
    except InvalidTask as error:
        raise ConfigError(str(error)) from error
