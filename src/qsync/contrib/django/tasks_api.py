"""django.tasks of Django 6, or the same names from its backport for Django 5.2, django-tasks."""

from __future__ import annotations

import dataclasses
import traceback
from typing import TYPE_CHECKING, Any, Final

try:
    from django.tasks import base, exceptions, signals, task_backends
    from django.tasks.backends.base import BaseTaskBackend
    from django.utils.json import normalize_json

except ModuleNotFoundError:
    try:
        from django_tasks import base, exceptions, signals, task_backends
        from django_tasks.backends.base import BaseTaskBackend
        from django_tasks.utils import normalize_json
    except ModuleNotFoundError as _error:
        msg = (
            "QsyncBackend needs django.tasks, which Django 6.0 has; for Django 5.2: "
            "pip install django-tasks"
        )
        raise ModuleNotFoundError(msg, name=_error.name) from None

if TYPE_CHECKING:

    class Task:
        """A task of django.tasks."""

        def __getattr__(self, name: str) -> Any: ...

    TaskContext: Any
    TaskError: Any
    TaskResult: Any
    TaskResultStatus: Any
else:
    Task = base.Task
    TaskContext = base.TaskContext
    TaskError = base.TaskError
    TaskResult = base.TaskResult
    TaskResultStatus = base.TaskResultStatus

TaskResultDoesNotExist: Any = exceptions.TaskResultDoesNotExist


def _exception(name: str) -> Any:
    """Return an exception class; in django-tasks 0.12 and older, some names end with Error."""
    return getattr(exceptions, name, None) or getattr(exceptions, f"{name}Error")


InvalidTask: Final = _exception("InvalidTask")
InvalidTaskBackend: Final = _exception("InvalidTaskBackend")

__all__ = [
    "BaseTaskBackend", "InvalidTask", "InvalidTaskBackend", "Task", "TaskContext", "TaskError",
    "TaskResult", "TaskResultDoesNotExist", "TaskResultStatus", "normalize_json", "signals",
    "task_backends",
]  # fmt: skip


def replace(task: Any, **changes: Any) -> Any:
    """Return a copy of a task with some fields changed, without checking the fields again."""
    copied = object.__new__(type(task))
    for field in dataclasses.fields(task):
        value = changes.get(field.name, getattr(task, field.name))
        object.__setattr__(copied, field.name, value)
    return copied


def format_error(error: BaseException) -> str:
    """Return the traceback of an error as Python prints it."""
    return "".join(traceback.format_exception(error))
