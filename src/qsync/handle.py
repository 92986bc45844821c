"""Handles: the status and the result of an enqueued task, blocking and for asyncio.

The blocking and the asyncio classes have the same names and docstrings; change them together.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Generic, TypeVar

import msgspec

from qsync.broker import stored_task
from qsync.broker.operator_ops import Rescheduled
from qsync.broker.stored_task import StoredTask
from qsync.errors import InvalidTask, QsyncError, ResultTimeout, TaskNotFound
from qsync.message import Result
from qsync.results import decode_result, not_found, not_waiting, without_retention
from qsync.running_task import waiting_for
from qsync.task import TaskStatus
from qsync.task_queries import RETENTION_UNKNOWN, AsyncTaskQueries, Retention, TaskQueries
from qsync.times import Duration, due_text, duration_us, from_us, too_late

K = TypeVar("K")
R = TypeVar("R")
S = TypeVar("S")


class _HandleBase(msgspec.Struct, Generic[K, R], eq=False, gc=False):
    """Base class of `Handle` and `AsyncHandle`."""

    _queries: K
    id: str
    queue: str
    created: bool = False
    confirmed: bool | None = None
    _retention_us: Retention = RETENTION_UNKNOWN
    _decode: Callable[[Result], R] = decode_result

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"<{name} id={self.id!r} queue={self.queue!r} created={self.created}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _HandleBase):
            return NotImplemented
        return self.id == other.id and self.queue == other.queue

    def __hash__(self) -> int:
        return hash((self.id, self.queue))

    @property
    def _known(self) -> bool:
        """True if the handle knows, without reading the task's message, that a result will be
        kept."""
        return self._retention_us not in (None, RETENTION_UNKNOWN)

    def _seconds(self, timeout: Duration | None) -> float | None:
        """Return the timeout of `result` in seconds."""
        return None if timeout is None else duration_us("timeout", timeout) / 1_000_000

    def _missing(self, error: TaskNotFound) -> QsyncError:
        """Return the error that `result` raises for a task that is not in the queue."""
        return error if self._retention_us is not None else without_retention(self.id, self.queue)

    def _value(self, record: Result | None, seconds: float | None) -> R:
        if record is None:
            raise ResultTimeout(
                f"task {self.id!r} in queue {self.queue!r} did not end within {seconds:g} s; "
                f"`qsync task explain {self.id}` shows what it waits for"
            )
        return self._decode(record)

    def _due_at(self, reply: Rescheduled) -> datetime:
        """Return the new due time; if the task was not rescheduled, raise the error that says
        why."""
        if reply.state is None:
            raise not_found(self.id, self.queue)
        if reply.due_us is None:
            raise not_waiting(self.id, self.queue, reply.state)
        if reply.deadline_us is not None:
            raise InvalidTask(too_late(reply.due_us, reply.deadline_us))
        return from_us(reply.due_us)

    def _status(self, shown: StoredTask | None) -> TaskStatus:
        if shown is None:
            raise not_found(self.id, self.queue)
        return stored_task.status(self.id, self.queue, shown)


class Handle(_HandleBase[TaskQueries, R], eq=False, gc=False):
    """A reference to an enqueued task, with its status and its result.

    `created` is True when the call that returned the handle created the task, or when an earlier
    attempt of the same handler did. `created` is False when another task held the id or the unique
    lock; the handle then refers to that other task.
    `created` is also False on a handle from `client.handle` or `client.find`.

    `confirmed` is None unless the call asked for `durability`. True means that the store has the
    task on disk or on a replica. False means that the store did not confirm this in time, so the
    task may be lost if the store fails.

    Handles are equal when their ids and queues are equal.
    """

    def info(self) -> TaskStatus:
        """Return the current status. Raise TaskNotFound if the task has left the queue."""
        return self._status(self._queries.show(self.id, self.queue))

    def result(self, timeout: Duration | None = None) -> R:
        """Wait until the task ends, and return what its handler returned.

        Bytes are returned as bytes; other values are decoded. `timeout` is in seconds or a
        timedelta; None waits without a limit.

        Raises:

        InvalidTask       the task has no `retention`, so its result is not kept, and the task is
                          not dead; raised immediately. If a later call replaced the running task,
                          the later call's `retention` counts
        ResultTimeout     the task did not end within `timeout`, which does not stop the task
        TaskFailed        the task is dead, e.g. because its result was over the size limit; the
                          message is its last error
        TaskCancelled     the task was cancelled
        TaskNotFound      the task has left the queue, e.g. because its retention is over
        StoreUnavailable  the store did not answer
        QsyncError        the task is done, but its result was not stored (no memory) or cannot be
                          read
        """
        seconds = self._seconds(timeout)
        try:
            with waiting_for(self.queue, self.id):
                record = self._queries.wait(self.id, self.queue, seconds, known=self._known)
        except TaskNotFound as error:
            raise self._missing(error) from None
        return self._value(record, seconds)

    def cancel(self) -> bool:
        """Cancel the task; return False when it is completed, dead or not in the queue.

        A waiting task ends immediately. If the task is running, its server is asked to stop the
        handler, and the task does not run again. A coroutine is cancelled, and the task ends when
        the coroutine does. A handler with `executor="process"` is killed. A `def` handler in a
        thread continues, although its task has ended, so the task's limits and unique lock are free
        while the handler still runs.
        """
        return self._queries.cancel(self.id, self.queue, self._retention_us)

    def reschedule(
        self, *, delay: Duration | None = None, process_at: datetime | None = None
    ) -> datetime:
        """Change when the task is due; return its new due time, by the store's clock.

        Pass `delay`, a duration from now, or `process_at`, an aware datetime; a past time means
        now. The task must be scheduled or wait for a retry. Raises InvalidTask when a time is wrong
        or not before the task's deadline, and TaskNotFound when the queue does not have the task.
        Raises TaskNotWaiting when the task is in any other state, e.g. because a server promoted it
        first. After these errors, the task is unchanged.
        """
        due = due_text(delay=delay, process_at=process_at)
        return self._due_at(self._queries.reschedule(self.id, self.queue, due))

    def with_decoder(self, decode: Callable[[Result], S]) -> Handle[S]:
        """Return a handle for the same task whose `result()` returns `decode(record)`."""
        return Handle(
            self._queries, self.id, self.queue,
            created=self.created, confirmed=self.confirmed,
            _retention_us=self._retention_us, _decode=decode,
        )  # fmt: skip


class AsyncHandle(_HandleBase[AsyncTaskQueries, R], eq=False, gc=False):
    """A reference to an enqueued task, with its status and its result.

    `created` is True when the call that returned the handle created the task, or when an earlier
    attempt of the same handler did. `created` is False when another task held the id or the unique
    lock; the handle then refers to that other task.
    `created` is also False on a handle from `client.handle` or `client.find`.

    `confirmed` is None unless the call asked for `durability`. True means that the store has the
    task on disk or on a replica. False means that the store did not confirm this in time, so the
    task may be lost if the store fails.

    Handles are equal when their ids and queues are equal.
    """

    async def info(self) -> TaskStatus:
        """Return the current status. Raise TaskNotFound if the task has left the queue."""
        return self._status(await self._queries.show(self.id, self.queue))

    async def result(
        self,
        timeout: Duration | None = None,  # noqa: ASYNC109 - the same signature as Handle's
    ) -> R:
        """Wait until the task ends, and return what its handler returned.

        Bytes are returned as bytes; other values are decoded. `timeout` is in seconds or a
        timedelta; None waits without a limit.

        Raises:

        InvalidTask       the task has no `retention`, so its result is not kept, and the task is
                          not dead; raised immediately. If a later call replaced the running task,
                          the later call's `retention` counts
        ResultTimeout     the task did not end within `timeout`, which does not stop the task
        TaskFailed        the task is dead, e.g. because its result was over the size limit; the
                          message is its last error
        TaskCancelled     the task was cancelled
        TaskNotFound      the task has left the queue, e.g. because its retention is over
        StoreUnavailable  the store did not answer
        QsyncError        the task is done, but its result was not stored (no memory) or cannot be
                          read
        """
        seconds = self._seconds(timeout)
        try:
            with waiting_for(self.queue, self.id):
                record = await self._queries.wait(self.id, self.queue, seconds, known=self._known)
        except TaskNotFound as error:
            raise self._missing(error) from None
        return self._value(record, seconds)

    async def cancel(self) -> bool:
        """Cancel the task; return False when it is completed, dead or not in the queue.

        A waiting task ends immediately. If the task is running, its server is asked to stop the
        handler, and the task does not run again. A coroutine is cancelled, and the task ends when
        the coroutine does. A handler with `executor="process"` is killed. A `def` handler in a
        thread continues, although its task has ended, so the task's limits and unique lock are free
        while the handler still runs.
        """
        return await self._queries.cancel(self.id, self.queue, self._retention_us)

    async def reschedule(
        self, *, delay: Duration | None = None, process_at: datetime | None = None
    ) -> datetime:
        """Change when the task is due; return its new due time, by the store's clock.

        Pass `delay`, a duration from now, or `process_at`, an aware datetime; a past time means
        now. The task must be scheduled or wait for a retry. Raises InvalidTask when a time is wrong
        or not before the task's deadline, and TaskNotFound when the queue does not have the task.
        Raises TaskNotWaiting when the task is in any other state, e.g. because a server promoted it
        first. After these errors, the task is unchanged.
        """
        due = due_text(delay=delay, process_at=process_at)
        return self._due_at(await self._queries.reschedule(self.id, self.queue, due))

    def with_decoder(self, decode: Callable[[Result], S]) -> AsyncHandle[S]:
        """Return a handle for the same task whose `result()` returns `decode(record)`."""
        return AsyncHandle(
            self._queries, self.id, self.queue,
            created=self.created, confirmed=self.confirmed,
            _retention_us=self._retention_us, _decode=decode,
        )  # fmt: skip
