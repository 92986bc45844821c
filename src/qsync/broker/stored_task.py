"""A task as the store holds it, and functions that interpret its fields. Without I/O."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from qsync import codec
from qsync.broker.leased_batch import crash_count
from qsync.message import Failure, Message, Result, StoredOptions, decode_failure, decode_message
from qsync.state import TaskState
from qsync.task import TaskStatus
from qsync.times import from_us


@dataclass(frozen=True, slots=True)
class StoredTask:
    """A task as the store holds it, not decoded."""

    state: TaskState
    score: int
    message: bytes | None
    owner: str | None
    crashes: bytes | None
    failure: bytes | None
    result: bytes | None
    cancel: bytes | None
    progress: bytes | None
    successor: bytes | None = None
    """Next run of an active task that was replaced: `<due us> <length of the member>
    <member><message>`."""


def state_of(shown: StoredTask) -> TaskState:
    """Return the state to show to users. The store keeps cancelled tasks among the completed
    tasks."""
    cancelled = shown.state is TaskState.COMPLETED and shown.cancel is not None
    return TaskState.CANCELLED if cancelled else shown.state


def number(text: bytes | None) -> int:
    """Return a number that the store holds as text; 0 if it is missing or invalid."""
    return int(text) if text and text.isdigit() and len(text) < 20 else 0


def score_us(text: bytes | str) -> int:
    """Convert a score to microseconds, at most 4e17, since a damaged store may hold any number."""
    return int(max(-4e17, min(float(text), 4e17)))


def message_of(shown: StoredTask) -> Message | None:
    """Decode the message; None when it is missing or invalid."""
    return _decoded(shown.message)


def last_message_of(shown: StoredTask) -> Message | None:
    """Decode the message of the last run: of the next run if the task was replaced while it is
    active, else of the task itself. Returns None when the message is missing or invalid."""
    return _next_message_of(shown) or message_of(shown)


def _next_message_of(shown: StoredTask) -> Message | None:
    _due, _, rest = (shown.successor or b"").partition(b" ")
    size, _, rest = rest.partition(b" ")
    return _decoded(rest[number(size) :])


def _decoded(message: bytes | None) -> Message | None:
    if not message:
        return None
    try:
        return decode_message(message)
    except codec.CodecError:
        return None


def result_of(shown: StoredTask) -> Result | None:
    """Decode the result record; None when it is missing or invalid."""
    if shown.result is None:
        return None
    try:
        record: Result = codec.decode(shown.result, Result)
    except codec.CodecError:
        return None
    return record


def last_error(shown: StoredTask) -> str | None:
    """Return why the last attempt, or the task as a whole, failed; None when nothing failed."""
    if shown.state is TaskState.DEAD:
        if shown.message is None:
            return "the store lost the message of this task"
        if shown.crashes is not None and shown.crashes.endswith(b"!"):
            return f"crashed {crash_count(shown.crashes)} times"
    if shown.state is TaskState.COMPLETED:
        record = result_of(shown)
        if record is not None and record.error is not None:
            return record.error
    return decode_failure(shown.failure).error or None


ABANDONED_US: Final = 2**52
"""Amount that `abandon` subtracts from the expiry of a dead server's lease, in us."""


def lease_until(shown: StoredTask) -> datetime:
    """Return when an active task's lease expires. If its server died, return when the lease would
    have expired."""
    return from_us(shown.score + (ABANDONED_US if shown.score < 0 else 0))


def progress_of(shown: StoredTask) -> tuple[float, float] | None:
    """Return the progress (done, total) that the handler of a running task last reported."""
    return _progress(shown.progress)


def status(id: str, queue: str, shown: StoredTask) -> TaskStatus:
    """Return a task's public status; the fields of an invalid message are empty."""
    message = message_of(shown)
    failure = decode_failure(shown.failure)
    options = (message.options if message else None) or StoredOptions()
    waits = shown.state in (TaskState.SCHEDULED, TaskState.RETRY)
    return TaskStatus(
        id=id,
        queue=queue,
        type=message.type if message else "",
        payload=message.payload if message else shown.message or b"",
        is_value=bool(message and message.is_value),
        final=shown.state is TaskState.DEAD,
        retry=message.retry if message else 0,
        attempt=_attempt(shown.state, failure.attempts),
        crashes=crash_count(shown.crashes),
        enqueued_at_us=message.enqueued_at_us if message else 0,
        deadline_us=options.deadline_us,
        headers=options.headers or {},
        token=shown.owner or "",
        state=state_of(shown),
        due_at=from_us(shown.score) if waits else None,
        last_error=last_error(shown),
        progress=_progress(shown.progress),
        cancelled=shown.cancel is not None,
        retention_us=options.retention_us,
        started_at=_started_at(shown, failure, _finished_at(shown, options)),
        finished_at=_finished_at(shown, options),
    )


def _started_at(shown: StoredTask, failure: Failure, finished: datetime | None) -> datetime | None:
    """Return the recorded start of the last attempt that ended; None if none is recorded.

    A server's estimate of the store's clock is off by up to a round trip, so a start after the end
    of the task is replaced with that end.
    """
    record = result_of(shown) if shown.state is TaskState.COMPLETED else None
    begun_us = record.begun_us if record else 0
    if not begun_us and failure.history and failure.history[-1].number == failure.attempts:
        begun_us = failure.history[-1].begun_us
    if not begun_us:
        return None
    begun = from_us(begun_us)
    return begun if finished is None else min(begun, finished)


def _finished_at(shown: StoredTask, options: StoredOptions) -> datetime | None:
    """Return when the task completed or became dead.

    The score of a completed task is the end of its retention.
    """
    if shown.state is TaskState.DEAD:
        return from_us(shown.score)
    retention = number(shown.cancel) if shown.cancel else options.retention_us
    if shown.state is not TaskState.COMPLETED or retention is None:
        return None
    return from_us(shown.score - retention)


def _attempt(state: TaskState, failed: int) -> int:
    """Return the number of the current or next attempt, or of a dead task's last attempt."""
    return failed if state is TaskState.DEAD and failed else failed + 1


def _progress(text: bytes | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        done, total = text.split(b"/")
        return float(done), float(total)
    except ValueError:
        return None
