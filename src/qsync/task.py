"""Tasks as callers pass them and as handlers see them.

`Task` and `TaskInfo` are frozen values that hold no connection.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, overload

import msgspec

from qsync import codec
from qsync.backoff import LONGEST_LIST, Delays, ExponentialBackoff
from qsync.convert import MISFITS, converter_of, misfit
from qsync.errors import ConfigError, InvalidTask
from qsync.keys import check_id, check_name
from qsync.limit import check_limits
from qsync.message import NORMAL_PRIORITY, Result, StoredOptions
from qsync.phrase import phrase
from qsync.state import TaskState
from qsync.times import Duration, datetime_us, duration_us, from_us, too_late
from qsync.uniqueness import OnDuplicate, Uniqueness, check_uniqueness
from qsync.value_text import class_name, plain_text, shorten

T = TypeVar("T")

if TYPE_CHECKING:
    from typing_extensions import TypeVar as _TypeVar  # type checkers include its stubs

    R_co = _TypeVar("R_co", covariant=True, default=Any)
else:
    R_co = TypeVar("R_co", covariant=True)

CRITICAL: Final = "critical"
DEFAULT: Final = "default"
LOWER: Final = "lower"

PAYLOAD_LIMIT: Final = 1024 * 1024
"""Default size limit of an encoded payload, in bytes."""

MAX_PAYLOAD_LIMIT: Final = 31 * 1024 * 1024
"""Largest allowed size limit of a payload, in bytes, since servers receive no message over 32
MiB."""

REMEMBER_IDS: Final = 3600.0
"""Default time for which the store remembers ids that callers chose, in seconds."""

HEADERS_LIMIT: Final = 8 * 1024
"""Size limit of the encoded headers, in bytes."""

MAX_RETRY: Final = 1_000_000

NORMAL_RETRY: Final = 3
"""Default of `retry`."""


class Arguments(dict[str, Any]):
    """A payload made from the arguments of a function."""

    decode: Callable[[Result], Any] | None = None
    """Function that decodes the stored result."""

    identity: dict[str, Any] | None = None
    """Arguments that a unique lock compares: those that differ from their defaults. None means
    all."""


class _PositionalFields(msgspec.Struct, frozen=True, gc=False):
    type: str
    payload: Any = b""


class Task(_PositionalFields, Generic[R_co], frozen=True, kw_only=True, gc=False):
    """A task to enqueue: a type, a payload and options. Raises InvalidTask if a value is invalid.

    `payload` is bytes, or any value that msgpack can encode. Durations are seconds or a timedelta;
    times are aware datetimes.

    queue         name of the queue
    id            1 to 128 printable ASCII characters, no spaces; by default a random id. For an
                  hour after the enqueue (`Qsync(remember_ids=...)` changes this time), the store
                  refuses a second task with this id, even if the first has left the queue
    retry         maximum number of retries after the first attempt fails; there is no default for
                  the whole app
    retry_delay   time before each retry: a duration, a list of durations (the last one repeats) or
                  an ExponentialBackoff; by default 1 to 2 s, 15 to 30 s, 3 to 5 min, 10 to 20 min,
                  and then 30 min to 1 h
    delay         earliest start, as a duration after the enqueue
    process_at    earliest start, as a time; not together with `delay`
    timeout       maximum duration of one attempt
    deadline      latest start, as a time, e.g. `datetime.now(UTC) + timedelta(minutes=10)`: no
                  attempt starts after it. The task must be due before its deadline
    unique        True refuses another task with the same type, payload and queue until this task
                  has finished. A duration also refuses it for at least that long after the enqueue
    unique_key    string to compare, within the queue, instead of type and payload; needs `unique`,
                  `on_duplicate` or `debounce`
    on_duplicate  action when another task holds the unique lock. "raise", the default: raise
                  DuplicateTask. "skip": return a handle to the other task. "replace": give the
                  other task this payload, these options and this due time; if the other task is
                  running, it continues, and then runs again with the new payload
    debounce      run this long after the last enqueue with the same `unique_key`, with the payload
                  of the last enqueue; not together with `delay` or `process_at`
    debounce_max  longest time from the first debounced enqueue until the task runs; each enqueue
                  sets it again, so an enqueue without it removes the limit
    priority      1 to 9, by default 5; within a queue, pending tasks with a higher priority start
                  first
    retention     how long the task and its result are kept after success; None means not at all
    limits        at most 4 limits that the task shares with other tasks, e.g. "stripe" or
                  "customer:42"; see `app.limit`
    fairness_key  tasks with different keys share the throughput fairly; e.g. one key per customer
    headers       mapping of strings to strings for middleware, e.g. a trace context; at most 8 KiB
    """

    queue: str = DEFAULT
    id: str | None = None
    retry: int = NORMAL_RETRY
    retry_delay: Delays | None = None
    delay: Duration | None = None
    process_at: datetime | None = None
    timeout: Duration | None = None
    deadline: datetime | None = None
    unique: bool | Duration | None = None
    unique_key: str | None = None
    on_duplicate: OnDuplicate | None = None
    debounce: Duration | None = None
    debounce_max: Duration | None = None
    priority: int = NORMAL_PRIORITY
    retention: Duration | None = None
    fairness_key: str | None = None
    headers: Mapping[str, str] | None = None
    limits: list[str] | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_type(self.type)
        if self.queue != DEFAULT:
            check_name("queue", self.queue)
        if self.id is not None:
            check_id(self.id)
        retry = self.retry
        if retry is not NORMAL_RETRY and (type(retry) is not int or not 0 <= retry <= MAX_RETRY):
            msg = f"retry: {shorten(retry)} is not a whole number from 0 to {MAX_RETRY}"
            raise InvalidTask(msg)
        priority = self.priority
        if priority is not NORMAL_PRIORITY and (
            type(priority) is not int or not 1 <= priority <= 9
        ):
            raise InvalidTask(f"priority: {shorten(priority)} is not a whole number from 1 to 9")
        if has_options(self):
            options_of(self)

    def replace(self, **changes: Any) -> Task:
        """Return a copy with some fields changed. Raise InvalidTask if a field is wrong."""
        # Call the class, because msgspec.structs.replace of msgspec 0.19 skips the checks of
        # __post_init__.
        return type(self)(**{**msgspec.structs.asdict(self), **changes})


def check_type(value: object) -> str:
    """Return the task type. Raise InvalidTask unless the type is 1 to 256 printable characters."""
    if type(value) is not str or not 0 < len(value) <= 256 or not value.isprintable():
        raise InvalidTask(
            phrase(
                "type: must be 1 to 256 printable characters, not %(value)s", value=shorten(value)
            )
        )
    return value


def has_options(task: Task) -> bool:
    """Return whether a task sets options other than type, payload, queue, id and retry."""
    return not (
        # A chain of comparisons ends at the first one that fails; comparing two tuples would take
        # twice as long.
        task.delay is None
        and task.retry_delay is None
        and task.process_at is None
        and task.timeout is None
        and task.deadline is None
        and task.unique is None
        and task.unique_key is None
        and task.on_duplicate is None
        and task.debounce is None
        and task.debounce_max is None
        and task.retention is None
        and task.fairness_key is None
        and task.headers is None
        and task.limits is None
        and task.priority == NORMAL_PRIORITY
    )


def options_of(task: Task) -> StoredOptions:
    """Check the options of a task and return them as stored, without the lock."""
    process_at, delay_us, deadline = _times(task)
    retention = _optional_us("retention", task.retention)
    if retention == 0:
        shown = shorten(task.retention)
        raise InvalidTask(
            f"retention: {shown} keeps nothing; omit it, or pass at least a microsecond"
        )
    timeout = _optional_us("timeout", task.timeout)
    if timeout == 0:
        shown = shorten(task.timeout)
        raise InvalidTask(
            f"timeout: {shown} leaves no time to run; omit it, or pass at least a microsecond"
        )
    unique = _uniqueness(task)
    if deadline is not None:
        _check_deadline(deadline, process_at, delay_us or unique.debounce_us or 0)
    return StoredOptions(
        retry_delay=_retry_delay(task.retry_delay),
        timeout_us=timeout,
        deadline_us=deadline,
        retention_us=retention,
        window_us=unique.window_us,
        fairness_key=_short_text("fairness_key", task.fairness_key, 256),
        headers=_checked_headers(task.headers),
        delay_us=delay_us or None,
        process_at_us=process_at,
        priority=None if task.priority == NORMAL_PRIORITY else task.priority,
        replaces=unique.replaces,
        debounce_us=unique.debounce_us,
        debounce_max_us=unique.debounce_max_us,
        limits=check_limits(task.limits),
    )


def _times(task: Task) -> tuple[int | None, int | None, int | None]:
    """Return `process_at`, `delay` and `deadline` in microseconds.

    Raise InvalidTask if one of these options is wrong, or if two of them cannot be used together.
    """
    process_at = deadline = None
    if task.process_at is not None:
        if task.delay is not None:
            raise InvalidTask(
                f"process_at: {task.process_at} and delay: {task.delay} cannot be used together"
            )
        process_at = datetime_us("process_at", task.process_at)
    delay = _optional_us("delay", task.delay)
    if task.deadline is not None:
        deadline = datetime_us("deadline", task.deadline)
        if task.deadline <= datetime.now(UTC):
            raise InvalidTask(f"deadline: {task.deadline.isoformat()} is already past")
    return process_at, delay, deadline


def _check_deadline(deadline_us: int, process_at_us: int | None, delay_us: int) -> None:
    """Raise InvalidTask if the task is not due before its deadline."""
    due_us = process_at_us
    if due_us is None:
        due_us = datetime_us("now", datetime.now(UTC)) + delay_us
    if due_us >= deadline_us:
        raise InvalidTask(f"deadline: {too_late(due_us, deadline_us)}")


def _optional_us(field: str, value: Duration | None) -> int | None:
    return None if value is None else duration_us(field, value)


def _retry_delay(value: Any) -> int | tuple[int, ...] | ExponentialBackoff | None:
    if value is None or isinstance(value, ExponentialBackoff):
        return value
    if isinstance(value, list | tuple):
        if not 0 < len(value) <= LONGEST_LIST:
            raise InvalidTask(f"retry_delay: must be 1 to {LONGEST_LIST} delays, not {len(value)}")
        return tuple(duration_us("retry_delay", delay) for delay in value)
    if callable(value):
        raise InvalidTask(
            f"retry_delay: {shorten(value)} cannot be stored with a task; pass a callable to "
            "`@app.task`, to `Qsync` or to `app.server`"
        )
    return duration_us("retry_delay", value)


def _uniqueness(task: Task) -> Uniqueness:
    return check_uniqueness(
        unique=task.unique,
        unique_key=_short_text("unique_key", task.unique_key, 4096),
        on_duplicate=task.on_duplicate,
        debounce=task.debounce,
        debounce_max=task.debounce_max,
        delay=task.delay,
        process_at=task.process_at,
    )


def _short_text(field: str, value: str | None, limit: int) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= limit:
        raise InvalidTask(f"{field}: {shorten(value)} is not a string of 1 to {limit} characters")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidTask(f"{field}: {shorten(value)} is not valid Unicode") from error
    return plain_text(value)


def _checked_headers(headers: Mapping[str, str] | None) -> dict[str, str] | None:
    if headers is None:
        return None
    if not isinstance(headers, Mapping):
        raise InvalidTask(f"headers: {class_name(headers)} is not a mapping of strings to strings")
    for name, value in headers.items():
        if not isinstance(name, str):
            raise InvalidTask(f"headers: the name {shorten(name)} is not a string")
        if not isinstance(value, str):  # the value is not shown, since it may be a secret
            kind = class_name(value)
            raise InvalidTask(f"headers: the value of {shorten(name)} is {kind}, not a string")
    try:
        size = len(codec.encode(dict(headers)))
    except codec.CodecError as error:
        raise InvalidTask(f"headers: {error}") from error
    if size > HEADERS_LIMIT:
        raise InvalidTask(f"headers: {size} bytes are over the limit of {HEADERS_LIMIT}")
    return dict(headers)


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A task as its handler sees it.

    id              id of the task, the same in each attempt
    type            type of the task; for a task function, its name
    payload         bytes: those of the caller, or the caller's value as msgpack, which `value()`
                    decodes
    queue           name of the queue
    retry           maximum number of attempts after the first
    attempt         number of this attempt, from 1
    last_attempt    True if no retry follows when this attempt fails
    crashes         how many times a server died while it ran the task
    enqueued_at     time of the enqueue, by the store's clock; in microseconds as `enqueued_at_us`
    deadline        latest start of an attempt, or None; in microseconds as `deadline_us`
    headers         mapping of strings to strings, as enqueued
    token           token of the lease, "" outside of a server
    is_value        True if the payload is a value that was encoded as msgpack
    final           True when the task is dead; `on_error` and hooks see True after the last failure

    In tests, create a TaskInfo with e.g. `qsync.testing.task_info(attempt=2)`.
    """

    id: str
    type: str
    payload: bytes
    queue: str
    retry: int
    attempt: int
    crashes: int
    enqueued_at_us: int
    deadline_us: int | None = None
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    token: str = ""
    is_value: bool = False
    final: bool = False

    @property
    def last_attempt(self) -> bool:
        """True if no retry follows when this attempt fails."""
        return self.attempt > self.retry

    @property
    def enqueued_at(self) -> datetime:
        """Time of the enqueue, by the store's clock."""
        return from_us(self.enqueued_at_us)

    @property
    def deadline(self) -> datetime | None:
        """Latest time at which an attempt may start; None if the task has no deadline."""
        return None if self.deadline_us is None else from_us(self.deadline_us)

    @overload
    def value(self) -> Any: ...

    @overload
    def value(self, type: builtins.type[T]) -> T: ...

    @overload
    def value(self, type: Any) -> Any: ...

    def value(self, type: Any = Any) -> Any:
        """Return the decoded payload, checked against `type` if it is passed.

        Bytes that the caller enqueued are returned unchanged, or decoded as msgpack if `type` is
        passed and is not bytes. `type` is any type that an argument of a task may have, e.g. a
        dataclass, a msgspec.Struct or a pydantic model. Raises InvalidTask when the payload does
        not match it.
        """
        if not self.is_value and type in (Any, bytes):
            return self.payload
        try:
            return converter_of(type)(self.payload)
        except ConfigError as error:
            text = f"payload: {error}"
        except MISFITS as error:
            text = f"payload: {misfit(error)}"
        raise InvalidTask(text)


class TaskStatus(TaskInfo, frozen=True, kw_only=True, gc=False):
    """A task in the store: the fields of TaskInfo, and the task's state.

    attempt       number of the current or next attempt
    due_at        when a scheduled or retried task is due; None in other states
    last_error    error of the last failed attempt
    progress      (done, total) as the handler last reported it; kept when the task completes
    cancelled     True if a cancellation was requested, or has ended the task
    retention_us  how long the task is kept after success, in microseconds
    started_at    start of the last attempt that has ended; None while the first attempt runs
    finished_at   when the task completed, was cancelled or became dead

    Times are by the store's clock.
    """

    state: TaskState
    due_at: datetime | None = None
    last_error: str | None = None
    progress: tuple[float, float] | None = None
    cancelled: bool = False
    retention_us: int | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
