"""What `--dry-run` of the commands of schedules prints."""

from __future__ import annotations

from typing import Any

from qsync import store_clock
from qsync.cli.change_report import Outcome, finish
from qsync.cli.command import exit_with
from qsync.cli.output import print_line
from qsync.cli.store import StoreSession
from qsync.formatting import relative
from qsync.inspector import Change, ScheduleInfo
from qsync.schedules import checked_content
from qsync.task import PAYLOAD_LIMIT, Task
from qsync.times import datetime_us, from_us


def info_of(session: StoreSession, name: str, queue: str) -> ScheduleInfo:
    """Return the schedule of a queue, which has been found before; exit if it is gone."""
    schedules = session.run(session.inspector.schedules(prefix=name))
    same = [info for info in schedules if (info.name, info.queue) == (name, queue)]
    if not same:
        exit_with(f"{name}: it was deleted meanwhile")
    return same[0]


def preview(session: StoreSession, name: str, queue: str, done: str, as_json: bool) -> None:
    """Print what would happen to a schedule."""
    info_of(session, name, queue)
    finish([Outcome(name, queue, Change(outcome="done"))], done, as_json=as_json, key="schedule")


def preview_put(
    session: StoreSession, name: str, new_task: Task[Any], times: dict[str, Any]
) -> None:
    """Print when a schedule would run next, and which one it would replace."""
    content = checked_content(name, new_task, payload_limit=PAYLOAD_LIMIT, **times)
    schedules = session.run(session.inspector.schedules(prefix=name))
    same = [info for info in schedules if (info.name, info.queue) == (name, new_task.queue)]
    for info in same:
        if not info.stored:
            exit_with(f"{name}: a program has a schedule of this name for queue {info.queue}")
    next_us = content.schedule.next_after(datetime_us("now", store_clock.now()))
    when = relative(from_us(next_us)) if next_us is not None else "never"
    replaced = "".join(f"; it would replace {info.schedule}" for info in same)
    print_line(f"{name} in queue {new_task.queue}: would run next {when}{replaced}")
