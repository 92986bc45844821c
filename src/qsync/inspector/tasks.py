"""Lists tasks, reads one task in full, and changes one task."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Final, Literal

from qsync import codec
from qsync.broker import operator_ops, ops, registry_ops, stored_task, views
from qsync.broker.event_ops import recorded
from qsync.broker.stored_task import StoredTask, state_of
from qsync.errors import InvalidTask
from qsync.inspector.base import Base, check_state, cursor_at, read_cursor
from qsync.inspector.task_detail import detail_of
from qsync.inspector.task_rows import decode_row, decode_task, is_unread, matches, row_of
from qsync.inspector.values import Change, Filter, Page, TaskDetail, TaskRow, refused
from qsync.keys import check_id, server_of_token
from qsync.message import NORMAL_PRIORITY, Failure, decode_failure
from qsync.phrase import phrase
from qsync.results import retention_of
from qsync.state import TaskState
from qsync.task_queries import ORDER_TTL_MS
from qsync.times import Duration, due_text, from_us, too_late
from qsync.value_text import shorten

MAX_PAGE_SIZE: Final = 100
"""Maximum number of tasks per page."""

TASKS_PER_SCAN: Final = 250
MAX_SCANS: Final = 4
"""Maximum number of scans, of TASKS_PER_SCAN tasks each, to fill a page that has a filter."""

FIND_PAGES: Final = 5
"""Number of pages of queue names, with about a thousand names each, searched for an id."""

ENDED_WELL: Final = (TaskState.COMPLETED, TaskState.CANCELLED)
"""States in which tasks are kept for their retention period."""

TIMED: Final = (TaskState.SCHEDULED, TaskState.RETRY)
"""States of tasks that wait until they are due."""

RUNNABLE: Final = (TaskState.SCHEDULED, TaskState.RETRY, TaskState.DEAD)


class _TasksMixin(Base):
    """Operations on single tasks."""

    async def tasks(
        self,
        queue: str,
        state: str,
        *,
        limit: int = 50,
        cursor: str | None = None,
        filter: Filter | None = None,
        newest_first: bool | None = None,
    ) -> Page:
        """Return a page of the tasks in a state, starting at the cursor of an earlier page.

        Pending tasks come in the order in which they will run, scheduled and retry tasks by due
        time, and dead and completed tasks with the latest first; `newest_first` overrides the
        direction. Tasks keep their positions when others are added or removed, but an active task
        moves when its lease is renewed. If a filter is passed, about 1,000 tasks are read, so a
        page may have few tasks or none and still have a cursor. Raises InvalidTask if the limit is
        not from 1 to 100, or the state or the cursor is invalid.
        """
        checked, after = check_state(state), read_cursor(cursor)
        _check_limit(limit)
        is_kept = checked in ENDED_WELL
        backwards = is_kept or checked is TaskState.DEAD if newest_first is None else newest_first
        stored = TaskState.COMPLETED if is_kept else checked
        narrowed = filter is not None or checked is TaskState.CANCELLED
        keys, place = self._keys(queue), None if after is None else after.place
        rows: list[TaskRow] = []
        scanned = total = unread = 0
        for _ in range(MAX_SCANS if narrowed or is_kept else 1):
            count = TASKS_PER_SCAN if narrowed else limit
            page = await self._broker.run(
                views.list_tasks(keys, stored, count=count, after=place, backwards=backwards)
            )
            total, more = page.total, page.more
            for index, row in enumerate(page.rows):
                task = decode_row(row)
                scanned, place = scanned + 1, row.place
                unread += is_unread(filter, task)
                if state_of(row.shown) is checked and matches(filter, task, page.now_us):
                    rows.append(row_of(queue, task))
                if len(rows) == limit:
                    more = more or index + 1 < len(page.rows)
                    break
            if not more or len(rows) == limit:
                break
        end = None if not more or place is None else cursor_at(place)
        # Count completed and cancelled tasks separately, since one set stores both.
        if is_kept:
            total = (await self._broker.run(views.counts(keys))).states[checked]
        return Page(tasks=rows, cursor=end, total=total, scanned=scanned, unread=unread)

    async def task(self, id: str, *, queue: str = "default") -> TaskDetail | None:
        """Return all data of a task in the store; None if it is not in the queue."""
        shown = await self._show(id, queue)
        if shown is None:
            return None
        # Decode in a thread, since the message may be large, even above the current payload limit.
        task = await asyncio.to_thread(decode_task, id, shown)
        lock = task.options.lock or ""
        located = await self._broker.run(views.pending_position(self._keys(queue), id, lock=lock))
        return await asyncio.to_thread(detail_of, queue, task, located)

    async def find(self, id: str) -> list[TaskRow]:
        """Return the tasks with this id, one per queue, from about the first 5,000 queues."""
        check_id(id)
        rows: dict[str, TaskRow] = {}
        pages = 0
        async for names in self.queue_pages():
            found, _ = await self._read_each(
                names, lambda name: views.get_tasks(self._keys(name), [id])
            )
            for queue, [shown] in found.items():
                if shown is not None:
                    rows[queue] = row_of(queue, decode_task(id, shown))
            pages += 1
            if pages == FIND_PAGES:
                break
        return [rows[queue] for queue in sorted(rows)]

    async def run(self, id: str, *, queue: str = "default", state: str | None = None) -> Change:
        """Make a scheduled, retry or dead task pending now, or limited if its limits or a pause of
        its type keep it from starting.

        A dead task gets all its attempts again and keeps the history of earlier ones. If `state` is
        passed and the task is no longer in that state, the outcome is `too_late`.
        """
        shown = await self._expect(id, queue, state)
        if isinstance(shown, Change):
            return shown
        if shown.state not in RUNNABLE:
            return Change(outcome="too_late", state=stored_task.state_of(shown))
        if shown.message is None:
            return refused(phrase("the store lost its message"), state=shown.state)
        row = rerun_of(id, shown)
        call = operator_ops.run_many(self._keys(queue), [row], shown.state)
        call = recorded(call, self._actor.event("task.retry", detail=shown.state))
        [(outcome, holder)] = await self._broker.run(call)
        if outcome == "duplicate":
            return Change(outcome="duplicate", state=shown.state, holder=holder)
        if outcome == "changed":
            return await self._where(id, queue)
        return Change(outcome="done", state=await self._pending_or_limited(id, queue))

    async def _pending_or_limited(self, id: str, queue: str) -> TaskState:
        """Return LIMITED if a task that was made pending waits for a limit, otherwise PENDING."""
        shown = await self._show(id, queue)
        is_limited = shown is not None and shown.state is TaskState.LIMITED
        return TaskState.LIMITED if is_limited else TaskState.PENDING

    async def cancel(self, id: str, *, queue: str = "default") -> Change:
        """Cancel a waiting task, or tell the server of a running task to stop it (outcome `told`).

        If the message reaches the server, the server stops the handler immediately; otherwise, the
        server stops it at the next lease renewal, within a third of the lease. The outcome is
        `too_late` if the task has ended.
        """
        return await self._cancel(id, queue, self._actor.event("task.cancel"))

    async def _cancel(self, id: str, queue: str, event: bytes) -> Change:
        shown = await self._show(id, queue)
        if shown is None:
            return Change(outcome="not_found")
        keys = self._keys(queue)
        retention_us = retention_of(shown)
        call = recorded(ops.cancel(keys, id, retention_us=retention_us), event)
        outcome, token = await self._broker.run(call)
        if outcome == "active":
            server = server_of_token(token)
            order = codec.encode(["cancel", queue, id])
            # If the message to the server is lost, the server learns of the cancellation when it
            # renews the lease.
            await self._broker.run_many(
                [registry_ops.send_order(self._globals, server, order, ttl_ms=ORDER_TTL_MS)]
            )
            return Change(outcome="told", state=TaskState.ACTIVE, server=server)
        if outcome == "cancelled":
            state = None if retention_us is None else TaskState.CANCELLED
            return Change(outcome="done", state=state)
        return await self._where(id, queue)

    async def reschedule_task(
        self,
        id: str,
        *,
        queue: str = "default",
        delay: Duration | None = None,
        process_at: datetime | None = None,
        dry_run: bool = False,
    ) -> Change:
        """Change when a scheduled or retried task is due; the outcome's `at` is the new time.

        Pass `delay`, a duration from now, or `process_at`. The outcome is `refused` if the task is
        in another state, or if the new time is not before the task's deadline. With `dry_run`
        nothing changes.
        """
        due = due_text(delay=delay, process_at=process_at)
        call = operator_ops.reschedule(self._keys(queue), check_id(id), due, dry_run=dry_run)
        reply = await self._broker.run(recorded(call, self._actor.event("task.reschedule")))
        if reply.state is None:
            return Change(outcome="not_found")
        if reply.due_us is None:
            why = phrase(
                "the task is %(state)s; only scheduled and retried tasks can be rescheduled",
                state=reply.state,
            )
            return refused(why, state=reply.state)
        if reply.deadline_us is not None:
            return refused(too_late(reply.due_us, reply.deadline_us), state=reply.state)
        return Change(outcome="done", state=reply.state, at=from_us(reply.due_us))

    async def delete(self, id: str, *, queue: str = "default", state: str | None = None) -> Change:
        """Delete a task with its result and history; `refused` while it runs.

        If `state` is passed and the task is no longer in that state, the outcome is `too_late`.
        """
        shown = await self._expect(id, queue, state)
        if isinstance(shown, Change):
            return shown
        if shown.state is TaskState.ACTIVE:
            return refused(phrase("it is running: cancel it first"), state=shown.state)
        call = operator_ops.delete(self._keys(queue), [id], shown.state)
        event = self._actor.event("task.delete", detail=shown.state)
        if await self._broker.run(recorded(call, event)):
            return Change(outcome="done")
        return await self._where(id, queue)

    async def _show(self, id: str, queue: str) -> StoredTask | None:
        check_id(id)
        [shown] = await self._broker.run(views.get_tasks(self._keys(queue), [id]))
        return shown

    async def _expect(self, id: str, queue: str, state: str | None) -> StoredTask | Change:
        """Return the task, or the outcome if it is not in the state in which it was seen."""
        seen = None if state is None else check_state(state)
        shown = await self._show(id, queue)
        if shown is None:
            return Change(outcome="not_found")
        if seen is not None and stored_task.state_of(shown) is not seen:
            return Change(outcome="too_late", state=stored_task.state_of(shown))
        return shown

    async def _where(self, id: str, queue: str) -> Change:
        """Return the outcome for a task that another caller changed first."""
        shown = await self._show(id, queue)
        outcome: Literal["not_found", "too_late"] = "not_found" if shown is None else "too_late"
        return Change(outcome=outcome, state=None if shown is None else stored_task.state_of(shown))


def _check_limit(limit: int) -> None:
    if type(limit) is not int or not 1 <= limit <= MAX_PAGE_SIZE:
        raise InvalidTask(
            f"limit: {shorten(limit)} is not a whole number from 1 to {MAX_PAGE_SIZE}"
        )


def rerun_of(id: str, shown: StoredTask, length: int | None = None) -> operator_ops.RerunRequest:
    """Return the request to run a task now; a dead task keeps its history but gets new attempts."""
    if shown.state is not TaskState.DEAD:
        return operator_ops.RerunRequest(id)
    options = decode_task(id, shown, length).options
    history = decode_failure(shown.failure).history
    record = codec.encode(Failure(history=history)) if history else b""
    return operator_ops.RerunRequest(
        id,
        options.fairness_key or "",
        options.lock or "",
        record,
        options.priority or NORMAL_PRIORITY,
    )
