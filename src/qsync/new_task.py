"""Encodes a task for the store; checks its options and the size of its payload."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec

from qsync import codec, forks
from qsync.codec import encode_tail
from qsync.errors import InvalidTask
from qsync.keys import check_name
from qsync.message import (
    ENVELOPE_HEAD,
    NO_OPTIONS,
    NORMAL_PRIORITY,
    Result,
    StoredOptions,
    decode_message,
)
from qsync.phrase import phrase
from qsync.task import PAYLOAD_LIMIT, Arguments, Task, TaskInfo, has_options, options_of


class _ClientFields(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A message as the client sends it, i.e. without the version and the time of enqueue."""

    nonce: bytes
    type: str
    payload: bytes
    is_value: bool
    retry: int
    options: StoredOptions | None


class FlowOptions(msgspec.Struct, frozen=True, gc=False):
    """The options of a task that need flow control, which only some variants of the scripts
    have."""

    limits: tuple[str, ...] = ()
    priority: int = NORMAL_PRIORITY
    on_duplicate: Literal["raise", "replace"] = "raise"
    debounce_us: int = 0
    debounce_max_us: int = 0


class NewTask(msgspec.Struct, frozen=True, gc=False):
    """An encoded task, with the fields that the enqueue script needs."""

    id: str
    queue: str
    message: bytes
    due: str
    """Earliest start: `""` means now, `+<us>` a time after the enqueue, and `<us>` a Unix time."""
    fairness_key: str
    lock: str
    window_us: int
    retention_us: int | None
    decode: Callable[[Result], Any] | None = None
    remember_us: int = 0
    """How long, in microseconds, the store refuses this id, even after the task has left the
    queue."""
    flow: FlowOptions | None = None
    """Options of flow control; None if the task has none."""
    skips: bool = False
    """Whether the client returns a handle instead of raising an error if another task holds the
    unique lock."""


def with_nonce(task: NewTask, nonce: bytes) -> NewTask:
    """Return the task with another nonce. The store treats two enqueues with the same id and nonce
    as one enqueue, and refuses the second if the nonces differ."""
    return msgspec.structs.replace(task, message=task.message[:2] + nonce + task.message[10:])


_BYTES: Final = (bytes, bytearray, memoryview)

_nonces: Final[list[bytes]] = []
_ids: Final[list[str]] = []
"""Random values that are generated in advance, since the operating system returns 4 KiB as fast as
8 bytes."""


def new_nonce() -> bytes:
    """Return 8 random bytes, by which the store tells a repeated enqueue from a new one."""
    forks.notice()
    try:
        return _nonces.pop()
    except IndexError:
        drawn = os.urandom(8 * 512)
        fresh = [drawn[start : start + 8] for start in range(0, len(drawn), 8)]
        nonce = fresh.pop()
        _nonces.extend(fresh)
        return nonce


def new_id() -> str:
    """Return a random task id: 22 characters, 132 bits. The id never begins with `-`."""
    forks.notice()
    return _next_id()


def _next_id() -> str:
    """Return a new id.

    Call `new_nonce` first, since after a fork it discards the values of the parent.
    """
    try:
        return _ids.pop()
    except IndexError:
        drawn = base64.urlsafe_b64encode(os.urandom(33 * 128)).decode()
        # Skip ids with a leading dash, which a command line would read as options.
        ids = [
            drawn[start : start + 22] for start in range(0, len(drawn), 22) if drawn[start] != "-"
        ]
        id = ids.pop()
        _ids.extend(ids)
        return id


def _forget_drawn() -> None:
    """Discard the values generated in advance, since a forked child must not use its parent's
    values."""
    _nonces.clear()
    _ids.clear()


forks.on_fork(_forget_drawn)


def new_task(
    task: Task,
    nonce: bytes,
    *,
    queue: str | None = None,
    payload_limit: int = PAYLOAD_LIMIT,
    remember_us: int = 0,
) -> NewTask:
    """Encode a task for the store. Raise InvalidTask if its payload or an option is wrong.

    `remember_us` applies only to a task whose id the caller chose.
    """
    payload = payload_of(task, payload_limit)
    queue = task.queue if queue is None else check_name("queue", queue)
    encode = encode_task if has_options(task) else encode_plain_task
    return encode(task, payload, nonce, queue, remember_us)


def info_of(task: NewTask, now_us: int) -> TaskInfo:
    """Return the task as hooks see it, with `now_us` as the time of the enqueue."""
    message = decode_message(ENVELOPE_HEAD + now_us.to_bytes(8, "big") + task.message)
    options = message.options or NO_OPTIONS
    return TaskInfo(
        id=task.id, type=message.type, payload=message.payload, queue=task.queue,
        retry=message.retry, attempt=1, crashes=0, enqueued_at_us=now_us,
        deadline_us=options.deadline_us, headers=options.headers or {}, is_value=message.is_value,
    )  # fmt: skip


def payload_of(task: Task, limit: int = PAYLOAD_LIMIT) -> bytes:
    """Encode a task's payload. Raise InvalidTask if it cannot be encoded or is too large."""
    payload = task.payload
    if type(payload) is not bytes:
        payload = bytes(payload) if isinstance(payload, _BYTES) else _encode(payload, task.type)
    if len(payload) > limit:
        raise InvalidTask(
            phrase(
                "payload: %(size)s bytes are over the limit of %(limit)s",
                size=str(len(payload)), limit=str(limit),
            )
        )  # fmt: skip
    return payload


def encode_task(
    task: Task, payload: bytes, nonce: bytes, queue: str, remember_us: int = 0
) -> NewTask:
    """Encode a task. Raise InvalidTask if one of the task's options is wrong."""
    content = task.payload
    options = options_of(task)
    lock = _lock(task, payload) if options.window_us is not None else ""
    if lock:
        options = msgspec.structs.replace(options, lock=lock)
    is_value = not isinstance(content, _BYTES)
    tail = _ClientFields(
        nonce, task.type, payload, is_value, task.retry, None if options == NO_OPTIONS else options
    )
    return NewTask(
        id=task.id or _next_id(),
        queue=queue,
        message=encode_tail(tail),
        due=due_of(options),
        fairness_key=options.fairness_key or "",
        lock=lock,
        window_us=options.window_us or 0,
        retention_us=options.retention_us,
        decode=content.decode if isinstance(content, Arguments) else None,
        remember_us=remember_us if task.id else 0,
        flow=flow_of(options),
        skips=task.on_duplicate == "skip",
    )


def encode_plain_task(
    task: Task, payload: bytes, nonce: bytes, queue: str, remember_us: int = 0
) -> NewTask:
    """Encode a task without options, as `encode_task` would; never raises."""
    content, id = task.payload, task.id
    is_value = not isinstance(content, _BYTES)
    decode = content.decode if is_value and isinstance(content, Arguments) else None
    message = encode_tail((nonce, task.type, payload, is_value, task.retry, None))
    if id is None:
        return NewTask(_next_id(), queue, message, "", "", "", 0, None, decode)
    return NewTask(id, queue, message, "", "", "", 0, None, decode, remember_us)


def encode_message(
    type: str, payload: bytes, options: StoredOptions, *, id: str, nonce: bytes, queue: str,
    is_value: bool, retry: int,
) -> NewTask:  # fmt: skip
    """Build a task from an encoded payload and checked options, without a unique lock."""
    tail = _ClientFields(
        nonce, type, payload, is_value, retry, None if options == NO_OPTIONS else options
    )
    return NewTask(
        id=id, queue=queue, message=encode_tail(tail), due=due_of(options),
        fairness_key=options.fairness_key or "", lock="", window_us=0,
        retention_us=options.retention_us, flow=flow_of(options),
    )  # fmt: skip


def _encode(value: object, task_type: str) -> bytes:
    try:
        if isinstance(value, Arguments):
            return codec.encode_natural(value)
        return codec.encode_value(value)
    except codec.CodecError as error:
        text = f"payload: {error} (task {task_type!r})"
    raise InvalidTask(text)


def flow_of(options: StoredOptions) -> FlowOptions | None:
    """Return the options of flow control; None if the task has none."""
    flow = FlowOptions(
        limits=options.limits or (),
        priority=options.priority or NORMAL_PRIORITY,
        on_duplicate="replace" if options.replaces else "raise",
        debounce_us=options.debounce_us or 0,
        debounce_max_us=options.debounce_max_us or 0,
    )
    return None if flow == _NO_FLOW else flow


_NO_FLOW: Final = FlowOptions()


def due_of(options: StoredOptions) -> str:
    if options.process_at_us is not None:
        return str(max(0, options.process_at_us))
    delay_us = options.delay_us or options.debounce_us
    return f"+{delay_us}" if delay_us else ""


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
