"""A `current()` without a server, for tests and for task functions that the program calls
directly."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any

from qsync.errors import QsyncError
from qsync.server.current import Current, running
from qsync.server.progress_values import checked_progress
from qsync.task import TaskInfo


def plain_task(type: str) -> TaskInfo:
    """Return a task that was never enqueued: its first attempt, with an empty payload."""
    return TaskInfo(
        id="in-place", type=type, payload=b"", queue="default", retry=0, attempt=1, crashes=0,
        enqueued_at_us=0,
    )  # fmt: skip


class PlainContext:
    """The object that `current()` returns without a server; `told` contains the progress
    reports."""

    def __init__(
        self, task: TaskInfo, *, state: Any = None, client: Any = None, cancelled: bool = False
    ) -> None:
        self.task = task
        self.state = state
        self.cancelled = cancelled
        self.told: list[tuple[float, float]] = []
        self._client = client

    @property
    def tasks(self) -> Sequence[TaskInfo]:
        """The tasks of the call."""
        return (self.task,)

    @property
    def client(self) -> Any:
        """Client that was passed to the context. Raises QsyncError if there is none."""
        if self._client is None:
            raise QsyncError(
                "current().client: no server runs this function; in a test, call it inside "
                "`with qsync.testing.context(client=client):`"
            )
        return self._client

    def progress(self, done: float, total: float) -> None:
        """Record the task's progress in `told`."""
        self.told.append(checked_progress(done, total))


def ensure_context(type: str) -> Current | None:
    """Return a context for a direct call of a task function; return None if a context already
    exists, e.g. inside a handler."""
    return PlainContext(plain_task(type)) if running.get(None) is None else None


async def awaited_within(context: Current, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Await a coroutine while `current()` returns this context."""
    token = running.set(context)
    try:
        return await coroutine
    finally:
        running.reset(token)
