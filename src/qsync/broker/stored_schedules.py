"""The schedules that clients store: their records, and which ticks are due. Without I/O."""

from __future__ import annotations

import math
import struct
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, NamedTuple, get_args

import msgspec

from qsync import codec, schedule
from qsync.errors import InvalidTask
from qsync.message import ENVELOPE_HEAD, Message, decode_message
from qsync.new_task import NewTask, flow_of
from qsync.phrase import phrase
from qsync.schedule import Cron, Every, Missed
from qsync.times import from_us, is_of_wrong_clock

STAMP: Final = 8
"""Number of bytes at the head of a record that hold the time of the put, which is unique to each
version."""

GRACE_US: Final = 30_000_000
"""Longest delay with which a tick counts as on time, in microseconds; it is the same for periodic
tasks."""

MOST_TICKS: Final = 20
"""Maximum number of ticks of one schedule that one call enqueues."""

MAX_EXPRESSION_LENGTH: Final = 1000
"""Maximum length of an expression with its time zone, in characters."""

NEVER_US: Final = 250_246_627_200_000_000
"""Value that means "no next tick", in microseconds: a time in the year 9900."""

FORMAT: Final = 1
"""Layout of a record after its stamp. The layout is compact because there may be 100,000 records. A
record begins with one byte: 16 times FORMAT, plus 4 if the message does not end in DEFAULTS, plus
the index of `missed` in MISSED. Two bytes with the length of the next part follow. This next part
is a period in microseconds as text, or a cron expression. If the expression is not in UTC, a line
feed and the time zone are appended. The rest of the record is the part of the task's message that
follows the nonce.
"""

DEFAULTS: Final = codec.encode([True, 3, None])[1:]
"""End of a task's message if `is_value`, `retry` and `options` have their most common values."""

MISSED: Final[tuple[Missed, ...]] = get_args(Missed)

_NONCE: Final = codec.encode(bytes(8))[:2]
"""Bytes before the eight bytes of a nonce, which is the first element of a message."""


class StoredSchedule(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule in the store.

    cron, tz   expression and time zone of the schedule; None if it has a period
    every      period of the schedule, in seconds; None if it has an expression
    missed     which missed ticks enqueue a task: "skip" (none), "once" or "all"
    type       type of the schedule's task
    payload    payload of the schedule's task: the bytes passed to `put`, or arguments as msgpack
    next_at    next tick of the schedule; None if it has no next tick
    put_at     time from which ticks count: the last `put`, or the resume after a pause
    paused     whether the schedule is paused, so that its ticks are skipped

    Times are by the store's clock.
    """

    name: str
    queue: str
    cron: str | None
    every: float | None
    tz: str | None
    missed: Missed
    type: str
    payload: bytes
    next_at: datetime | None
    put_at: datetime
    paused: bool = False


class StoredScheduleRow(NamedTuple):
    """A schedule as the store holds it, not decoded."""

    name: str
    record: bytes
    next_us: int | None
    """Next tick of the schedule; None if the entry was lost."""
    pause_note: bytes | None = None

    @property
    def stamp(self) -> bytes:
        """The part of the record that is unique to each version."""
        return self.record[:STAMP]

    @property
    def since_us(self) -> int:
        """Time from which the schedule's ticks count, in microseconds."""
        return int.from_bytes(self.stamp, "big")


class Content(NamedTuple):
    """A decoded record.

    The nonce of the message is the stamp, so the message is the same at each tick.
    """

    schedule: Cron | Every
    missed: Missed
    message: bytes

    def details(self) -> Message:
        """Decode the message of the schedule's task. Raises CodecError if the message's version is
        unknown."""
        return decode_message(ENVELOPE_HEAD + bytes(8) + self.message)

    def task(self, id: str, queue: str) -> NewTask:
        """Return the task of a tick, ready to be enqueued. Raises CodecError if the version of the
        task's message is unknown."""
        options = self.details().options
        if options is None:
            return NewTask(id, queue, self.message, "", "", "", 0, None)
        return NewTask(
            id, queue, self.message, "", options.fairness_key or "", options.lock or "",
            options.window_us or 0, options.retention_us, flow=flow_of(options),
        )  # fmt: skip


class Ticks(NamedTuple):
    """The ticks of a schedule that are due, and the next tick to wait for, in microseconds."""

    due: list[int]
    next_us: int


def encode_record(schedule: Cron | Every, missed: Missed, message: bytes) -> bytes:
    """Return the record of a schedule, without its stamp; `message` is the message of a new
    task."""
    text = str(schedule.period_us) if isinstance(schedule, Every) else schedule.expression
    if isinstance(schedule, Cron) and schedule.tz != "UTC":
        text += f"\n{schedule.tz}"
    head, when, rest = FORMAT << 4 | MISSED.index(missed), text.encode(), message[10:]
    if rest.endswith(DEFAULTS):
        head, rest = head | 4, rest[: -len(DEFAULTS)]
    if len(when) > MAX_EXPRESSION_LENGTH:
        raise InvalidTask(
            phrase(
                "cron=%(value)s: %(number)s characters exceed the maximum of %(most)s",
                value=f"{text!r:.80}", number=str(len(when)), most=str(MAX_EXPRESSION_LENGTH),
            )
        )  # fmt: skip
    return struct.pack(">BH", head, len(when)) + when + rest


def decode_record(record: bytes) -> Content:
    """Decode a record with its stamp. Raises CodecError for an invalid record, and InvalidTask for
    an unknown time zone."""
    try:
        head, size = struct.unpack_from(">BH", record, STAMP)
        start = STAMP + 3 + size
        when = record[STAMP + 3 : start]
        text = when.decode()
    except (struct.error, UnicodeDecodeError) as error:
        raise codec.CodecError(str(error)) from error
    if len(when) > MAX_EXPRESSION_LENGTH:
        msg = f"its expression has {len(when)} bytes; {MAX_EXPRESSION_LENGTH} are allowed"
        raise codec.CodecError(msg)
    if len(record) < start or head >> 4 != FORMAT or head & 3 >= len(MISSED) or head & 8:
        msg = f"schedule format {head} is not one of {FORMAT}; upgrade this server"
        raise codec.CodecError(msg)
    rest = record[start:] + (DEFAULTS if head & 4 else b"")
    return Content(_schedule(text), MISSED[head & 3], _NONCE + record[:STAMP] + rest)


@lru_cache(maxsize=4096)
def _schedule(text: str) -> Cron | Every:
    """Return a schedule from a cache, because many stored schedules are equal and parsing takes 0.1
    ms."""
    if text.isdecimal():
        return Every(int(text) / 1_000_000)
    expression, _, tz = text.partition("\n")
    return Cron(expression, tz=tz or "UTC")


@lru_cache(maxsize=4096)
def _next_after(schedule: Cron | Every, moment_us: int) -> int:
    next_us = schedule.next_after(moment_us)
    return NEVER_US if next_us is None else next_us


def next_tick(schedule: Cron | Every, moment_us: int) -> int:
    """Return the first tick after the moment; NEVER_US if there is none."""
    return _next_after(schedule, moment_us)


def ticks_of(row: StoredScheduleRow, content: Content, now_us: int) -> Ticks:
    """Return the ticks of a due schedule to enqueue now, at most MOST_TICKS."""
    after_us = row.since_us
    if row.next_us is not None:  # earlier ticks have been handled
        is_wrong = is_of_wrong_clock(after_us, now_us)
        after_us = row.next_us - 1 if is_wrong else max(after_us, row.next_us - 1)
    return _due(content.schedule, content.missed, after_us, now_us)


@lru_cache(maxsize=1024)
def _due(given: Cron | Every, missed: Missed, after_us: int, now_us: int) -> Ticks:
    """Return the due ticks from a cache, since equal schedules are often due at the same time."""
    due = schedule.due_ticks(given, after_us, now_us, missed, grace_us=GRACE_US, limit=MOST_TICKS)
    done_us = due[-1] if len(due) == MOST_TICKS else now_us
    return Ticks(due, _next_after(given, done_us))


def stored_schedule(row: StoredScheduleRow, queue: str) -> StoredSchedule:
    """Return a schedule as its callers see it.

    Raises CodecError or InvalidTask for a damaged record.
    """
    content = decode_record(row.record)
    message, given = content.details(), content.schedule
    cron, tz = (given.expression, given.tz) if isinstance(given, Cron) else (None, None)
    return StoredSchedule(
        name=row.name,
        queue=queue,
        cron=cron,
        every=given.period_us / 1_000_000 if isinstance(given, Every) else None,
        tz=tz,
        missed=content.missed,
        type=message.type,
        payload=message.payload,
        next_at=None if row.next_us in (None, NEVER_US) else from_us(row.next_us or 0),
        put_at=from_us(min(row.since_us, NEVER_US)),
        paused=row.pause_note is not None,
    )


def row_of(reply: Any) -> StoredScheduleRow:
    """Return a schedule from its row in a reply: name, record, next tick, pause note."""
    name, record, score, note = reply
    due = math.nan if score is None else float(score)
    next_us = int(due) if abs(due) < NEVER_US else NEVER_US if due > 0 else None
    return StoredScheduleRow(name.decode(errors="backslashreplace"), record, next_us, note)
