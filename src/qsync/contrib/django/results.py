"""Reads the results of django.tasks from the store."""

from __future__ import annotations

from typing import Any

from qsync.broker.stored_task import StoredTask, last_error, message_of, result_of, status
from qsync.codec import CodecError, decode
from qsync.contrib.django import task_types as tasks
from qsync.contrib.django import tasks_api
from qsync.contrib.django.project import django_tasks
from qsync.keys import server_of_token
from qsync.message import Failure, decode_failure
from qsync.state import TaskState
from qsync.task import TaskStatus
from qsync.times import from_us


def result_from(id: str, queue: str, shown: StoredTask | None) -> Any:
    """Return the TaskResult of a stored task, or raise TaskResultDoesNotExist."""
    message = None if shown is None else message_of(shown)
    if shown is None or message is None:
        raise tasks_api.TaskResultDoesNotExist(id)
    task = django_tasks.get(message.type)
    if task is None:
        raise tasks_api.TaskResultDoesNotExist(
            f"{id}: no task {message.type} is known in this process: import its module"
        )
    info = status(id, queue, shown)
    failure = decode_failure(shown.failure)
    record = _kept(shown)
    args, kwargs = tasks.stored_call(info.value()) or ([], {})  # None: a task not of django.tasks
    began = _begun(shown, failure)
    if began is not None and info.finished_at is not None:
        began = min(began, info.finished_at)  # the server's clock may be ahead of the store's
    enqueued = tasks.enqueued_at(info.headers) or info.enqueued_at
    due_us = message.options.process_at_us if message.options else None
    run_after = None if due_us is None else from_us(due_us)
    alias = info.headers.get(tasks.BACKEND, task.backend)
    result = tasks_api.TaskResult(
        task=tasks_api.replace(task, queue_name=queue, run_after=run_after, backend=alias),
        id=id,
        status=_status(shown, info, record),
        # Clocks of machines may differ.
        enqueued_at=enqueued if began is None else min(enqueued, began),
        started_at=began,
        finished_at=info.finished_at,
        last_attempted_at=info.started_at or began,
        args=args,
        kwargs=kwargs,
        backend=alias,
        errors=_errors(shown, failure),
        worker_ids=_workers(shown, failure, record),
    )
    if record is not None:
        object.__setattr__(result, "_return_value", record["return_value"])
    return result


def _kept(shown: StoredTask) -> Any:
    """Return the value that the handler stored; None if the task has not succeeded."""
    if shown.state is not TaskState.COMPLETED or shown.cancel is not None:
        return None
    record = result_of(shown)
    if record is None or record.error is not None:
        return None
    try:
        return decode(record.value)
    except CodecError:
        return None


def _status(shown: StoredTask, info: TaskStatus, record: Any) -> Any:
    if shown.state is TaskState.ACTIVE:
        return tasks_api.TaskResultStatus.RUNNING
    if shown.state is TaskState.COMPLETED:
        done = record is not None
        return tasks_api.TaskResultStatus.SUCCESSFUL if done else tasks_api.TaskResultStatus.FAILED
    if shown.state is TaskState.DEAD or info.cancelled:
        return tasks_api.TaskResultStatus.FAILED
    return tasks_api.TaskResultStatus.READY


def _begun(shown: StoredTask, failure: Failure) -> Any:
    """Return when the first attempt began; None if unknown."""
    if failure.history:
        begun_us = failure.history[0].begun_us
    else:
        record = result_of(shown) if shown.state is TaskState.COMPLETED else None
        begun_us = record.begun_us if record is not None else 0
    return from_us(begun_us) if begun_us else None


def _workers(shown: StoredTask, failure: Failure, record: Any) -> list[str]:
    """Return the server of each attempt; "" for failures before the last ten."""
    failed_on = [attempt.server for attempt in failure.history]
    servers = [""] * (failure.attempts - len(failed_on)) + failed_on
    if record is not None:
        servers.append(record["worker_id"])
    elif shown.state is TaskState.ACTIVE and shown.owner is not None:
        servers.append(server_of_token(shown.owner))
    return servers


def _errors(shown: StoredTask, failure: Failure) -> list[Any]:
    """Return the errors of the last ten attempts; the last one has its traceback."""
    errors = [
        tasks_api.TaskError(
            exception_class_path=tasks.shown_class(attempt.error_class),
            traceback=f"{attempt.error}\n",
        )
        for attempt in failure.history
    ]
    text = last_error(shown) or ""
    if failure.history and text == failure.error:
        path = errors[-1].exception_class_path
        errors[-1] = tasks_api.TaskError(exception_class_path=path, traceback=_traceback(text))
    elif shown.state is TaskState.DEAD or (shown.state is TaskState.COMPLETED and text):
        errors.append(
            tasks_api.TaskError(exception_class_path="qsync.TaskFailed", traceback=f"{text}\n")
        )
    if shown.cancel is not None and shown.state is TaskState.COMPLETED:
        errors.append(
            tasks_api.TaskError(
                exception_class_path="qsync.TaskCancelled", traceback="the task was cancelled\n"
            )
        )
    return errors


def _traceback(text: str) -> str:
    """Return a stored error in the form of a Python traceback; in the store, the message comes
    first."""
    head, frames, rest = text.partition('\n\n  File "')
    if not frames:
        return f"{text}\n"
    return f"Traceback (most recent call last):\n{frames.lstrip(chr(10))}{rest.rstrip()}\n{head}\n"
