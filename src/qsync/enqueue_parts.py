"""Stores the tasks of a shared call that a bounded queue refused, in smaller calls. Without I/O."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from qsync.broker.op_values import Enqueued
from qsync.bulk_enqueue import stored_size
from qsync.enqueue_batching import copy_for_caller
from qsync.errors import QsyncError, QueueFull
from qsync.new_task import NewTask


def in_parts(
    tasks: Sequence[NewTask], full: QueueFull
) -> Generator[Sequence[NewTask], Any, list[Enqueued | Exception]]:
    """Store as many of the tasks as fit into a bounded queue, since each task has its own caller.

    Yields the tasks of the next call, and receives its reply: the outcomes or the error. Returns
    the answer for each task. `full` is the error that the call with all tasks raised. If a task
    does not fit, only tasks that are at least as large are refused with it. A queue that drops its
    oldest tasks accepts all tasks, in parts that are within its bound.
    """
    sizes = [stored_size(task) for task in tasks]
    answers: dict[int, Enqueued | Exception] = {}
    waiting: list[int] = list(range(len(tasks)))
    part, reply = waiting, full
    while waiting:
        refused: list[int] = []
        if not isinstance(reply, QsyncError):
            answers.update(zip(part, reply, strict=True))
        elif not isinstance(reply, QueueFull) or reply.bound is None:
            refused = waiting
        elif 0 < reply.room < len(part):
            part = part[: reply.room]
        elif len(part) > 1:
            part = _smaller_part(part, waiting, sizes, reply)
        else:
            refused = _refused(part[0], tasks, waiting, sizes, reply)
        answers.update((index, copy_for_caller(reply)) for index in refused)
        if part[0] in answers:
            waiting = [index for index in waiting if index not in answers]
            part = waiting if refused or len(part) == 1 else waiting[: len(part)]
        if waiting:
            reply = yield [tasks[index] for index in part]
    return [answers[index] for index in range(len(tasks))]


def _smaller_part(
    part: Sequence[int], waiting: Sequence[int], sizes: Sequence[int], full: QueueFull
) -> list[int]:
    """Return the tasks to try after a call whose first task was refused: those that fit into the
    remaining bytes, or else the smallest."""
    fitting = []
    if full.bound == "max_bytes":
        free = (full.limit or 0) - (full.count or 0)
        for index in waiting:
            if sizes[index] <= free:
                fitting.append(index)
                free -= sizes[index]
    if fitting and fitting != list(part):
        return fitting
    return [min(waiting, key=sizes.__getitem__)]


def _refused(
    alone: int,
    tasks: Sequence[NewTask],
    waiting: Sequence[int],
    sizes: Sequence[int],
    full: QueueFull,
) -> list[int]:
    """Return the tasks to refuse after the store refused the task `alone`, which was sent by
    itself.

    A task with a lock or a chosen id is still tried, since it may be a duplicate, which needs no
    space in the queue.
    """
    return [
        index
        for index in waiting
        if index == alone
        or (
            (full.bound == "max_tasks" or sizes[index] >= sizes[alone])
            and not (tasks[index].lock or tasks[index].remember_us)
        )
    ]
