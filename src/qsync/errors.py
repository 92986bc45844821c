"""All exceptions of qsync, with one class for each way in which a caller can react.

QsyncError
├── ConfigError          a setting or a registration is wrong: fix the program
├── InvalidTask          the task or one of its options is invalid: fix the call
├── DuplicateTask        the id or unique lock is taken: use the task named in the error
├── TaskNotFound         the queue does not have the task, or no longer has it
├── TaskNotWaiting       the task has no due time to change: it is pending, running or has ended
├── QueueFull            the queue has reached a bound, or the store is full: try again later
├── SchemaMismatch       another version of qsync wrote the queue's data: use that version
├── StoreUnavailable     the store did not answer in time: try again later
├── ResultTimeout        the task has not ended yet: wait longer
├── TaskFailed           the task is dead; the message is its last error
├── TaskCancelled        the task was cancelled
├── LeaseLost            this server no longer holds the lease on the task that it is running
├── Retry                raised by a handler to have the task run again
├── SkipRetry            raised by a handler to have the task end as dead
└── Snooze               raised by a handler to have the task run later, without an attempt
    └── RateLimited      Snooze that also closes one of the task's limits for that time
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, Final, Self

_RETRY: Final = "retry"
"""Text of a Retry that has neither a message nor a cause."""

LONGEST_DELAY_S: Final = 10 * 365 * 86_400.0
"""Longest delay of a Retry or Snooze, in seconds: ten years."""


class QsyncError(Exception):
    """The base class of all exceptions of qsync.

    If `enqueue_many` fails halfway, `handles` contains the handles of the tasks that the store
    answered for, in task order. Pickling leaves the handles out, since they belong to a client of
    this process.
    """

    handles: Sequence[Any] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        attributes = {name: value for name, value in vars(self).items() if name != "handles"}
        return _rebuild, (type(self), self.args), attributes

    def __copy__(self) -> Self:
        rebuild, args, _ = self.__reduce__()
        copied: Self = rebuild(*args)
        vars(copied).update(vars(self))
        return copied


class ConfigError(QsyncError, ValueError):
    """A setting, a URL or the registration of a handler is wrong; the message says which."""


class InvalidTask(QsyncError, ValueError):
    """The task or one of its options is invalid; the message names the field and the value."""


class DuplicateTask(QsyncError):
    """Another task holds the id or the unique lock of the task.

    `id` and `queue` identify the other task: `client.handle(error.id, queue=error.queue)`.
    """

    def __init__(self, message: str, *, id: str, queue: str) -> None:
        super().__init__(message)
        self.id = id
        self.queue = queue


class TaskNotFound(QsyncError, LookupError):
    """The queue has no such task: the task has ended and was not kept, was deleted, or never
    existed."""


class TaskNotWaiting(QsyncError):
    """The task is in a `state` in which its due time cannot be changed; nothing was changed.

    Only a task that is scheduled or waits for a retry has a due time.
    """

    def __init__(self, message: str, *, state: str) -> None:
        super().__init__(message)
        self.state = state


class QueueFull(QsyncError):
    """The queue has reached a bound, or the store is out of memory. Of the call, only the tasks in
    `handles` were stored.

    `queue`, `bound` ("max_tasks" or "max_bytes"), `limit` (its value) and `count` (the current
    amount) describe the bound; they are None if the store is out of memory. `room` is the number of
    tasks, from the start of the refused call, that would fit. `enqueue_many` stores these tasks, so
    `count` then includes them, and `room` is 0.
    """

    def __init__(
        self,
        message: str,
        *,
        queue: str | None = None,
        bound: str | None = None,
        limit: int | None = None,
        count: int | None = None,
        room: int = 0,
    ) -> None:
        super().__init__(message)
        self.queue = queue
        self.bound = bound
        self.limit = limit
        self.count = count
        self.room = room


class SchemaMismatch(QsyncError):
    """The queue's data have the layout of another version of qsync; nothing was done."""


class StoreUnavailable(QsyncError, ConnectionError):
    """The store could not be reached, or gave only transient errors, within the client's patience.

    An enqueue that raises this error may have stored its task. To repeat the enqueue without
    running the task twice, give the task an id. The store then refuses the same id with
    DuplicateTask for an hour after the first enqueue (`Qsync(remember_ids=...)`), even when the
    task has completed. The store forgets the id sooner if callers choose more than 250,000 other
    ids in the queue in that time.
    """


class ResultTimeout(QsyncError, TimeoutError):
    """The task did not end within the `timeout` of `result`; the timeout does not stop the task."""


class TaskFailed(QsyncError):
    """The task is dead; the message is its last error."""


class TaskCancelled(QsyncError):
    """The task was cancelled before it completed."""


class LeaseLost(QsyncError):
    """The server's lease on the task has ended, and another server may be running the task.

    In a handler, `current().progress()` and every enqueue raise this error from then on. A handler
    in a thread cannot be stopped from outside, so let the exception propagate to end the handler.
    The outcome of this run is discarded.
    """


class Retry(QsyncError):
    """Raise it in a handler to have the task retried; the run counts as an attempt.

    `delay` is in seconds or a timedelta, from 0 to ten years; None means the task's own
    `retry_delay`. Another value raises ConfigError. Without a message, the text is the class and
    message of the cause (`raise Retry(delay=2) from error`) or of the exception being handled.
    """

    def __init__(self, message: str = _RETRY, *, delay: float | timedelta | None = None) -> None:
        super().__init__(message)
        if isinstance(message, int | float | timedelta):
            shown = _shown(message)
            raise ConfigError(f"Retry: message: {shown} is not a string; for a delay, use delay=")
        self.delay: float | timedelta | None = (
            None if delay is None else _checked_delay("Retry: delay", delay)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, (kind, args), attributes = super().__reduce__()
        if args == (_RETRY,):
            args = (str(self),)  # pickle does not keep the cause, which the text comes from
        return rebuild, (kind, args), attributes

    def __str__(self) -> str:
        text = super().__str__()
        cause = self.__cause__ or (None if self.__suppress_context__ else self.__context__)
        if text != _RETRY or cause is None:
            return text
        reason = str(cause)
        return f"{type(cause).__name__}: {reason}" if reason else type(cause).__name__


class SkipRetry(QsyncError):
    """Raise it in a handler to make the task dead immediately, without a retry."""


class Snooze(QsyncError):
    """Raise it in a handler to have this task run again after `delay`; no attempt is counted.

    `delay` is in seconds or a timedelta, from 0 to ten years; another value raises ConfigError. If
    the task's deadline would pass before the delay ends, the task becomes dead immediately.
    """

    def __init__(self, delay: float | timedelta, message: str = "") -> None:
        super().__init__(message)
        self.delay: float | timedelta = _checked_delay("Snooze: delay", delay)

    @property
    def delay_us(self) -> int:
        """The delay in microseconds."""
        return round(_seconds(self.delay) * 1_000_000)


class RateLimited(Snooze):
    """Raise it in a handler when an API refuses further requests: the task runs again after
    `retry_after`.

    As with Snooze, no attempt is counted. Until that time, no other task that has the limit starts.
    `limit` is one of the task's limits, e.g. "customer:42", or its name; None means the first
    limit. If the task does not have the limit, the attempt fails with a ConfigError. For a task
    without limits, RateLimited without `limit` is the same as Snooze.
    """

    def __init__(
        self,
        retry_after: float | timedelta,
        *,
        limit: str | None = None,
        message: str = "",
    ) -> None:
        delay = _checked_delay("RateLimited: retry_after", retry_after)
        if limit is not None and not isinstance(limit, str):
            raise ConfigError(f"RateLimited: limit: {_shown(limit)} is not a string")
        super().__init__(delay, message)
        self.limit = limit


def _rebuild(kind: type[QsyncError], args: tuple[Any, ...]) -> QsyncError:
    """Return an exception with these `args`, without its constructor, whose parameters differ."""
    error = kind.__new__(kind, *args)
    error.args = args
    return error


def _checked_delay(field: str, delay: float | timedelta) -> float | timedelta:
    """Return the delay; raise ConfigError if the value is not valid."""
    seconds = _seconds(delay)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise ConfigError(
            f"{field}: {_shown(delay)} is neither a number of seconds nor a timedelta"
        )
    if not 0 <= seconds <= LONGEST_DELAY_S:  # False for NaN
        msg = f"{field}: {_shown(delay)} is not between 0 and {LONGEST_DELAY_S:.0f} seconds"
        raise ConfigError(msg)
    return delay


def _shown(value: object) -> str:
    """Return a value as text for a message, even if its repr fails, e.g. for a huge int."""
    try:
        return f"{value!a:.80}"
    except Exception:
        return f"<{type(value).__name__} that has no repr>"


def _seconds(delay: float | timedelta) -> float:
    return delay.total_seconds() if isinstance(delay, timedelta) else delay


@contextlib.contextmanager
def at_definition() -> Iterator[None]:
    """Turn InvalidTask into ConfigError, because a mistake at definition time is a fault of the
    program."""
    try:
        yield
    except InvalidTask as error:
        raise ConfigError(str(error)) from error
