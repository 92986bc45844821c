"""The records of periodic tasks that servers publish, so that clients can show and trigger them."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Final

import msgspec

from qsync import codec
from qsync.broker.program_schedule_ops import SCHEDULE_SILENCE_US
from qsync.message import ENVELOPE_HEAD
from qsync.new_task import FlowOptions, NewTask
from qsync.schedule import Cron, Every, Periodic, Schedule

LIVE_US: Final = SCHEDULE_SILENCE_US
"""How long after its last publication a schedule counts as live, in microseconds.

Servers publish their schedules every minute.
"""


class ScheduleRecord(msgspec.Struct, frozen=True, array_like=True):
    """A schedule as servers publish it.

    If it has neither `cron` nor `every_us`, it is a custom schedule.
    """

    text: str = ""
    cron: str | None = None
    tz: str | None = None
    every_us: int | None = None
    missed: str = ""
    type: str = ""

    def schedule(self) -> Schedule | None:
        """Return the schedule, or None for a custom schedule; raise InvalidTask if the schedule is
        invalid."""
        if self.cron is not None:
            return Cron(self.cron, tz=self.tz or "UTC")
        return None if self.every_us is None else Every(self.every_us / 1_000_000)


class Template(msgspec.Struct, frozen=True, array_like=True):
    """The task of a schedule, ready to be enqueued with an id."""

    head: bytes
    message: bytes
    due: str
    fairness_key: str
    lock: str
    window_us: int
    retention_us: int | None
    flow: FlowOptions | None = None


def record_of(periodic: Periodic, type: str) -> bytes:
    """Encode the record of a schedule whose tasks have this type."""
    schedule = periodic.schedule
    record = ScheduleRecord(text=str(schedule), missed=periodic.missed, type=type)
    if isinstance(schedule, Cron):
        record = msgspec.structs.replace(record, cron=schedule.expression, tz=schedule.tz)
    elif isinstance(schedule, Every):
        record = msgspec.structs.replace(record, every_us=schedule.period_us)
    return codec.encode(record)


def digest_of(schedule: Schedule) -> str:
    """Return a digest of a schedule's expression, which shows whether the expression changed."""
    if isinstance(schedule, Cron):
        text = f"cron {schedule.expression} {schedule.tz}"
    elif isinstance(schedule, Every):
        text = f"every {schedule.period_us}"
    else:  # the default repr of an object has its address, which differs between processes
        kind = type(schedule)
        shown = re.sub(r" at 0x[0-9a-fA-F]+", "", str(schedule))
        text = f"{kind.__module__}.{kind.__qualname__} {shown}"
    return sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def template_of(task: NewTask) -> bytes:
    """Encode the task of a schedule for publication."""
    return codec.encode(
        Template(
            ENVELOPE_HEAD, task.message, task.due, task.fairness_key, task.lock, task.window_us,
            task.retention_us, task.flow,
        )
    )  # fmt: skip


def read_record(data: bytes) -> ScheduleRecord:
    """Decode a record; return an empty record if it is invalid."""
    try:
        record: ScheduleRecord = codec.decode(data, ScheduleRecord)
    except codec.CodecError:
        return ScheduleRecord()
    return record


def task_from(data: bytes | None, id: str, queue: str) -> NewTask | None:
    """Build the task of a schedule with an id; None when its publication is missing or invalid."""
    try:
        template: Template = codec.decode(data or b"", Template)
    except codec.CodecError:
        return None
    if template.head != ENVELOPE_HEAD:  # published by a version with another message format
        return None
    return NewTask(
        id, queue, template.message, template.due, template.fairness_key, template.lock,
        template.window_us, template.retention_us, flow=template.flow,
    )  # fmt: skip
