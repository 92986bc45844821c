"""Every exception that qsync raises, one class for each thing that a caller can do about it.

QsyncError
├── ConfigError          a setting or a registration is wrong: mend the program
├── InvalidTask          the task or an option of it cannot be accepted: mend the call
├── DuplicateTask        its id or its unique lock is taken: use the holder, named in the error
├── TaskNotFound         no such task (any more)
├── QueueFull            the store has no memory for it: try again later
├── SchemaMismatch       the queue's data are of another version of qsync: use that version
├── StoreUnavailable     the store did not answer in time: try again later
├── ResultTimeout        the task is not done yet: wait longer
├── TaskFailed           the task is dead: its error is the message
├── TaskCancelled        the task was cancelled before it was done
├── LeaseLost            this server no longer holds the task that it is running
├── Retry                raised by a handler: run me again
└── SkipRetry            raised by a handler: never run me again
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any


class QsyncError(Exception):
    """The root of all exceptions of qsync.

    `handles`: when `enqueue_many` failed halfway, those of the tasks that the store has answered
    for, in the order of the tasks.
    """

    handles: Sequence[Any] = ()


class ConfigError(QsyncError, ValueError):
    """A setting, a URL or a registration of a handler is wrong; the message names it."""


class InvalidTask(QsyncError, ValueError):
    """The task or an option of it cannot be accepted; the message names the field and the value."""


class DuplicateTask(QsyncError):
    """The id or the unique lock of the task is held by another task.

    `id` and `queue` are those of the holder: `client.handle(error.id, queue=error.queue)`.
    """

    def __init__(self, message: str, *, id: str, queue: str) -> None:
        super().__init__(message)
        self.id = id
        self.queue = queue

    @property
    def holder_id(self) -> str:
        """The id of the task that holds the id or the lock; the same as `id`."""
        return self.id


class TaskNotFound(QsyncError, LookupError):
    """The queue holds no task of this id: it is done and was not kept, or it never was there."""


class QueueFull(QsyncError):
    """The store refused the task for want of memory; nothing was written; try again later."""


class SchemaMismatch(QsyncError):
    """The data of the queue have the layout of another version of qsync; nothing was done."""


class StoreUnavailable(QsyncError, ConnectionError):
    """The store could not be reached, or answered only transient errors, for as long as allowed.

    An enqueue that raises it may have stored its task. To repeat it without running anything twice,
    give the task an id: for an hour after the first enqueue (`Qsync(remember_ids=...)`, and as long
    as the queue has seen no more than 250,000 chosen ids since) the store refuses the same id with
    DuplicateTask, whether the task waits, runs or is done.
    """


class ResultTimeout(QsyncError, TimeoutError):
    """The task did not end within the time that `result(timeout=...)` allows; it goes on."""


class TaskFailed(QsyncError):
    """The task is dead; the message is its last error."""


class TaskCancelled(QsyncError):
    """The task was cancelled before it was done."""


class LeaseLost(QsyncError):
    """This server's lease of the task ended; another server may be running it.

    In a handler, `current().progress()` and every enqueue raise it from then on: it is how a
    handler in a thread, which cannot be stopped, gets to know. Nothing of the run is kept: let it
    end.
    """


class Retry(QsyncError):
    """Raise it in a handler to have the task run again; counts as an attempt.

    `delay` is in seconds or a timedelta; None means the task's own delay.
    """

    def __init__(self, message: str = "retry", *, delay: float | timedelta | None = None) -> None:
        super().__init__(message)
        self.delay = delay


class SkipRetry(QsyncError):
    """Raise it in a handler to have the task end as dead at once, whatever attempts are left."""
