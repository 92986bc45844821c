"""The overview: problems, totals, charts of the last 15 minutes, and daily charts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from qsync import store_clock
from qsync.inspector import Day, MissedRun, QueueInfo
from qsync.state import TaskState
from qsync.web.charts import PER_SECOND, SECONDS, BarChart, LineChart, bar_chart, line_chart
from qsync.web.pages import Site
from qsync.web.problems import all_problems, by_kind, paused_types_of, unhandled_of
from qsync.web.query import Fields, sheet_of
from qsync.web.sampler import CHARTED_QUEUES, DAYS_CHARTED, SAMPLES_KEPT, Sampler, filled
from qsync.web.translation import _, coarse, day_and_month

BUSY: Final = (TaskState.PENDING, TaskState.LIMITED, TaskState.ACTIVE)

DAY_COUNTERS: Final = ("enqueued", "completed", "failed", "dead", "crashed")
"""Counters that the table of days shows."""

PERIODS: Final = (7, DAYS_CHARTED, 90)
"""Numbers of days that the user can choose for the daily charts."""

MISSED_FOR: Final = timedelta(days=1)
"""How long a schedule's missed run is shown, unless a later run succeeds."""


async def show(site: Site, request: Request) -> Response:
    """Show the overview."""
    overview, fleet = await asyncio.gather(site.inspector.overview(), site.inspector.fleet())
    fields = Fields(request.query_params.multi_items())
    queues, sheet = sheet_of(busiest_first(overview.queues), fields)
    days = days_of(fields)
    states = {state: sum(info.states[state] for info in overview.queues) for state in TaskState}
    return site.page(
        request,
        "overview",
        overview=overview,
        queues=queues,
        sheet=sheet,
        totals=states,
        latency=max((info.latency for info in overview.queues), default=0.0),
        unknown=await unhandled_of(site, fleet.unknown_types),
        problems=by_kind(await all_problems(site, overview, fleet)),
        missed=await _missed(site, overview.queues[:CHARTED_QUEUES]),
        paused_types=await paused_types_of(site, overview.queues),
        paused=[info for info in overview.queues if info.paused],
        full=[info for info in overview.queues if info.bounds.note],
        minutes=site.sampler.minutes,
        charts=minute_charts(site.sampler),
        days=day_charts(await site.sampler.days(days), days),
        is_cut=len(overview.queues) > CHARTED_QUEUES,
        limit=CHARTED_QUEUES,
    )


async def _missed(site: Site, queues: Sequence[QueueInfo]) -> list[MissedRun]:
    """Return the schedules that missed their last tick within a day."""
    runs = await site.inspector.missed_runs([info.name for info in queues])
    since = store_clock.now() - MISSED_FOR
    return [run for run in runs if run.tick > since]


def busiest_first(queues: Sequence[QueueInfo]) -> list[QueueInfo]:
    """Sort the queues: first those with pending, limited or active tasks, empty queues last."""

    def rank(info: QueueInfo) -> Any:
        busy = sum(info.states[state] for state in BUSY)
        return not busy, not info.total, info.name

    return sorted(queues, key=rank)


def minute_charts(sampler: Sampler, queue: str | None = None) -> list[LineChart]:
    """Return charts of throughput, latency and failures over the last 15 minutes."""
    steps = sampler.series(queue)
    begins = _("%(length)s ago", length=coarse(60 * sampler.minutes))

    def rate(index: int) -> list[float | None]:
        return [None if step is None else step[1][index] / step[0] for step in steps]

    def chart(title: str, *series: tuple[str, str, list[float | None]], unit: str) -> LineChart:
        return line_chart(
            title,
            series,
            unit=unit,
            begins=begins,
            width=SAMPLES_KEPT - 1,
            interval_s=sampler.interval_s,
        )

    latency = [None if step is None else step[1].latency for step in steps]
    return [
        chart(_("Throughput"), (_("tasks completed"), "completed", rate(1)),
              (_("tasks enqueued"), "enqueued", rate(0)), unit=PER_SECOND),
        chart(_("Latency"), (_("oldest pending"), "pending", latency), unit=SECONDS),
        chart(_("Failures"), (_("failed attempts"), "retry", rate(2)),
              (_("tasks that died"), "dead", rate(3)), unit=PER_SECOND),
    ]  # fmt: skip


def days_of(fields: Fields) -> int:
    """Return the number of days that a request selects, one of PERIODS."""
    asked = fields.text("days")
    return next((days for days in PERIODS if str(days) == asked), DAYS_CHARTED)


def day_charts(days: Sequence[Day], number: int) -> dict[str, Any]:
    """Return the counters of the last days, as charts and as a table."""
    each = filled(days, number)

    def bars(title: str, counter: str, css: str) -> BarChart:
        values = [(day_and_month(day.day), day.counters.get(counter, 0)) for day in each]
        return bar_chart(title, values, css)

    return {
        "charts": [
            bars(_("Completed per day"), "completed", "completed"),
            bars(_("Failed attempts per day"), "failed", "retry"),
            bars(_("Dead per day"), "dead", "dead"),
        ],
        "table": [day for day in reversed(each) if any(day.counters.values())],
        "count": number,
        "periods": PERIODS,
        "counters": DAY_COUNTERS,
    }
