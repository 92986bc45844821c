"""The charts of a task type: its runs, and how long its tasks wait and run, step by step."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from qsync.inspector import RunStats, ServerInfo, TypePoint, TypeStats
from qsync.web.charts import HEIGHT, WIDTH, Line, Values, ceiling, path_of, time_ceiling
from qsync.web.translation import _, count, day_and_month, marked, seconds

DAILY_PERIODS: Final = ("7d", "90d")
"""Periods for which the axis of a chart shows days."""

DAY_S: Final = 86_400

SAME_DEPLOY: Final = timedelta(hours=2)
"""Maximum time between two starts of the same version that count as one deploy."""


@dataclass(frozen=True, slots=True)
class StepChart:
    """A line chart of a period; `steps` has the values of each step of the period as text."""

    title: str
    top: str
    half: str
    lines: list[Line]
    before: list[str]
    """SVG paths of the same lines in an earlier period, for comparison."""
    steps: list[str]
    ticks: list[str]
    label: str
    marks: str = ""
    """SVG path of vertical lines where servers started."""


Reading = Callable[[RunStats], float | None]

RUNS: Final[tuple[tuple[str, str, Reading], ...]] = (
    (marked("tasks completed"), "completed", lambda stats: stats.completed),
    (marked("failed attempts"), "dead", lambda stats: stats.failed),
)
WAITS: Final[tuple[tuple[str, str, Reading], ...]] = (
    (marked("median"), "pending", lambda stats: stats.wait_p50),
    (marked("95th percentile"), "retry", lambda stats: stats.wait_p95),
)
DURATIONS: Final[tuple[tuple[str, str, Reading], ...]] = (
    (marked("median"), "active", lambda stats: stats.run_p50),
    (marked("95th percentile"), "retry", lambda stats: stats.run_p95),
)


@dataclass(frozen=True, slots=True)
class StartMark:
    """Servers of one version that started in one step of a period."""

    step: int
    at: datetime
    number: int
    version: str


def start_marks(stats: TypeStats, servers: Sequence[ServerInfo]) -> list[StartMark]:
    """Return the starts of servers of a type within the period, oldest first; does no I/O.

    Servers report the time of their start once. Servers of an older version of qsync do not report
    it; if they are running, their start is computed from their uptime.
    """
    first, numbers = stats.points[0].at, Counter[tuple[int, str]]()
    for at, version, number in (*_reported(stats), *_unreported(stats, servers)):
        step = math.floor((at - first).total_seconds() / stats.step_s)
        if 0 <= step < len(stats.points):
            numbers[step, version] += number
    return [
        StartMark(step, stats.points[step].at, number, version)
        for (step, version), number in sorted(numbers.items())
    ]


Start = tuple[datetime, str, int]
"""Time, version and number of servers that started."""


def _reported(stats: TypeStats) -> list[Start]:
    return [(start.at, start.version, start.servers) for start in stats.starts]


def _unreported(stats: TypeStats, servers: Sequence[ServerInfo]) -> list[Start]:
    """Return the starts of running servers for which no report has the same time and version."""
    starts = []
    for server in servers:
        version = server.app_version or f"qsync {server.version}"
        at = stats.at - timedelta(seconds=server.uptime)
        is_reported = any(
            start.version == version and abs(start.at - at) < SAME_DEPLOY for start in stats.starts
        )
        if stats.type in server.types and not is_reported:
            starts.append((at, version, 1))
    return starts


def type_charts(stats: TypeStats, marks: Sequence[StartMark] = ()) -> list[StepChart]:
    """Return the charts of a type: runs, waiting times and durations."""
    width = WIDTH / max(1, len(stats.points) - 1)
    steps = sorted({mark.step for mark in marks})
    lines = "".join(f"M{step * width:.1f} 0v{HEIGHT}" for step in steps)
    charts = [
        _chart(_("Runs per step"), stats, RUNS, count, empty=0.0),
        _chart(_("Time waited"), stats, WAITS, seconds),
        _chart(_("Duration of a run"), stats, DURATIONS, seconds),
    ]
    return [replace(chart, marks=lines) for chart in charts]


def when(stats: TypeStats, moment: datetime) -> str:
    """Return the time of a step in UTC, to the minute; only the day if a step lasts a day."""
    if stats.step_s >= DAY_S:
        return day_and_month(moment.date())
    clock = f"{moment:%H:%M} UTC"
    return f"{day_and_month(moment.date())} {clock}" if stats.period in DAILY_PERIODS else clock


def _chart(
    title: str,
    stats: TypeStats,
    readings: Sequence[tuple[str, str, Reading]],
    text: Callable[[float | None], str],
    *,
    empty: float | None = None,
) -> StepChart:
    rows = [[_value(point, read, empty) for point in stats.points] for *_names, read in readings]
    earlier = [[_value(point, read, empty) for point in stats.before] for *_n, read in readings]
    numbers = [value for row in (*rows, *earlier) for value in row if value is not None]
    top = (time_ceiling if text is seconds else ceiling)(max(numbers, default=0.0))
    lines = [
        Line(_(name), css, path_of(row, top), _latest(row, text))
        for (name, css, _read), row in zip(readings, rows, strict=True)
    ]
    steps = [
        _step(
            stats,
            index,
            [(line.name, row[index]) for line, row in zip(lines, rows, strict=True)],
            text,
        )
        for index in range(len(stats.points))
    ]
    half = text(top / 2)
    first, middle = stats.points[0].at, stats.points[len(stats.points) // 2].at
    ticks = [when(stats, first), when(stats, middle), _("now")]
    latest = ", ".join(f"{line.name} {line.now}" for line in lines)
    label = _("%(title)s: now %(values)s; the scale ends at %(top)s", title=title, values=latest,
              top=text(top))  # fmt: skip
    before = [path_of(row, top) for row in earlier if row]
    return StepChart(title, text(top), half, lines, before, steps, ticks, label)


def _value(point: TypePoint, read: Reading, empty: float | None) -> float | None:
    return empty if point.stats is None else read(point.stats)


def _latest(row: Values, text: Callable[[float | None], str]) -> str:
    numbers = [value for value in row if value is not None]
    return text(numbers[-1]) if numbers else _("no data yet")


def _step(
    stats: TypeStats,
    index: int,
    values: Sequence[tuple[str, float | None]],
    text: Callable[[float | None], str],
) -> str:
    texts = ", ".join(f"{name} {text(value)}" for name, value in values if value is not None)
    return f"{when(stats, stats.points[index].at)}: {texts or _('no data')}"
