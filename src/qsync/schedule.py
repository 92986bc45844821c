"""Computes when a periodic task is due: cron and interval schedules, time zones, missed ticks.
Without I/O.

All times, including ticks, are ints in microseconds since the Unix epoch. Ticks depend only on the
values of the schedule, so all servers agree on every tick.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from hashlib import sha256
from itertools import islice
from typing import (
    TYPE_CHECKING,
    Literal,
    NamedTuple,
    Protocol,
    cast,
    get_args,
    runtime_checkable,
)

from qsync.cron_expression import cron_fields, cron_matches, field_error
from qsync.errors import ConfigError, InvalidTask
from qsync.phrase import Phrase, phrase
from qsync.value_text import shorten

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

Missed = Literal["skip", "once", "all"]
"""What to do about ticks that passed while no server was running; see `due_ticks`."""

# A naive datetime below is either a moment in UTC or a reading of the local clock ("wall").
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - naive on purpose, see above
_MICROSECOND = timedelta(microseconds=1)
_SECOND = timedelta(seconds=1)
# The search for ticks is limited to 1900 to 9900, so that it stays within datetime's range.
_YEAR_1900_US = -2_208_988_800_000_000
_YEAR_2000_US = 946_684_800_000_000
_YEAR_9900_US = 250_246_627_200_000_000
_YEARS = 50  # a schedule without a tick in 50 years is treated as one that never ticks


@runtime_checkable
class Schedule(Protocol):
    """A strictly increasing sequence of ticks. `str()` returns a readable description."""

    def next_after(self, moment_us: int) -> int | None:
        """Return the first tick later than the moment; None when there is none."""

    def previous(self, moment_us: int) -> int | None:
        """Return the latest tick that is not later than the moment; None when there is none."""


class _Change(NamedTuple):
    """A change of the local clock that skips or repeats the readings from `first` until `end`."""

    at: datetime  # in UTC
    before: timedelta  # offset from UTC before `at`
    after: timedelta  # offset from UTC from `at` on

    @property
    def first(self) -> datetime:
        return self.at + min(self.before, self.after)

    @property
    def end(self) -> datetime:
        return self.at + max(self.before, self.after)


@dataclass(frozen=True, slots=True)
class Cron:
    """A schedule that ticks when the clock of a time zone matches a cron expression.

    The expression has the five fields of cron, or six with seconds first. Names of months and days,
    lists, ranges, steps, `L`, `LW`, `5L` and `1#2` are supported as in cronsim; `@daily` and the
    like are not. As in Debian's cron, day of month and day of week must both match when either
    starts with `*`; otherwise one match is enough. `tz` is a name of the IANA database.

    When the clock changes, e.g. for daylight saving time:

    * An expression with a fixed time of day ticks once for each time that it names. All times that
      the clock skips become one tick, at the first moment after the gap. A time that occurs twice
      ticks only the first time.
    * An expression whose second, minute or hour starts with `*` (`*/5 * * * *`, `0 * * * *`,
      `*/10 2 * * *`) is an interval and follows the clock: a skipped time does not tick, and a
      repeated one ticks twice. Thus "every five minutes" remains every five minutes.

    Raises InvalidTask if the expression or the time zone is invalid, or if the schedule would never
    tick.
    """

    expression: str
    tz: str = field(default="UTC", kw_only=True)
    _zone: tzinfo = field(init=False, repr=False, compare=False)
    _interval: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        fields = cron_fields(self.expression)
        object.__setattr__(self, "expression", " ".join(fields))
        object.__setattr__(self, "_zone", _time_zone(self.tz))
        object.__setattr__(self, "_interval", any(part.startswith("*") for part in fields[:-3]))
        # Checking 50 years is enough, because which days match depends only on the kind of year
        # (leap year, first weekday), and all kinds occur in these years.
        try:
            first_us = self.next_after(_YEAR_2000_US)
        except StopIteration:  # cronsim found no match
            first_us = None
        if first_us is None:
            why = phrase("never due in %(zone)s", zone=self.tz)
            raise InvalidTask(field_error("cron", self.expression, why))

    def __str__(self) -> str:
        return f"{self.expression} ({self.tz})"

    def next_after(self, moment_us: int) -> int | None:
        """Return the first tick later than the moment; None when there is none in 50 years."""
        if not _YEAR_1900_US <= moment_us < _YEAR_9900_US:
            return None
        utc = _EPOCH + timedelta(microseconds=moment_us)
        here = self._reading(utc)
        wall = self._match_after(here)
        change = self._change_at(here)
        if change and self._interval and utc < change.at and wall >= change.end:
            wall = self._match_after(change.first - _SECOND)  # repeated by the clock change
        while wall.year <= here.year + _YEARS:
            change = self._change_at(wall)
            if change is None:
                return _us(wall - self._offset(wall))
            for tick in self._ticks_at(wall, change):
                if tick > utc:
                    return _us(tick)
            wall = self._match_after(change.end - _SECOND)
        return None

    def previous(self, moment_us: int) -> int | None:
        """Return the latest tick not later than the moment; None when there is none in 50 years."""
        if not _YEAR_1900_US <= moment_us < _YEAR_9900_US:
            return None
        utc = _EPOCH + timedelta(microseconds=moment_us)
        here = self._reading(utc)
        wall = self._match_until(here)
        change = self._change_at(here)
        if change and utc >= change.at and not (self._interval and wall >= change.first):
            wall = self._match_until(change.end - _SECOND)  # readings before the clock change
        while wall.year >= here.year - _YEARS:
            change = self._change_at(wall)
            if change is None:
                return _us(wall - self._offset(wall))
            for tick in reversed(self._ticks_at(wall, change)):
                if tick <= utc:
                    return _us(tick)
            wall = self._match_until(change.first - _SECOND)
        return None

    # cronsim receives only readings of the local clock, without a time zone. At clock changes,
    # cronsim 2.8 itself returns past times (in the second of two equal hours), drops its rules for
    # expressions of six fields, and loses ticks when the change is half an hour. Here the search
    # always finds a match, because __post_init__ has found one, and every kind of year recurs
    # within 40 years.

    def _match_after(self, wall: datetime) -> datetime:
        return next(cron_matches(self.expression, wall))

    def _match_until(self, wall: datetime) -> datetime:
        return next(cron_matches(self.expression, wall + _SECOND, reverse=True))

    def _ticks_at(self, wall: datetime, change: _Change) -> tuple[datetime, ...]:
        """Return the ticks, in UTC, for a matching reading that the clock change skips or
        repeats."""
        if change.before < change.after:
            return () if self._interval else (change.at,)
        both = (wall - change.before, wall - change.after)
        return both if self._interval else both[:1]

    def _change_at(self, wall: datetime) -> _Change | None:
        """Return the clock change that skips or repeats this reading; None when none does."""
        before, after = self._offset(wall), self._offset(wall.replace(fold=1))
        if before == after:
            return None
        earliest = wall - max(before, after)
        seconds = bisect_left(
            range(round(abs(after - before).total_seconds())),
            True,
            key=lambda n: self._reading(moment := earliest + n * _SECOND) - moment == after,
        )
        return _Change(earliest + seconds * _SECOND, before, after)

    def _reading(self, utc: datetime) -> datetime:
        """Return the reading of the local clock at a moment, in whole seconds."""
        local = self._zone.fromutc(utc.replace(tzinfo=self._zone))
        return local.replace(tzinfo=None, microsecond=0, fold=0)

    def _offset(self, wall: datetime) -> timedelta:
        """Return the UTC offset of a reading.

        With fold 0, the result is the offset before a clock change, and with fold 1, the offset
        after the change.
        """
        return self._zone.utcoffset(wall.replace(tzinfo=self._zone)) or timedelta()


@dataclass(frozen=True, slots=True, init=False)
class Every:
    """A schedule that ticks at whole multiples of a period since the Unix epoch.

    The ticks therefore do not depend on when a server started; `Every(86_400)` ticks at midnight in
    UTC. The period is in seconds or a timedelta, from 0.1 s to 100 years (else InvalidTask),
    rounded to microseconds.
    """

    period_us: int

    def __init__(self, seconds: float | timedelta) -> None:
        object.__setattr__(self, "period_us", _period_us(seconds))

    def __str__(self) -> str:
        return str(every_phrase(self.period_us / 1_000_000))

    def next_after(self, moment_us: int) -> int | None:
        """Return the first tick later than the moment."""
        if not _YEAR_1900_US <= moment_us < _YEAR_9900_US:
            return None
        return (moment_us // self.period_us + 1) * self.period_us

    def previous(self, moment_us: int) -> int | None:
        """Return the latest tick that is not later than the moment."""
        if not _YEAR_1900_US <= moment_us < _YEAR_9900_US:
            return None
        return moment_us // self.period_us * self.period_us


def every_phrase(seconds: float) -> Phrase:
    """Return a period as text, e.g. `every 5 min`."""
    for template, size in (
        (phrase("every %(number)s d"), 86_400),
        (phrase("every %(number)s h"), 3600),
        (phrase("every %(number)s min"), 60),
    ):
        if seconds % size == 0:
            return phrase(template.template, number=f"{seconds // size:.0f}")
    return phrase("every %(number)s s", number=f"{seconds:.6f}".rstrip("0").rstrip("."))


@dataclass(frozen=True, slots=True)
class Periodic:
    """A named schedule, and its action for missed ticks.

    The name identifies the schedule on all servers: 1 to 128 characters of `A-Z a-z 0-9 _ . : -`.
    Raises InvalidTask when a value is wrong.
    """

    name: str
    schedule: Schedule
    missed: Missed = "skip"

    def __post_init__(self) -> None:
        check_schedule_name(self.name)
        if not isinstance(self.schedule, Schedule):
            raise InvalidTask(f"schedule={shorten(self.schedule)}: must be Cron(...) or Every(...)")
        if self.missed not in get_args(Missed):
            why = phrase("must be one of %(choices)s", choices=str(get_args(Missed)))
            raise InvalidTask(field_error("missed", self.missed, why))


def due_ticks(
    schedule: Schedule,
    last_us: int | None,
    now_us: int,
    missed: Missed,
    *,
    grace_us: int,
    limit: int = 1000,
) -> list[int]:
    """Return the ticks to enqueue now, oldest first, given the last tick that was enqueued.

    For a schedule that has never ticked, `last_us` is the time at which a server first saw it. If
    `last_us` is None, a server sees the schedule for the first time now, and nothing is due. A tick
    that is at most `grace_us` late counts as on time, and is always due; a later tick counts as
    missed. `missed` decides what happens to missed ticks:

    * skip: none is due;
    * once: only the latest is due, and only if no other tick is on time;
    * all: all are due.

    The function returns at most `limit` ticks; to get the rest, call it again with the last of
    these ticks.
    """
    if last_us is None:
        return []
    start_us = last_us if missed == "all" else max(last_us, now_us - grace_us - 1)
    ticks = list(islice(_ticks(schedule, start_us, now_us), limit))
    if missed == "once" and not ticks:
        latest_us = schedule.previous(now_us)
        if latest_us is not None and latest_us > last_us:
            return [latest_us]
    return ticks


def tick_id(name: str, tick_us: int) -> str:
    """Return the id of the task for a tick, e.g. `report@2026-11-24T02:00:00Z`.

    The id is the same on all servers, so that a tick is enqueued only once. The id differs between
    ticks, so that a dead task does not block the next tick. A name over 100 characters is shortened
    to its beginning and a hash, to keep the id within 128 characters.
    """
    check_schedule_name(name)
    if len(name) > 100:
        name = f"{name[:83]}~{sha256(name.encode()).hexdigest()[:16]}"
    return f"{name}@{(_EPOCH + timedelta(microseconds=tick_us)).isoformat()}Z"


def _ticks(schedule: Schedule, after_us: int, until_us: int) -> Iterator[int]:
    tick_us = schedule.next_after(after_us)
    while tick_us is not None and tick_us <= until_us:
        yield tick_us
        tick_us = schedule.next_after(tick_us)


def _us(utc: datetime) -> int:
    return (utc - _EPOCH) // _MICROSECOND


def check_schedule_name(name: object, field_name: str = "name") -> str:
    """Check and return the name of a schedule, or the beginning of a name.

    Raises InvalidTask if the name is not valid.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.:-]{1,128}", name):
        raise InvalidTask(
            field_error(field_name, name, phrase("must be 1 to 128 of A-Z a-z 0-9 _ . : -"))
        )
    return name


def _time_zone(tz: object) -> tzinfo:
    if tz == "UTC":
        return UTC  # needs no time zone database
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # imported on first use, to start sooner

    if not isinstance(tz, str):
        raise InvalidTask(
            field_error("tz", tz, phrase('use a name such as "Europe/Moscow" or "UTC"'))
        )
    try:
        return ZoneInfo(tz)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        pass  # unknown name, invalid name, or the name of a folder
    why = phrase(
        "not in the time zone database (of the system or of tzdata); use a name such as "
        '"Europe/Moscow"'
    )
    raise InvalidTask(field_error("tz", tz, why))


def _period_us(seconds: object) -> int:
    if isinstance(seconds, timedelta):
        seconds = seconds.total_seconds()
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, int | float)
        or not 0.1 <= seconds <= 36_525 * 86_400  # NaN is also rejected here
    ):
        why = phrase("must be seconds or a timedelta, 0.1 s to 100 years")
        raise InvalidTask(field_error("every", seconds, why))
    return round(seconds * 1_000_000)


def schedule_of(
    cron: str | None, every: float | timedelta | None, tz: str | ZoneInfo | None
) -> Cron | Every:
    """Return the schedule that these options describe. Raise InvalidTask if an option is wrong."""
    if (cron is None) == (every is None):
        raise InvalidTask(phrase("schedule: pass either cron= or every="))
    if cron is not None:
        name = getattr(tz, "key", tz)  # of a ZoneInfo
        return Cron(cron, tz="UTC" if tz is None else cast("str", name))
    if tz is not None:
        raise InvalidTask(
            phrase("tz: %(value)s needs cron=; every= has no time zone", value=shorten(tz))
        )
    return Every(cast("float", every))


def schedule_of_decorator(
    unnamed: tuple[object, ...],
    cron: str | None,
    every: float | timedelta | None,
    tz: str | ZoneInfo | None,
) -> Cron | Every:
    """Return the schedule; raise ConfigError if the decorator has no parentheses, or gets a value
    without a name."""
    if unnamed:
        raise ConfigError(
            f"periodic: {shorten(unnamed[0])} was passed without a name; write "
            '@app.periodic(cron="0 9 * * *") or @app.periodic(every=60)'
        )
    return schedule_of(cron, every, tz)
