"""The tasks of the project that the admin offers for a schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from qsync.contrib.django.project import DjangoTaskBuilder, django_tasks, handlers, project_app
from qsync.errors import InvalidTask
from qsync.task import DEFAULT, Task


def choices() -> list[tuple[str, str]]:
    """Return the task types of the project as choices of a form field."""
    return [(type, type) for type in sorted({*project_app().functions, *handlers.types})]


def queues() -> list[str]:
    """Return the queues that the project's workers serve, and those of its tasks."""
    app = project_app()
    options = [function.defaults for function in app.functions.values()]
    options += [batch.defaults for batch in app.batches.values()]
    own = {task_options.get("queue") or DEFAULT for task_options in options}
    of_django_tasks = {task.queue_name for task in django_tasks.values()}
    return sorted({*app._server_options["queues"], *own, *of_django_tasks})


def built(type: str, arguments: str, queue: str) -> Task[Any]:
    """Build a task from arguments in JSON; an empty queue means the task's own queue.

    Raises InvalidTask if the arguments are not JSON or do not match the parameters.
    """
    value = _decoded(arguments)
    function = project_app().functions.get(type)
    if function is not None:
        args, kwargs = function._signature.from_json(*_split(value))
        task = function.build(*args, **kwargs)
    elif (django_task := DjangoTaskBuilder().build(type, value)) is not None:
        task = django_task
    else:  # a handler of a Mux accepts any payload
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
    """Split decoded JSON into positional and keyword arguments."""
    if value is None:
        return [], {}
    if isinstance(value, list):
        return value, {}
    if isinstance(value, dict):
        return [], value
    raise InvalidTask("arguments: must be a JSON list, or an object of names and values")
