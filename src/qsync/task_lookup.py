"""Finds the queue of a task by its id. Does no I/O: it builds calls and interprets replies."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Final

from qsync.broker import views
from qsync.broker.call import Call
from qsync.broker.stored_task import StoredTask
from qsync.errors import InvalidTask, TaskNotFound
from qsync.keys import QueueKeys, check_name
from qsync.state import TaskState

QUEUES_LIMIT: Final = 5_000
"""Maximum number of queues in one search."""

QUEUES_PER_ROUND_TRIP: Final = 100
"""Number of queues per round trip; in a cluster, each queue takes its own round trip."""

QUEUES_NAMED: Final = 10
"""Maximum number of queues that TaskNotFound names."""

_ENDED: Final = (TaskState.COMPLETED, TaskState.DEAD)


class Search:
    """A search for a task in the queues of a prefix."""

    def __init__(self, id: str, prefix: str, names: Collection[str], *, total: int = 0) -> None:
        self._id = id
        self._prefix = prefix
        queues = sorted(name for name in names if _is_queue(name))
        self._all = max(total, len(queues))
        self._names = queues[:QUEUES_LIMIT]
        self._found: list[tuple[str, StoredTask]] = []

    def calls(self) -> Iterator[list[Call[list[StoredTask | None]]]]:
        """Yield the calls of each round trip; the caller passes the replies to `note` before it
        continues."""
        for first in range(0, len(self._names), QUEUES_PER_ROUND_TRIP):
            self._asked = self._names[first : first + QUEUES_PER_ROUND_TRIP]
            yield [
                views.get_tasks(QueueKeys(self._prefix, name), [self._id], messages=False)
                for name in self._asked
            ]

    def note(self, replies: Sequence[list[StoredTask | None]]) -> None:
        """Process the replies to the last calls, in the same order."""
        for name, [shown] in zip(self._asked, replies, strict=True):
            if shown is not None:
                self._found.append((name, shown))

    def queue(self) -> str:
        """Return the queue of the task, preferably a queue in which the task has not ended."""
        for name, shown in self._found:
            if shown.state not in _ENDED:
                return name
        if self._found:
            return self._found[0][0]
        raise TaskNotFound(f"task {self._id!r} is in {self._looked_through()}: {_WHY}")

    def _looked_through(self) -> str:
        if not self._names:
            return f"no queue, since there is none with the prefix {self._prefix!r}"
        named = ", ".join(self._names[:QUEUES_NAMED])
        if len(self._names) > QUEUES_NAMED:
            named += f" and {len(self._names) - QUEUES_NAMED} more"
        some = f"the first {len(self._names)} of " if len(self._names) < self._all else ""
        return f"none of {some}the {self._all} queues with the prefix {self._prefix!r} ({named})"


_WHY: Final = (
    "it is done and was not kept (retention=), was deleted, or was enqueued with another prefix or "
    "store"
)


def _is_queue(name: str) -> bool:
    try:
        check_name("queue", name)
    except InvalidTask:
        return False
    return True
