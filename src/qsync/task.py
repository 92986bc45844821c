"""The values of qsync: what a user asks for, what lies in the store, what a handler sees.

They are frozen and hold no connection.
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
    from typing_extensions import TypeVar as _TypeVar  # which type checkers know without it

    R_co = _TypeVar("R_co", covariant=True, default=Any)
else:
    R_co = TypeVar("R_co", covariant=True)

CRITICAL: Final = "critical"
DEFAULT: Final = "default"
LOWER: Final = "lower"

PAYLOAD_LIMIT: Final = 1024 * 1024
"""Default limit of an encoded payload, bytes."""

REMEMBER_IDS: Final = 3600.0
"""How long the ids that callers choose are remembered unless told otherwise, seconds."""

HEADERS_LIMIT: Final = 8 * 1024
"""Limit of the encoded headers, bytes."""

MAX_SECONDS: Final = 10 * 365 * 86_400.0
"""The longest duration that an option may have: ten years."""

MAX_RETRY: Final = 1_000_000

Duration = float | timedelta
"""Seconds, or a timedelta."""


def duration_us(field: str, value: Duration, *, least: float = 0.0) -> int:
    """A duration in microseconds; InvalidTask when it is not a number of seconds in range."""
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
    """An aware datetime as Unix time in microseconds; InvalidTask when it is naive."""
    if not isinstance(value, datetime):
        msg = f"{field}: {shorten(value)} is not a datetime"
        raise InvalidTask(msg)
    if value.tzinfo is None or value.utcoffset() is None:
        msg = f"{field}: {value.isoformat()} is naive; give it a time zone, datetime.now(UTC) say"
        raise InvalidTask(msg)
    return (value - _EPOCH) // timedelta(microseconds=1)


def from_us(us: int) -> datetime:
    """Unix time in microseconds as an aware datetime in UTC."""
    return _EPOCH + timedelta(microseconds=us)


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Arguments(dict[str, Any]):
    """A payload made of the arguments of a function."""

    decode: Callable[[Result], Any] | None = None
    """What makes the function's result of its record."""

    identity: dict[str, Any] | None = None
    """What counts for a unique lock: the arguments that differ from their defaults; None: all."""


class _PositionalFields(msgspec.Struct, frozen=True, gc=False):
    type: str
    payload: Any = b""


class Task(_PositionalFields, Generic[R_co], frozen=True, kw_only=True, gc=False):
    """What a user asks for: a type, a payload and options. Checked when it is made.

    `payload` is bytes, or any value that msgpack can carry. Durations are seconds or timedelta,
    times are aware datetimes.

    queue         where it waits
    id            chosen by you, or made at enqueue; a second task of the same id is refused, also
                  when the first has left the queue: for an hour after its enqueue, unless
                  `Qsync(remember_ids=...)` says otherwise
    retry         how many times a failed attempt is followed by another
    retry_delay   how long before each of these: a time, a list of times of which the last one
                  repeats, or an ExponentialBackoff; None: 1 to 2 s, 15 to 30 s, 3 to 5 min, 10 to
                  20 min, and then 30 min to 1 h
    delay         not before so much time has passed
    process_at    not before this time
    timeout       how long one attempt may take
    deadline      when to give up: it is never started later
    unique        True: no second task of this type, payload and queue while this one is not
                  done; seconds: nor within that time of its enqueue
    unique_key    takes the place of type and payload in that comparison
    retention     how long the task and its result are kept after success; None: not at all
    fairness_key  tasks of one queue share it by key, whatever one key floods it with
    headers       a mapping of text to text for middleware, a trace context say
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
        """A copy with some options changed, checked anew."""
        # Not by msgspec.structs.replace, which checks nothing anew in msgspec 0.19.
        return type(self)(**{**msgspec.structs.asdict(self), **changes})


def check_type(value: object) -> str:
    """Return the task type, or raise InvalidTask."""
    if type(value) is not str or not 0 < len(value) <= 256 or not value.isprintable():
        msg = f"type: {shorten(value)} is not 1 to 256 printable characters"
        raise InvalidTask(msg)
    return value


def has_options(task: Task) -> bool:
    """Whether there is more to a task than type, payload, queue, id and retry."""
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

    The field names are as short as they are because they lie in the store.
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
    """Check the optional fields of a task and put them into their stored form, without the lock."""

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
    """A message as the client sends it: all but version and time of enqueue."""

    nonce: bytes
    type: str
    payload: bytes
    is_value: bool
    retry: int
    options: StoredOptions | None


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What lies in the store for a task; never changed after enqueue."""

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
        """When it could start at the earliest, by the store's clock."""
        at, options = self.enqueued_at_us, self.options
        if options is None:
            return at
        return max(at + (options.delay_us or 0), options.process_at_us or 0)


ENVELOPE_HEAD: Final = codec.head(len(Message.__struct_fields__))

_message_decoder = msgspec.msgpack.Decoder(Message)


def decode_message(data: bytes) -> Message:
    """Decode what lies in the store; CodecError when it is not a message of a known version."""
    try:
        message = _message_decoder.decode(data)
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError) as error:
        raise codec.CodecError(str(error) or error.__class__.__name__) from error
    if message.version != codec.VERSION:
        msg = f"envelope version {message.version} is not {codec.VERSION}; upgrade this server"
        raise codec.CodecError(msg)
    return message


class NewTask(msgspec.Struct, frozen=True, gc=False):
    """A task made ready to be sent: what the enqueue script needs of it."""

    id: str
    queue: str
    message: bytes
    due: str
    """Empty: now; `+<us>`: so long after now by the store's clock; `<us>`: at this time."""
    fairness_key: str
    lock: str
    window_us: int
    retention_us: int | None
    decode: Callable[[Result], Any] | None = None
    remember_us: int = 0
    """How long the store refuses another task of this id, even when this one has left the queue."""


_BYTES: Final = (bytes, bytearray, memoryview)

_nonces: Final[list[bytes]] = []
_ids: Final[list[str]] = []
"""Drawn ahead, since the system is asked for 4 KiB as fast as for 8 bytes; each is popped once."""


def new_nonce() -> bytes:
    """The mark of one enqueue call, by which a repeated one is told from another."""
    try:
        return _nonces.pop()
    except IndexError:
        drawn = os.urandom(8 * 512)
        fresh = [drawn[at : at + 8] for at in range(0, len(drawn), 8)]
        nonce = fresh.pop()
        _nonces.extend(fresh)
        return nonce


def new_id() -> str:
    """A task id that nobody else makes: 22 characters, 132 random bits."""
    try:
        return _ids.pop()
    except IndexError:
        drawn = base64.urlsafe_b64encode(os.urandom(33 * 128)).decode()
        fresh = [drawn[at : at + 22] for at in range(0, len(drawn), 22)]
        id = fresh.pop()
        _ids.extend(fresh)
        return id


def _forget_drawn() -> None:
    """A forked child must not use what its parent is going to use."""
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
    """Encode a task for the store; InvalidTask when its payload does not fit.

    `remember_us` counts for a task whose id the caller chose.
    """
    payload = payload_of(task, payload_limit)
    queue = task.queue if queue is None else check_name("queue", queue)
    return encode_task(task, payload, nonce, queue, remember_us)


def payload_of(task: Task, limit: int = PAYLOAD_LIMIT) -> bytes:
    """The payload as it is stored; InvalidTask when it does not fit."""
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
    """A task ready to be sent; what may be wrong with it is its payload and its options."""
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
    """As `encode_task`, for a task without options: nothing is wrong with it."""
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
    """The name of the lock: a digest, so that it has a fixed size whatever it was made of."""
    digest = hashlib.blake2b(digest_size=16)
    if task.unique_key is not None:
        digest.update(b"key\0" + task.unique_key.encode())
    else:
        if isinstance(task.payload, Arguments) and task.payload.identity is not None:
            payload = codec.encode(task.payload.identity)
        digest.update(b"task\0" + task.type.encode() + b"\0" + payload)
    return digest.hexdigest()


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a handler sees of its task.

    `payload` is always bytes: as given, or the msgpack of the value; `value()` decodes it.
    `attempt` counts from 1; `crashes` is how often a server died with the task. `final` is True if
    the task is dead: `on_error` is told so of a failure that no further attempt follows.
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
        """True if a failure of this attempt leaves no further one."""
        return self.attempt > self.retry

    @property
    def enqueued_at(self) -> datetime:
        """When the store took it, by the store's clock."""
        return from_us(self.enqueued_at_us)

    @property
    def deadline(self) -> datetime | None:
        """After this time it is not started any more."""
        return None if self.deadline_us is None else from_us(self.deadline_us)

    @overload
    def value(self) -> Any: ...

    @overload
    def value(self, type: builtins.type[T]) -> T: ...

    @overload
    def value(self, type: Any) -> Any: ...

    def value(self, type: Any = Any) -> Any:
        """The payload decoded, and checked against a type when one is given.

        A payload that was given as bytes comes back as these bytes, unless a type is given: then
        they are decoded as msgpack. The type is one that msgspec can check, a model of pydantic or
        whatever else an argument of a task may be. Raises InvalidTask when it does not fit.
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
    """A task as it stands in the store: TaskInfo's fields, and where it is.

    `due_at` is when a scheduled or retried task is due, None for other states.
    `attempt` is the number of the current or next attempt. `progress` is (done, total) as the
    handler last told; it stays with a completed task. `cancelled`: somebody asked for it, or it
    ended so. `started_at` is when the handler began its last attempt that ended: None while the
    first one runs. `finished_at` is when the task was done, cancelled or dead. Both are times of
    the store's clock.
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
    """An attempt that failed, in brief."""

    number: int = 0
    at_us: int = 0
    server: str = ""
    error: str = ""
    """Its first line, SHORT_ERROR_LIMIT bytes at most."""

    begun_us: int = 0
    """When its handler began; 0: it is not known."""


class Failure(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is kept of failed attempts; written by servers, opaque to the scripts."""

    attempts: int = 0
    error: str = ""
    failed_at_us: int = 0
    unknown_since_us: int = 0
    """When a server first handed it back because it did not know the type; 0: never."""
    unknown_times: int = 0
    due_us: int = 0
    """Not before this was it to run again."""
    history: tuple[FailedAttempt, ...] = ()
    """The last HISTORY_LIMIT attempts, the oldest first; those before a re-run are among them."""

    def with_attempt(self, attempt: FailedAttempt) -> tuple[FailedAttempt, ...]:
        """The history with one more attempt."""
        return (*self.history, attempt)[-HISTORY_LIMIT:]


NO_FAILURE: Final = Failure()
ERROR_LIMIT: Final = 4096
SHORT_ERROR_LIMIT: Final = 200
HISTORY_LIMIT: Final = 10

_failure_decoder = msgspec.msgpack.Decoder(Failure)


def decode_failure(data: bytes | None) -> Failure:
    """The failure record; one that cannot be read counts as none, so that it stops nobody."""
    if data is None:
        return NO_FAILURE
    try:
        return _failure_decoder.decode(data)
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError):
        return NO_FAILURE


class Result(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a handler returned, as it is kept for the retention of its task."""

    value: bytes = b""
    is_value: bool = True
    error: str | None = None
    """Set when the task was done but its result could not be kept: why."""

    begun_us: int = 0
    """When the handler began; 0: it is not known."""


NONE_VALUE: Final = codec.encode(None)
