"""Reads and changes the schedules of programs and of the store."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from qsync import codec
from qsync.broker import program_schedule_ops, schedule_ops, schedule_run_ops, views
from qsync.broker.aio import AsyncBroker
from qsync.broker.base import ends_in
from qsync.broker.event_ops import recorded
from qsync.broker.schedule_records import LIVE_US, read_record, task_from
from qsync.broker.schedule_run_ops import Note, run_field
from qsync.broker.stored_schedules import Content, StoredSchedule, StoredScheduleRow, decode_record
from qsync.broker.views import Published
from qsync.declared_limits import DeclaredLimits
from qsync.errors import InvalidTask, QueueFull, SchemaMismatch
from qsync.inspector.base import RECORD_S, Base, enqueue_once
from qsync.inspector.task_rows import note_of, schedule_pause_of
from qsync.inspector.values import Change, ScheduleInfo, refused
from qsync.new_task import NewTask, new_nonce, with_nonce
from qsync.phrase import phrase, phrase_of
from qsync.schedule import Cron, Every, Missed, Schedule, check_schedule_name, schedule_of, tick_id
from qsync.schedules import AsyncSchedules, checked_content
from qsync.task import PAYLOAD_LIMIT, Task
from qsync.task_builder import TaskBuilder
from qsync.times import datetime_us, from_us

LAST_TASKS_READ: Final = 500
"""Maximum number of schedules for which the state of the last task is read."""

TICKS_SHOWN: Final = 3
"""Number of upcoming ticks that the description of a schedule lists."""

SCHEDULES_LISTED: Final = 1000
"""Maximum number of stored schedules that are listed per queue."""


class _SchedulesMixin(Base):
    """Operations on schedules."""

    def __init__(
        self,
        broker: AsyncBroker,
        *,
        prefix: str = "qsync",
        builders: Sequence[TaskBuilder] = (),
        declared: DeclaredLimits | None = None,
    ) -> None:
        super().__init__(broker, prefix=prefix, builders=builders, declared=declared)
        self._stored = AsyncSchedules(broker, prefix, PAYLOAD_LIMIT, lambda: None)

    async def schedules(self, *, prefix: str = "") -> list[ScheduleInfo]:
        """Return all queues' schedules whose names begin with `prefix`, sorted by queue and name.

        Returns at most a thousand published and a thousand stored schedules per queue. If no prefix
        is passed, the stored schedules are those that are due first.
        """
        names = await self.queue_names()
        found, _ = await self._read_each(names, lambda name: views.schedules(self._keys(name)))
        infos = [
            schedule_info(queue, now_us, schedule)
            for queue, (now_us, published) in found.items()
            for schedule in published
            if schedule.name.startswith(prefix)
        ]
        infos += await self._stored_infos(prefix, {(info.queue, info.name) for info in infos})
        infos = await self._with_last_tasks(infos)
        return sorted(infos, key=lambda info: (info.queue, info.name, info.stored))

    async def _stored_infos(
        self, prefix: str, of_programs: set[tuple[str, str]]
    ) -> list[ScheduleInfo]:
        """Return the stored schedules of all queues, at most SCHEDULES_LISTED per queue."""
        if prefix:
            check_schedule_name(prefix, "prefix")
        queues = await self._broker.run(schedule_ops.schedule_queues(self._globals))
        infos = []
        for queue in queues:
            rows: dict[str, StoredScheduleRow] = {}
            cursor = "0" if prefix else ""
            while len(rows) < SCHEDULES_LISTED:
                call = schedule_ops.stored_page(
                    self._keys(queue), cursor=cursor, count=SCHEDULES_LISTED, prefix=prefix
                )
                [page] = await self._replies([call])
                if isinstance(page, SchemaMismatch):
                    break
                rows |= {row.name: row for row in page.rows}
                cursor = page.cursor
                if cursor == "0":
                    break
            for name in sorted(rows)[:SCHEDULES_LISTED]:
                of_program = (queue, name) in of_programs
                infos.append(stored_info(queue, page.now_us, rows[name], of_program=of_program))
        return infos

    async def _with_last_tasks(self, infos: list[ScheduleInfo]) -> list[ScheduleInfo]:
        """Add the task of each schedule's last tick and its state, if the store still has the
        task."""
        ids = [
            tick_id(info.name, datetime_us("tick", info.last_tick)) if info.last_tick else ""
            for info in infos[:LAST_TASKS_READ]
        ]
        indices = [index for index, id in enumerate(ids) if id]
        replies = await self._run_all(
            [views.get_tasks(self._keys(infos[index].queue), [ids[index]]) for index in indices]
        )
        completed = list(infos)
        for index, [shown] in zip(indices, replies, strict=True):
            if shown is not None:
                completed[index] = msgspec.structs.replace(
                    infos[index], last_task=ids[index], last_state=shown.state
                )
        return completed

    async def schedule(self, name: str, *, queue: str) -> ScheduleInfo | None:
        """Return a schedule of a queue: the program's, or else the stored one; None if the queue
        has neither."""
        now_us, published = await self._broker.run(views.schedules(self._keys(queue), name))
        if published:
            return schedule_info(queue, now_us, published[0])
        row = await self._stored_row(name, queue)
        return None if row is None else stored_info(queue, now_us, row)

    async def _stored_row(self, name: str, queue: str) -> StoredScheduleRow | None:
        _, [row] = await self._broker.run(schedule_ops.stored_schedules(self._keys(queue), [name]))
        return row

    async def put_schedule(
        self,
        name: str,
        task: Task[Any],
        *,
        cron: str | None = None,
        every: float | timedelta | None = None,
        tz: str | None = None,
        missed: Missed = "skip",
    ) -> StoredSchedule:
        """Store a schedule, as `client.schedules.put` does."""
        content = checked_content(
            name, task, cron, every, tz, missed, PAYLOAD_LIMIT, self._declared
        )
        return await self._put(name, task.queue, content)

    async def _put(self, name: str, queue: str, content: Content) -> StoredSchedule:
        event = self._actor.event("schedule.put", name, str(content.schedule))
        return await self._stored.put_content(name, queue, content, event=event)

    async def reschedule(
        self,
        name: str,
        *,
        queue: str,
        cron: str | None = None,
        every: float | timedelta | None = None,
        tz: str | None = None,
        missed: Missed = "skip",
    ) -> Change:
        """Change when a stored schedule ticks; the schedule's task stays the same.

        `refused`: the schedule cannot be read, or a program has a periodic task with the same name.
        """
        schedule = schedule_of(cron, every, tz)
        row = await self._stored_row(check_schedule_name(name), queue)
        if row is None:
            return Change(outcome="not_found")
        try:
            message = decode_record(row.record).message
            await self._put(name, queue, Content(schedule, missed, message))
        except (codec.CodecError, InvalidTask) as error:
            return refused(phrase_of(error))
        return Change(outcome="done")

    async def stored_schedule(self, name: str) -> StoredSchedule | None:
        """Return a stored schedule, as `client.schedules.get` does."""
        return await self._stored.get(name)

    async def delete_schedule(self, name: str, *, queue: str) -> Change:
        """Delete a stored schedule; `not_found` if the queue stores none with this name."""
        call = schedule_ops.delete_schedule(self._keys(queue), name)
        event = self._actor.event("schedule.delete", name)
        deleted = await self._broker.run(recorded(call, event))
        return Change(outcome="done" if deleted else "not_found")

    async def pause_schedule(self, name: str, *, queue: str, by: str = "", why: str = "") -> Change:
        """Pause a schedule: skip its ticks until `resume_schedule`.

        The pause survives restarts. If the schedule is already paused, the outcome is `done` too:
        the pause keeps its start time, and `by` and `why` are replaced unless `why` is empty.
        """
        note = note_of(by or self._actor.by, why)
        if not why:
            shown = await self.schedule(name, queue=queue)
            if shown is not None and shown.paused is not None:
                note = note_of(shown.paused.by, shown.paused.why)
        call = program_schedule_ops.pause_schedule(self._keys(queue), name, note)
        event = self._actor.event("schedule.pause", name, why, by=by)
        changed = await self._broker.run(recorded(call, event))
        return Change(outcome="not_found" if changed is None else "done")

    async def resume_schedule(self, name: str, *, queue: str) -> Change:
        """Resume a schedule from its next tick on; `not_found` if it was not paused.

        Ticks missed during the pause are not caught up.
        """
        call = program_schedule_ops.resume_schedule(self._keys(queue), name)
        event = self._actor.event("schedule.resume", name)
        changed = await self._broker.run(recorded(call, event))
        return Change(outcome="done" if changed else "not_found")

    async def trigger(self, name: str, *, queue: str) -> Change:
        """Enqueue the task of a schedule once, now; the `holder` of the outcome is the task's id.
        The times of the schedule's ticks do not change.

        `duplicate`: another task, `holder`, holds the unique lock. `refused`: the queue is full,
        the stored schedule cannot be read, or servers published no usable task, because they failed
        to create it or run another version of qsync.
        """
        keys = self._keys(queue)
        now_us, published = await self._broker.run(views.schedules(keys, name))
        row = None if published else await self._stored_row(name, queue)
        if not published and row is None:
            return Change(outcome="not_found")
        source = published[0].task if row is None else row
        tick_ms = now_us // 1000
        # The id has the form of a tick's id, so that servers record how the run ends.
        task = task_of_schedule(source, tick_id(name, tick_ms * 1000), queue)
        if task is None:
            return refused(phrase("no server of this version has published this schedule's task"))
        task = with_nonce(task, new_nonce())
        try:
            [reply] = await self._broker.run(enqueue_once(keys, [task]))
        except QueueFull as error:
            return refused(str(error))
        while reply.outcome == "exists":  # another run in this millisecond has the same id
            tick_ms += 1
            task = msgspec.structs.replace(task, id=tick_id(name, tick_ms * 1000))
            [reply] = await self._broker.run(enqueue_once(keys, [task]))
        created = reply.outcome == "created"
        ids, number = [reply.id], int(created)
        await self._record("schedule.trigger", name, queue=queue, number=number, ids=ids)
        if created:
            note = Note(run_field(name), tick_ms, "M")
            await self._broker.run_many(
                [schedule_run_ops.note_runs(keys, [note])], ends=ends_in(RECORD_S)
            )
        return Change(outcome="done" if created else "duplicate", holder=reply.id)

    async def forget_schedule(self, name: str, *, queue: str) -> Change:
        """Remove a program's schedule; `refused` while a server publishes the schedule."""
        call = program_schedule_ops.forget_schedule(self._keys(queue), name, silence_us=LIVE_US)
        event = self._actor.event("schedule.delete", name)
        gone = await self._broker.run(recorded(call, event))
        if gone is None:
            return Change(outcome="not_found")
        if gone:
            return Change(outcome="done")
        silence = timedelta(microseconds=LIVE_US)
        return refused(
            phrase("a server published this schedule less than %(length)s ago", length=silence)
        )


def schedule_info(queue: str, now_us: int, published: Published) -> ScheduleInfo:
    """Return the description of a schedule with its next ticks."""
    record = read_record(published.record)
    problem, ticks, last_us = None, list[datetime](), published.last_tick_us
    try:
        schedule = record.schedule()
        if schedule is None:
            problem = "only its server can compute the next runs of a custom schedule"
        else:
            ticks = _ticks(schedule, now_us)
            # Until the first tick, the stored time is when the schedule first started or was
            # resumed, so it is not the time of a tick.
            last_us = last_us if schedule.previous(last_us) == last_us else 0
    except InvalidTask as error:  # e.g. the time zone is unknown on this machine
        problem = str(error)
    return ScheduleInfo(
        queue=queue,
        name=published.name,
        schedule=record.text,
        cron=record.cron,
        every=None if record.every_us is None else record.every_us / 1_000_000,
        tz=record.tz,
        missed=record.missed,
        type=record.type,
        next_at=ticks,
        last_tick=from_us(last_us) if last_us else None,
        seen_at=from_us(published.seen_at_us) if published.seen_at_us else None,
        live=now_us - published.seen_at_us < LIVE_US,
        paused=schedule_pause_of(published.pause_note),
        problem=problem,
    )


def stored_info(
    queue: str, now_us: int, row: StoredScheduleRow, *, of_program: bool = False
) -> ScheduleInfo:
    """Return the description of a stored schedule. `of_program` says whether a program also has a
    schedule with this name."""
    since = from_us(row.since_us) if row.record else None
    info = ScheduleInfo(
        queue=queue, name=row.name, schedule="?", cron=None, every=None, tz=None, missed="",
        type="", next_at=[], last_tick=None, seen_at=since, live=True,
        paused=schedule_pause_of(row.pause_note), problem=None, stored=True,
    )  # fmt: skip
    try:
        content = decode_record(row.record)
        message = content.details()
    except (codec.CodecError, InvalidTask) as error:
        return msgspec.structs.replace(info, problem=f"it cannot be read: {error}")
    schedule = content.schedule
    last_us = None if row.next_us is None else schedule.previous(row.next_us - 1)
    ticked = last_us is not None and row.since_us < last_us <= now_us
    return msgspec.structs.replace(
        info,
        schedule=str(schedule),
        cron=schedule.expression if isinstance(schedule, Cron) else None,
        every=schedule.period_us / 1_000_000 if isinstance(schedule, Every) else None,
        tz=schedule.tz if isinstance(schedule, Cron) else None,
        missed=content.missed,
        type=message.type,
        next_at=_ticks(schedule, now_us),
        last_tick=from_us(last_us) if ticked and last_us is not None else None,
        problem="a program has a periodic task of this name, which takes precedence"
        if of_program
        else None,
    )


def task_of_schedule(
    source: bytes | StoredScheduleRow | None, id: str, queue: str
) -> NewTask | None:
    """Return a task with this id for a published or stored schedule; None if its record is
    damaged."""
    if not isinstance(source, StoredScheduleRow):
        return task_from(source, id, queue)
    try:
        return decode_record(source.record).task(id, queue)
    except (codec.CodecError, InvalidTask):
        return None


def _ticks(schedule: Schedule, now_us: int) -> list[datetime]:
    ticks: list[datetime] = []
    tick_us: int | None = now_us
    while len(ticks) < TICKS_SHOWN and tick_us is not None:
        tick_us = schedule.next_after(tick_us)
        if tick_us is not None:
            ticks.append(from_us(tick_us))
    return ticks
