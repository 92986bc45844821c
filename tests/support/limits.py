"""Encodes tasks with limits as a client does."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from qsync import codec
from qsync.message import NO_OPTIONS, StoredOptions
from qsync.new_task import FlowOptions, NewTask

_tail: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(
    tuple[bytes, str, bytes, bool, int, StoredOptions | None]  # type: ignore[arg-type]
)


def with_limits(task: NewTask, *limits: str) -> NewTask:
    """Return the task with these limits, which its message also contains. Without limits, return
    the task unchanged."""
    if not limits:
        return task
    *fields, options = _tail.decode(b"\x96" + task.message)
    options = replace(options or NO_OPTIONS, limits=limits)
    message = codec.encode([*fields, options])[1:]
    return replace(task, message=message, flow=replace(task.flow or FlowOptions(), limits=limits))
