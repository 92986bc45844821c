"""When periodic tasks are due: cron expressions, intervals, clock changes, missed ticks, and the
ids of ticks."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsync.errors import InvalidTask
from qsync.schedule import Cron, Every, Missed, Periodic, Schedule, due_ticks, tick_id

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

# In these years, the zones below changed their clocks in all kinds of ways: by half an hour (Lord
# Howe, Pyongyang), by two (Troll) and three hours (Casey), at midnight, four times in a year
# (Casablanca), and for the last time (Sao Paulo).
START = datetime(2017, 1, 1, tzinfo=UTC)
ZONES = [
    "Africa/Cairo", "Africa/Casablanca", "Africa/Khartoum", "Africa/Sao_Tome",
    "Africa/Windhoek", "America/Asuncion", "America/Havana", "America/New_York",
    "America/Santiago", "America/Sao_Paulo", "America/Scoresbysund", "America/St_Johns",
    "Antarctica/Casey", "Antarctica/Troll", "Asia/Amman", "Asia/Beirut", "Asia/Famagusta",
    "Asia/Gaza", "Asia/Jerusalem", "Asia/Kolkata", "Asia/Pyongyang", "Asia/Tehran",
    "Atlantic/Azores", "Australia/Lord_Howe", "Europe/Berlin", "Europe/Dublin", "Europe/Moscow",
    "Europe/Volgograd", "Pacific/Chatham", "Pacific/Tongatapu",
]  # fmt: skip


def us(text: str) -> int:
    """Return an ISO time with an offset in microseconds since the epoch."""
    return round(datetime.fromisoformat(text).timestamp()) * SECOND


def ticks(schedule: Schedule, after: int, until: int) -> list[int]:
    """Return all ticks later than `after`, up to and including `until`."""
    found = []
    tick = schedule.next_after(after)
    while tick is not None and tick <= until:
        found.append(tick)
        tick = schedule.next_after(tick)
    return found


def ticks_back(schedule: Schedule, after: int, until: int) -> list[int]:
    """Return the same ticks as `ticks`, found by searching from the end."""
    found = []
    tick = schedule.previous(until)
    while tick is not None and tick > after:
        found.append(tick)
        tick = schedule.previous(tick - 1)
    return found[::-1]


def local(schedule: Cron, after: str, until: str) -> list[str]:
    """Return the ticks as local times with their offsets."""
    zone = ZoneInfo(schedule.tz)
    found = ticks(schedule, us(after), us(until))
    assert found == ticks_back(schedule, us(after), us(until))
    return [f"{datetime.fromtimestamp(t // SECOND, zone):%d %H:%M%z}" for t in found]


# An independent oracle that shares no code with the implementation. The oracle steps through the
# local time, and matches each reading of the clock against the expression.


class Wanted:
    """Decides whether a clock reading matches a cron expression of five fields."""

    def __init__(self, expression: str) -> None:
        fields = expression.split()
        self.interval = fields[0][0] == "*" or fields[1][0] == "*"
        self.both = fields[2][0] == "*" or fields[4][0] == "*"
        highest = (59, 23, 31, 12, 7)
        minutes, hours, self.days, self.months, self.weekdays = (
            set(self._values(text, low, high))
            for text, low, high in zip(fields, (0, 0, 1, 1, 0), highest, strict=True)
        )
        self.times = {hour * 60 + minute for hour in hours for minute in minutes}
        self.day = cache(self._day)

    @staticmethod
    def _values(field: str, low: int, high: int) -> Iterator[int]:
        for term in field.split(","):
            span, _, step = term.partition("/")
            first, _, last = span.partition("-")
            if span == "*":
                first, last = str(low), str(high)
            yield from range(int(first), int(last or first) + 1, int(step or 1))

    def _day(self, ordinal: int) -> bool:
        date = datetime.fromordinal(ordinal)
        day = date.day in self.days
        weekday = bool({date.isoweekday(), date.isoweekday() % 7} & self.weekdays)
        return date.month in self.months and (day and weekday if self.both else day or weekday)

    def match(self, wall: int) -> bool:
        """Return whether a reading matches. Readings are in minutes, with 24 hours per day."""
        return wall % 1440 in self.times and self.day(wall // 1440)


def watch_clock(tz: str, moments: Iterable[datetime]) -> list[int]:
    """Return the local times in the zone at these moments."""
    zone = ZoneInfo(tz)
    return [
        (wall := moment.astimezone(zone)).toordinal() * 1440 + wall.hour * 60 + wall.minute
        for moment in moments
    ]


def steps(start: datetime, minutes: int, step: int) -> list[datetime]:
    return [start + timedelta(minutes=n) for n in range(0, minutes, step)]


@cache
def three_years() -> list[datetime]:
    """Return the quarter hours of three years; these zones change their clocks at no other
    times."""
    return steps(START, 1095 * 1440, 15)


def expected(wanted: Wanted, readings: list[int], start: datetime, step: int) -> list[int]:
    """Go through the readings, one every `step` minutes, and return the expected ticks. The first
    reading is only the starting point and is never a tick.

    A fixed time is due when the clock first reaches it or jumps over it.
    """
    begin, due, highest = us(start.isoformat()), [], readings[0]
    for n, wall in enumerate(readings):
        if wanted.interval:
            hit = n > 0 and wanted.match(wall)
        elif wall == highest + step:
            hit = wanted.match(wall)
        else:
            hit = any(wanted.match(reached) for reached in range(highest + step, wall + 1, step))
        highest = max(highest, wall)
        if hit:
            due.append(begin + n * step * MINUTE)
    return due


@pytest.mark.faults(69)
@pytest.mark.parametrize("name", ZONES)
def test_cron_matches_the_oracle_for_three_years_in_every_zone(name: str) -> None:
    readings = watch_clock(name, three_years())
    after, until = us(START.isoformat()), us(three_years()[-1].isoformat())
    for expression in ["30 2 * * *", "*/30 2 20-31 * *"]:
        due = expected(Wanted(expression), readings, START, 15)
        assert ticks(Cron(expression, tz=name), after, until) == due, expression


@pytest.mark.faults(69)
@pytest.mark.parametrize("name", ZONES)
def test_cron_matches_the_oracle_around_every_clock_change(name: str) -> None:
    readings = watch_clock(name, three_years())
    changes = [n for n, (one, two) in enumerate(pairwise(readings)) if two != one + 15]
    assert bool(changes) == (name not in {"Africa/Cairo", "Asia/Kolkata", "Europe/Moscow"})
    for start in [three_years()[n] - timedelta(hours=3) for n in changes]:
        minutes = watch_clock(name, steps(start, 6 * 60, 1))
        after, until = us(start.isoformat()), us(start.isoformat()) + 6 * HOUR - MINUTE
        for expression in ["*/20 * * * *", "0 * * * *", "10,50 0-4 * * *", "59 1-3,23 * * *"]:
            due = expected(Wanted(expression), minutes, start, 1)
            schedule = Cron(expression, tz=name)
            assert ticks(schedule, after, until) == due, (expression, start)
            assert ticks_back(schedule, after, until) == due, (expression, start)


def terms(low: int, high: int) -> st.SearchStrategy[str]:
    """Return a strategy for a field of an expression. The start and the end of a range always
    differ, because cronsim reads `5-5/3` as `5/3`."""
    number = st.integers(low, high)
    span = st.lists(number, min_size=2, max_size=2, unique=True).map(
        lambda ends: f"{min(ends)}-{max(ends)}"
    )
    step = st.tuples(st.just("*") | span, st.integers(1, 40)).map(
        lambda both: f"{both[0]}/{both[1]}"
    )
    several = st.lists(number.map(str) | span | step, min_size=1, max_size=3).map(",".join)
    return st.just("*") | several


EXPRESSIONS = st.tuples(terms(0, 59), terms(0, 23), terms(1, 31), terms(1, 12), terms(0, 7)).map(
    " ".join
)
MOMENTS = st.integers(us("1975-01-01T00:00Z"), us("2045-01-01T00:00Z"))


@settings(deadline=None)
@given(EXPRESSIONS, st.integers(0, 40 * 365 * 24))
def test_any_expression_is_due_when_the_oracle_is(expression: str, hours: int) -> None:
    wanted = Wanted(expression)
    moments = steps(datetime(1999, 1, 1, tzinfo=UTC) + timedelta(hours=hours), 3 * 1440, 1)
    readings = zip(moments, watch_clock("UTC", moments), strict=True)
    due = [us(moment.isoformat()) for moment, wall in readings if wanted.match(wall)]
    try:
        schedule = Cron(expression)
    except InvalidTask:
        assert due == []  # the date does not exist, e.g. 31 April
        return
    after, until = us(moments[0].isoformat()) - 1, us(moments[-1].isoformat())
    if len(due) > 20:
        assert ticks(schedule, after, due[19]) == due[:20]
        assert ticks_back(schedule, due[-20] - 1, until) == due[-20:]
    else:
        assert ticks(schedule, after, until) == ticks_back(schedule, after, until) == due


NEAR_CHANGES = st.builds(
    lambda change, distance: us(change) + distance,
    st.sampled_from(
        ["2025-03-30T01:00Z", "2025-10-26T01:00Z", "2018-11-04T03:00Z", "2025-04-05T15:00Z"]
    ),
    st.integers(-5 * HOUR, 5 * HOUR),
)
SCHEDULES = st.builds(
    lambda fields, tz: Cron(" ".join(fields), tz=tz),
    st.tuples(terms(0, 59), terms(0, 23), terms(1, 28), terms(1, 12), terms(0, 7))
    | st.tuples(terms(0, 59), terms(0, 59), terms(0, 4), st.just("*"), st.just("*"), st.just("*")),
    st.sampled_from(["UTC", "Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe"]),
) | st.floats(0.1, 1e6).map(Every)


@settings(deadline=None)
@given(SCHEDULES, MOMENTS | NEAR_CHANGES)
def test_ticks_increase_and_previous_reverses_next(schedule: Schedule, moment: int) -> None:
    tick = moment
    for _ in range(5):
        following = schedule.next_after(tick)
        assert following is not None
        assert following > tick
        assert schedule.previous(following) == following
        assert (schedule.previous(following - 1) or 0) <= tick
        tick = following
    before = schedule.previous(moment)
    assert before is not None
    assert before <= moment
    assert schedule.next_after(before) == schedule.next_after(moment)


@pytest.mark.faults(69)
@pytest.mark.parametrize(
    ("expression", "tz", "after", "until", "due"),
    [
        # Berlin skips 02:00 to 03:00 on 30 March 2025 and repeats it on 26 October.
        ("30 2 * * *", "Europe/Berlin",
         "2025-03-29T00:00+01:00", "2025-03-31T12:00+02:00",
         ["29 02:30+0100", "30 03:00+0200", "31 02:30+0200"]),
        ("0 30 2 * * *", "Europe/Berlin",
         "2025-03-29T00:00+01:00", "2025-03-31T12:00+02:00",
         ["29 02:30+0100", "30 03:00+0200", "31 02:30+0200"]),
        ("*/10 0-59 2 * * *", "Europe/Berlin",
         "2025-03-30T00:00+01:00", "2025-03-31T00:00+02:00",
         []),
        ("0,20,40 2,3 * * *", "Europe/Berlin",
         "2025-03-30T00:00+01:00", "2025-03-30T12:00+02:00",
         ["30 03:00+0200", "30 03:20+0200", "30 03:40+0200"]),
        ("30 2 * * *", "Europe/Berlin",
         "2025-10-25T12:00+02:00", "2025-10-27T12:00+01:00",
         ["26 02:30+0200", "27 02:30+0100"]),
        ("30 2 * * *", "Europe/Berlin",
         "2025-10-26T02:15+01:00", "2025-10-27T12:00+01:00",
         ["27 02:30+0100"]),
        ("*/30 * * * *", "Europe/Berlin",
         "2025-10-26T01:45+02:00", "2025-10-26T03:00+01:00",
         ["26 02:00+0200", "26 02:30+0200", "26 02:00+0100", "26 02:30+0100", "26 03:00+0100"]),
        ("*/30 * * * *", "Europe/Berlin",
         "2025-03-30T01:15+01:00", "2025-03-30T03:30+02:00",
         ["30 01:30+0100", "30 03:00+0200", "30 03:30+0200"]),
        ("0 */2 * * *", "Europe/Berlin",
         "2025-03-30T00:00+01:00", "2025-03-30T06:00+02:00",
         ["30 04:00+0200", "30 06:00+0200"]),
        # New York skips 02:00 to 03:00 on 9 March 2025 and repeats 01:00 to 02:00 on 2 November.
        ("5 2 * * *", "America/New_York",
         "2025-03-09T00:00-05:00", "2025-03-10T12:00-04:00",
         ["09 03:00-0400", "10 02:05-0400"]),
        ("0 1,2 * * *", "America/New_York",
         "2025-11-02T00:00-04:00", "2025-11-02T12:00-05:00",
         ["02 01:00-0400", "02 02:00-0500"]),
        ("0 * * * *", "America/New_York",
         "2025-11-02T00:30-04:00", "2025-11-02T02:00-05:00",
         ["02 01:00-0400", "02 01:00-0500", "02 02:00-0500"]),
        # Lord Howe skips 02:00 to 02:30 on 5 October 2025 and repeats 01:30 to 02:00 on 6 April.
        ("10,40 2 * * *", "Australia/Lord_Howe",
         "2025-10-05T00:00+10:30", "2025-10-06T00:00+11:00",
         ["05 02:30+1100", "05 02:40+1100"]),
        ("*/20 5 * * *", "Australia/Lord_Howe",
         "2025-10-05T00:00+10:30", "2025-10-06T00:00+11:00",
         ["05 05:00+1100", "05 05:20+1100", "05 05:40+1100"]),
        ("*/20 1 * * *", "Australia/Lord_Howe",
         "2025-04-06T00:00+11:00", "2025-04-07T00:00+10:30",
         ["06 01:00+1100", "06 01:20+1100", "06 01:40+1100", "06 01:40+1030"]),
        ("45 1 * * *", "Australia/Lord_Howe",
         "2025-04-06T00:00+11:00", "2025-04-07T00:00+10:30",
         ["06 01:45+1100"]),
        # Sao Paulo skipped 00:00 to 01:00 on 4 November 2018, repeated 23:00 to 24:00 on 16
        # February 2019, and has not changed its clock since.
        ("0 0 * * *", "America/Sao_Paulo",
         "2018-11-03T12:00-03:00", "2018-11-05T12:00-02:00",
         ["04 01:00-0200", "05 00:00-0200"]),
        ("30 23 * * *", "America/Sao_Paulo",
         "2019-02-16T00:00-02:00", "2019-02-17T23:59-03:00",
         ["16 23:30-0200", "17 23:30-0300"]),
        ("0 0 3,4 11 *", "America/Sao_Paulo",
         "2019-01-01T00:00-02:00", "2019-12-31T00:00-03:00",
         ["03 00:00-0300", "04 00:00-0300"]),
        # Casablanca turns its clock back for Ramadan: in 2025, it repeats 02:00 to 03:00 on 23
        # February and skips it on 6 April.
        ("15 2 * * *", "Africa/Casablanca",
         "2025-02-22T12:00+01:00", "2025-02-24T12:00+00:00",
         ["23 02:15+0100", "24 02:15+0000"]),
        ("15 2 * * *", "Africa/Casablanca",
         "2025-04-05T12:00+00:00", "2025-04-07T12:00+01:00",
         ["06 03:00+0100", "07 02:15+0100"]),
        # Samoa had no 30 December 2011.
        ("0 9,17 * * *", "Pacific/Apia",
         "2011-12-29T00:00-10:00", "2011-12-31T12:00+14:00",
         ["29 09:00-1000", "29 17:00-1000", "31 00:00+1400", "31 09:00+1400"]),
        ("0 */12 * * *", "Pacific/Apia",
         "2011-12-29T01:00-10:00", "2011-12-31T12:00+14:00",
         ["29 12:00-1000", "31 00:00+1400", "31 12:00+1400"]),
    ],
)  # fmt: skip
def test_cron_handles_clock_changes(
    expression: str, tz: str, after: str, until: str, due: list[str]
) -> None:
    assert local(Cron(expression, tz=tz), after, until) == due


@pytest.mark.parametrize(
    ("expression", "due"),
    [
        ("0 12 L * *", ["2024-01-31", "2024-02-29", "2024-03-31"]),
        ("0 12 LW * *", ["2024-01-31", "2024-02-29", "2024-03-29"]),
        ("0 12 * * 5L", ["2024-01-26", "2024-02-23", "2024-03-29"]),
        ("0 12 * * mon#1", ["2024-01-01", "2024-02-05", "2024-03-04"]),
        ("0 12 13 * FRI", ["2024-01-05", "2024-01-12", "2024-01-13"]),
        ("0 12 29 feb *", ["2024-02-29", "2028-02-29", "2032-02-29"]),
    ],
)
def test_expressions_of_cronsim_are_accepted(expression: str, due: list[str]) -> None:
    tick, found = us("2024-01-01T00:00Z"), []
    for _ in due:
        tick = Cron(expression).next_after(tick) or 0
        found.append(f"{datetime.fromtimestamp(tick / SECOND, UTC):%Y-%m-%d}")
    assert found == due


def test_six_fields_have_seconds_first() -> None:
    moment = us("2024-01-01T00:00Z")
    assert ticks(Cron("*/20 * * * * *"), moment, moment + MINUTE) == [
        moment + n * SECOND for n in (20, 40, 60)
    ]


def test_every_ticks_at_multiples_of_its_period() -> None:
    assert ticks(Every(30), 0, 90 * SECOND) == [30 * SECOND, 60 * SECOND, 90 * SECOND]
    assert ticks(Every(0.1), 0, 300_000) == [100_000, 200_000, 300_000]
    assert Every(30).previous(29 * SECOND) == 0
    assert Every(timedelta(minutes=1)) == Every(60)
    assert Every(86_400).next_after(us("2025-03-30T12:00Z")) == us("2025-03-31T00:00Z")


def test_schedules_have_readable_text() -> None:
    cron = Cron("  */5 *  * * *", tz="Europe/Moscow")
    assert cron == Cron("*/5 * * * *", tz="Europe/Moscow")
    assert cron != Cron("*/5 * * * *")
    assert pickle.loads(pickle.dumps(cron)) == cron  # noqa: S301 - our own bytes
    assert len({cron, Cron("*/5 * * * *", tz="Europe/Moscow"), Every(5), Every(5.0)}) == 2
    assert str(cron) == "*/5 * * * * (Europe/Moscow)"
    assert [str(Every(s)) for s in (0.25, 1, 100, 300, 5400, 7200, 604_800)] == [
        "every 0.25 s", "every 1 s", "every 100 s", "every 5 min", "every 90 min", "every 2 h",
        "every 7 d",
    ]  # fmt: skip


@pytest.mark.parametrize("schedule", [Cron("* * * * *", tz="Asia/Tokyo"), Every(1)])
@pytest.mark.parametrize("moment", [-(10**17), 10**18, 10**30])
def test_schedule_has_no_ticks_outside_the_calendar(schedule: Schedule, moment: int) -> None:
    assert schedule.next_after(moment) is None
    assert schedule.previous(moment) is None


def test_skipped_local_time_is_not_due() -> None:
    """Since 2007, New York skips 02:00 to 03:00 on the second Sunday of March."""
    schedule = Cron("*/30 2 * 3 0#2", tz="America/New_York")
    assert local(schedule, "2005-01-01T00:00Z", "2020-01-01T00:00Z") == [
        "13 02:00-0500", "13 02:30-0500", "12 02:00-0500", "12 02:30-0500",
    ]  # fmt: skip
    assert schedule.next_after(us("2007-01-01T00:00Z")) is None


@pytest.mark.parametrize(
    ("expression", "tz", "message"),
    [
        ("", "UTC", "cron=''"),
        ("* * * *", "UTC", r"cron='\* \* \* \*': 4 fields; use 5 \(minute, hour, day,"),
        ("0 25 * * *", "UTC", "Bad hour '25'; use 0 to 23$"),
        ("*/0 * * * *", "UTC", r"Bad minute '\*/0'; use 0 to 59; a range must ascend, and a step"),
        ("70 * * * * *", "UTC", "Bad second '70'; use 0 to 59$"),
        ("60 * * * *", "UTC", "cron='60 .*Bad minute"),
        ("@daily", "UTC", r"cron='@daily': names are not supported; use '0 0 \* \* \*'"),
        ("@reboot", "UTC", "cron='@reboot': 1 field; use 5"),
        ("0 0 30 2 *", "UTC", "Bad day-of-month '30'; no month of '2' has that day"),
        ("0 0 */30 4 1#2", "UTC", "never due in UTC"),
        ("*/5 2 * 3 0L", "Europe/Berlin", "never due in Europe/Berlin"),
        ("9" * 5000 + " * * * *", "UTC", "cron='999"),
        (None, "UTC", "cron=None"),
        ("* * * * *", "Mars/Olympus", "tz='Mars/Olympus'"),
        ("* * * * *", "Europe", "tz='Europe'"),
        ("* * * * *", "../etc/passwd", "tz='../etc/passwd'"),
        ("* * * * *", "\0", "tz="),
        ("* * * * *", None, r"tz=None: use a name such as .* or .UTC"),
    ],
)
def test_a_bad_cron_schedule_is_refused(expression: str, tz: str, message: str) -> None:
    with pytest.raises(InvalidTask, match=message):
        Cron(expression, tz=tz)


@pytest.mark.parametrize(
    "seconds", [0, -1, 0.09, float("nan"), float("inf"), 1e400, True, "5", None]
)
def test_a_bad_period_is_refused(seconds: float) -> None:
    with pytest.raises(InvalidTask, match=f"every={seconds!r}"):
        Every(seconds)


@settings(deadline=None, max_examples=300)
@given(st.text("0123456789*/,-#LW MONSUNjan@", max_size=30) | st.text(max_size=30))
def test_random_text_is_accepted_or_refused_by_cron(text: str) -> None:
    """Any string is either rejected or parsed into a schedule."""
    for expression in (text, f"{text} * * * *", f"0 0 {text} * *", f"0 0 * * {text}"):
        try:
            schedule = Cron(expression)
        except InvalidTask:
            continue
        assert schedule.next_after(0) is not None


# Missed ticks of a schedule that ticks every minute. The last tick was enqueued at minute 0, and
# `now` minutes have passed.

MINUTELY = Every(60)


@pytest.mark.faults(68)
@pytest.mark.parametrize(
    ("now", "skip", "once", "every"),
    [
        (0.5, [], [], []),
        (1.0, [1], [1], [1]),
        (1.05, [1], [1], [1]),  # a tick that is 3 s late is on time
        (1.5, [], [1], [1]),
        (10.0, [10], [10], [*range(1, 11)]),
        (10.5, [], [10], [*range(1, 11)]),
        (3000.0, [3000], [3000], [*range(1, 1001)]),
        (3000.5, [], [3000], [*range(1, 1001)]),
        (-5.0, [], [], []),  # the clock was set back
    ],
)
def test_missed_ticks_follow_their_policy(
    now: float, skip: list[int], once: list[int], every: list[int]
) -> None:
    start = us("2025-01-01T00:00Z")
    found: dict[Missed, list[int]] = {"skip": skip, "once": once, "all": every}
    for missed, minutes in found.items():
        due = due_ticks(MINUTELY, start, start + round(now * MINUTE), missed, grace_us=5 * SECOND)
        assert due == [start + minute * MINUTE for minute in minutes], missed


@pytest.mark.parametrize("missed", ["skip", "once", "all"])
def test_every_tick_within_the_grace_is_due(missed: Missed) -> None:
    """If a server checks three seconds late, it drops no tick of a schedule that ticks every
    second."""
    due = due_ticks(Every(1), 100 * SECOND, 103 * SECOND, missed, grace_us=5 * SECOND)
    assert due == [101 * SECOND, 102 * SECOND, 103 * SECOND]


@pytest.mark.parametrize(("late", "count"), [(5 * SECOND, 1), (5 * SECOND + 1, 0)])
def test_the_grace_ends_exactly(late: int, count: int) -> None:
    assert len(due_ticks(MINUTELY, 0, MINUTE + late, "skip", grace_us=5 * SECOND)) == count


@pytest.mark.parametrize("missed", ["skip", "once", "all"])
def test_new_schedule_has_no_ticks_before_its_start(missed: Missed) -> None:
    assert due_ticks(MINUTELY, None, 10 * MINUTE, missed, grace_us=5 * SECOND) == []
    seen = 10 * MINUTE + 1
    assert due_ticks(MINUTELY, seen, 11 * MINUTE - 1, missed, grace_us=5 * SECOND) == []
    assert due_ticks(MINUTELY, seen, 11 * MINUTE, missed, grace_us=5 * SECOND) == [11 * MINUTE]


def test_all_missed_ticks_come_in_batches_and_each_once() -> None:
    last, now, found = 0, 25 * MINUTE + 30 * SECOND, []
    while due := due_ticks(MINUTELY, last, now, "all", grace_us=0, limit=10):
        assert len(due) <= 10
        found += due
        last = due[-1]
    assert found == [n * MINUTE for n in range(1, 26)]


@pytest.mark.faults(67)
@settings(deadline=None)
@given(st.lists(st.integers(0, 20 * SECOND), max_size=30), st.sampled_from(["skip", "once", "all"]))
def test_repeated_checks_return_each_tick_once(pauses: list[int], missed: Missed) -> None:
    last = now = us("2025-01-01T00:00Z")
    found: list[int] = []
    for pause in pauses:
        now += pause
        due = due_ticks(Every(2.5), last, now, missed, grace_us=SECOND)
        found += due
        last = due[-1] if due else last
        if missed == "all":
            assert found == ticks(Every(2.5), us("2025-01-01T00:00Z"), now)
    assert all(a < b for a, b in pairwise(found))


def test_a_tick_id_names_the_schedule_and_the_time() -> None:
    tick = us("2026-11-24T02:00:00Z")
    assert tick_id("report", tick) == "report@2026-11-24T02:00:00Z"
    assert tick_id("report", tick + 100_000) == "report@2026-11-24T02:00:00.100000Z"
    assert tick_id("report", -MINUTE) == "report@1969-12-31T23:59:00Z"


NAMES = st.from_regex(r"[A-Za-z0-9_.:-]{1,128}", fullmatch=True) | st.integers(95, 128).map(
    "n".__mul__
)


@pytest.mark.faults(67, 70)
@settings(deadline=None)
@given(st.sets(st.tuples(NAMES, MOMENTS | st.integers(0, 3))))
def test_tick_ids_are_short_and_unique(ticks: set[tuple[str, int]]) -> None:
    ids = {tick_id(name, tick) for name, tick in ticks}
    assert len(ids) == len(ticks)
    assert all(len(id) <= 128 and id.isascii() and id.isprintable() and " " not in id for id in ids)


@pytest.mark.parametrize("name", ["", "a b", "a@b", "a\n", "ä", "n" * 129, None, 5])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidTask, match="name="):
        Periodic(name, Every(1))
    with pytest.raises(InvalidTask, match="name="):
        tick_id(name, 0)


def test_a_periodic_skips_missed_ticks_by_default() -> None:
    assert Periodic("report", Every(1)) == Periodic("report", Every(1), missed="skip")
    with pytest.raises(InvalidTask, match="missed='never'"):
        Periodic("report", Every(1), missed="never")  # type: ignore[arg-type]
    with pytest.raises(InvalidTask, match=r"schedule='\* \* \* \* \*'"):
        Periodic("report", "* * * * *")  # type: ignore[arg-type]
