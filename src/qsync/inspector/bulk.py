"""Bulk changes in steps: retry, cancel or delete the tasks in a state that match a filter."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, NamedTuple

from qsync.broker import op_values, operator_ops, views
from qsync.broker.event_ops import recorded
from qsync.broker.stored_task import state_of
from qsync.broker.views import StoredTaskRow
from qsync.errors import InvalidTask
from qsync.inspector.base import Cursor, check_state, cursor_at, read_cursor
from qsync.inspector.event_values import describe, new_key
from qsync.inspector.task_rows import decode_row, is_unread, matches
from qsync.inspector.tasks import _TasksMixin, rerun_of
from qsync.inspector.values import Filter, Step
from qsync.message import decode_failure
from qsync.phrase import phrase
from qsync.state import TaskState

TASKS_PER_STEP: Final = 250
"""Number of tasks read per step."""

WAITING: Final = (TaskState.SCHEDULED, TaskState.RETRY)
RETRIED: Final = (TaskState.DEAD, *WAITING)
"""States of tasks that can be made pending now."""

CANCELLABLE: Final = (TaskState.PENDING, TaskState.LIMITED, TaskState.ACTIVE, *WAITING)
DELETABLE: Final = tuple(state for state in TaskState if state is not TaskState.ACTIVE)


class _Part(NamedTuple):
    """The matching tasks in one part of a state; the `cursor` of the last part is None.

    `action` is the key of the action under which the steps are recorded.
    """

    rows: list[StoredTaskRow]
    scanned: int
    unread: int
    cursor: str | None
    action: bytes


class _BulkMixin(_TasksMixin):
    """Operations that change many tasks in a state."""

    async def run_dead(
        self, queue: str, filter: Filter | None = None, *, cursor: str | None = None
    ) -> Step:
        """Read up to 250 dead tasks, the oldest first, and re-run those that match.

        Pass the returned cursor to the next step, which may run in another process, or use `steps`
        to run all steps. Tasks that die after the first step are skipped. A task whose unique lock
        another task holds stays dead and counts as a duplicate.
        """
        return await self._run_part(queue, TaskState.DEAD, filter, cursor)

    async def run_waiting(
        self, queue: str, state: str, filter: Filter | None = None, *, cursor: str | None = None
    ) -> Step:
        """Read up to 250 scheduled or retry tasks, and run those that match immediately; for
        further steps, see `run_dead`.

        Tasks that are enqueued or fail after the first step are skipped.
        """
        checked = check_state(state)
        if checked not in WAITING:
            raise InvalidTask(
                phrase(
                    "state: %(state)s tasks have no due time; use scheduled or retry",
                    state=str(checked),
                )
            )
        return await self._run_part(queue, checked, filter, cursor)

    async def retry_matching(
        self, queue: str, state: str, filter: Filter | None = None, *, cursor: str | None = None
    ) -> Step:
        """Read up to 250 tasks, and move those that match to pending; for further steps, see
        `run_dead`.

        The state is dead, retry or scheduled.
        """
        return await self._run_part(queue, one_of(RETRIED, state, "retried"), filter, cursor)

    async def _run_part(
        self, queue: str, state: TaskState, filter: Filter | None, cursor: str | None
    ) -> Step:
        part = await self._part(queue, state, filter, read_cursor(cursor))
        event = self._bulk_event("task.retry", state, filter, part)
        outcomes: list[str] = []
        for start in range(0, len(part.rows), op_values.MAINTENANCE_BATCH):
            requests = [
                rerun_of(row.id, row.shown, row.length)
                for row in part.rows[start : start + op_values.MAINTENANCE_BATCH]
            ]
            call = operator_ops.run_many(self._keys(queue), requests, state)
            replies = await self._broker.run(recorded(call, event))
            outcomes += [outcome for outcome, _ in replies]
        return Step(
            scanned=part.scanned,
            done=outcomes.count("ok"),
            duplicate=outcomes.count("duplicate"),
            too_late=outcomes.count("changed"),
            unread=part.unread,
            cursor=part.cursor,
        )

    async def delete_dead(
        self, queue: str, filter: Filter | None = None, *, cursor: str | None = None
    ) -> Step:
        """Read up to 250 dead tasks, and delete those that match; for further steps, see
        `run_dead`."""
        return await self.delete_matching(queue, TaskState.DEAD, filter, cursor=cursor)

    async def delete_matching(
        self, queue: str, state: str, filter: Filter | None = None, *, cursor: str | None = None
    ) -> Step:
        """Read up to 250 tasks in a state, and delete those that match; for further steps, see
        `run_dead`.

        Running tasks have to be cancelled first.
        """
        checked = one_of(DELETABLE, state, "deleted")
        part = await self._part(queue, checked, filter, read_cursor(cursor))
        event = self._bulk_event("task.delete", checked, filter, part)
        ids = [row.id for row in part.rows]
        deleted = 0
        for start in range(0, len(ids), op_values.MAINTENANCE_BATCH):
            batch = ids[start : start + op_values.MAINTENANCE_BATCH]
            call = operator_ops.delete(self._keys(queue), batch, stored_in(checked))
            deleted += await self._broker.run(recorded(call, event))
        return Step(
            scanned=part.scanned, done=deleted, too_late=len(ids) - deleted, unread=part.unread,
            cursor=part.cursor,
        )  # fmt: skip

    async def cancel_matching(
        self, queue: str, state: str, filter: Filter | None = None, *, cursor: str | None = None
    ) -> Step:
        """Read up to 250 tasks in a state, and cancel those that match; for further steps, see
        `run_dead`.

        A running task counts as done when its server has been told to stop it.
        """
        checked = one_of(CANCELLABLE, state, "cancelled")
        part = await self._part(queue, checked, filter, read_cursor(cursor))
        event = self._bulk_event("task.cancel", checked, filter, part)
        outcomes = [(await self._cancel(row.id, queue, event)).outcome for row in part.rows]
        done = sum(outcome in ("done", "told") for outcome in outcomes)
        return Step(
            scanned=part.scanned, done=done, too_late=len(outcomes) - done, unread=part.unread,
            cursor=part.cursor,
        )  # fmt: skip

    async def count_matching(
        self, queue: str, state: str, filter: Filter | None = None, *, cursor: str | None = None
    ) -> Step:
        """Read up to 250 tasks in a state; count matches as `done`.

        For further steps, see `run_dead`.
        """
        part = await self._part(queue, check_state(state), filter, read_cursor(cursor))
        return Step(
            scanned=part.scanned, done=len(part.rows), unread=part.unread, cursor=part.cursor
        )

    async def _part(
        self, queue: str, state: TaskState, filter: Filter | None, cursor: Cursor | None
    ) -> _Part:
        """Read a part of the tasks in a state, and select those that match."""
        after = None if cursor is None else cursor.place
        page = await self._broker.run(
            views.list_tasks(self._keys(queue), stored_in(state), count=TASKS_PER_STEP, after=after)
        )
        until_us = page.now_us if cursor is None else cursor.until_us
        # Skip tasks that entered the state after the first step. They may be tasks that an earlier
        # step ran and that have failed again.
        rows = [row for row in page.rows if _came_us(row, state) <= until_us]
        # Dead tasks are ordered by death, so all tasks after a skipped one are also skipped.
        more = page.more and (state is not TaskState.DEAD or len(rows) == len(page.rows))
        action = new_key() if cursor is None or not cursor.action else cursor.action
        end = None
        if more and page.rows:
            end = cursor_at(page.rows[-1].place, until_us=until_us, action=action)
        tasks = [decode_row(row) for row in rows]
        return _Part(
            rows=[
                row
                for row, task in zip(rows, tasks, strict=True)
                if state_of(row.shown) is state and matches(filter, task, page.now_us)
            ],
            scanned=len(rows),
            unread=sum(is_unread(filter, task) for task in tasks),
            cursor=end,
            action=action,
        )

    def _bulk_event(
        self, action: str, state: TaskState, filter: Filter | None, part: _Part
    ) -> bytes:
        return self._actor.event(action, detail=describe(state, filter), key=part.action)

    async def steps(
        self, step: Callable[..., Awaitable[Step]], *args: Any, **options: Any
    ) -> AsyncIterator[Step]:
        """Run all steps of a bulk change, e.g. of `run_dead` or `purge`, and yield each result.

        `async for step in inspector.steps(inspector.run_dead, "default", Filter(type="mail")): ...`
        """
        cursor: str | None = options.pop("cursor", None)
        while True:
            result = await step(*args, **options, cursor=cursor)
            yield result
            cursor = result.cursor
            if cursor is None:
                return


def stored_in(state: TaskState) -> TaskState:
    """Return the state under which the store keeps the tasks in a state. It keeps cancelled tasks
    as completed."""
    return TaskState.COMPLETED if state is TaskState.CANCELLED else state


_REFUSALS: Final = {
    "retried": phrase("state: %(state)s tasks cannot be retried; use %(states)s"),
    "deleted": phrase("state: %(state)s tasks cannot be deleted; use %(states)s"),
    "cancelled": phrase("state: %(state)s tasks cannot be cancelled; use %(states)s"),
    "grouped by error": phrase("state: %(state)s tasks cannot be grouped by error; use %(states)s"),
}


def one_of(states: tuple[TaskState, ...], state: str, verb: str) -> TaskState:
    """Return the state; raise InvalidTask if the verb does not apply to its tasks."""
    checked = check_state(state)
    if checked not in states:
        others = phrase("%(some)s or %(last)s", some=", ".join(states[:-1]), last=str(states[-1]))
        template = _REFUSALS[verb].template
        raise InvalidTask(phrase(template, state=str(checked), states=others))
    return checked


def _came_us(row: StoredTaskRow, state: TaskState) -> int:
    """Return the time at which the task entered its state, or a lower bound for that time."""
    if state is TaskState.DEAD:
        return int(row.shown.score)
    if state is TaskState.RETRY:
        return decode_failure(row.shown.failure).failed_at_us
    message = decode_row(row).message
    return 0 if message is None else message.enqueued_at_us
