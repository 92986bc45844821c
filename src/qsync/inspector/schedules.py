"""Reading the schedules that servers published, and pause, resume, trigger and forget."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec

from qsync.broker import ops, views
from qsync.broker.schedule_records import LIVE_US, read_record, task_from
from qsync.broker.views import Published, moment_of
from qsync.errors import InvalidTask
from qsync.inspector.base import Base
from qsync.inspector.task_rows import note_of, schedule_pause_of
from qsync.inspector.values import Change, ScheduleInfo
from qsync.new_task import new_id
from qsync.schedule import Schedule, tick_id
from qsync.times import datetime_us

LAST_TASKS: Final = 500
"""Number of schedules for which the state of the last task is read."""

AHEAD: Final = 3
"""Number of next ticks shown."""


class Schedules(Base):
    """Operations on schedules."""

    async def schedules(self) -> list[ScheduleInfo]:
        """Return the schedules of all queues, by queue and name; at most a thousand per queue."""
        names = await self.queue_names()
        found = await self._run_all([views.schedules(self._keys(name)) for name in names])
        infos = [
            schedule_info(queue, now_us, one)
            for queue, (now_us, published) in zip(names, found, strict=True)
            for one in published
        ]
        infos = await self._with_last_tasks(infos)
        return sorted(infos, key=lambda info: (info.queue, info.name))

    async def _with_last_tasks(self, infos: list[ScheduleInfo]) -> list[ScheduleInfo]:
        """Add the task of the last tick and its state, if the store still has it."""
        ids = [
            tick_id(info.name, datetime_us("tick", info.last_tick)) if info.last_tick else ""
            for info in infos[:LAST_TASKS]
        ]
        asked = [at for at, id in enumerate(ids) if id]
        found = await self._run_all(
            [views.get_tasks(self._keys(infos[at].queue), [ids[at]]) for at in asked]
        )
        made = list(infos)
        for at, [shown] in zip(asked, found, strict=True):
            if shown is not None:
                made[at] = msgspec.structs.replace(
                    infos[at], last_task=ids[at], last_state=shown.state
                )
        return made

    async def schedule(self, name: str, *, queue: str) -> ScheduleInfo | None:
        """Return a schedule; None if no server published this name for this queue."""
        now_us, found = await self._broker.run(views.schedules(self._keys(queue), name))
        return schedule_info(queue, now_us, found[0]) if found else None

    async def pause_schedule(self, name: str, *, queue: str, by: str = "", why: str = "") -> Change:
        """Let the ticks of a schedule pass without a task until `resume_schedule`.

        The pause survives restarts. The outcome is `done` also for a paused schedule: `by` and
        `why` are replaced, the time is kept.
        """
        call = ops.pause_schedule(self._keys(queue), name, note_of(by, why))
        changed = await self._broker.run(call)
        return Change(outcome="not_found" if changed is None else "done")

    async def resume_schedule(self, name: str, *, queue: str) -> Change:
        """Resume a schedule from its next tick on; `not_found` if it was not paused.

        Ticks that passed during the pause are not made up.
        """
        changed = await self._broker.run(ops.resume_schedule(self._keys(queue), name))
        return Change(outcome="done" if changed else "not_found")

    async def trigger(self, name: str, *, queue: str) -> Change:
        """Enqueue the task of a schedule once, now; its id is `holder`. The ticks go on as before.

        `duplicate`: the task `holder` holds the unique lock. `refused`: no usable task was
        published, because creating it failed or another version of qsync published it.
        """
        keys = self._keys(queue)
        _, found = await self._broker.run(views.schedules(keys, name))
        if not found:
            return Change(outcome="not_found")
        task = task_from(found[0].task, new_id(), queue)
        if task is None:
            return Change(outcome="refused", why="no server of this version published its task")
        [made] = await self._broker.run(ops.enqueue(keys, [task]))
        created = made.outcome == "created"
        return Change(outcome="done" if created else "duplicate", holder=made.id)

    async def forget_schedule(self, name: str, *, queue: str) -> Change:
        """Remove a schedule that no server publishes any more; `refused` while one does."""
        call = ops.forget_schedule(self._keys(queue), name, silence_us=LIVE_US)
        gone = await self._broker.run(call)
        if gone is None:
            return Change(outcome="not_found")
        if gone:
            return Change(outcome="done")
        minutes = LIVE_US // 60_000_000
        return Change(outcome="refused", why=f"a server published it less than {minutes} min ago")


def schedule_info(queue: str, now_us: int, published: Published) -> ScheduleInfo:
    """Return the description of a schedule with its next ticks."""
    record = read_record(published.record)
    problem, ticks, last_us = None, list[datetime](), published.last_tick_us
    try:
        schedule = record.schedule()
        if schedule is None:
            problem = "a schedule of a kind of its own: its server knows"
        else:
            ticks = _ticks(schedule, now_us)
            # Before the first tick, the store holds the time of the start or of the resume instead.
            last_us = last_us if schedule.previous(last_us) == last_us else 0
    except InvalidTask as error:  # for example a time zone that is unknown here
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
        last_tick=moment_of(last_us) if last_us else None,
        seen_at=moment_of(published.seen_at_us) if published.seen_at_us else None,
        live=now_us - published.seen_at_us < LIVE_US,
        paused=schedule_pause_of(published.pause_note),
        problem=problem,
    )


def _ticks(schedule: Schedule, now_us: int) -> list[datetime]:
    found: list[datetime] = []
    at: int | None = now_us
    while len(found) < AHEAD and at is not None:
        at = schedule.next_after(at)
        if at is not None:
            found.append(moment_of(at))
    return found
