"""The configuration of a server, validated at construction."""

from __future__ import annotations

import inspect
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Final, TypedDict

from qsync.backoff import LONGEST_LIST, RetryPolicy
from qsync.broker.op_values import FetchPolicy
from qsync.callbacks import NEVER_RUNS, takes, yields
from qsync.errors import ConfigError, at_definition
from qsync.keys import check_name
from qsync.mux import Middleware, Mux, check_middlewares
from qsync.retry_policy import retry_rules
from qsync.server.error_log import LogErrors, check_log_errors
from qsync.suggestions import did_you_mean
from qsync.task import DEFAULT, Task, TaskInfo
from qsync.times import Duration, duration_us
from qsync.value_text import shorten

Lifespan = Callable[..., AbstractAsyncContextManager[Any]]
"""Function that a server calls without arguments when it starts; `current().state` is the value
that the returned context manager yields."""

_DECORATE: Final = "decorate an `async def` that yields once with @contextlib.asynccontextmanager"


def check_lifespan(value: Lifespan | None) -> Lifespan | None:
    """Return the lifespan, or None; raise ConfigError if a server cannot call and enter it."""
    if value is not None and (reason := _reason(value)):
        name = getattr(value, "__qualname__", None) or shorten(value)
        raise ConfigError(f"lifespan: {name} {reason}")
    return value


def _reason(value: Any) -> str | None:
    """Return why a server cannot use the lifespan; None if it can."""
    if hasattr(type(value), "__aenter__"):
        return "is a context manager already; pass the function that creates it, without calling it"
    if not callable(value):
        return f"is not callable; {_DECORATE}"
    wrapped = inspect.unwrap(value)
    if inspect.isasyncgenfunction(value):
        return "yields, but has no decorator; add @contextlib.asynccontextmanager"
    if inspect.isgeneratorfunction(wrapped):
        return f"is not asynchronous; {_DECORATE}"
    if inspect.iscoroutinefunction(wrapped):
        return f"is a coroutine function that yields nothing; {_DECORATE}"
    if inspect.isclass(value) and not hasattr(value, "__aenter__"):
        return f"is a class without __aenter__; {_DECORATE}"
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):  # e.g. a function in C without a signature
        return None
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            return (
                f"needs the parameter {parameter.name!r}, but a server calls it without arguments; "
                "set a default, or pass a functools.partial"
            )
    return None


OnError = Callable[[BaseException, TaskInfo], Awaitable[None] | None]

RESULT_LIMIT_MOST: Final = 512 * 1024 * 1024
"""Size of the largest value that a store accepts, in bytes."""

MAX_WEIGHT: Final = 1_000_000

VERSION: Final = "QSYNC_VERSION"
"""Environment variable that holds the version of the program."""

VERSION_LIMIT: Final = 64
"""Maximum length of the version of the program, in characters."""

MAX_DEFAULT_THREADS: Final = 32


def cpu_count() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def new_server_id() -> str:
    """Return a random, unique server id."""
    return os.urandom(12).hex()


def holder_of(name: str | None, server_id: str) -> str:
    """Return the holder name for the server's leases: the server id, plus a random suffix if the
    user set the id.

    An id that the user sets, such as a host name, may be used again after a restart, or by two
    servers at the same time. Each holder numbers its fetches from 1, so only the suffix
    distinguishes the leases of these servers.
    """
    return server_id if name is None else f"{server_id}~{os.urandom(4).hex()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The options of a server. Durations are seconds or timedelta.

    queues            mapping of queue name to weight, or a list of names; free slots are shared
                      by weight
    concurrency       maximum number of tasks that run at the same time
    strict            if True, drain queues in order of weight instead of sharing slots
    lease             duration of a task's lease; the server renews the lease three times in this
                      period
    sweep             longest time between two checks of a queue for tasks and upkeep
    max_crashes       how many times servers may die while they run a task; the last of these
                      crashes makes the task dead
    shutdown_timeout  how long running tasks may continue after a stop before they are handed back
    timeout           timeout of one attempt, for tasks without a timeout of their own
    retry_delay       delay before each retry, for tasks without a retry delay of their own: None, a
                      duration, a list of durations, an ExponentialBackoff, or a function
                      (attempt, error) -> duration
    dead_limit        maximum number of dead tasks that each queue keeps
    dead_age          time for which a queue keeps a dead task
    threads           number of threads for `def` handlers; by default the number of CPUs + 4, but
                      at most 32 and at most concurrency
    processes         number of processes for `executor="process"` handlers; None means the number
                      of CPUs
    max_hung          number of handlers that may ignore a request to stop before `run` ends with
                      an error; None means as many as concurrency
    result_limit      maximum size of an encoded result, in bytes; by default the app's
                      payload_limit. A task whose result is larger, or cannot be encoded, becomes
                      dead
    prefetch          maximum number of tasks that are leased before a slot is free; by default as
                      many as start within 100 ms
    lifespan          async context manager around the server's work
    middleware        middleware around every handler; the first one is the outermost
    on_error          function called after every failed attempt; `task.final` is True if the task
                      is dead. A Retry with attempts left, a SkipRetry and a Snooze do not count as
                      failures
    log_errors        detail of a failed attempt in the log: "class", "message" or "traceback"
    allow_eviction    if True, start even if the store's maxmemory-policy may delete tasks
    server_id         name of the server, e.g. its host name; a restarted server may use the same
                      name; None means a random name
    version           version of the program, e.g. a git commit, to mark in the charts of the
                      dashboard; None means the value of the environment variable
                      QSYNC_VERSION, if it is set
    """

    queues: Mapping[str, int] | Iterable[str] = field(default_factory=lambda: {DEFAULT: 1})
    concurrency: int = 100
    strict: bool = False
    lease: Duration = 30.0
    sweep: Duration = 5.0
    max_crashes: int = 3
    shutdown_timeout: Duration = 30.0
    timeout: Duration | None = None
    retry_delay: RetryPolicy = None
    dead_limit: int = 10_000
    dead_age: Duration = timedelta(days=90)
    threads: int | None = None
    processes: int | None = None
    max_hung: int | None = None
    result_limit: int | None = None
    prefetch: int | None = None
    lifespan: Lifespan | None = None
    middleware: tuple[Middleware, ...] = ()
    on_error: OnError | None = None
    log_errors: LogErrors = "traceback"
    allow_eviction: bool = False
    server_id: str | None = None
    version: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "queues", _weights(self.queues))
        for name, minimum, maximum in (
            ("concurrency", 1, 100_000), ("max_crashes", 1, 1000), ("dead_limit", 0, 10**9),
        ):  # fmt: skip
            _checked_integer(name, getattr(self, name), minimum, maximum)
        for name, minimum in (("threads", 1), ("processes", 1), ("max_hung", 0), ("prefetch", 0)):
            if getattr(self, name) is not None:
                _checked_integer(name, getattr(self, name), minimum, 100_000)
        if self.result_limit is not None:
            _checked_integer("result_limit", self.result_limit, 1, RESULT_LIMIT_MOST)
        for name, least_s in (
            ("lease", 0.3),
            ("sweep", 0.01),
            ("shutdown_timeout", 0.0),
            ("dead_age", 0.0),
        ):
            _seconds(name, getattr(self, name), least_s)
        if self.timeout is not None:
            _seconds("timeout", self.timeout, 0.001)
        _check_retry_delay(self.retry_delay)
        for name in ("strict", "allow_eviction"):
            if type(getattr(self, name)) is not bool:
                msg = f"{name}: {shorten(getattr(self, name))} is neither True nor False"
                raise ConfigError(msg)
        object.__setattr__(self, "middleware", check_middlewares(self.middleware))
        _check_on_error(self.on_error)
        check_lifespan(self.lifespan)
        check_log_errors(self.log_errors)
        if self.server_id is not None:
            with at_definition():
                check_name("server_id", self.server_id)
        object.__setattr__(self, "version", _version(self.version))

    @property
    def weights(self) -> dict[str, int]:
        """Return the queues and their weights, heaviest first."""
        queues: Any = self.queues
        return dict(sorted(queues.items(), key=lambda item: -item[1]))

    @property
    def thread_count(self) -> int:
        """Return the maximum number of threads for `def` handlers."""
        if self.threads is not None:
            return self.threads
        return min(MAX_DEFAULT_THREADS, cpu_count() + 4, self.concurrency)

    def fitted(self, mux: Mux) -> Config:
        """Return the configuration for these handlers; if all are `def`, reduce the concurrency.

        The reduced concurrency is `thread_count`, because additional tasks would wait for a thread
        here although another server may have a free thread. Only quick tasks are leased beyond that
        number (see Capacity). If the option `threads` is set, return the configuration unchanged.
        """
        return replace(self, concurrency=self.thread_count) if self.threads_only(mux) else self

    def threads_only(self, mux: Mux) -> bool:
        """Return whether all handlers are `def` and run in the default number of threads."""
        if self.threads is not None or not mux.handlers:
            return False
        return all(handler.place == "thread" for handler in mux.handlers)

    @property
    def lease_s(self) -> float:
        """Return the lease duration, in seconds."""
        return seconds(self.lease)

    @property
    def sweep_s(self) -> float:
        """Return the sweep period, in seconds."""
        return seconds(self.sweep)

    def policy(self) -> FetchPolicy:
        """Return the limits that the fetch script applies."""
        return FetchPolicy(
            lease_us=duration_us("lease", self.lease),
            max_crashes=self.max_crashes,
            dead_limit=self.dead_limit,
            dead_age_us=duration_us("dead_age", self.dead_age),
        )


APP_OPTIONS: Final = (
    "prefix", "mux", "payload_limit", "patience", "durability", "confirm_timeout", "remember_ids",
    "credential_provider",
)  # fmt: skip
"""Options of Qsync in addition to those of its servers."""


def config_of(options: Mapping[str, Any], *others: str) -> Config:
    """Return the Config for these options; raise ConfigError if an option is unknown or invalid.

    `others` are the caller's own options, which the error message also lists.
    """
    names = [*others, *Config.__dataclass_fields__]
    for name in options:
        if name in names:
            continue
        if name in Task.__struct_fields__:
            raise ConfigError(f"{name}: is an option of tasks; pass it to @app.task({name}=...)")
        whose = "Qsync" if others else "a server"
        meant = did_you_mean(name, names)
        use = f"{meant} Use" if meant else "; use"
        raise ConfigError(f"{name}: unknown option of {whose}{use} one of {', '.join(names)}")
    return Config(**options)


class ServerOptions(TypedDict, total=False):
    """The fields of Config, as keyword arguments of `Qsync(...)` and `app.server(...)`."""

    queues: Mapping[str, int] | Iterable[str]
    concurrency: int
    strict: bool
    lease: Duration
    sweep: Duration
    max_crashes: int
    shutdown_timeout: Duration
    timeout: Duration | None
    retry_delay: RetryPolicy
    dead_limit: int
    dead_age: Duration
    threads: int | None
    processes: int | None
    max_hung: int | None
    result_limit: int | None
    prefetch: int | None
    lifespan: Lifespan | None
    middleware: Iterable[Middleware]
    on_error: OnError | None
    log_errors: LogErrors
    allow_eviction: bool
    server_id: str | None
    version: str | None


def _version(version: object) -> str | None:
    """Return the version of the program: this value, or that of the environment variable; None if
    neither is set."""
    name, value = (
        ("version", version) if version is not None else (VERSION, os.environ.get(VERSION))
    )
    if not value and version is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= VERSION_LIMIT or not value.isprintable():
        msg = f"{name}: {shorten(value)} is not 1 to {VERSION_LIMIT} printable characters"
        raise ConfigError(msg)
    return value


def _check_on_error(value: object) -> None:
    if value is None:
        return
    if yields(value):
        raise ConfigError(f"on_error: {shorten(value)} {NEVER_RUNS}: do not yield")
    if not takes(value, 2):
        msg = f"on_error: {shorten(value)} is not a function (error, task), def or async def"
        raise ConfigError(msg)


def _check_retry_delay(value: object) -> None:
    if callable(value):
        retry_rules(retry_delay=value)
        return
    if value is None:
        return
    delays = value if isinstance(value, list | tuple) else [value]
    if not 0 < len(delays) <= LONGEST_LIST:
        raise ConfigError(f"retry_delay: must list 1 to {LONGEST_LIST} delays, not {len(delays)}")
    for delay in delays:
        _seconds("retry_delay", delay, 0.0)


def seconds(value: Duration) -> float:
    """Convert a duration to seconds."""
    return value.total_seconds() if isinstance(value, timedelta) else float(value)


def _weights(queues: object) -> dict[str, int]:
    if isinstance(queues, str) or not isinstance(queues, Iterable):
        raise ConfigError(
            f"queues: {shorten(queues)} is neither a mapping of name to weight nor a list of names"
            ", e.g. {'critical': 5, 'default': 3}"
        )
    pairs = queues.items() if isinstance(queues, Mapping) else ((name, 1) for name in queues)
    weights: dict[str, int] = {}
    for name, weight in pairs:
        try:
            check_name("queues", name)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if name in weights:
            raise ConfigError(
                f"queues: {name!r} is listed twice; list it once, or give it a weight: "
                f"{{{name!r}: 2}}"
            )
        weights[name] = _checked_integer(f"queues: weight of {name!r}", weight, 1, MAX_WEIGHT)
    if not weights:
        raise ConfigError("queues: empty; name at least one queue")
    return weights


def _checked_integer(name: str, value: object, minimum: int, maximum: int) -> int:
    if type(value) is not int or not minimum <= value <= maximum:
        raise ConfigError(
            f"{name}: {shorten(value)} is not a whole number from {minimum} to {maximum}"
        )
    return value


def _seconds(name: str, value: object, minimum: float) -> None:
    number = value.total_seconds() if isinstance(value, timedelta) else value
    if (
        not isinstance(number, int | float)
        or isinstance(number, bool)
        or not minimum <= number <= 10 * 365 * 86_400
    ):
        msg = f"{name}: {shorten(value)} is not a number of seconds from {minimum:g} to 10 years"
        raise ConfigError(msg)
