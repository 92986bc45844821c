"""Checks the options and the task of an enqueue, and reads its reply."""

from __future__ import annotations

import inspect
from typing import Final, cast

from qsync.broker.call import Durability
from qsync.broker.op_values import Enqueued
from qsync.declared_limits import DeclaredLimits
from qsync.errors import ConfigError, DuplicateTask, InvalidTask
from qsync.new_task import NewTask, new_nonce, new_task
from qsync.running_task import check_lease, nonce_of_parent, running
from qsync.task import MAX_PAYLOAD_LIMIT, Task
from qsync.times import Duration, duration_us
from qsync.value_text import shorten

CONFIRM_TIMEOUT: Final = 2.0
"""Default wait for a confirmation, in seconds; a store that syncs every second takes up to 1 s.
"""


def check_remember_ids(value: object) -> int:
    """Return the time to remember chosen ids, in microseconds.

    Raises ConfigError if the value is not a duration.
    """
    try:
        return duration_us("remember_ids", cast("Duration", value))
    except InvalidTask as error:
        raise ConfigError(str(error)) from None


def check_payload_limit(value: object) -> int:
    """Return the limit of an encoded payload, in bytes.

    Raise ConfigError if the value is invalid.
    """
    if type(value) is not int or value < 1:
        raise ConfigError(f"payload_limit: {shorten(value)} is not a positive number of bytes")
    if value > MAX_PAYLOAD_LIMIT:
        msg = f"payload_limit: {shorten(value)} is over {MAX_PAYLOAD_LIMIT} bytes (31 MiB)"
        raise ConfigError(msg)
    return value


def check_durability(value: object) -> Durability | None:
    """Check the durability. Raise ConfigError unless the value is "fsync", "replica" or None."""
    match value:
        case None | "fsync" | "replica":
            return value
    raise ConfigError(f"durability: {shorten(value)} is not 'fsync', 'replica' or None")


def check_confirm_timeout(value: object) -> float:
    """Return the time to wait for a confirmation, in seconds.

    Raises ConfigError unless the value is from 0.001 to 3600.
    """
    if type(value) not in (int, float) or not 0.001 <= cast("float", value) <= 3600:
        msg = f"confirm_timeout: {shorten(value)} is not a number of seconds from 0.001 to 3600"
        raise ConfigError(msg)
    return cast("float", value)


def validated(
    task: object,
    *,
    queue: str | None,
    payload_limit: int,
    remember_us: int,
    declared: DeclaredLimits | None = None,
) -> NewTask:
    """Encode a task to send.

    Raise InvalidTask if the task is invalid, or if the app declares one of its limits for another
    queue. Raise LeaseLost if a handler enqueues after its server has lost the lease.
    """
    if running.get(None) is not None:
        check_lease()
    checked = task if type(task) is Task else checked_task(task)
    nonce = None if checked.id is None else nonce_of_parent()
    new = new_task(
        checked,
        nonce or new_nonce(),
        queue=queue,
        payload_limit=payload_limit,
        remember_us=remember_us,
    )
    if declared is not None and checked.limits:
        declared.check_task(checked, new.queue)
    return new


def checked_task(task: object) -> Task:
    if not isinstance(task, Task):
        how = "pass Task(type, payload)"
        if hasattr(task, "build"):  # a TaskFunction, or a task of django.tasks
            name = getattr(task, "__name__", None) or getattr(task, "name", "task")
            how = f"pass {name}.build(...), or call {name}.enqueue(...)"
        if inspect.ismethod(task) and hasattr(task.__self__, "build"):
            name = getattr(task.__self__, "__name__", "task")
            how = f"pass {name}.build(...), with parentheses and the arguments of the task"
        if inspect.iscoroutine(task):
            name = task.__name__
            how = f"you called {name}(); pass {name}.build(...), or await {name}.enqueue(...)"
        raise InvalidTask(f"task: {type(task).__name__} is not a Task; {how}")
    return task


def is_refused(task: NewTask, reply: Enqueued) -> bool:
    """Return whether the reply to an enqueue of one task is an error.

    The reply is not an error if an earlier attempt of the handler has already enqueued the child
    task, even if that task has since left the queue. A repeated call whose first call replaced the
    task that holds the lock gets that task again.
    """
    if reply.outcome in ("created", "replaced"):
        return False
    if reply.outcome == "duplicate" and task.skips:
        return False
    return reply.outcome != "repeated" or (reply.id == task.id and nonce_of_parent() is None)


def duplicate(task: NewTask, holder: Enqueued) -> DuplicateTask:
    """Return the error for a task whose id or unique lock is taken."""
    if holder.outcome == "exists":
        msg = f"id {task.id!r}: a task in queue {task.queue!r} already has this id"
    elif holder.outcome == "repeated":
        replaces = task.flow is not None and task.flow.on_duplicate == "replace"
        ended = (
            "or the task that it was merged into has ended" if replaces else "has left the queue"
        )
        msg = (
            f"id {task.id!r} was already enqueued in queue {task.queue!r} less than "
            f"{task.remember_us / 1_000_000:g} s ago, and that task {ended}, so it is "
            "not run again; choose another id for other work"
        )
    else:
        msg = f"the unique lock is held by task {holder.id!r} in queue {task.queue!r}"
        if task.window_us:
            msg += " until that task has ended and its window (unique=seconds) is over"
    return DuplicateTask(msg, id=holder.id, queue=task.queue)
