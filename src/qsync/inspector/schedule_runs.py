"""Reads the last runs of schedules, and enqueues the tasks of past ticks (backfill)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Final

import msgspec

from qsync import codec
from qsync.broker import schedule_run_ops, views
from qsync.broker.base import ends_in
from qsync.broker.op_values import Enqueued
from qsync.broker.schedule_records import read_record
from qsync.broker.schedule_run_ops import Made, Note, StoredRun, run_field
from qsync.broker.stored_schedules import StoredScheduleRow, decode_record
from qsync.broker.stored_task import state_of
from qsync.errors import InvalidTask, QueueFull
from qsync.inspector.base import RECORD_S, enqueue_once
from qsync.inspector.schedules import _SchedulesMixin, task_of_schedule
from qsync.keys import QueueKeys
from qsync.new_task import NewTask
from qsync.schedule import Schedule, tick_id
from qsync.times import datetime_us, from_us

MOST_BACKFILLED: Final = 1000
"""Maximum number of ticks in a backfill."""

REMEMBERED_US: Final = 7 * 86_400_000_000
"""How long, in microseconds, the id of a backfilled tick is refused after its task has left the
queue."""

NOTED: Final = 100


class ScheduleRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run of a schedule.

    tick      scheduled time of the run; for a manual run, the time of the request
    made      how the run was started: tick | manual | backfill
    outcome   completed, failed (the task died) or cancelled; missed: no server was running, and
              `missed_from` is the first of the ticks missed in a row; unknown: the task has left
              the queue and no server recorded its outcome; otherwise the state of its task
    started_at, duration   start and duration (seconds) of the last attempt
    task      id of its task
    """

    tick: datetime
    made: Made
    outcome: str
    started_at: datetime | None = None
    duration: float | None = None
    missed_from: datetime | None = None
    task: str


class MissedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule whose last tick was missed because no server was running at that time."""

    queue: str
    schedule: str
    tick: datetime


class Backfill(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a backfill, or of its dry run.

    ticks     number of ticks in the interval
    enqueued  number of enqueued tasks; in a dry run, number of tasks that would be enqueued
    skipped   number of ticks that already ran, according to the store, or whose task is in the
              queue
    refused   why some or all of the tasks were not enqueued, e.g. a full queue; None if nothing was
              refused
    """

    ticks: int
    enqueued: int
    skipped: int
    refused: str | None = None


class _ScheduleRunsMixin(_SchedulesMixin):
    """Operations on the runs of schedules."""

    async def schedule_history(self, name: str, *, queue: str = "default") -> list[ScheduleRun]:
        """Return the last 20 recorded runs of a schedule, and its last tick, the latest first.

        Servers record how a run ended. If another task held the unique lock when a tick was due,
        the tick has no record.
        """
        keys = self._keys(queue)
        [noted] = await self._broker.run(schedule_run_ops.schedule_runs(keys, [name]))
        info = await self.schedule(name, queue=queue)
        if info is not None and info.last_tick is not None:
            last_ms = datetime_us("tick", info.last_tick) // 1000
            if all(run.tick_ms != last_ms for run in noted):
                noted.append(StoredRun(last_ms, "tick"))
        noted.sort(key=lambda run: run.tick_ms, reverse=True)
        open_ids = [_id(name, run) for run in noted if run.outcome is None]
        states: dict[str, str] = {}
        if open_ids:
            shown = await self._broker.run(views.get_tasks(keys, open_ids, messages=False))
            states = {
                id: "unknown" if task is None else str(state_of(task))
                for id, task in zip(open_ids, shown, strict=True)
            }
        return [_run(name, run, states) for run in noted]

    async def missed_runs(self, queues: Sequence[str]) -> list[MissedRun]:
        """Return the schedules whose last tick was missed, at most 5 for each of these queues."""
        replies = await self._run_all(
            [schedule_run_ops.missed_runs(self._keys(queue)) for queue in queues]
        )
        return [
            MissedRun(queue=queue, schedule=name, tick=from_us(tick_us))
            for queue, missed in zip(queues, replies, strict=True)
            for name, tick_us in missed
        ]

    async def backfill(
        self, name: str, *, queue: str, start: datetime, end: datetime, dry_run: bool = False
    ) -> Backfill | None:
        """Enqueue the task of a schedule for each tick from `start` (inclusive) to `end`
        (exclusive).

        The interval must have at most 1,000 ticks, all in the past. A tick that already ran is not
        enqueued again, because the task of a tick has the tick's id, and the store refuses this id
        for a week after the task has left the queue. With `dry_run` nothing is enqueued. Returns
        None if there is no such schedule; raises InvalidTask if the interval is invalid.
        """
        keys = self._keys(queue)
        now_us, published = await self._broker.run(views.schedules(keys, name))
        row = None if published else await self._stored_row(name, queue)
        if not published and row is None:
            return None
        try:
            schedule = _given(published[0].record if row is None else row)
        except (codec.CodecError, InvalidTask) as error:
            return Backfill(ticks=0, enqueued=0, skipped=0, refused=str(error))
        if schedule is None:
            why = "only its server can compute the ticks of a custom schedule"
            return Backfill(ticks=0, enqueued=0, skipped=0, refused=why)
        ticks = _ticks(schedule, start, end, now_us)
        source = published[0].task if row is None else row
        tasks = [task_of_schedule(source, tick_id(name, at_us), queue) for at_us in ticks]
        if any(task is None for task in tasks):
            why = "no server of this version has published this schedule's task"
            return Backfill(ticks=len(ticks), enqueued=0, skipped=0, refused=why)
        new = await self._not_run(name, queue, [task for task in tasks if task is not None])
        if dry_run:
            return Backfill(ticks=len(ticks), enqueued=len(new), skipped=len(ticks) - len(new))
        return await self._enqueue_ticks(name, queue, new, ticks=len(ticks))

    async def _not_run(self, name: str, queue: str, tasks: Sequence[NewTask]) -> list[NewTask]:
        """Return the tasks of ticks that have no recorded run and are not in the queue."""
        keys = self._keys(queue)
        [noted] = await self._broker.run(schedule_run_ops.schedule_runs(keys, [name]))
        ran = {_id(name, run) for run in noted if run.outcome != "missed"}
        new = [task for task in tasks if task.id not in ran]
        absent: list[NewTask] = []
        for start in range(0, len(new), NOTED):
            part = new[start : start + NOTED]
            call = views.get_tasks(keys, [task.id for task in part], messages=False)
            shown = await self._broker.run(call)
            absent += [task for task, stored in zip(part, shown, strict=True) if stored is None]
        return absent

    async def _enqueue_ticks(
        self, name: str, queue: str, tasks: Sequence[NewTask], *, ticks: int
    ) -> Backfill:
        """Enqueue the tasks of ticks until the queue is full; `ticks` is the number of ticks in the
        interval."""
        keys, field = self._keys(queue), run_field(name)
        remembered = [msgspec.structs.replace(task, remember_us=REMEMBERED_US) for task in tasks]
        created: list[str] = []
        full, tried = None, 0
        for start in range(0, len(remembered), NOTED):
            replies, full = await self._enqueue_what_fits(keys, remembered[start : start + NOTED])
            ids = [reply.id for reply in replies if reply.outcome == "created"]
            made = [schedule_run_ops.tick_of(id) for id in ids]
            notes = [Note(field, tick[1] // 1000, "B") for tick in made if tick is not None]
            await self._broker.run_many(
                [schedule_run_ops.note_runs(keys, notes)], ends=ends_in(RECORD_S)
            )
            created, tried = created + ids, tried + len(replies)
            if full is not None:
                break
        await self._record(
            "schedule.backfill", name, queue=queue, number=len(created), ids=created[:NOTED]
        )
        skipped = ticks - len(tasks) + tried - len(created)
        return Backfill(ticks=ticks, enqueued=len(created), skipped=skipped, refused=full)

    async def _enqueue_what_fits(
        self, keys: QueueKeys, tasks: Sequence[NewTask]
    ) -> tuple[list[Enqueued], str | None]:
        """Enqueue tasks, in order, until a bounded queue is full.

        Return the replies, and why the other tasks were refused.
        """
        full = None
        while tasks:
            try:
                return await self._broker.run(enqueue_once(keys, tasks)), full
            except QueueFull as error:
                full, tasks = str(error), tasks[: min(error.room, len(tasks) - 1)]
        return [], full


def _ticks(schedule: Schedule, start: datetime, end: datetime, now_us: int) -> list[int]:
    """Return the ticks in an interval. Raise InvalidTask if the interval is invalid."""
    start_us, end_us = datetime_us("start", start), datetime_us("end", end)
    if end_us <= start_us:
        raise InvalidTask(f"end: {end.isoformat()} is not after the start, {start.isoformat()}")
    if end_us > now_us:
        raise InvalidTask(f"end: {end.isoformat()} is in the future; choose a past time")
    # No schedule ticks before 1970.
    ticks = list(islice(_between(schedule, max(0, start_us), end_us), MOST_BACKFILLED + 1))
    if len(ticks) > MOST_BACKFILLED:
        raise InvalidTask(
            f"end: over {MOST_BACKFILLED:,} ticks are between {start.isoformat()} and "
            f"{end.isoformat()}; choose a shorter interval"
        )
    return ticks


def _given(source: bytes | StoredScheduleRow) -> Schedule | None:
    """Return when a published or stored schedule ticks; None for a custom schedule."""
    if isinstance(source, StoredScheduleRow):
        return decode_record(source.record).schedule
    return read_record(source).schedule()


def _between(schedule: Schedule, start_us: int, end_us: int) -> Iterator[int]:
    tick_us = schedule.next_after(start_us - 1)
    while tick_us is not None and tick_us < end_us:
        yield tick_us
        tick_us = schedule.next_after(tick_us)


def _id(name: str, run: StoredRun) -> str:
    return tick_id(name, run.tick_ms * 1000)


def _run(name: str, run: StoredRun, states: dict[str, str]) -> ScheduleRun:
    id = _id(name, run)
    ended = run.outcome is not None and run.outcome != "missed"
    started_ms = run.tick_ms + run.lag_ms
    return ScheduleRun(
        tick=from_us(run.tick_ms * 1000),
        made=run.made,
        outcome=run.outcome or states.get(id, "unknown"),
        started_at=from_us(started_ms * 1000) if ended else None,
        duration=run.took_ms / 1000 if ended else None,
        missed_from=None if run.first_ms is None else from_us(run.first_ms * 1000),
        task=id,
    )
