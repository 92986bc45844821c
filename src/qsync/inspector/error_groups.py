"""Groups of failed tasks that have the same error, and their sums. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final, TypeVar

import msgspec

from qsync.inspector.task_rows import DecodedTask
from qsync.state import TaskState
from qsync.times import from_us

K = TypeVar("K")

KEYS_SHOWN: Final = 10
"""Maximum number of fairness keys of a group that are counted."""

OTHER_KEYS: Final = ""
"""Name under which the tasks of further fairness keys are counted."""


class ErrorGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Failed tasks that have the same error.

    id          8 hex digits: the same for the same error, everywhere
    error       class of the exception; `crashed` if servers died while they ran the tasks
    where       file, line and function that raised it, e.g. `shop/tasks.py:42 in charge`; empty if
                the error has no traceback
    text        first line of the error of `sample`
    sample      id of the task that died last, or whose retry is due last; `queue` is its queue
    states      number of tasks by state
    queues      number of tasks by queue
    keys        number of tasks by fairness key, up to 10 keys; the empty name counts all other keys
    first_at, last_at   times of the earliest and the latest error
    """

    id: str
    type: str
    error: str
    where: str
    text: str
    sample: str
    queue: str
    states: dict[TaskState, int]
    queues: dict[str, int]
    keys: dict[str, int]
    first_at: datetime | None
    last_at: datetime | None

    @property
    def count(self) -> int:
        """Number of tasks."""
        return sum(self.states.values())


class ErrorPart(msgspec.Struct, frozen=True, kw_only=True):
    """The groups of one part of a queue's tasks; `cursor` None: it was the last part."""

    groups: list[ErrorGroup]
    scanned: int
    cursor: str | None


def group_of(queue: str, task: DecodedTask) -> ErrorGroup:
    """Return the group of a single failed task."""
    fingerprint = task.fingerprint
    failed_at = from_us(_failed_us(task)) if _failed_us(task) else None
    key = task.options.fairness_key
    return ErrorGroup(
        id=fingerprint.id,
        type=fingerprint.type,
        error=fingerprint.error,
        where=fingerprint.where,
        text=(task.error or "").partition("\n")[0][:200],
        sample=task.id,
        queue=queue,
        states={task.shown.state: 1},
        queues={queue: 1},
        keys={} if key is None else {key: 1},
        first_at=failed_at,
        last_at=failed_at,
    )


def _failed_us(task: DecodedTask) -> int:
    return task.shown.score if task.shown.state is TaskState.DEAD else task.failure.failed_at_us


def merge_groups(groups: Iterable[ErrorGroup]) -> list[ErrorGroup]:
    """Return one group for each id, the largest first."""
    merged: dict[str, ErrorGroup] = {}
    for group in groups:
        previous = merged.get(group.id)
        merged[group.id] = group if previous is None else _sum(previous, group)
    return sorted(merged.values(), key=lambda group: (-group.count, group.id))


def _sum(a: ErrorGroup, b: ErrorGroup) -> ErrorGroup:
    earlier, later = sorted((a, b), key=lambda group: _number(group.last_at))
    first = min((group for group in (a, b) if group.first_at), default=a,
                key=lambda group: _number(group.first_at))  # fmt: skip
    return msgspec.structs.replace(
        later,
        states=_added(earlier.states, later.states),
        queues=_added(earlier.queues, later.queues),
        keys=_bounded(_added(earlier.keys, later.keys)),
        first_at=first.first_at,
    )


def _number(moment: datetime | None) -> float:
    return 0.0 if moment is None else moment.timestamp()


def _added(counts: Mapping[K, int], added: Mapping[K, int]) -> dict[K, int]:
    return {key: counts.get(key, 0) + added.get(key, 0) for key in {**counts, **added}}


def _bounded(counts: dict[str, int]) -> dict[str, int]:
    """Return the counts of the first KEYS_SHOWN keys, and the sum of the others."""
    names = [name for name in counts if name != OTHER_KEYS]
    if len(names) <= KEYS_SHOWN:
        return counts
    shown = {name: counts[name] for name in names[:KEYS_SHOWN]}
    return {**shown, OTHER_KEYS: sum(counts.values()) - sum(shown.values())}
