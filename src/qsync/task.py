"""The values of qsync: tasks as callers give them, as the store has them, as handlers see them.

All of them are frozen and hold no connection.
"""

from __future__ import annotations

import base64
import builtins
import hashlib
import math
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, overload

import msgspec

from qsync import codec
from qsync.backoff import LONGEST_LIST, Delays, ExponentialBackoff
from qsync.convert import MISFITS, converter_of, misfit
from qsync.errors import ConfigError, InvalidTask
from qsync.keys import check_id, check_name, shorten
from qsync.state import TaskState

T = TypeVar("T")

if TYPE_CHECKING:
    from typing_extensions import TypeVar as _TypeVar  # type checkers know it anyway

    R_co = _TypeVar("R_co", covariant=True, default=Any)
else:
    R_co = TypeVar("R_co", covariant=True)

CRITICAL: Final = "critical"
DEFAULT: Final = "default"
LOWER: Final = "lower"

PAYLOAD_LIMIT: Final = 1024 * 1024
"""Default limit of an encoded payload, bytes."""

REMEMBER_IDS: Final = 3600.0
"""Default time for which the store remembers ids that callers chose, seconds."""

HEADERS_LIMIT: Final = 8 * 1024
"""Limit of the encoded headers, bytes."""

MAX_SECONDS: Final = 10 * 365 * 86_400.0
"""Longest duration that an option may have, seconds: ten years."""

MAX_RETRY: Final = 1_000_000

Duration = float | timedelta
"""A duration in seconds or as a timedelta."""


def duration_us(field: str, value: Duration, *, least: float = 0.0) -> int:
    """Return a duration in microseconds; InvalidTask unless it is from `least` to MAX_SECONDS."""
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        msg = f"{field}: {shorten(value)} is neither a number of seconds nor a timedelta"
        raise InvalidTask(msg)
    if not math.isfinite(seconds) or not least <= seconds <= MAX_SECONDS:
        msg = f"{field}: {shorten(value)} is not between {least:g} and {MAX_SECONDS:.0f} seconds"
        raise InvalidTask(msg)
    return round(seconds * 1_000_000)


def datetime_us(field: str, value: datetime) -> int:
    """Return an aware datetime as Unix time in microseconds; InvalidTask when it is naive."""
    if not isinstance(value, datetime):
        msg = f"{field}: {shorten(value)} is not a datetime"
        raise InvalidTask(msg)
    if value.tzinfo is None or value.utcoffset() is None:
        msg = f"{field}: {value.isoformat()} is naive; give it a time zone, datetime.now(UTC) say"
        raise InvalidTask(msg)
    return (value - _EPOCH) // timedelta(microseconds=1)


def from_us(us: int) -> datetime:
    """Return Unix time in microseconds as an aware datetime in UTC."""
    return _EPOCH + timedelta(microseconds=us)


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Arguments(dict[str, Any]):
    """A payload made from the arguments of a function."""

    decode: Callable[[Result], Any] | None = None
    """Function that decodes the stored result."""

    identity: dict[str, Any] | None = None
    """Arguments that count for a unique lock: those that differ from their defaults; None: all."""


class _PositionalFields(msgspec.Struct, frozen=True, gc=False):
    type: str
    payload: Any = b""


class Task(_PositionalFields, Generic[R_co], frozen=True, kw_only=True, gc=False):
    """A task to enqueue: a type, a payload and options. Raises InvalidTask when one is wrong.

    `payload` is bytes, or any value that msgpack can carry. Durations are seconds or a timedelta,
    times are aware datetimes.

    queue         name of the queue
    id            1 to 128 printable ASCII characters, no spaces; None: enqueue makes a random one.
                  The store refuses a second task with the same id, also when the first has left
                  the queue: for an hour after its enqueue, or `Qsync(remember_ids=...)`
    retry         how many attempts may follow the first one when attempts fail
    retry_delay   time before each retry: a duration, a list of durations (the last one repeats) or
                  an ExponentialBackoff; None: 1 to 2 s, 15 to 30 s, 3 to 5 min, 10 to 20 min, and
                  then 30 min to 1 h
    delay         earliest start, as a duration after the enqueue
    process_at    earliest start, as a time; excludes `delay`
    timeout       longest time that one attempt may take
    deadline      latest start: no attempt starts after this time
    unique        True: refuse another task with the same type, payload and queue until this one
                  has finished; a duration: also for that long after the enqueue
    unique_key    text to compare in place of type and payload; needs `unique`
    retention     how long the task and its result are kept after success; None: not at all
    fairness_key  tasks of different keys share the throughput fairly, e.g. one key per customer
    headers       mapping of text to text for middleware, e.g. a trace context; at most 8 KiB
    """

    queue: str = DEFAULT
    id: str | None = None
    retry: int = 3
    retry_delay: Delays | None = None
    delay: Duration | None = None
    process_at: datetime | None = None
    timeout: Duration | None = None
    deadline: datetime | None = None
    unique: bool | Duration | None = None
    unique_key: str | None = None
    retention: Duration | None = None
    fairness_key: str | None = None
    headers: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        check_type(self.type)
        if self.queue != DEFAULT:
            check_name("queue", self.queue)
        if self.id is not None:
            check_id(self.id)
        retry = self.retry
        if retry != 3 and (type(retry) is not int or not 0 <= retry <= MAX_RETRY):
            msg = f"retry: {shorten(retry)} is not a whole number from 0 to {MAX_RETRY}"
            raise InvalidTask(msg)
        if has_options(self):
            options_of(self)

    def replace(self, **changes: Any) -> Task:
        """Return a copy with some fields changed; InvalidTask when a field is wrong."""
        # msgspec.structs.replace of msgspec 0.19 skips __post_init__, and so the checks.
        return type(self)(**{**msgspec.structs.asdict(self), **changes})


def check_type(value: object) -> str:
    """Return the task type; InvalidTask unless it is 1 to 256 printable characters."""
    if type(value) is not str or not 0 < len(value) <= 256 or not value.isprintable():
        msg = f"type: {shorten(value)} is not 1 to 256 printable characters"
        raise InvalidTask(msg)
    return value


def has_options(task: Task) -> bool:
    """Return whether a task has options besides type, payload, queue, id and retry."""
    return not (
        task.retry_delay is None
        and task.delay is None
        and task.process_at is None
        and task.timeout is None
        and task.deadline is None
        and (task.unique is None or task.unique is False)
        and task.unique_key is None
        and task.retention is None
        and task.fairness_key is None
        and task.headers is None
    )


class StoredOptions(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The options of a message that most tasks do not have; times in microseconds.

    The encoded names have two letters to save memory in the store.
    """

    retry_delay: int | tuple[int, ...] | ExponentialBackoff | None = msgspec.field(
        default=None, name="rd"
    )
    timeout_us: int | None = msgspec.field(default=None, name="to")
    deadline_us: int | None = msgspec.field(default=None, name="dl")
    retention_us: int | None = msgspec.field(default=None, name="rt")
    lock: str | None = msgspec.field(default=None, name="lk")
    window_us: int | None = msgspec.field(default=None, name="lw")
    fairness_key: str | None = msgspec.field(default=None, name="fk")
    headers: dict[str, str] | None = msgspec.field(default=None, name="hd")
    delay_us: int | None = msgspec.field(default=None, name="dy")
    process_at_us: int | None = msgspec.field(default=None, name="at")


NO_OPTIONS: Final = StoredOptions()


def options_of(task: Task) -> StoredOptions:
    """Check the options of a task and return them as stored, without the lock; InvalidTask."""

    def us(field: str, value: Duration | None) -> int | None:
        return None if value is None else duration_us(field, value)

    delay = us("delay", task.delay)
    process_at = None
    if task.process_at is not None:
        if task.delay is not None:
            msg = f"process_at: {task.process_at} and delay: {task.delay} exclude each other"
            raise InvalidTask(msg)
        process_at = datetime_us("process_at", task.process_at)
    deadline = None
    if task.deadline is not None:
        deadline = datetime_us("deadline", task.deadline)
        if task.deadline <= datetime.now(UTC):
            msg = f"deadline: {task.deadline.isoformat()} is already past"
            raise InvalidTask(msg)
    if task.retention is not None and duration_us("retention", task.retention) == 0:
        msg = "retention: 0 keeps nothing; leave it out, or give a positive time"
        raise InvalidTask(msg)
    if task.timeout is not None and duration_us("timeout", task.timeout) == 0:
        msg = "timeout: 0 leaves no time to run; leave it out, or give a positive time"
        raise InvalidTask(msg)
    return StoredOptions(
        retry_delay=_retry_delay(task.retry_delay),
        timeout_us=us("timeout", task.timeout),
        deadline_us=deadline,
        retention_us=us("retention", task.retention),
        window_us=_window_us(task),
        fairness_key=_short_text("fairness_key", task.fairness_key, 256),
        headers=_checked_headers(task.headers),
        delay_us=delay or None,
        process_at_us=process_at,
    )


def _retry_delay(value: Any) -> int | tuple[int, ...] | ExponentialBackoff | None:
    if value is None or isinstance(value, ExponentialBackoff):
        return value
    if isinstance(value, list | tuple):
        if not 0 < len(value) <= LONGEST_LIST:
            msg = f"retry_delay: {len(value)} times are not 1 to {LONGEST_LIST}"
            raise InvalidTask(msg)
        return tuple(duration_us("retry_delay", delay) for delay in value)
    if callable(value):
        msg = (
            f"retry_delay: {shorten(value)} cannot be stored with a task; give a callable to "
            "`@app.task`, to `Qsync` or to `app.server`"
        )
        raise InvalidTask(msg)
    return duration_us("retry_delay", value)


def _window_us(task: Task) -> int | None:
    _short_text("unique_key", task.unique_key, 4096)
    if task.unique is None or task.unique is False:
        if task.unique_key is not None:
            msg = f"unique_key: {shorten(task.unique_key)} needs unique=True or unique=seconds"
            raise InvalidTask(msg)
        return None
    if task.unique is True:
        return 0
    window = duration_us("unique", task.unique)
    if window == 0:
        msg = "unique: 0 is no time; True is for as long as the task is not finished"
        raise InvalidTask(msg)
    return window


def _short_text(field: str, value: str | None, limit: int) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= limit:
        msg = f"{field}: {shorten(value)} is not a text of 1 to {limit} characters"
        raise InvalidTask(msg)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        msg = f"{field}: {shorten(value)} is not valid Unicode"
        raise InvalidTask(msg) from error
    return value


def _checked_headers(headers: Mapping[str, str] | None) -> dict[str, str] | None:
    if headers is None:
        return None
    if not isinstance(headers, Mapping) or not all(
        isinstance(name, str) and isinstance(value, str) for name, value in headers.items()
    ):
        msg = "headers: not a mapping of text to text"
        raise InvalidTask(msg)
    try:
        size = len(codec.encode(dict(headers)))
    except codec.CodecError as error:
        msg = f"headers: {error}"
        raise InvalidTask(msg) from error
    if size > HEADERS_LIMIT:
        msg = f"headers: {size} bytes are over the limit of {HEADERS_LIMIT}"
        raise InvalidTask(msg)
    return dict(headers)


class _ClientFields(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A message as the client sends it: without version and time of enqueue."""

    nonce: bytes
    type: str
    payload: bytes
    is_value: bool
    retry: int
    options: StoredOptions | None


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The message of a task as the store has it; it never changes after the enqueue."""

    version: int
    enqueued_at_us: int
    nonce: bytes
    type: str
    payload: bytes
    is_value: bool
    retry: int
    options: StoredOptions | None = None

    @property
    def due_us(self) -> int:
        """The earliest start, microseconds of Unix time by the store's clock."""
        at, options = self.enqueued_at_us, self.options
        if options is None:
            return at
        return max(at + (options.delay_us or 0), options.process_at_us or 0)


ENVELOPE_HEAD: Final = codec.head(len(Message.__struct_fields__))

_message_decoder = msgspec.msgpack.Decoder(Message)


def decode_message(data: bytes) -> Message:
    """Decode a stored message; CodecError when it is not a message of a known version."""
    try:
        message = _message_decoder.decode(data)
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError) as error:
        raise codec.CodecError(str(error) or error.__class__.__name__) from error
    if message.version != codec.VERSION:
        msg = f"envelope version {message.version} is not {codec.VERSION}; upgrade this server"
        raise codec.CodecError(msg)
    return message


class NewTask(msgspec.Struct, frozen=True, gc=False):
    """An encoded task, with the fields that the enqueue script needs."""

    id: str
    queue: str
    message: bytes
    due: str
    """Earliest start: `""` is now, `+<us>` a time after the enqueue, `<us>` Unix time."""
    fairness_key: str
    lock: str
    window_us: int
    retention_us: int | None
    decode: Callable[[Result], Any] | None = None
    remember_us: int = 0
    """Time for which the store refuses this id, even when the task has left the queue, us."""


_BYTES: Final = (bytes, bytearray, memoryview)

_nonces: Final[list[bytes]] = []
_ids: Final[list[str]] = []
"""Unused random values, drawn ahead: the system returns 4 KiB as fast as 8 bytes."""


def new_nonce() -> bytes:
    """Return 8 random bytes; the store tells a repeated enqueue from another one by them."""
    try:
        return _nonces.pop()
    except IndexError:
        drawn = os.urandom(8 * 512)
        fresh = [drawn[at : at + 8] for at in range(0, len(drawn), 8)]
        nonce = fresh.pop()
        _nonces.extend(fresh)
        return nonce


def new_id() -> str:
    """Return a random task id: 22 characters, 132 bits. It never begins with `-`."""
    try:
        return _ids.pop()
    except IndexError:
        drawn = base64.urlsafe_b64encode(os.urandom(33 * 128)).decode()
        ids = (drawn[start : start + 22] for start in range(0, len(drawn), 22))
        # Command lines read an argument that begins with a dash as an option.
        id, *rest = (id for id in ids if not id.startswith("-"))
        _ids.extend(rest)
        return id


def _forget_drawn() -> None:
    """Drop the values drawn ahead: a forked child must not use those of its parent."""
    _nonces.clear()
    _ids.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_forget_drawn)


def new_task(
    task: Task,
    nonce: bytes,
    *,
    queue: str | None = None,
    payload_limit: int = PAYLOAD_LIMIT,
    remember_us: int = 0,
) -> NewTask:
    """Encode a task for the store; InvalidTask when its payload or an option is wrong.

    `remember_us` applies only to a task whose id the caller chose.
    """
    payload = payload_of(task, payload_limit)
    queue = task.queue if queue is None else check_name("queue", queue)
    return encode_task(task, payload, nonce, queue, remember_us)


def payload_of(task: Task, limit: int = PAYLOAD_LIMIT) -> bytes:
    """Return the encoded payload; InvalidTask when it cannot be encoded or is over the limit."""
    payload = task.payload
    if type(payload) is not bytes:
        payload = bytes(payload) if isinstance(payload, _BYTES) else _encode(payload, task.type)
    if len(payload) > limit:
        msg = f"payload: {len(payload)} bytes are over the limit of {limit}"
        raise InvalidTask(msg)
    return payload


def encode_task(
    task: Task, payload: bytes, nonce: bytes, queue: str, remember_us: int = 0
) -> NewTask:
    """Return the encoded task; InvalidTask when an option of it is wrong."""
    if not has_options(task):
        return encode_plain_task(task, payload, nonce, queue, remember_us)
    is_value = not isinstance(task.payload, _BYTES)
    options = options_of(task)
    lock = _lock(task, payload) if options.window_us is not None else ""
    options = msgspec.structs.replace(options, lock=lock or None)
    tail = _ClientFields(
        nonce, task.type, payload, is_value, task.retry, None if options == NO_OPTIONS else options
    )
    return NewTask(
        id=task.id or new_id(),
        queue=queue,
        message=codec.seal(tail),
        due=_due(task),
        fairness_key=options.fairness_key or "",
        lock=lock,
        window_us=options.window_us or 0,
        retention_us=options.retention_us,
        decode=task.payload.decode if isinstance(task.payload, Arguments) else None,
        remember_us=remember_us if task.id else 0,
    )


def encode_plain_task(
    task: Task, payload: bytes, nonce: bytes, queue: str, remember_us: int = 0
) -> NewTask:
    """Return the encoded task, like `encode_task`, for a task without options; raises nothing."""
    is_value = not isinstance(task.payload, _BYTES)
    tail = _ClientFields(nonce, task.type, payload, is_value, task.retry, None)
    message = codec.seal(tail)
    decode = task.payload.decode if isinstance(task.payload, Arguments) else None
    if task.id is None:
        return NewTask(new_id(), queue, message, "", "", "", 0, None, decode)
    return NewTask(task.id, queue, message, "", "", "", 0, None, decode, remember_us)


def _encode(value: object, task_type: str) -> bytes:
    try:
        if isinstance(value, Arguments):
            return codec.encode_natural(value)
        return codec.encode_value(value)
    except codec.CodecError as error:
        text = f"payload: {error} (task {task_type!r})"
    raise InvalidTask(text)


def _due(task: Task) -> str:
    if task.process_at is not None:
        return str(max(0, datetime_us("process_at", task.process_at)))
    if task.delay is None:
        return ""
    delay = duration_us("delay", task.delay)
    return f"+{delay}" if delay else ""


def _lock(task: Task, payload: bytes) -> str:
    """Return the name of the unique lock: a digest of 32 hex digits."""
    digest = hashlib.blake2b(digest_size=16)
    if task.unique_key is not None:
        digest.update(b"key\0" + task.unique_key.encode())
    else:
        if isinstance(task.payload, Arguments) and task.payload.identity is not None:
            payload = codec.encode(task.payload.identity)
        digest.update(b"task\0" + task.type.encode() + b"\0" + payload)
    return digest.hexdigest()


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A task as its handler sees it.

    `payload` is always bytes: the caller's bytes, or the msgpack of its value, which `value()`
    decodes. `attempt` counts from 1. `crashes` is how many times a server died while it ran the
    task. `final` is True when the task is dead; `on_error` sees it for a failure without a retry.
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
        """Latest start of an attempt; None when the task has no deadline."""
        return None if self.deadline_us is None else from_us(self.deadline_us)

    @overload
    def value(self) -> Any: ...

    @overload
    def value(self, type: builtins.type[T]) -> T: ...

    @overload
    def value(self, type: Any) -> Any: ...

    def value(self, type: Any = Any) -> Any:
        """Return the decoded payload, checked against `type` when one is given.

        Bytes that the caller enqueued come back unchanged; with a `type` other than bytes they are
        decoded as msgpack. `type` is any type that an argument of a task may have, e.g. a
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
    """A task as the store has it: the fields of TaskInfo, and its state.

    attempt       number of the current or next attempt
    due_at        when a scheduled or retried task is due; None in other states
    last_error    error of the last failed attempt
    progress      (done, total) as the handler last reported it; kept when the task completes
    cancelled     True when a cancellation was requested, or ended the task
    retention_us  how long the task is kept after success, microseconds
    started_at    start of the last attempt that has ended; None while the first one runs
    finished_at   when the task was completed, cancelled or dead

    Times are those of the store's clock.
    """

    state: TaskState
    due_at: datetime | None = None
    last_error: str | None = None
    progress: tuple[float, float] | None = None
    cancelled: bool = False
    retention_us: int | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


class FailedAttempt(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A failed attempt, as the history of a task has it."""

    number: int = 0
    at_us: int = 0
    server: str = ""
    error: str = ""
    """First line of the error, at most SHORT_ERROR_LIMIT bytes."""

    begun_us: int = 0
    """Time at which the handler began, us; 0: unknown."""


class Failure(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The record of failed attempts; servers write it, the scripts do not read it."""

    attempts: int = 0
    error: str = ""
    failed_at_us: int = 0
    unknown_since_us: int = 0
    """Time at which a server without a handler first handed the task back, us; 0: never."""
    unknown_times: int = 0
    due_us: int = 0
    """Earliest time of the next attempt, us."""
    history: tuple[FailedAttempt, ...] = ()
    """Last HISTORY_LIMIT failed attempts, oldest first, including those before a re-run."""

    def with_attempt(self, attempt: FailedAttempt) -> tuple[FailedAttempt, ...]:
        """Return the history with one more attempt."""
        return (*self.history, attempt)[-HISTORY_LIMIT:]


NO_FAILURE: Final = Failure()
ERROR_LIMIT: Final = 4096
SHORT_ERROR_LIMIT: Final = 200
HISTORY_LIMIT: Final = 10

_failure_decoder = msgspec.msgpack.Decoder(Failure)


def decode_failure(data: bytes | None) -> Failure:
    """Decode a failure record; return NO_FAILURE when there is none or it cannot be read."""
    if data is None:
        return NO_FAILURE
    try:
        return _failure_decoder.decode(data)
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError):
        return NO_FAILURE


class Result(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The stored result of a handler, kept for the retention of its task."""

    value: bytes = b""
    is_value: bool = True
    error: str | None = None
    """Reason why the result of a completed task could not be stored; None: it is stored."""

    begun_us: int = 0
    """Time at which the handler began, us; 0: unknown."""


NONE_VALUE: Final = codec.encode(None)
