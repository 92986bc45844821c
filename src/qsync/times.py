"""Converts durations and times from users to microseconds."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Final

from qsync.errors import InvalidTask
from qsync.phrase import Phrase, phrase
from qsync.value_text import shorten

MAX_SECONDS: Final = 10 * 365 * 86_400.0
"""Maximum duration for an option, in seconds: ten years."""

MINUTE_US: Final = 60_000_000
DAY_US: Final = 86_400_000_000

Duration = float | timedelta
"""A duration in seconds or as a timedelta."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

FIRST: Final = datetime.min.replace(tzinfo=UTC)
LAST: Final = datetime.max.replace(tzinfo=UTC)
"""First and last possible time."""


def duration_us(
    field: str | Phrase, value: Duration, *, minimum: float = 0.0, maximum: float = MAX_SECONDS
) -> int:
    """Return a duration in microseconds.

    Raises InvalidTask unless the duration is from `minimum` to `maximum`, in seconds.
    """
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except OverflowError:  # an int that is too large for a float
            seconds = math.inf
    else:
        raise InvalidTask(
            phrase(
                "%(field)s: %(value)s is neither a number of seconds nor a timedelta",
                field=field, value=shorten(value),
            )
        )  # fmt: skip
    if not math.isfinite(seconds) or not minimum <= seconds <= maximum:
        raise InvalidTask(
            phrase(
                "%(field)s: %(value)s is not between %(least)s and %(most)s seconds",
                field=field, value=shorten(value), least=float(minimum), most=f"{maximum:.0f}",
            )
        )  # fmt: skip
    return round(seconds * 1_000_000)


def datetime_us(field: str, value: datetime) -> int:
    """Return an aware datetime as Unix time in microseconds.

    Raise InvalidTask if the datetime is naive.
    """
    if not isinstance(value, datetime):
        msg = f"{field}: {shorten(value)} is not a datetime; pass one, e.g. {_example(value)}"
        raise InvalidTask(msg)
    if value.tzinfo is None or value.utcoffset() is None:
        msg = f"{field}: {value.isoformat()} is naive; give it a time zone, e.g. datetime.now(UTC)"
        raise InvalidTask(msg)
    return (value - _EPOCH) // timedelta(microseconds=1)


def _example(value: object) -> str:
    """Return example code for a time after this duration, or after a minute if it is not a
    duration."""
    after = "seconds=60"
    if isinstance(value, timedelta):
        after = f"seconds={value.total_seconds():g}"
    elif isinstance(value, int | float) and abs(value) <= MAX_SECONDS:
        after = f"seconds={value:g}"
    return f"datetime.now(UTC) + timedelta({after})"


def due_text(*, delay: Duration | None, process_at: datetime | None) -> str:
    """Return a due time in the form that scripts take: `+<us>` from now, or `<us>` as Unix time.

    Raises InvalidTask unless exactly one of `delay` and `process_at` is passed and valid.
    """
    if delay is not None and process_at is not None:
        raise InvalidTask(f"process_at: {process_at} and delay: {delay} cannot be used together")
    if process_at is not None:
        return str(max(0, datetime_us("process_at", process_at)))
    if delay is None:
        raise InvalidTask("delay and process_at: both are None; pass one of them")
    return f"+{duration_us('delay', delay)}"


def too_late(due_us: int, deadline_us: int) -> Phrase:
    """Return the error for a due time that is not before the task's deadline."""
    return phrase(
        "the task would be due at %(due)s, not before its deadline, %(deadline)s, so it could "
        "never start; choose an earlier time or a later deadline",
        due=from_us(due_us), deadline=from_us(deadline_us),
    )  # fmt: skip


def from_us(us: int) -> datetime:
    """Return Unix time in microseconds as an aware datetime in UTC. A time out of range becomes
    FIRST or LAST, since a damaged store may hold any number."""
    try:
        return _EPOCH + timedelta(microseconds=us)
    except OverflowError:
        return LAST if us > 0 else FIRST


def is_of_wrong_clock(moment_us: int, now_us: int) -> bool:
    """Return whether a recorded time comes from a clock that was ahead and has since been
    corrected.

    Such a time is over an hour in the future. The store's scripts contain the same function.
    """
    return moment_us - now_us > 3_600_000_000
