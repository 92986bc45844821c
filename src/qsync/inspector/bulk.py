"""Many tasks at a time, step by step: dead ones that fit a filter run again, or deleted; and those
that wait for their time run now."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from qsync.broker import ops, views
from qsync.broker.views import StoredRow
from qsync.errors import InvalidTask
from qsync.inspector.base import Base, Cursor, check_state, cursor_at, read_cursor
from qsync.inspector.task_rows import fits, look_at
from qsync.inspector.tasks import rerun_of
from qsync.inspector.values import Filter, Step
from qsync.state import TaskState
from qsync.task import decode_failure

SCAN: Final = 250
"""How many tasks are looked at in a step."""

WAITING: Final = (TaskState.SCHEDULED, TaskState.RETRY)


class _BulkMixin(Base):
    """What may be done with many tasks that are dead, or wait for their time."""

    async def run_dead(
        self, queue: str, filter: Filter | None = None, *, cursor: str | None = None
    ) -> Step:
        """Of up to 250 dead tasks those that fit are pending now, the oldest first.

        Go on with the cursor, in another process if need be; `steps` makes all steps. They end with
        what was dead when the first was made. One whose unique lock another task has stays dead and
        is counted as a duplicate.
        """
        return await self._run_part(queue, TaskState.DEAD, filter, cursor)

    async def run_waiting(
        self, queue: str, state: str, filter: Filter | None = None, *, cursor: str | None = None
    ) -> Step:
        """Of up to 250 tasks in scheduled or retry those that fit are pending now; as `run_dead`.

        What was enqueued, or failed, since the first step is left alone.
        """
        wanted = check_state(state)
        if wanted not in WAITING:
            msg = f"state: what is {wanted} does not wait for its time; there are scheduled, retry"
            raise InvalidTask(msg)
        return await self._run_part(queue, wanted, filter, cursor)

    async def _run_part(
        self, queue: str, state: TaskState, filter: Filter | None, cursor: str | None
    ) -> Step:
        rows, scanned, end = await self._part(queue, state, filter, read_cursor(cursor))
        outcomes: list[str] = []
        for at in range(0, len(rows), ops.MAINTENANCE_BATCH):
            part = [
                rerun_of(row.id, row.shown, row.length)
                for row in rows[at : at + ops.MAINTENANCE_BATCH]
            ]
            call = ops.run_many(self._keys(queue), part, state)
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
        """Of up to 250 dead tasks those that fit are deleted, the oldest first; as `run_dead`."""
        rows, scanned, end = await self._part(queue, TaskState.DEAD, filter, read_cursor(cursor))
        ids = [row.id for row in rows]
        gone = 0
        for at in range(0, len(ids), ops.MAINTENANCE_BATCH):
            part = ids[at : at + ops.MAINTENANCE_BATCH]
            gone += await self._broker.run(ops.delete(self._keys(queue), part, TaskState.DEAD))
        return Step(scanned=scanned, done=gone, too_late=len(ids) - gone, cursor=end)

    async def _part(
        self, queue: str, state: TaskState, filter: Filter | None, cursor: Cursor | None
    ) -> tuple[list[StoredRow], int, str | None]:
        """Those that fit, how many were looked at, and the cursor for the rest."""
        after = None if cursor is None else cursor.place
        page = await self._broker.run(views.page(self._keys(queue), state, count=SCAN, after=after))
        until_us = page.now_us if cursor is None else cursor.until_us
        # What came since may be what an earlier step ran.
        rows = [row for row in page.rows if _came_us(row, state) <= until_us]
        # Dead ones lie in the order in which they came.
        more = page.more and (state is not TaskState.DEAD or len(rows) == len(page.rows))
        end = cursor_at(page.rows[-1].place, until_us=until_us) if more and page.rows else None
        return [row for row in rows if fits(filter, look_at(row), page.now_us)], len(rows), end

    async def steps(
        self, step: Callable[..., Awaitable[Step]], *args: Any, **options: Any
    ) -> AsyncIterator[Step]:
        """All steps of `run_dead`, `run_waiting`, `delete_dead` or `purge`, as they are made.

        `async for step in inspector.steps(inspector.run_dead, "default", Filter(type="mail")): ...`
        """
        cursor: str | None = options.pop("cursor", None)
        while True:
            made = await step(*args, **options, cursor=cursor)
            yield made
            cursor = made.cursor
            if cursor is None:
                return


def _came_us(row: StoredRow, state: TaskState) -> int:
    """When the task came into its state, or at the latest."""
    if state is TaskState.DEAD:
        return int(row.shown.score)
    if state is TaskState.RETRY:
        return decode_failure(row.shown.failure).failed_at_us
    message = look_at(row).message
    return 0 if message is None else message.enqueued_at_us
