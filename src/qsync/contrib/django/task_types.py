"""Tasks of django.tasks with the options of qsync, and their handlers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from inspect import Parameter, Signature, iscoroutinefunction, signature
from typing import Any, Final

from django.utils import timezone

from qsync.contrib.django import tasks_api
from qsync.contrib.django.project import django_tasks, handlers, limited_tasks
from qsync.contrib.django.tasks_api import signals
from qsync.errors import InvalidTask, SkipRetry, Snooze, TaskCancelled
from qsync.keys import server_of_token
from qsync.limit import LimitTemplates, check_literal_keys
from qsync.message import NORMAL_PRIORITY
from qsync.running_task import running
from qsync.server.error_text import BadPayload
from qsync.server.outcome import gave_up_itself, timed_out
from qsync.task import Task, TaskInfo
from qsync.times import Duration, from_us
from qsync.uniqueness import OnDuplicate
from qsync.value_text import class_path, shorten

OPTIONS: Final = (
    "retry", "retry_delay", "timeout", "deadline", "unique", "unique_key", "retention",
    "fairness_key", "headers", "on_duplicate", "debounce", "debounce_max", "limits",
)  # fmt: skip
"""Options of qsync that the decorator of django.tasks accepts."""

FIELDS: Final = (
    "queue_name", "takes_context", "priority", "run_after", "executor", *OPTIONS,
)  # fmt: skip
"""Options of the decorator of this package."""

RETENTION: Final = timedelta(days=1)
"""How long results are kept if the task sets no retention."""

PAYLOAD_FORM: Final = 'a payload of django.tasks has the form {"args": [...], "kwargs": {...}}'

BACKEND: Final = "django-backend"
ENQUEUED: Final = "django-enqueued-us"
"""Names of the headers for the backend's alias and for the enqueue time by the caller's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QsyncTask(tasks_api.Task):
    """A django.tasks task with options of qsync; the backend sets the options that are None."""

    retry: int | None = None
    retry_delay: Any = None
    timeout: Duration | None = None
    deadline: Any = None
    unique: bool | Duration | None = None
    unique_key: str | None = None
    retention: Duration | None = None
    fairness_key: str | None = None
    headers: Mapping[str, str] | None = None
    executor: None = None
    """Must be None; the field exists only to raise a clear error for another value. These tasks
    cannot run in a separate process, because the function's import path leads to the task object
    and not to the handler."""
    on_duplicate: OnDuplicate | None = None
    debounce: Duration | None = None
    debounce_max: Duration | None = None
    limits: list[str] | tuple[str, ...] | None = None

    def build(self, *args: Any, **kwargs: Any) -> Task[Any]:
        """Return a `qsync.Task` for these arguments, e.g. for `client.schedules.put`.

        Raises qsync.InvalidTask if the arguments do not match the parameters, or are not JSON.
        """
        self.get_backend().validate_task(self)
        try:
            normal = tasks_api.normalize_json({"args": args, "kwargs": kwargs})
        except (TypeError, ValueError) as error:
            raise InvalidTask(f"task {self.module_path!r}: {error}") from None
        return scheduled(self, normal["args"], normal["kwargs"])


class UnsupportedResult(TypeError):
    """Raised if a task returned a value that is not JSON. A retry would fail too, so there
    is none."""


def shown_class(path: str) -> str:
    """Return the class path of an error in the form that Django's other backends use."""
    return _SHOWN.get(path, path)


_SHOWN: Final = {
    "": "builtins.Exception",
    f"{UnsupportedResult.__module__}.{UnsupportedResult.__qualname__}": "builtins.TypeError",
    f"{TaskCancelled.__module__}.{TaskCancelled.__qualname__}": "qsync.TaskCancelled",
}


def register(task: Any) -> None:
    """Register the task, so that servers of this process run it and callers read its results."""
    path = task.module_path
    registered = django_tasks.get(path)
    if registered is None:
        handler = _async_handler if iscoroutinefunction(task.func) else _handler
        handlers.handle(path, dont_retry_for=UnsupportedResult)(handler(path))
    if registered is None or registered.func is not task.func:  # skip copies with other options
        django_tasks[path] = task


def make(task: Any, result: Any, defaults: Mapping[str, Any]) -> Task[Any]:
    """Build the task to send to the store; raise qsync.InvalidTask if an option is invalid."""
    options = _options_of(task, defaults)
    enqueued_us = round(timezone.now().timestamp() * 1_000_000)
    options["headers"] = {
        **(options.get("headers") or {}), BACKEND: result.backend, ENQUEUED: str(enqueued_us),
    }  # fmt: skip
    payload = {"args": result.args, "kwargs": result.kwargs}
    if options.get("limits"):
        options["limits"] = _limits(task, options, _arguments(task, result.args, result.kwargs))
    return Task(
        task.module_path, payload,
        id=result.id, queue=task.queue_name, process_at=_aware(task.run_after), **options,
    )  # fmt: skip


def scheduled(task: Any, args: list[Any], kwargs: Mapping[str, Any]) -> Task[Any]:
    """Return the task that a schedule in the store enqueues at each tick.

    Raises qsync.InvalidTask if the arguments do not match the parameters.
    """
    options = _options_of(task, task.get_backend().options)
    arguments = _arguments(task, args, kwargs)
    if options.get("limits"):
        options["limits"] = _limits(task, options, arguments)
    options["headers"] = {**(options.get("headers") or {}), BACKEND: task.backend}
    payload = {"args": args, "kwargs": dict(kwargs)}
    process_at = _aware(task.run_after)
    return Task(task.module_path, payload, queue=task.queue_name, process_at=process_at, **options)


def from_json(task: Any, value: Any) -> Task[Any]:
    """Build the task from arguments decoded from JSON.

    `value` is a list, an object of names and values, or a stored payload with `args` and `kwargs`;
    None and b"" mean no arguments. Raises qsync.InvalidTask if the arguments do not match the
    parameters.
    """
    if value is None or value == b"":
        return scheduled(task, [], {})
    if (call := stored_call(value)) is not None:
        return scheduled(task, *call)
    if isinstance(value, list):
        return scheduled(task, value, {})
    if isinstance(value, dict):
        return scheduled(task, [], value)
    raise InvalidTask("arguments: must be a JSON list, or an object of names and values")


def stored_call(payload: Any) -> tuple[list[Any], dict[str, Any]] | None:
    """Return the positional and keyword arguments in a stored payload; None if the payload is not
    one of django.tasks."""
    if not isinstance(payload, dict) or payload.keys() != {"args", "kwargs"}:
        return None
    args, kwargs = payload["args"], payload["kwargs"]
    good = isinstance(args, list) and isinstance(kwargs, dict) and all(map(_is_text, kwargs))
    return (args, kwargs) if good else None


def _is_text(name: object) -> bool:
    return isinstance(name, str)


def check_payload(task: Any, payload: Any) -> None:
    """Raise qsync.InvalidTask unless the task can run with this payload."""
    call = stored_call(payload)
    if call is None:
        raise InvalidTask(f"task {task.module_path!r}: {PAYLOAD_FORM}")
    _arguments(task, *call)


def _aware(time: Any) -> Any:
    """Add a time zone to `run_after`, which has none if USE_TZ is off."""
    return timezone.make_aware(time) if time is not None and timezone.is_naive(time) else time


def _limits(task: Any, options: Mapping[str, Any], arguments: Mapping[str, Any]) -> list[str]:
    """Return the task's limits, with its arguments filled into them."""
    return LimitTemplates(options["limits"], _parameters(task)).fill(arguments)


def _options_of(task: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the qsync options of a task; the backend's OPTIONS are the defaults."""
    options = {"retention": RETENTION, **defaults}
    for name in OPTIONS:
        if (value := getattr(task, name, None)) is not None:
            options[name] = value
    return options | {"priority": priority_of(task)}


def priority_of(task: Any) -> int:
    """Convert Django's priority (-100 to 100, default 0) to qsync's (1 to 9, default 5)."""
    return NORMAL_PRIORITY + round(task.priority / 25)


def check(task: Any, defaults: Mapping[str, Any]) -> None:
    """Check the options of a task; raise qsync.InvalidTask if one is invalid."""
    if (executor := getattr(task, "executor", None)) is not None:
        raise InvalidTask(
            f"executor: {shorten(executor)} cannot be used for tasks of django.tasks, which run in "
            f"a "
            "thread, or on the event loop if they are async def; use @app.task(executor=...) of "
            "qsync.contrib.django"
        )
    own = {name: getattr(task, name, None) for name in OPTIONS}
    set_options = {name: value for name, value in own.items() if value is not None}
    options: dict[str, Any] = {**defaults, **set_options}
    Task(task.module_path, queue=task.queue_name, **options)
    if "{" in f"{own['unique_key']}{own['fairness_key']}":
        check_literal_keys(task.module_path, own, _parameters(task))
    if options.get("limits"):
        templates = LimitTemplates(options["limits"], _parameters(task))
        limited_tasks.setdefault(task.module_path, (task.queue_name, templates.names))


def check_types(task: Any) -> None:
    """Check the types of those fields that Django compares without a check; raise qsync.InvalidTask
    for a wrong type."""
    if not isinstance(task.priority, int) or isinstance(task.priority, bool):
        raise InvalidTask(
            "priority must be a whole number between -100 and 100. "  # Django's words
            f"It is {shorten(task.priority)}"
        )
    if task.run_after is not None and not isinstance(task.run_after, datetime):
        raise InvalidTask(
            f"run_after: {shorten(task.run_after)} is not a datetime, e.g. timezone.now() + "
            "timedelta(hours=1)"
        )


def _parameters(task: Any) -> list[str]:
    """Return the names of a task's parameters that take a single value."""
    several = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    parameters = _signature(task).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind not in several]


def _arguments(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arguments of a task by name, with the defaults."""
    try:
        bound = _signature(task).bind(*args, **kwargs)
    except TypeError as error:
        raise InvalidTask(f"task {task.module_path!r}: {error}") from None
    bound.apply_defaults()
    return bound.arguments


def _signature(task: Any) -> Signature:
    """Return the signature of a task, without its context parameter."""
    full_signature = signature(task.func)
    parameters = list(full_signature.parameters.values())[1 if task.takes_context else 0 :]
    return full_signature.replace(parameters=parameters)


def check_defaults(defaults: Mapping[str, Any]) -> None:
    """Check the OPTIONS of a backend; raise qsync.InvalidTask if one is invalid."""
    Task("options", **defaults)


def enqueued_at(headers: Mapping[str, str]) -> Any:
    """Return the enqueue time from a task's headers; None if they have none."""
    text = headers.get(ENQUEUED, "")
    return from_us(int(text)) if text.isdecimal() and len(text) < 20 else None


def _call_of(info: TaskInfo) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments of a running task; raise BadPayload, which is not retried, if the
    payload is not one of django.tasks."""
    call = stored_call(info.value())
    if call is None:
        raise BadPayload(f"task {info.type!r}: {PAYLOAD_FORM}")
    return call


class _Attempt:
    """An attempt on a server, with the TaskResult to pass to signals and to the task."""

    def __init__(self, path: str, info: TaskInfo, *, in_thread: bool) -> None:
        self._in_thread = in_thread
        task = django_tasks[path]
        args, kwargs = _call_of(info)
        self._info = info
        self._now = timezone.now()
        alias = info.headers.get(BACKEND, task.backend)
        self.task = tasks_api.replace(task, queue_name=info.queue, backend=alias)
        self.result = tasks_api.TaskResult(
            task=self.task,
            id=info.id,
            status=tasks_api.TaskResultStatus.RUNNING,
            enqueued_at=enqueued_at(info.headers) or info.enqueued_at,
            started_at=self._now,
            finished_at=None,
            last_attempted_at=self._now,
            args=args,
            kwargs=kwargs,
            backend=alias,
            errors=[],
            worker_ids=[""] * (info.attempt - 1) + [server_of_token(info.token)],
        )
        signals.task_started.send(self._sender, task_result=self.result)

    @property
    def _sender(self) -> type[Any]:
        return type(self.task.get_backend())

    @property
    def args(self) -> list[Any]:
        """Positional arguments of the function, with the context if the function takes one."""
        context = (
            [tasks_api.TaskContext(task_result=self.result)] if self.task.takes_context else []
        )
        return [*context, *self.result.args]

    def succeed(self, value: Any) -> dict[str, Any]:
        """Return the value to store, and send the signal that the task has ended.

        The server discards the value of a stopped run; at a shutdown, it discards only the value of
        a handler in a thread.
        """
        stop = _stopped()
        if stop is not None and (stop != "shutdown" or self._in_thread):
            self.fail(asyncio.CancelledError())
            return {}
        try:
            normal = tasks_api.normalize_json(value)
        except TypeError as error:
            raise UnsupportedResult(str(error)) from None
        self._finish(tasks_api.TaskResultStatus.SUCCESSFUL, normal)
        return {"return_value": normal, "worker_id": self.result.worker_ids[-1]}

    def fail(self, error: BaseException) -> None:
        """Send the signal that the task has ended, unless it will run again."""
        stop = _stopped()
        if stop == "lost" or stop == "shutdown":
            return
        if stop == "cancelled":
            error = TaskCancelled("the task was cancelled")
        elif isinstance(error, asyncio.CancelledError):
            error = timed_out(None) if stop == "timeout" else gave_up_itself()
        final = isinstance(error, SkipRetry | UnsupportedResult | TaskCancelled)
        if isinstance(error, Snooze) or not (final or self._info.last_attempt):
            return
        self.result.errors.append(
            tasks_api.TaskError(
                exception_class_path=shown_class(class_path(error)),
                traceback=tasks_api.format_error(error),
            )
        )
        self._finish(tasks_api.TaskResultStatus.FAILED, None)

    def _finish(self, status: Any, value: Any) -> None:
        object.__setattr__(self.result, "finished_at", timezone.now())
        object.__setattr__(self.result, "status", status)
        object.__setattr__(self.result, "_return_value", value)
        signals.task_finished.send(self._sender, task_result=self.result)


def _stopped() -> str | None:
    """Return why the server stopped the run: cancelled, timeout, lost or shutdown; None if it
    did not."""
    stop: str | None = getattr(running.get(None), "stopped", None)
    return stop


def _handler(path: str) -> Any:
    def run(info: TaskInfo) -> Any:
        attempt = _Attempt(path, info, in_thread=True)
        try:
            return attempt.succeed(attempt.task.func(*attempt.args, **attempt.result.kwargs))
        except BaseException as error:
            attempt.fail(error)
            raise

    return run


def _async_handler(path: str) -> Any:
    async def run(info: TaskInfo) -> Any:
        attempt = _Attempt(path, info, in_thread=False)
        try:
            return attempt.succeed(await attempt.task.func(*attempt.args, **attempt.result.kwargs))
        except BaseException as error:
            attempt.fail(error)
            raise

    return run
