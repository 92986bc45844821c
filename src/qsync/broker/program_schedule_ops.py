"""The operations on schedules that programs declare, one pure function per script."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

from qsync.broker.call import Argument, Call, bounded, now_argument, queue_call
from qsync.broker.enqueue_options import enqueue_options
from qsync.broker.operator_ops import _note
from qsync.broker.schedule_run_ops import run_field
from qsync.broker.script import load
from qsync.keys import QueueKeys
from qsync.message import ENVELOPE_HEAD
from qsync.new_task import NewTask

SCHEDULE_SILENCE_US: Final = 180_000_000
"""Time without a publication after which a schedule may be gone, in microseconds."""


def tick(
    keys: QueueKeys, schedule: str, tick_us: int, task: NewTask, *, now_us: int | None = None
) -> Call[bool]:
    """Enqueue the task of a schedule's tick; return whether the task was created.

    Nothing is enqueued if this tick or a later one was handled before, or if the schedule is
    paused.
    """
    script = load("tick", flow=task.flow is not None)
    args = (
        now_argument(now_us), ENVELOPE_HEAD, schedule, tick_us,
        task.id, task.message, enqueue_options(task),
    )  # fmt: skip
    return Call(script, keys.names(script.keys), args, lambda reply: reply[0] == b"created")


def begin_ticks(
    keys: QueueKeys,
    schedules: Sequence[str],
    *,
    digests: Sequence[str] = (),
    now_us: int | None = None,
) -> Call[tuple[int, list[int]]]:
    """Return the store's time and, per schedule, the time after which its ticks are due.

    That time is the schedule's last tick, or now for a new schedule. With `digests` of the
    expressions, the time is also now if the expression changed or the schedule was declared again.
    So earlier ticks are not due.
    """
    pairs = itertools.zip_longest(schedules, digests, fillvalue="")
    args = (now_argument(now_us), SCHEDULE_SILENCE_US, *itertools.chain.from_iterable(pairs))
    return queue_call(
        "begin_ticks", keys, args, lambda reply: (int(reply[0]), [int(tick) for tick in reply[1:]])
    )


def publish_schedules(
    keys: QueueKeys, schedules: Sequence[tuple[str, bytes, bytes]], *, now_us: int | None = None
) -> Call[int]:
    """Publish schedules as (name, record, task); the scripts do not read record and task."""
    args: list[Argument] = [now_argument(now_us), SCHEDULE_SILENCE_US]
    for schedule in bounded(schedules):
        args += schedule
    return queue_call("publish_schedules", keys, args, int)


def pause_schedule(
    keys: QueueKeys, schedule: str, note: bytes, *, now_us: int | None = None
) -> Call[bool | None]:
    """Pause a schedule, so that its ticks enqueue no tasks.

    Returns False if it was paused already, None if it does not exist.
    """
    return _pause_schedule(keys, schedule, _note(note), now_us)


def resume_schedule(
    keys: QueueKeys, schedule: str, *, now_us: int | None = None
) -> Call[bool | None]:
    """Resume a schedule. Return False if it was not paused, None if it does not exist."""
    return _pause_schedule(keys, schedule, b"", now_us)


def forget_schedule(
    keys: QueueKeys, schedule: str, *, silence_us: int, now_us: int | None = None
) -> Call[bool | None]:
    """Delete a schedule that no server has published for `silence_us`.

    Returns False if a server has published it more recently, and None if it does not exist.
    """
    args = (now_argument(now_us), "", schedule, silence_us, run_field(schedule))
    return queue_call("forget_schedule", keys, args, _changed)


def _pause_schedule(
    keys: QueueKeys, schedule: str, note: bytes, now_us: int | None
) -> Call[bool | None]:
    return queue_call("pause_schedule", keys, (now_argument(now_us), "", schedule, note), _changed)


def _changed(reply: int) -> bool | None:
    return None if reply < 0 else bool(reply)
