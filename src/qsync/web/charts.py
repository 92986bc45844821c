"""Converts numbers into chart coordinates and labels; templates/charts.html draws the charts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from qsync.web.language import current
from qsync.web.translation import _, count, duration, marked, seconds, short_count

WIDTH: Final = 300
HEIGHT: Final = 100

STEPS: Final = 60
"""Maximum number of steps for which a line chart also lists the values as text."""

PER_SECOND: Final = marked("%(number)s/s")
SECONDS: Final = "s"
NO_UNIT: Final = "%(number)s"
"""Units of line charts."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart. `path` is the SVG path; `css` is the class that colours it."""

    name: str
    css: str
    path: str
    now: str


@dataclass(frozen=True, slots=True)
class LineChart:
    """A line chart over the last 15 minutes. `steps` has the values of each step as text."""

    title: str
    top: str
    half: str
    lines: list[Line]
    steps: list[str]
    begins: str
    label: str


@dataclass(frozen=True, slots=True)
class DayBar:
    """The bar of one day."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class BarChart:
    """A chart with a bar for each day. `steps` has the value of each day as text."""

    title: str
    css: str
    top: str
    half: str
    total: str
    bars: list[DayBar]
    steps: list[str]
    begins: str
    ends: str
    label: str


Values = Sequence[float | None]


def line_chart(
    title: str,
    series: Sequence[tuple[str, str, Values]],
    *,
    unit: str = NO_UNIT,
    begins: str = "",
    width: int | None = None,
    interval_s: float = 1.0,
) -> LineChart:
    """Return a line chart of `series`: the name, CSS class and values of each line, the latest
    value last. A value of None leaves a gap.

    `unit` is a string in the translation catalogue. `width` is the number of values that fill the
    full width; if there are fewer, they are drawn at the right. `interval_s` is the time between
    two values, in seconds.
    """
    numbers = [value for *_name, values in series for value in values if value is not None]
    top = (time_ceiling if unit is SECONDS else ceiling)(max(numbers, default=0.0))
    room = width or max((len(values) for *_name, values in series), default=0)
    lines = []
    for name, css, values in series:
        latest = next((value for value in reversed(values) if value is not None), None)
        now = _("no data yet") if latest is None else _text(unit, latest)
        lines.append(Line(name, css, path_of(values, top, room), now))
    latest_values = ", ".join(f"{line.name} {line.now}" for line in lines)
    scale_end = _text(unit, top)
    label = _(
        "%(title)s: now %(values)s; the scale ends at %(top)s",
        title=title, values=latest_values, top=scale_end,
    )  # fmt: skip
    half = _text(unit, top / 2)
    steps = _steps(series, room, unit, interval_s)
    return LineChart(title, scale_end, half, lines, steps, begins, label)


def _steps(
    series: Sequence[tuple[str, str, Values]], room: int, unit: str, interval_s: float
) -> list[str]:
    """Return the values of up to STEPS steps as text, the latest last."""
    size = max(1, math.ceil(room / STEPS))
    language, nothing, steps = current().code, _("no data"), []
    for back in range(0, room, size):
        texts = [
            f"{name} {_value_text(language, unit, value)}"
            for name, _css, values in series
            if back < len(values) and (value := values[-1 - back]) is not None
        ]
        steps.append(f"{_ago(language, back * interval_s)}: {', '.join(texts) or nothing}")
    return steps[::-1]


@lru_cache(maxsize=8192)
def _value_text(language: str, unit: str, value: float) -> str:
    """Return a value in the current language; `language` is an argument only as part of the cache
    key. Results are cached, because a page has a thousand values."""
    return _text(unit, value)


def _text(unit: str, value: float) -> str:
    """Return a value with its unit; a duration is shown in its two largest units."""
    return seconds(value) if unit is SECONDS else _(unit, number=short_count(value))


@lru_cache(maxsize=1024)
def _ago(language: str, since_s: float) -> str:
    """Return how long ago a step was, in the current language; results are cached."""
    return _("%(length)s ago", length=duration(since_s)) if since_s else _("now")


def path_of(values: Values, top: float, room: int = 0) -> str:
    """Return the SVG path of values, with the latest at the right; the full width is `room` values.

    A value between two gaps becomes a short dash, because a line of one point would be invisible.
    """
    room = room or len(values)
    step = WIDTH / max(1, room - 1)
    first = WIDTH - step * (len(values) - 1)
    parts, pen = [], "M"
    for index, value in enumerate(values):
        if value is None:
            pen = "M"
            continue
        x, y = first + index * step, _y(value, top)
        is_alone = pen == "M" and (index + 1 == len(values) or values[index + 1] is None)
        parts.append(f"M{x - 1.5:.1f} {y:.1f}h3" if is_alone else f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    return "".join(parts)


def bar_chart(title: str, days: Sequence[tuple[str, int]], css: str) -> BarChart:
    """Return a bar chart of (day, number) pairs, the latest last; `css` is the bars' class."""
    top = ceiling(max((number for _day, number in days), default=0))
    step = WIDTH / max(1, len(days))
    bars = []
    for index, (_day, number) in enumerate(days):
        if number:
            height = max(1.0, number / top * HEIGHT)
            bars.append(DayBar(round(index * step + step * 0.1, 1), round(HEIGHT - height, 1),
                            round(step * 0.8, 1), round(height, 1)))  # fmt: skip
    total = sum(number for _day, number in days)
    first, last = (days[0][0], days[-1][0]) if days else ("", "")
    label = _(
        "%(title)s from %(first)s to %(last)s: total %(total)s; the scale ends at %(top)s",
        title=title, first=first, last=last, total=total, top=short_count(top),
    )  # fmt: skip
    steps = [f"{day}: {count(number)}" for day, number in days]
    half = short_count(top / 2)
    return BarChart(
        title, css, short_count(top), half, short_count(total), bars, steps, first, last, label
    )


def _y(value: float, top: float) -> float:
    return HEIGHT - value / top * HEIGHT


TIMES_S: Final = (
    60, 120, 300, 600, 1200, 1800, 3600, 7200, 14_400, 28_800, 43_200, 86_400, 172_800, 345_600,
    604_800,
)  # fmt: skip
"""Upper ends of time scales above a minute: round values whose halves are also round."""


def time_ceiling(seconds: float) -> float:
    """Return the next time that is round and whose half is round: 50 s, 1 min, 2 min, ..., 7 d."""
    if seconds <= 50:
        return ceiling(seconds)
    return next((float(end) for end in TIMES_S if seconds <= end), ceiling(seconds))


def ceiling(value: float) -> float:
    """Return the next number in the series 1, 2, 5, 10, 20, 50, ...; 1 for 0."""
    if value <= 0:
        return 1.0
    size = float(10 ** math.floor(math.log10(value)))
    return next(size * step for step in (1, 2, 5, 10) if value <= size * step * 1.0000001)
