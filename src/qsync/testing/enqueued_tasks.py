"""Reads the tasks of a test from the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qsync.broker import stored_task, views
from qsync.broker.blocking import Broker
from qsync.broker.views import PageKey
from qsync.keys import GlobalKeys, QueueKeys
from qsync.state import TaskState
from qsync.task import TaskStatus
from qsync.testing.asked_task import AskedTask

WAITING: Final = (
    TaskState.ACTIVE, TaskState.PENDING, TaskState.LIMITED, TaskState.RETRY, TaskState.SCHEDULED,
)  # fmt: skip
"""States of tasks that have not ended."""

TASKS_PER_CALL: Final = 250
"""Number of tasks in one call."""


@dataclass(frozen=True, slots=True)
class EnqueuedTask:
    """A task in the store that has not ended.

    `arguments` are the arguments of its function by name, with the defaults, as the handler gets
    them; for a type of a Mux, the payload under the name `payload`. `status` is its state, due
    time, options and attempts.
    """

    arguments: Mapping[str, Any]
    status: TaskStatus

    @property
    def id(self) -> str:
        """Id of the task."""
        return self.status.id

    @property
    def queue(self) -> str:
        """Queue of the task."""
        return self.status.queue

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        state = self.status.state.value
        return f"{self.status.type}({arguments}) on queue {self.queue}, {state}"


def enqueued(broker: Broker, prefix: str, asked: AskedTask) -> list[EnqueuedTask]:
    """Return the tasks of this function or type that have not ended, in the order of enqueue."""
    tasks = [
        EnqueuedTask(asked.arguments(status), status)
        for status in statuses(broker, prefix)
        if status.type == asked.name
    ]
    return sorted(tasks, key=lambda task: task.status.enqueued_at_us)


def statuses(broker: Broker, prefix: str) -> Iterator[TaskStatus]:
    """Yield all tasks that have not ended."""
    for queue in queues_of(broker, prefix):
        keys = QueueKeys(prefix, queue)
        for state in WAITING:
            ids = list(_ids(broker, keys, state))
            for start in range(0, len(ids), TASKS_PER_CALL):
                part = ids[start : start + TASKS_PER_CALL]
                shown = broker.run(views.get_tasks(keys, part))
                for id, task in zip(part, shown, strict=True):
                    if task is not None:
                        yield stored_task.status(id, queue, task)


def queues_of(broker: Broker, prefix: str) -> list[str]:
    """Return the names of the queues of a prefix."""
    names: set[str] = set()
    cursor = "0"
    while True:
        part = broker.run(views.queues(GlobalKeys(prefix), cursor=cursor))
        names.update(part.names)
        cursor = part.cursor
        if cursor == "0":
            return sorted(names)


def _ids(broker: Broker, keys: QueueKeys, state: TaskState) -> Iterator[str]:
    after: PageKey | None = None
    while True:
        page = broker.run(views.list_tasks(keys, state, count=TASKS_PER_CALL, after=after))
        yield from (row.id for row in page.rows)
        if not page.more or not page.rows:
            return
        after = page.rows[-1].place


def matching(
    tasks: Sequence[EnqueuedTask], asked: AskedTask, queue: str | None, arguments: Mapping[str, Any]
) -> list[EnqueuedTask]:
    """Return the tasks with this queue and these arguments; raise InvalidTask for an unknown
    argument."""
    asked.check(arguments, queue)
    return [
        task
        for task in tasks
        if (queue is None or task.queue == queue) and _has(task, arguments, asked.keywords)
    ]


def _has(task: EnqueuedTask, arguments: Mapping[str, Any], keywords: str | None) -> bool:
    values = dict(task.arguments)
    if keywords is not None:
        values = {**values[keywords], **values}
    return all(name in values and values[name] == value for name, value in arguments.items())
