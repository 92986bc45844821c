"""Reads the tasks of a test from the store."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

from qsync.batch_function import BatchFunction
from qsync.broker import stored_task, views
from qsync.broker.blocking import Broker
from qsync.broker.views import PageKey
from qsync.errors import ConfigError, InvalidTask
from qsync.keys import GlobalKeys, QueueKeys
from qsync.state import TaskState
from qsync.task import TaskInfo, TaskStatus
from qsync.task_function import TaskFunction
from qsync.value_text import shorten


@runtime_checkable
class DjangoTask(Protocol):
    """Protocol for tasks of django.tasks, because that package may not be installed."""

    @property
    def module_path(self) -> str:
        """Import path of the function, which is the type of the task."""

    @property
    def func(self) -> Callable[..., Any]:
        """The function itself."""

    @property
    def takes_context(self) -> bool:
        """Whether the first parameter of the function is the context."""


AnyTask = TaskFunction[..., Any, ..., Any] | BatchFunction[Any] | DjangoTask | str


@dataclass(frozen=True, slots=True)
class AskedTask:
    """A task type, and how to read the arguments of its tasks."""

    name: str
    """Type of the tasks."""

    parameters: Mapping[str, inspect.Parameter]
    """Parameters of the function by name; empty for a type of a Mux."""

    arguments: Callable[[TaskInfo], dict[str, Any]]
    """Function that returns the arguments of a task by name."""

    def check(self, arguments: Mapping[str, Any], queue: str | None) -> None:
        """Raise InvalidTask if the task has no arguments with these names."""
        if "queue" in self.parameters and queue is not None:
            raise InvalidTask(
                f"task {self.name!r} has a parameter 'queue', which assert_enqueued does not "
                "compare; use enqueued(...)"
            )
        parameters = list(self.parameters) or ["payload"]
        if self.keywords is not None:
            return
        for name in arguments:
            if name not in parameters:
                names = ", ".join(parameters)
                raise InvalidTask(f"task {self.name!r} has no parameter {name!r}, only {names}")

    @property
    def keywords(self) -> str | None:
        """Name of the parameter that takes any keywords, such as **kwargs; None if there is
        none."""
        kind = inspect.Parameter.VAR_KEYWORD
        return next(
            (parameter.name for parameter in self.parameters.values() if parameter.kind is kind),
            None,
        )


def asked_task(task: AnyTask) -> AskedTask:
    """Return the type of a task and how to read its arguments; raise ConfigError if this is not a
    task."""
    if isinstance(task, str):
        return AskedTask(task, {}, lambda info: {"payload": info.value()})
    if isinstance(task, BatchFunction):
        return asked_task(task.name)
    if isinstance(task, TaskFunction):
        return _function(task)
    if isinstance(task, DjangoTask):
        return _django_task(task)
    raise ConfigError(
        f"task: {shorten(task)} is neither a task function, nor a task of django.tasks, nor the "
        "name of a type"
    )


def _function(task: TaskFunction[..., Any, ..., Any]) -> AskedTask:
    signature = inspect.signature(task.__wrapped__)

    def arguments(info: TaskInfo) -> dict[str, Any]:
        args, kwargs = task.handler.arguments(info)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return {name: value for name, value in bound.arguments.items() if value is not info}

    return AskedTask(task.name, signature.parameters, arguments)


def _django_task(task: DjangoTask) -> AskedTask:
    signature = inspect.signature(task.func)
    parameters = list(signature.parameters.values())[1 if task.takes_context else 0 :]
    signature = signature.replace(parameters=parameters)

    def arguments(info: TaskInfo) -> dict[str, Any]:
        value = info.value()
        if not isinstance(value, dict) or not {"args", "kwargs"} <= value.keys():
            return {"payload": value}  # the task was not enqueued through django.tasks
        bound = signature.bind(*value["args"], **value["kwargs"])
        bound.apply_defaults()
        return dict(bound.arguments)

    return AskedTask(task.module_path, signature.parameters, arguments)


WAITING: Final = (
    TaskState.ACTIVE, TaskState.PENDING, TaskState.LIMITED, TaskState.RETRY, TaskState.SCHEDULED,
)  # fmt: skip
"""States of tasks that have not ended."""

TASKS_PER_CALL: Final = 250
"""Number of tasks in one call."""


@dataclass(frozen=True, slots=True)
class EnqueuedTask:
    """A task in the store that has not ended.

    `arguments` has the function's arguments by name, including defaults, as the handler receives
    them. For a type of a Mux, `arguments` has the payload under the name `payload`. `status` has
    the task's state, due time, options and attempts.
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
    """Return the names of the queues that have this prefix."""
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
