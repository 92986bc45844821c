"""Encodes the options of new tasks for the scripts."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Final

import msgspec

from qsync import codec
from qsync.message import NORMAL_PRIORITY
from qsync.new_task import NewTask


class _EnqueueOptions(msgspec.Struct, array_like=True):
    due: str
    fairness_key: str
    lock: str
    window_us: int
    remember_us: int


class _FlowEnqueueOptions(_EnqueueOptions, array_like=True):
    limits: tuple[str, ...]
    priority: int
    on_duplicate: str
    debounce_us: int
    debounce_max_us: int


_FLOW_OF: Final = operator.attrgetter("flow")


def need_flow(tasks: Iterable[NewTask]) -> bool:
    """Return whether a task has options that only the flow variants of the scripts know."""
    return any(map(_FLOW_OF, tasks))


def has_options(task: NewTask) -> bool:
    """Return whether a task has options that a script reads."""
    return bool(
        task.due or task.fairness_key or task.lock or task.remember_us or task.flow is not None
    )


def enqueue_options(task: NewTask) -> bytes:
    """Return the packed options of a task; empty if it has none."""
    if not has_options(task):
        return b""
    flow = task.flow
    plain = (task.due, task.fairness_key, task.lock, task.window_us, task.remember_us)
    if flow is None:
        return codec.encode(_EnqueueOptions(*plain))
    return codec.encode(_FlowEnqueueOptions(*plain, *msgspec.structs.astuple(flow)))


def fairness_member(priority: int, fairness_key: str) -> bytes:
    """Return a task's member in `keys` and `fairness`; see include/priority_bands.lua."""
    key = fairness_key.encode()
    return key if priority == NORMAL_PRIORITY else b"\xff%d%s" % (priority, key)
