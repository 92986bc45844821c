"""Reads and changes the schedules of the project in the store, for the admin."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from asgiref.sync import async_to_sync

from qsync.contrib.django.models import Schedule
from qsync.contrib.django.project import project_app
from qsync.errors import InvalidTask
from qsync.inspector import Change, Inspector, ScheduleInfo
from qsync.keys import check_name
from qsync.schedule import check_schedule_name
from qsync.task import Task

T = TypeVar("T")


def _ask(question: Callable[[Inspector], Awaitable[T]], by: str = "") -> T:
    """Call a function with an inspector that acts for the user `by`, and return the result."""

    async def ask() -> T:
        async with project_app().inspector() as inspector:
            return await question(inspector.acting(by))

    answer: T = async_to_sync(ask)()
    return answer


def _parts(id: str) -> tuple[str, str]:
    """Return the queue and the name of a schedule; raise InvalidTask if one of them is invalid."""
    queue, _, name = id.partition(":")
    return check_name("queue", queue), check_schedule_name(name)


def all_schedules(prefix: str) -> list[ScheduleInfo]:
    """Return the schedules whose names begin with this prefix, both from the store and from
    programs."""
    return _ask(lambda inspector: inspector.schedules(prefix=prefix))


def find(id: str) -> Schedule | None:
    """Return the schedule with this id, with its ScheduleInfo as `info`; None if there is none."""
    try:
        queue, name = _parts(id)
    except InvalidTask:
        return None
    info = _ask(lambda inspector: inspector.schedule(name, queue=queue))
    return None if info is None else shown(info)


def shown(info: ScheduleInfo) -> Schedule:
    """Convert a schedule to the model object that the admin shows."""
    schedule = Schedule(
        id=f"{info.queue}:{info.name}", name=info.name, task=info.type, queue=info.queue,
        cron=info.cron or "", every=info.every, tz=info.tz or "", missed=info.missed,
    )  # fmt: skip
    schedule.info = info
    return schedule


def is_taken(name: str) -> bool:
    """Return whether a schedule with this name is in the store."""
    return _ask(lambda inspector: inspector.stored_schedule(name)) is not None


def queues_of_servers() -> set[str]:
    """Return the queues that the running servers of the store serve."""
    servers = _ask(lambda inspector: inspector.servers(tasks=False))
    return {queue for server in servers for queue in server.queues}


def create(name: str, task: Task[Any], when: dict[str, Any], by: str) -> None:
    """Put a schedule into the store. Raise InvalidTask if a program uses its name for this
    queue."""
    _ask(lambda inspector: inspector.put_schedule(name, task, **when), by)


def change(schedule: Schedule, when: dict[str, Any], by: str) -> Change:
    """Change when a stored schedule ticks."""
    name, queue = schedule.name, schedule.queue
    return _ask(lambda inspector: inspector.reschedule(name, queue=queue, **when), by)


def delete(id: str, by: str) -> Change:
    """Delete a schedule from the store."""
    queue, name = _parts(id)
    return _ask(lambda inspector: inspector.delete_schedule(name, queue=queue), by)


def pause(id: str, by: str, why: str) -> Change:
    """Pause a schedule, so that its ticks are skipped."""
    queue, name = _parts(id)
    return _ask(lambda inspector: inspector.pause_schedule(name, queue=queue, why=why), by)


def resume(id: str, by: str) -> Change:
    """Resume a schedule from its next tick."""
    queue, name = _parts(id)
    return _ask(lambda inspector: inspector.resume_schedule(name, queue=queue), by)


def trigger(id: str, by: str) -> Change:
    """Enqueue the task of a schedule once, now."""
    queue, name = _parts(id)
    return _ask(lambda inspector: inspector.trigger(name, queue=queue), by)
