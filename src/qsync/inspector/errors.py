"""Groups the failed tasks of a queue by error."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec

from qsync.broker import bounds_ops, error_ops, views
from qsync.broker.error_ops import CountedError
from qsync.broker.event_ops import recorded
from qsync.broker.views import PageKey
from qsync.fingerprint import FAILING
from qsync.inspector.base import cursor_at, read_cursor
from qsync.inspector.bulk import _BulkMixin, one_of
from qsync.inspector.error_groups import ErrorGroup, ErrorPart, group_of, merge_groups
from qsync.inspector.task_rows import decode_row, fits
from qsync.inspector.tasks import TASKS_PER_SCAN
from qsync.inspector.values import Filter
from qsync.state import TaskState
from qsync.times import datetime_us, from_us

MAX_CALLS: Final = 40
"""Largest number of calls of a part, which count 500 tasks each."""

GROUPS: Final = 500
"""Number of errors at which a part ends."""


class _ErrorsMixin(_BulkMixin):
    """Operations on errors."""

    async def errors(
        self, queue: str, state: str, filter: Filter | None = None, *, cursor: str | None = None
    ) -> ErrorPart:
        """Group the matching tasks of a part of the dead or retried ones by error.

        A part has up to 20,000 tasks, the latest first; with a filter other than a type, and where
        an older version of qsync wrote their records, 250. Pass the returned cursor to read the
        next part, and merge the parts by `merge_groups`.
        """
        checked = one_of(FAILING, state, "grouped by error")
        type = None if filter is None else filter.type
        if filter is None or filter == Filter(type=type):  # all tasks of an error have one type
            part = await self._counted_part(queue, checked, cursor)
            groups = [group for group in part.groups if type is None or fits(type, group.type)]
            return msgspec.structs.replace(part, groups=groups)
        rest = await self._part(queue, checked, filter, read_cursor(cursor))
        groups = merge_groups(group_of(queue, decode_row(row)) for row in rest.rows)
        return ErrorPart(groups=groups, scanned=rest.scanned, cursor=rest.cursor)

    async def acknowledge_dead(self, queue: str, *, until: datetime | None = None) -> int:
        """Note that operators know of the tasks that died until a time, by default now.

        They stay dead, but the overview and `qsync stats` no longer name them as a problem. Returns
        how many of them were not acknowledged before; the action is recorded.
        """
        until_us = None if until is None else datetime_us("until", until)
        call = bounds_ops.acknowledge_dead(self._keys(queue), until_us)
        number: int = await self._broker.run(recorded(call, self._actor.event("dead.acknowledge")))
        return number

    async def _counted_part(self, queue: str, state: TaskState, cursor: str | None) -> ErrorPart:
        """Return a part, counted by the store where the records have marks."""
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
    """Add the tasks that a call has counted to the group of their error."""
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
    """Return the group with the numbers that a call has counted."""
    return msgspec.structs.replace(
        group, id=error.fingerprint, states={state: error.number}, queues={queue: error.number},
        keys=error.keys, first_at=from_us(error.first_us) if error.first_us else None,
        last_at=from_us(error.last_us) if error.last_us else None,
    )  # fmt: skip
