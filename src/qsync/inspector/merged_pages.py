"""Lists the tasks of several queues in one order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from qsync.broker.views import PageKey
from qsync.errors import InvalidTask
from qsync.inspector.base import check_state, cursor_at, no_cursor, read_cursor
from qsync.inspector.tasks import MAX_SCANS, TASKS_PER_SCAN, _TasksMixin
from qsync.inspector.values import Filter, Page, TaskRow
from qsync.state import TaskState

_BY_QUEUE: Final = (TaskState.PENDING, TaskState.LIMITED, TaskState.ACTIVE)
"""States in which the order of tasks has no meaning across queues."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_CONCURRENT: Final = 20

_Key = tuple[int, bytes]


class _TaskListsMixin(_TasksMixin):
    """Lists the tasks of several queues."""

    async def tasks_of(
        self,
        queues: Sequence[str],
        state: str,
        *,
        limit: int = 50,
        cursor: str | None = None,
        filter: Filter | None = None,
        newest_first: bool | None = None,
    ) -> Page:
        """Return a page of the tasks that several queues have in a state; for a single queue, see
        `tasks`.

        Tasks are ordered by the time at which they are due, died or will be deleted. Pending and
        active tasks come queue by queue, each in its queue's order. A `cursor` is valid only for
        the same queues.
        """
        checked = check_state(state)
        if newest_first is None:
            newest_first = checked in (TaskState.DEAD, TaskState.COMPLETED)
        if checked in _BY_QUEUE:
            return await self._in_turn(queues, checked, limit, cursor, filter, newest_first)
        pages: list[Page] = []
        for start in range(0, len(queues), _CONCURRENT):
            calls = [
                self.tasks(queue, checked, limit=limit, cursor=cursor, filter=filter,
                           newest_first=newest_first)
                for queue in queues[start : start + _CONCURRENT]
            ]  # fmt: skip
            pages += await asyncio.gather(*calls)
        return _merge(pages, limit, backwards=newest_first)

    async def _in_turn(
        self,
        queues: Sequence[str],
        state: TaskState,
        limit: int,
        cursor: str | None,
        filter: Filter | None,
        newest_first: bool,
    ) -> Page:
        names = sorted(queues)
        queue, slash, inner = (cursor or "").partition("/")
        if cursor is not None and not slash:
            raise InvalidTask(no_cursor(cursor))
        names = [name for name in names if name >= queue]
        rows: list[TaskRow] = []
        total = scanned = 0
        for index, name in enumerate(names):
            page = await self.tasks(
                name, state, limit=limit - len(rows), filter=filter, newest_first=newest_first,
                cursor=inner if name == queue and inner else None,
            )  # fmt: skip
            rows, total, scanned = rows + page.tasks, total + page.total, scanned + page.scanned
            after = names[index + 1] if index + 1 < len(names) else None
            is_full = len(rows) >= limit or (
                filter is not None and scanned >= TASKS_PER_SCAN * MAX_SCANS
            )
            if page.cursor is not None:
                return Page(
                    tasks=rows, cursor=f"{name}/{page.cursor}", total=total, scanned=scanned
                )
            if is_full and after is not None:
                return Page(tasks=rows, cursor=f"{after}/", total=total, scanned=scanned)
        return Page(tasks=rows, cursor=None, total=total, scanned=scanned)


def _merge(pages: Sequence[Page], limit: int, *, backwards: bool) -> Page:
    """Merge sorted pages that start at the same position, up to the first position where a page
    ends."""
    rows = sorted((row for page in pages for row in page.tasks), key=_key, reverse=backwards)
    ends = [place for page in pages if (place := read_cursor(page.cursor)) is not None]
    keys = [_key_of(end.place) for end in ends]
    bound = (max(keys) if backwards else min(keys)) if keys else None
    if bound is not None:
        rows = [row for row in rows if (_key(row) >= bound if backwards else _key(row) <= bound)]
    cursor = None
    if len(rows) > limit:
        bound = _key(rows[limit - 1])
    if bound is not None:
        score, id = bound
        cursor = cursor_at((str(score), id.decode(errors="surrogateescape")))
    return Page(
        tasks=rows[:limit], cursor=cursor,
        total=sum(page.total for page in pages), scanned=sum(page.scanned for page in pages),
    )  # fmt: skip


def _key(row: TaskRow) -> _Key:
    time = row.died_at or row.due_at or row.kept_until or _EPOCH
    return (time - _EPOCH) // timedelta(microseconds=1), _bytes(row.id)


def _key_of(place: PageKey) -> _Key:
    score, id = place
    return int(float(score)), _bytes(id)


def _bytes(id: str) -> bytes:
    return id.encode(errors="surrogateescape")
