"""Describes the task that an assertion asks for: a function, a task of django.tasks, or a type."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from qsync.batch_function import BatchFunction
from qsync.errors import ConfigError, InvalidTask
from qsync.task import TaskInfo
from qsync.task_function import TaskFunction
from qsync.value_text import shorten


@runtime_checkable
class DjangoTask(Protocol):
    """Protocol of a task of django.tasks, since a test without Django lacks that package."""

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
    """A type of tasks, and how to read their arguments."""

    name: str
    """Type of the tasks."""

    parameters: Mapping[str, inspect.Parameter]
    """Parameters of the function by name; empty for a type of a Mux."""

    arguments: Callable[[TaskInfo], dict[str, Any]]
    """Returns the arguments of a task by name."""

    def check(self, arguments: Mapping[str, Any], queue: str | None) -> None:
        """Raise InvalidTask if the task has no arguments with these names."""
        if "queue" in self.parameters and queue is not None:
            raise InvalidTask(
                f"task {self.name!r} has a parameter 'queue', which assert_enqueued does not look "
                "at; look at enqueued(...)"
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
        """Name of the parameter for any keywords, as in **kwargs; None without one."""
        kind = inspect.Parameter.VAR_KEYWORD
        return next(
            (parameter.name for parameter in self.parameters.values() if parameter.kind is kind),
            None,
        )


def asked_task(task: AnyTask) -> AskedTask:
    """Return the description of a task; raise ConfigError for anything else."""
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
            return {"payload": value}  # it was not enqueued by django.tasks
        bound = signature.bind(*value["args"], **value["kwargs"])
        bound.apply_defaults()
        return dict(bound.arguments)

    return AskedTask(task.module_path, signature.parameters, arguments)
