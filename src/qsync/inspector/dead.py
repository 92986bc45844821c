"""Many dead tasks at a time: run again or delete those that fit a filter, step by step."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from qsync.broker import ops, views
from qsync.broker.views import Row
from qsync.inspector.base import Base, Cursor, cursor_at, read_cursor
from qsync.inspector.rows import fits, look_at
from qsync.inspector.tasks import rerun_of
from qsync.inspector.values import Filter, Step
from qsync.state import TaskState

SCAN: Final = 500
RUN: Final = 100
"""How many tasks are looked at in a step, and how many are run by one script."""


class Dead(Base):
    """What may be done with many dead tasks."""

    async def run_dead(
        self, queue: str, filter: Filter | None = None, *, cursor: str | None = None
    ) -> Step:
        """Of up to 500 dead tasks those that fit are pending now, the oldest first.

        Go on with the cursor, in another process if need be; `steps` makes all steps. They end with
        what was dead when the first was made. One whose unique lock another task has stays dead and
        is counted as a duplicate.
        """
        rows, scanned, end = await self._part(queue, filter, read_cursor(cursor))
        outcomes: list[str] = []
        for at in range(0, len(rows), RUN):
            part = [rerun_of(row.id, row.shown, row.length) for row in rows[at : at + RUN]]
            call = ops.run_many(self._keys(queue), part, TaskState.DEAD)
            outcomes += [outcome for outcome, _ in await self._broker.run(call)]
        return Step(
            scanned=scanned,
            done=outcomes.count("ok"),
            duplicate=outcomes.count("duplicate"),
            too_late=outcomes.count("changed"),
            cursor=end,
        )

    async def delete_dead(
        self, queue: str, filter: Filter | None = None, *, cursor: str | None = None
    ) -> Step:
        """Of up to 500 dead tasks those that fit are deleted, the oldest first; as `run_dead`."""
        rows, scanned, end = await self._part(queue, filter, read_cursor(cursor))
        ids = [row.id for row in rows]
        gone = 0
        if ids:
            gone = await self._broker.run(ops.delete(self._keys(queue), ids, TaskState.DEAD))
        return Step(scanned=scanned, done=gone, too_late=len(ids) - gone, cursor=end)

    async def _part(
        self, queue: str, filter: Filter | None, cursor: Cursor | None
    ) -> tuple[list[Row], int, str | None]:
        """Those that fit, how many were looked at, and the cursor for the rest."""
        after = None if cursor is None else cursor.place
        call = views.page(self._keys(queue), TaskState.DEAD, count=SCAN, after=after)
        page = await self._broker.run(call)
        until_us = page.now_us if cursor is None else cursor.until_us
        # What died since may be what an earlier step ran again.
        rows = [row for row in page.rows if row.shown.score <= until_us]
        more = page.more and len(rows) == len(page.rows) and rows
        end = cursor_at(rows[-1].place, until_us=until_us) if more else None
        return [row for row in rows if fits(filter, look_at(row), page.now_us)], len(rows), end

    async def steps(
        self, step: Callable[..., Awaitable[Step]], *args: Any, **options: Any
    ) -> AsyncIterator[Step]:
        """All steps of `run_dead`, `delete_dead` or `purge`, as they are made.

        `async for step in inspector.steps(inspector.run_dead, "default", Filter(type="mail")): ...`
        """
        cursor: str | None = options.pop("cursor", None)
        while True:
            made = await step(*args, **options, cursor=cursor)
            yield made
            cursor = made.cursor
            if cursor is None:
                return
