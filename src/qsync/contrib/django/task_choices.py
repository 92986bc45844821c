"""The tasks of the project, as the admin offers them for a schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from qsync.contrib.django.project import django_tasks, handlers, project_app
from qsync.errors import InvalidTask
from qsync.task import DEFAULT, Task


def choices() -> list[tuple[str, str]]:
    """Return the task types of the project, for a field of a form."""
    return [(type, type) for type in sorted({*project_app().functions, *handlers.types})]


def built(type: str, arguments: str, queue: str) -> Task[Any]:
    """Return a task for arguments in JSON; an empty queue means the task's own queue.

    Raises InvalidTask if the arguments are not JSON or do not match the parameters.
    """
    value = _decoded(arguments)
    function = project_app().functions.get(type)
    django_task = django_tasks.get(type)
    if function is not None:
        args, kwargs = function._signature.from_json(*_split(value))
        task = function.build(*args, **kwargs)
    elif django_task is not None:
        # Not above: Django 5.2 has no django.tasks, and then no task is registered.
        from qsync.contrib.django import task_types

        task = task_types.scheduled(django_task, *_split(value))
    else:  # a handler of a Mux takes any payload
        task = Task(type, b"" if value is None else value, queue=queue or DEFAULT)
    return task.replace(queue=queue) if queue else task


def _decoded(arguments: str) -> Any:
    if not arguments.strip():
        return None
    try:
        return msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise InvalidTask(f"arguments: not JSON: {error}") from None


def _split(value: Any) -> tuple[list[Any], Mapping[str, Any]]:
    """Return positional and keyword arguments."""
    if value is None:
        return [], {}
    if isinstance(value, list):
        return value, {}
    if isinstance(value, dict):
        return [], value
    raise InvalidTask("arguments: give a JSON list, or an object of names and values")
