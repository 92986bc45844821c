"""Handles of tasks that are sent when a transaction commits."""

from __future__ import annotations

from typing import Any

from qsync.contrib.django.at_commit import Commit
from qsync.errors import TaskNotFound


class UncommittedQueries:
    """The queries of a handle whose task is sent at a commit; until then, each of them raises
    TaskNotFound, because the store does not have the task."""

    def __init__(self, queries: Any, commit: Commit) -> None:
        self._queries = queries
        self._commit = commit

    def show(self, id: str, queue: str, **options: Any) -> Any:
        """See TaskQueries."""
        return self._of(id, queue).show(id, queue, **options)

    def wait(self, id: str, queue: str, seconds: float | None, **options: Any) -> Any:
        """See TaskQueries."""
        return self._of(id, queue).wait(id, queue, seconds, **options)

    def cancel(self, id: str, queue: str, retention_us: Any) -> Any:
        """See TaskQueries; raise an error, because False would suggest that the task has ended."""
        return self._of(id, queue).cancel(id, queue, retention_us)

    def reschedule(self, id: str, queue: str, due: str) -> Any:
        """See TaskQueries."""
        return self._of(id, queue).reschedule(id, queue, due)

    def _of(self, id: str, queue: str) -> Any:
        if self._commit.done:
            return self._queries
        raise TaskNotFound(
            f"task {id!r} is not in queue {queue!r} yet: it is sent when the database transaction "
            "in which it was enqueued commits, and never after a rollback; use the handle after "
            "the commit"
        )


def handle_of(client: Any, id: str, queue: str, commit: Commit) -> Any:
    """Return the client's handle for a task that is sent at the commit."""
    handle = client.handle(id, queue=queue)
    if not commit.done:
        handle._queries = UncommittedQueries(handle._queries, commit)
    return handle
