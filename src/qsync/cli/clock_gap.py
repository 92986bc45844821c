"""Finds local times that do not exist, because clocks are put forward past them; does no I/O."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


def clock_gap(time: datetime) -> tuple[datetime, datetime] | None:
    """Return from when to when clocks are put forward past a time without an offset.

    The result is None if the time exists in the local time zone.
    """
    if time.astimezone().replace(tzinfo=None) == time:
        return None
    # The offset after the change gives a time before the change, and the offset before the change
    # gives a time after it.
    readings = [int(time.replace(fold=fold).timestamp()) for fold in (0, 1)]
    before, after = min(readings), max(readings) + 1
    old, new = _offset(before), _offset(after)
    while after - before > 1:
        middle = (before + after) // 2
        if _offset(middle) == old:
            before = middle
        else:
            after = middle
    change = datetime.fromtimestamp(after, UTC).replace(tzinfo=None)
    return change + old, change + new


def _offset(second: int) -> timedelta:
    """Return the difference between local time and UTC at a Unix time."""
    return datetime.fromtimestamp(second).astimezone().utcoffset() or timedelta()
