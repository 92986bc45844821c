"""The app: one object with the store, the tasks and the periodic tasks of a program."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, Concatenate, Literal, ParamSpec, Self, TypeVar, Unpack, cast, overload
from zoneinfo import ZoneInfo

from qsync.broker.base import DEFAULT_PATIENCE_S
from qsync.broker.call import Durability
from qsync.broker.client_objects import AnyClient
from qsync.broker.credentials import CredentialProvider
from qsync.client import AsyncClient, Client
from qsync.connections import PREFIX, Connections
from qsync.enqueueing import CONFIRM_TIMEOUT
from qsync.errors import ConfigError, at_definition
from qsync.hooks import Event, F, check_event
from qsync.inspector import Inspector
from qsync.instrumentation import Extension
from qsync.keys import check_name, shorten
from qsync.mux import Middleware, Mux, check_middlewares, check_mux
from qsync.retry_policy import ErrorClasses
from qsync.schedule import Missed, Periodic, schedule_of
from qsync.server.child_context import ChildSetup
from qsync.server.config import APP_OPTIONS, ServerOptions, config_of
from qsync.server.periodic import PeriodicTask
from qsync.server.server import Server
from qsync.task import PAYLOAD_LIMIT, REMEMBER_IDS, TaskInfo
from qsync.task_function import (
    HANDLER_OPTIONS,
    PERIODIC,
    ArgumentsDecorator,
    Decorator,
    PeriodicDecorator,
    TaskFunction,
    TaskOptions,
    check_options,
)
from qsync.times import Duration

P = ParamSpec("P")
R = TypeVar("R")


class Qsync:
    """The store, the tasks and the periodic tasks of a program; makes clients and servers.

    `url` is the address of the store:

        redis://[user:password@]host[:port][/db]     one node; rediss:// for TLS
        unix:///path/to/socket
        redis+cluster://host:port,host:port          any nodes of a cluster; rediss+cluster://
        redis+sentinel://host:port,host:port/name    the Sentinels and the service that they monitor
        embedded://[folder]                          a private Valkey; `.qsync` without a folder

    Options go in the query of the URL. `url` may also be a client of redis-py or valkey-py (Redis
    or RedisCluster, blocking or asyncio, made by Sentinel or not). The app copies its settings, or
    raises ConfigError for a setting that it does not support; it neither uses nor closes the
    client. See docs/addresses.md. The default is the environment variable QSYNC_URL.

    prefix          start of all keys in the store; default: QSYNC_PREFIX, or else "qsync"
    mux             handlers for the servers, besides those of `@app.task`
    payload_limit   largest encoded payload, bytes; also largest encoded result, unless
                    `result_limit` is given
    patience        how long clients retry before they raise StoreUnavailable, seconds; `math.inf`:
                    without end
    durability      what enqueues wait for by default: "fsync", "replica" or None (no wait); see
                    `Client.enqueue`
    confirm_timeout longest wait for that, seconds; after it the handle's `confirmed` is False
    remember_ids    how long after its enqueue the store refuses an id that a caller chose, also
                    when the task has left the queue, by default an hour; 0: only while it is there
    credential_provider
                    makes user and password for each connection, e.g. an IAM token: an object with
                    `get_credentials()`, as of redis-py; see docs/managed-stores.md

    All other options are defaults for the servers of the app and of `qsync worker`: `concurrency`,
    `timeout`, `middleware`, `on_error`, `lifespan` and so on; see `qsync.server.config.Config`.

    Making an app does no I/O. embedded:// starts its Valkey on first use, which takes about 0.1 s;
    it stops when its last user closes or ends. An app may be used again after `close`. Raises
    ConfigError when a value is wrong.
    """

    def __init__(
        self,
        url: str | AnyClient | None = None,
        *,
        prefix: str | None = None,
        mux: Mux | None = None,
        payload_limit: int = PAYLOAD_LIMIT,
        patience: float = DEFAULT_PATIENCE_S,
        durability: Durability | None = None,
        confirm_timeout: float = CONFIRM_TIMEOUT,
        remember_ids: Duration = REMEMBER_IDS,
        credential_provider: CredentialProvider | None = None,
        **server: Unpack[ServerOptions],
    ) -> None:
        config = config_of(server, *APP_OPTIONS)
        if prefix is None:
            prefix = os.environ.get(PREFIX) or "qsync"
        with at_definition():
            check_name("prefix", prefix)
        self._connections = Connections(
            url,
            prefix=prefix,
            payload_limit=payload_limit,
            patience=patience,
            durability=durability,
            confirm_timeout=confirm_timeout,
            remember_ids=remember_ids,
            credential_provider=credential_provider,
        )
        self._given_mux = None if mux is None else check_mux(mux)
        self._mux = Mux()
        self.functions: dict[str, TaskFunction[..., Any, ..., Any]] = {}
        """Task functions by task type."""

        self._server_options = {name: getattr(config, name) for name in server}
        self._periodics: dict[str, PeriodicTask] = {}

    def __repr__(self) -> str:
        return f"<Qsync {self.prefix} at {self._connections}>"

    @property
    def prefix(self) -> str:
        """Start of all keys in the store."""
        return self._connections.prefix

    # Clients and servers.

    def client(self) -> Client:
        """Return a new blocking client; close it, or use `with`."""
        return self._connections.client()

    def async_client(self) -> AsyncClient:
        """Return a new client for the event loop that first uses it; close it, or `async with`."""
        return self._connections.async_client()

    def server(self, mux: Mux | None = None, **config: Unpack[ServerOptions]) -> Server:
        """Return a new server for the app's tasks and periodic tasks, and the handlers of `mux`.

        The options are those of `qsync.server.config.Config`; the app's options are the defaults.
        The server does not know tasks that are defined later. Raises ConfigError when two handlers
        have the same type, or an option is wrong.
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
        connections = self._connections
        nested = connections.nested
        server.client_type = partial(connections.client_of, **nested)
        server.async_client_type = partial(connections.async_client_of, **nested)
        lifespan = server.config.lifespan
        server.child_setup = ChildSetup.of(server.address, server.prefix, nested, lifespan)
        server.hooks = connections.hooks.copy()
        for extension in connections.extensions:
            extension.server(server)
        return server

    def _options(self, config: ServerOptions) -> dict[str, Any]:
        options: dict[str, Any] = {**self._server_options, **config}
        if options.get("result_limit") is None:
            options["result_limit"] = self._connections.nested["payload_limit"]
        return options

    def extend(self, extension: Extension) -> None:
        """Add an extension to all clients and servers that the app makes from now on.

        Raises ConfigError when an extension that acts on enqueues comes after the first enqueue, or
        the app has one of this name, or with a sender, already.
        """
        self._connections.extend(extension)

    def on(self, event: Event) -> Callable[[F], F]:
        """Call the decorated function, `def` or `async def`, at each such event of a task.

        enqueued   (task)         a client of the app has stored a task
        started    (task)         the handler is about to run, and waits for the function
        completed  (task)         the store has recorded that the task is done
        failed     (task, error)  an attempt failed, and the store has recorded it; `task.final` is
                                  True if no retry follows
        dead       (task, error)  the task is dead; it will not run again

        A Retry with attempts left and a SkipRetry do not count as failures. `async def` functions
        run on the event loop of the client or server. `def` functions of "enqueued" run in the
        thread that enqueues; of the other events, in a thread of the pool if the handler runs in
        one, otherwise on the event loop. An error of the function is logged, and changes nothing.
        Servers that already exist do not call it. Raises ConfigError when the event is unknown, or
        "enqueued" comes after the first enqueue.
        """
        if check_event(event) == "enqueued" and self._connections.in_use:
            raise ConfigError("on: the app enqueues already; add hooks where it is made")
        return partial(self._connections.hooks.add, event)

    def inspector(self) -> Inspector:
        """Return a new inspector of the queues, for one event loop; close it, or `async with`."""
        return self._connections.inspector()

    def ping(self) -> float:
        """Return the round-trip time to the store, in seconds, or raise StoreUnavailable."""
        return self._connections.ping()

    async def aping(self) -> float:
        """Return the round-trip time to the store, in seconds, or raise StoreUnavailable."""
        return await self._connections.aping()

    def close(self) -> None:
        """Close the shared blocking client of this process, and stop using an embedded:// store.

        The shared client of an event loop closes when the loop ends. Clients, inspectors and
        servers that the app returned are for the caller to close.
        """
        self._connections.close()

    async def aclose(self) -> None:
        """Close what `close` does, and the app's shared client of the running event loop."""
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
        """Make the decorated function a task: `fn.enqueue(...)` enqueues it, `fn(...)` calls it.

        Use `@app.task`, or `@app.task(...)` with a name for the task type and options of Task, the
        defaults for each enqueue. `executor="process"` and `middleware` are as for `mux.handle`.
        The default name is the function's module and qualified name; in a program's main module it
        is the name by which a server imports the module (see `qsync.task_function`).

        `retry_for` limits retries to errors of these classes. An error of a class in
        `dont_retry_for` makes the task dead at once. A timeout is a TimeoutError. A `retry_delay`
        that is a `def (attempt, error)` stays with the function; any other goes with each task.

        The payload is a map of the arguments by name. They may be values that msgpack can carry,
        dataclasses, datetimes, UUIDs, decimals, enums, sets, paths and models of msgspec or
        pydantic; the server checks them against the annotations. The server fills in a first
        parameter annotated as TaskInfo; callers of `enqueue` leave it out.

        Raises ConfigError when the name is taken, the function is not a plain one, an annotation
        cannot be resolved or has a type that no payload can hold, or an option is wrong.
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
        """Have the app's servers enqueue the decorated function, or task, once at each tick.

        cron       expression of five fields, or of six with seconds first, in the time zone `tz`
        tz         name of an IANA time zone, or a ZoneInfo; UTC by default; only with `cron`
        every      seconds or a timedelta; ticks are its whole multiples since 1970, in UTC
        missed     what to enqueue for ticks that are over 30 s late, as no server was running:
                   nothing ("skip"), one task for all of them ("once") or one for each ("all")
        arguments  arguments of the function, by name, the same at each tick
        name       name of the schedule for all servers; by default the name of the task

        A plain function becomes a task with this name; `executor`, `middleware` and the options are
        as for `task`. For a function that is a task, options override those of the task.

        Raises ConfigError when the name is taken, the schedule or an option is wrong, a parameter
        has no value (except TaskInfo as the first), or `id`, `deadline` or `process_at` is given:
        these cannot be the same for all ticks.
        """
        with at_definition():
            schedule = schedule_of(cron, every, tz)
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
            task = function if known else self._make(function, name, settings, *PERIODIC)
            with at_definition():
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
        """The periodic tasks, in order of definition."""
        return list(self._periodics.values())

    def _make(
        self, function: Any, name: str | None, settings: dict[str, Any], *others: str
    ) -> TaskFunction[..., Any, ..., Any]:
        options = dict(settings)
        with at_definition():
            check_options("task", settings, "name", *others)
            return TaskFunction(
                function,
                self._connections,
                name=name,
                **{option: options.pop(option) for option in HANDLER_OPTIONS if option in options},
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
        """Return the periodic task. Raise ConfigError if it cannot be enqueued at every tick."""
        if arguments is not None and not isinstance(arguments, Mapping):
            raise ConfigError(f"arguments: {shorten(arguments)} is not a dict of names to values")
        given = {} if arguments is None else dict(arguments)
        for name in task.required:
            if name not in given:
                msg = f"parameter {name!r} gets no value; give arguments={{{name!r}: ...}}"
                raise ConfigError(f"periodic {periodic.name!r}: {msg}")
        task.build(**given)  # checks them
        for option in ("id", "deadline", "process_at"):
            if task.defaults.get(option) is not None:
                msg = f"periodic {periodic.name!r}: {option} would be the same for every tick"
                raise ConfigError(msg)
        if periodic.name in self._periodics:
            raise ConfigError(f"periodic {periodic.name!r}: there is one already; give a name=")
        return PeriodicTask(periodic, partial(task.build, **given) if given else task.build)
