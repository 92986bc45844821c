"""Groups of failed tasks that have the same error, and their totals. Does no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final, TypeVar

import msgspec

from qsync.broker import bounds_ops, error_ops, views
from qsync.broker.error_ops import CountedError
from qsync.broker.event_ops import recorded
from qsync.broker.views import PageKey
from qsync.fingerprint import FAILING
from qsync.inspector.base import cursor_at, read_cursor
from qsync.inspector.bulk import _BulkMixin, one_of
from qsync.inspector.task_rows import DecodedTask, decode_row, fits
from qsync.inspector.tasks import TASKS_PER_SCAN
from qsync.inspector.values import Filter
from qsync.state import TaskState
from qsync.times import datetime_us, from_us

K = TypeVar("K")

KEYS_SHOWN: Final = 10
"""Maximum number of fairness keys that are counted separately in a group."""

OTHER_KEYS: Final = ""
"""Name under which tasks with any other fairness key are counted."""


class ErrorGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Failed tasks that have the same error.

    id          8 hex digits, the same for the same error in all queues and stores
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
    """The groups of one part of a queue's tasks; `cursor` is None for the last part."""

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
    """Merge the groups that have the same id; return the merged groups, the largest first."""
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


MAX_CALLS: Final = 40
"""Maximum number of calls to read a part; each call counts 500 tasks."""

GROUPS: Final = 500
"""Number of different errors after which a part ends."""


class _ErrorsMixin(_BulkMixin):
    """Operations on errors."""

    async def errors(
        self, queue: str, state: str, filter: Filter | None = None, *, cursor: str | None = None
    ) -> ErrorPart:
        """Read a part of the dead or retried tasks, and group those that match by error.

        A part has up to 20,000 tasks, the latest first. A part has only 250 tasks if the filter
        selects by more than the type, or if an older version of qsync wrote the tasks' records.
        Pass the returned cursor to read the next part, and merge the parts with `merge_groups`.
        """
        checked = one_of(FAILING, state, "grouped by error")
        type = None if filter is None else filter.type
        # All tasks of a group have the same type, so a filter by type can select whole groups.
        if filter is None or filter == Filter(type=type):
            part = await self._counted_part(queue, checked, cursor)
            groups = [group for group in part.groups if type is None or fits(type, group.type)]
            return msgspec.structs.replace(part, groups=groups)
        rest = await self._part(queue, checked, filter, read_cursor(cursor))
        groups = merge_groups(group_of(queue, decode_row(row)) for row in rest.rows)
        return ErrorPart(groups=groups, scanned=rest.scanned, cursor=rest.cursor)

    async def acknowledge_dead(self, queue: str, *, until: datetime | None = None) -> int:
        """Acknowledge the tasks that died up to this time, by default up to now.

        The tasks stay dead, but the overview and `qsync stats` no longer report them as a problem.
        Returns how many of them had not been acknowledged before; the action is recorded.
        """
        until_us = None if until is None else datetime_us("until", until)
        call = bounds_ops.acknowledge_dead(self._keys(queue), until_us)
        number: int = await self._broker.run(recorded(call, self._actor.event("dead.acknowledge")))
        return number

    async def _counted_part(self, queue: str, state: TaskState, cursor: str | None) -> ErrorPart:
        """Return the groups of one part of the tasks. The store counts the tasks of each group by
        the marks in their failure records."""
        after, keys = read_cursor(cursor), self._keys(queue)
        place: PageKey | None = None if after is None else after.place
        groups: dict[str, ErrorGroup] = {}
        scanned = 0
        for _ in range(MAX_CALLS):
            call = error_ops.count_errors(keys, state, after=place, known=groups)
            counts = await self._broker.run(call)
            for error in counts.errors:
                _add(groups, queue, state, error)
            scanned, more = scanned + counts.read, counts.more
            place = counts.place or place
            if more and not counts.read:
                page = await self._broker.run(
                    views.list_tasks(keys, state, count=TASKS_PER_SCAN, after=place, backwards=True)
                )
                rows = [group_of(queue, decode_row(row)) for row in page.rows]
                groups = {group.id: group for group in merge_groups([*groups.values(), *rows])}
                scanned, more = scanned + len(page.rows), page.more and bool(page.rows)
                place = page.rows[-1].place if page.rows else place
                break
            if not more or len(groups) >= GROUPS:
                break
        end = cursor_at(place) if more and place is not None else None
        return ErrorPart(groups=merge_groups(groups.values()), scanned=scanned, cursor=end)


def _add(groups: dict[str, ErrorGroup], queue: str, state: TaskState, error: CountedError) -> None:
    """Add the tasks that one call counted to the group of their error."""
    previous = groups.get(error.fingerprint)
    if previous is None:
        if error.sample is None:
            return
        previous = group_of(queue, decode_row(error.sample))
        counted = _counted(previous, queue, state, error)
    else:
        [counted] = merge_groups([previous, _counted(previous, queue, state, error)])
    groups[error.fingerprint] = counted


def _counted(group: ErrorGroup, queue: str, state: TaskState, error: CountedError) -> ErrorGroup:
    """Return the group with the numbers that one call counted."""
    return msgspec.structs.replace(
        group, id=error.fingerprint, states={state: error.number}, queues={queue: error.number},
        keys=error.keys, first_at=from_us(error.first_us) if error.first_us else None,
        last_at=from_us(error.last_us) if error.last_us else None,
    )  # fmt: skip
