"""The records of a task in the store: its message, its failures and its result."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Final

import msgspec

from qsync import codec
from qsync.backoff import ExponentialBackoff

NORMAL_PRIORITY: Final = 5
"""Default priority of a task; 9 is the highest, 1 the lowest."""


class StoredEdit(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A payload that an operator replaced: the time, the operator, and its bytes.

    The values are strings, since the store's scripts cannot read options that contain bytes.
    """

    at_us: int
    by: str
    packed: str
    """The payload, compressed with zlib, in base64."""
    is_value: bool


class StoredOptions(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The options of a message, which most tasks do not have; times are in microseconds.

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
    limits: tuple[str, ...] | None = msgspec.field(default=None, name="lm")
    priority: int | None = msgspec.field(default=None, name="pr")
    replaces: bool = msgspec.field(default=False, name="rp")
    """Whether the task replaces another task that holds its unique lock."""
    debounce_us: int | None = msgspec.field(default=None, name="db")
    debounce_max_us: int | None = msgspec.field(default=None, name="dm")


NO_OPTIONS: Final = StoredOptions()


class EditedOptions(StoredOptions, frozen=True, omit_defaults=True, gc=False):
    """The options of a message whose payload was edited.

    This is a separate class, since msgspec writes a longer header for a class with over 15 fields.
    """

    edits: tuple[StoredEdit, ...] = msgspec.field(default=(), name="ed")
    """Former payloads, the oldest first."""


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The message of a task in the store; it never changes after the enqueue."""

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
        """The earliest start, in microseconds of Unix time by the store's clock."""
        enqueued_us, options = self.enqueued_at_us, self.options
        if options is None:
            return enqueued_us
        delay_us = options.delay_us or options.debounce_us or 0
        return max(enqueued_us + delay_us, options.process_at_us or 0)


ENVELOPE_HEAD: Final = codec.head(len(Message.__struct_fields__))

_message_decoder = msgspec.msgpack.Decoder(Message)


def decode_message(data: bytes) -> Message:
    """Decode a stored message.

    Raise CodecError if the bytes are not a message of a known version.
    """
    try:
        message = _message_decoder.decode(data)
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError) as error:
        raise codec.CodecError(str(error) or error.__class__.__name__) from error
    if message.version != codec.VERSION:
        msg = f"envelope version {message.version} is not {codec.VERSION}; upgrade this server"
        raise codec.CodecError(msg)
    return message


_KNOWN_VERSIONS: Final = frozenset({codec.VERSION})
_version_of: Final = attrgetter("version")


def decode_messages(data: Sequence[bytes]) -> list[Message]:
    """Decode stored messages like `decode_message`, but in half the time per message."""
    decode = _message_decoder.decode
    try:
        messages = [decode(one) for one in data]
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError) as error:
        raise codec.CodecError(str(error) or error.__class__.__name__) from error
    if not _KNOWN_VERSIONS.issuperset(map(_version_of, messages)):
        raise codec.CodecError(f"a version other than {codec.VERSION}")
    return messages


class _EditedMessage(Message, frozen=True, array_like=True, gc=False):
    options: EditedOptions | None = None


_edited_decoder = msgspec.msgpack.Decoder(_EditedMessage)


def edited_options(data: bytes) -> EditedOptions:
    """Return the options of a stored message, with its edits; empty if the message cannot be
    read."""
    try:
        return _edited_decoder.decode(data).options or EditedOptions()
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError):
        return EditedOptions()


class FailedAttempt(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A failed attempt in the history of a task."""

    number: int = 0
    at_us: int = 0
    server: str = ""
    error: str = ""
    """First line of the error, at most SHORT_ERROR_LIMIT bytes."""

    begun_us: int = 0
    """Time at which the handler began, in microseconds; 0 if unknown."""

    error_class: str = ""
    """Module and qualified name of the exception's class; empty if unknown."""


class Failure(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The record of failed attempts, which servers write.

    Scripts treat the record as opaque, except `count_errors`, which reads the time and the mark.
    """

    attempts: int = 0
    error: str = ""
    failed_at_us: int = 0
    unknown_since_us: int = 0
    """Time, in microseconds, at which a server without a handler first handed the task back; 0 if
    none did."""
    unknown_times: int = 0
    due_us: int = 0
    """Earliest time of the next attempt, in microseconds."""
    history: tuple[FailedAttempt, ...] = ()
    """Last HISTORY_LIMIT failed attempts, oldest first, including those before a re-run."""
    snoozes: int = 0
    """Number of times that the handler raised Snooze."""
    snoozed_at_us: int = 0
    """Time of the last snooze, in microseconds; 0 if there was none since the last failed
    attempt."""
    mark: str = ""
    """Mark that groups failures by error (`fingerprint.mark_of`); a script reads it from the end of
    the record."""

    def with_attempt(self, attempt: FailedAttempt) -> tuple[FailedAttempt, ...]:
        """Return the history with one more attempt."""
        return (*self.history, attempt)[-HISTORY_LIMIT:]


NO_FAILURE: Final = Failure()
ERROR_LIMIT: Final = 4096
SHORT_ERROR_LIMIT: Final = 200
HISTORY_LIMIT: Final = 10

_failure_decoder = msgspec.msgpack.Decoder(Failure)


def decode_failure(data: bytes | None) -> Failure:
    """Decode a failure record; return NO_FAILURE if there is none or if it cannot be read."""
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
    """Why the result of a completed task could not be stored; None if the result is stored."""

    begun_us: int = 0
    """Time at which the handler began, in microseconds; 0 if unknown."""


NONE_VALUE: Final = codec.encode(None)
