"""The operations on stored schedules, one pure function per script. See `qsync.broker.ops`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

from qsync.broker.call import Argument, Call, now_argument, queue_call, queue_query
from qsync.broker.enqueue_options import enqueue_options, need_flow
from qsync.broker.program_schedule_ops import SCHEDULE_SILENCE_US
from qsync.broker.schedule_run_ops import run_field
from qsync.broker.script import load
from qsync.broker.stored_schedules import StoredScheduleRow, row_of
from qsync.keys import NAME, GlobalKeys, QueueKeys
from qsync.message import ENVELOPE_HEAD
from qsync.new_task import NewTask

SCHEDULES_PER_CALL: Final = 100
"""Maximum number of stored schedules that are read or ticked in one call."""

TickOutcome = Literal["ticked", "changed", "paused", "program", "lost"]
"""Outcome of the ticks of a stored schedule. `changed`: the schedule has changed since it was read;
`program`: a program has a periodic task with this name; `lost`: the schedule's record is
missing."""


class PutOutcome(NamedTuple):
    """The outcome of a put: the new record's stamp, or, if the name was refused, the program's
    schedule with that name."""

    stamp: bytes
    of_program: bytes | None


class DueSchedules(NamedTuple):
    """The due schedules, and the next tick of all other schedules."""

    now_us: int
    next_us: int | None
    wrong: bool
    """Whether the recorded next ticks may be wrong. They may be wrong if the clock was ahead at the
    last ticks and has been set back since."""
    rows: list[StoredScheduleRow]


class TickRow(NamedTuple):
    """The tasks for the due ticks of one schedule, and the schedule's next tick after these."""

    row: StoredScheduleRow
    next_us: int
    tasks: Sequence[NewTask]


class StoredPage(NamedTuple):
    """A page of a queue's stored schedules; `total` is their number on all pages."""

    now_us: int
    cursor: str
    total: int
    rows: list[StoredScheduleRow]


def put_schedule(
    keys: QueueKeys, name: str, next_us: int, record: bytes, *, now_us: int | None = None
) -> Call[PutOutcome]:
    """Store a schedule, replacing any with the same name, unless a program uses the name."""
    args = (now_argument(now_us), "", SCHEDULE_SILENCE_US, name, next_us, record)
    return queue_call(
        "put_schedule", keys, args, lambda reply: PutOutcome(reply[0], reply[1] or None)
    )


def delete_schedule(keys: QueueKeys, name: str, *, stamp: bytes = b"") -> Call[bool]:
    """Delete a stored schedule (with `stamp`, only that version); return whether it existed."""
    return queue_call("delete_schedule", keys, ("", "", name, stamp, run_field(name)), bool)


def due_schedules(
    keys: QueueKeys, *, count: int = SCHEDULES_PER_CALL, offset: int = 0, now_us: int | None = None
) -> Call[DueSchedules]:
    """Read the stored schedules whose next tick is due, except for the first `offset` of them."""

    def decode(fields: dict[str, Any]) -> DueSchedules:
        flat, later = fields["rows"], fields["later"]
        rows = [
            row_of((name, record or b"", score, None))
            for name, score, record in zip(flat[::3], flat[1::3], flat[2::3], strict=True)
        ]
        next_us = int(later) if later else None
        return DueSchedules(int(fields["now"]), next_us, bool(fields["wrong"]), rows)

    return queue_query("due_schedules", keys, (now_argument(now_us), count, offset), decode)


def tick_schedules(
    keys: QueueKeys, rows: Sequence[TickRow], *, now_us: int | None = None
) -> Call[list[TickOutcome]]:
    """Enqueue the due ticks of stored schedules, and set their next ticks.

    Without rows, only record that all next ticks were planned with the current clock.
    """
    flow = any(need_flow(row.tasks) for row in rows)
    script = load("tick_schedules", flow=flow)
    args: list[Argument] = [now_argument(now_us), ENVELOPE_HEAD, SCHEDULE_SILENCE_US]
    for row, next_us, tasks in rows:
        args += (row.name, row.stamp, row.next_us or 0, next_us, len(tasks))
        for task in tasks:
            args += (task.id, task.message, enqueue_options(task))
    return Call(
        script, keys.names(script.keys), tuple(args), lambda reply: [one.decode() for one in reply]
    )


def stored_schedules(
    keys: QueueKeys, names: Sequence[str], *, now_us: int | None = None
) -> Call[tuple[int, list[StoredScheduleRow | None]]]:
    """Read the store's time and the stored schedules with these names (None if missing)."""

    def decode(reply: Any) -> tuple[int, list[StoredScheduleRow | None]]:
        now, rows = reply
        return int(now), [row_of(row) if row else None for row in rows]

    return queue_call("stored_schedules", keys, (now_argument(now_us), *names), decode)


def stored_page(
    keys: QueueKeys, *, cursor: str = "0", count: int = 1000, prefix: str = ""
) -> Call[StoredPage]:
    """Read about `count` stored schedules from `cursor` on; with "", those whose next tick is
    earliest."""

    def decode(fields: dict[str, Any]) -> StoredPage:
        rows = [row_of(row) for row in fields["rows"]]
        return StoredPage(int(fields["now"]), fields["cursor"].decode(), fields["total"], rows)

    return queue_query("stored_page", keys, ("", cursor, count, prefix), decode)


def announce_schedules(
    keys: GlobalKeys, queue: str, number: int, *, in_full_store: bool = True
) -> Call[int]:
    """Tell all servers to read a queue's stored schedules; `number` must be a new value.

    Unless `in_full_store` is true, a store that is out of memory refuses the call. Pass True only
    for a queue that has stored schedules.
    """
    script = load("announce_schedules", allow_oom=None if in_full_store else False)
    return Call(script, (keys.schedule_queues,), (queue, number), int)


def schedule_queues(keys: GlobalKeys) -> Call[dict[str, bytes]]:
    """Read the queues that have stored schedules, each with a number; a changed number asks servers
    to check the queue."""

    def decode(reply: Any) -> dict[str, bytes]:
        names = [name.decode(errors="replace") for name in reply[::2]]
        pairs = zip(names, reply[1::2], strict=True)
        return {name: number for name, number in pairs if NAME.fullmatch(name)}

    return Call(load("schedule_queues"), (keys.schedule_queues,), (), decode)
