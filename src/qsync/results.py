"""Interprets the outcome of a task, and sets the poll intervals, for task_queries.py.

When a task ends, its id is published on a channel of its queue (see result_listener.py). This
message may be lost, so callers also poll. They read the task at the start, when a message arrives,
and every 1 to 5 s.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from qsync import codec
from qsync.broker.stored_task import StoredTask, last_error, last_message_of, result_of
from qsync.convert import MISFITS, converter_of, misfit
from qsync.errors import (
    ConfigError,
    InvalidTask,
    QsyncError,
    TaskCancelled,
    TaskFailed,
    TaskNotFound,
    TaskNotWaiting,
)
from qsync.message import Message, Result
from qsync.state import TaskState


def result_if_finished(id: str, queue: str, shown: StoredTask | None) -> Result | None:
    """Return the result record of a completed task; None while the task has not ended.

    Raises what `Handle.result` raises when the task ended in another way.
    """
    where = f"task {id!r} in queue {queue!r}"
    if shown is None:
        raise not_found(id, queue)
    if shown.state is TaskState.DEAD:
        raise TaskFailed(last_error(shown) or f"{where} is dead")
    message = last_message_of(shown)
    if message is not None and _retention(message) is None:
        raise without_retention(id, queue)
    if shown.state is not TaskState.COMPLETED:
        return None
    if shown.cancel is not None:
        raise TaskCancelled(f"{where} was cancelled")
    record = result_of(shown)
    if record is None or record.error is not None:
        why = "it is missing or cannot be read" if record is None else record.error
        raise QsyncError(f"{where} is done, but its result is not available: {why}")
    return record


def retention_of(shown: StoredTask) -> int | None:
    """Return how long the task is kept after the success of its last run, in microseconds; None if
    it is not kept, or if that is unknown."""
    message = last_message_of(shown)
    return None if message is None else _retention(message)


def _retention(message: Message) -> int | None:
    return None if message.options is None else message.options.retention_us


def not_found(id: str, queue: str) -> TaskNotFound:
    """Return the error for a task that is not in the queue."""
    return TaskNotFound(
        f"task {id!r} is not in queue {queue!r}: it has ended and was not kept (no retention=), "
        "was deleted, or is in another queue (client.find(id) finds it)"
    )


def not_waiting(id: str, queue: str, state: TaskState) -> TaskNotWaiting:
    """Return the error for a task whose due time cannot be changed."""
    return TaskNotWaiting(
        f"task {id!r} in queue {queue!r} is {state}: only a task that is scheduled or waits for a "
        "retry can be rescheduled",
        state=state,
    )


def without_retention(id: str, queue: str) -> InvalidTask:
    """Return the error for a task whose result is not kept."""
    return InvalidTask(
        f"retention: task {id!r} in queue {queue!r} has none, so its result is not kept; "
        "set @app.task(retention=...) or Task(..., retention=...)"
    )


def decode_result(record: Result) -> Any:
    """Return what the handler returned: bytes unchanged, other values decoded."""
    if not record.is_value:
        return record.value
    try:
        return codec.decode(record.value)
    except codec.CodecError as error:
        raise QsyncError(f"the task is done, but its result cannot be read: {error}") from error


def decoder_of(type: Any) -> Callable[[Result], Any]:
    """Return a decoder for results of this type. Raise ConfigError if no result can have the type.

    The decoder raises QsyncError when the result is of another type.
    """
    try:
        convert = converter_of(type)
    except ConfigError as error:
        raise ConfigError(f"type: {error}") from None

    def decode(record: Result) -> Any:
        if not record.is_value and type is bytes:
            return record.value
        data = record.value if record.is_value else codec.encode(record.value)
        try:
            return convert(data)
        except MISFITS as error:
            why = misfit(error)
        raise QsyncError(
            f"the task has completed, but its result does not have the requested type: {why}"
        )

    return decode


class Deadline:
    """The deadline of a wait: `seconds` after the creation of this object, or never if None."""

    def __init__(self, seconds: float | None) -> None:
        self._ends = math.inf if seconds is None else time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds left; 0 if the deadline has passed."""
        return max(0.0, self._ends - time.monotonic())


def poll_intervals() -> Iterator[float]:
    """Yield how long to wait for a message before each poll, in seconds: from 1 up to 5."""
    pause = 1.0
    while True:
        yield pause
        pause = min(pause * 1.5, 5.0)
