"""The backend of django.tasks.

    TASKS = {
        "default": {
            "BACKEND": "qsync.contrib.django.QsyncBackend",
            "QUEUES": ["default", "mail"],
            "OPTIONS": {"retry": 5, "timeout": 60},      # defaults of all tasks
        }
    }

The setting QSYNC names the store, and its ENQUEUE selects when tasks are sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django.apps import apps
from django.core import checks

from qsync.contrib.django import task_types as tasks
from qsync.contrib.django import tasks_api
from qsync.contrib.django.project import project_client, project_sender
from qsync.contrib.django.results import result_from
from qsync.contrib.django.tasks_api import signals
from qsync.errors import InvalidTask, TaskNotFound
from qsync.new_task import new_id
from qsync.suggestions import did_you_mean
from qsync.value_text import shorten


class QsyncBackend(tasks_api.BaseTaskBackend):
    """Runs the tasks of django.tasks on the servers of `manage.py qsync_worker`.

    OPTIONS has default options for the tasks of this backend: `retry`, `retry_delay`, `timeout`,
    `retention` (default: a day) and the other options of Task. `@task(retry=5, timeout=60)`
    overrides them for one task.
    """

    task_class: type = tasks.QsyncTask
    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: Mapping[str, Any]) -> None:
        if isinstance(queues := params.get("QUEUES"), str):
            raise tasks_api.InvalidTaskBackend(
                f"TASKS: {alias!r}: QUEUES: {queues!r} is not a list; use [{queues!r}]"
            )
        super().__init__(alias, params)
        for name in self.options:
            if name not in tasks.OPTIONS:
                raise tasks_api.InvalidTaskBackend(
                    f"TASKS: {alias!r}: OPTIONS: no such option: {shorten(name)}; the "
                    f"options are {', '.join(tasks.OPTIONS)}"
                )

    def validate_task(self, task: Any) -> None:
        """Check a task. Raise Django's InvalidTask if the task or an option is invalid."""
        try:
            tasks.check_types(task)
        except InvalidTask as error:
            raise tasks_api.InvalidTask(str(error)) from error
        super().validate_task(task)
        try:
            tasks.check(task, self.options)
        except InvalidTask as error:
            raise tasks_api.InvalidTask(self._error_of_options() or str(error)) from error
        tasks.register(task)

    def _error_of_options(self) -> str:
        """Return the problem with OPTIONS; "" if there is none."""
        try:
            tasks.check_defaults(self.options)
        except InvalidTask as error:
            return f"TASKS: {self.alias!r}: OPTIONS: {error}"
        return ""

    def enqueue(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Send the task at the time that the setting ENQUEUE selects; return its TaskResult.

        If the task is sent at the commit, the result's `enqueued_at` is None until then. If the
        task is sent now and another task holds its unique lock, raises qsync's DuplicateTask; with
        `on_duplicate="skip"`, `"replace"` or `debounce`, returns the result of the other task.
        """
        self.validate_task(task)
        result = tasks_api.TaskResult(
            task=task,
            id=new_id(),
            status=tasks_api.TaskResultStatus.READY,
            enqueued_at=None,
            started_at=None,
            finished_at=None,
            last_attempted_at=None,
            args=args,
            kwargs=kwargs,
            backend=self.alias,
            errors=[],
            worker_ids=[],
        )
        stored = tasks.make(task, result, self.options)

        def sent(id: str, created: bool) -> None:
            enqueued_at = tasks.enqueued_at(stored.headers or {})
            object.__setattr__(result, "enqueued_at", enqueued_at)
            object.__setattr__(result, "id", id)
            if created:
                signals.task_enqueued.send(type(self), task_result=result)

        project_sender().enqueue(stored, sent)
        return result

    def get_result(self, result_id: str) -> Any:
        """Return the TaskResult of the task with this id.

        Raises TaskResultDoesNotExist if the store does not have the task.

        A result is kept for its retention, by default a day; a failed task is kept like other dead
        tasks.
        """
        try:
            handle = project_client().find(result_id)
        except (InvalidTask, TaskNotFound):
            raise tasks_api.TaskResultDoesNotExist(result_id) from None
        shown = handle._queries.show(handle.id, handle.queue)
        return result_from(handle.id, handle.queue, shown)

    def check(self, **kwargs: Any) -> Iterable[checks.CheckMessage]:
        """Return Django's checks for this backend, and errors in its configuration."""
        yield from super().check(**kwargs)
        if not apps.is_installed("qsync.contrib.django"):
            yield checks.Error(
                f"TASKS: {self.alias!r} needs 'qsync.contrib.django' in INSTALLED_APPS.",
                id="qsync.E005",
            )
        if error := self._error_of_options():
            yield checks.Error(error, id="qsync.E006")


def task(function: Any = None, *, backend: str = "default", **options: Any) -> Any:
    """Make a function a task of django.tasks, as `django.tasks.task` does, but with qsync options.

        @task(queue_name="mail", retry=5, timeout=60)
        def send(address: str) -> None: ...

    The decorators of Django 6.1 and of django-tasks accept these options too; the decorator of
    Django 6.0 does not. The qsync options are `retry`, `retry_delay`, `timeout`, `deadline`,
    `unique`, `unique_key`, `retention`, `fairness_key`, `headers`, `limits`, `on_duplicate`,
    `debounce` and `debounce_max`, as for `qsync.Task`, in addition to `priority` (-100 to 100),
    `queue_name` and `takes_context`. Raises Django's InvalidTask if an option is invalid.
    """

    fields = {"priority": 0, "queue_name": "default", "run_after": None, **options}

    for name in options:
        if name not in tasks.FIELDS:
            hint = did_you_mean(name, tasks.FIELDS)
            hint = hint or f"; the options are {', '.join(tasks.FIELDS)}"
            raise tasks_api.InvalidTask(f"task: no option {shorten(name)}{hint}")

    def make(func: Any) -> Any:
        task_class = tasks_api.task_backends[backend].task_class
        return task_class(func=func, backend=backend, **fields)

    return make if function is None else make(function)
