"""The first page: totals, charts of the last minutes, charts by day."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from qsync.inspector import Day, QueueInfo
from qsync.state import TaskState
from qsync.web.charts import BarChart, LineChart, bar_chart, line_chart
from qsync.web.forecast import problems_of
from qsync.web.pages import Site
from qsync.web.query import Fields, sheet_of
from qsync.web.sampler import CHARTED_QUEUES, DAYS, SAMPLES, Sampler, filled

BUSY: Final = (TaskState.PENDING, TaskState.LIMITED, TaskState.ACTIVE)


async def show(site: Site, request: Request) -> Response:
    """Show the overview."""
    overview = await site.inspector.overview()
    queues, sheet = sheet_of(
        busiest_first(overview.queues), Fields(request.query_params.multi_items())
    )
    states = {state: sum(info.states[state] for info in overview.queues) for state in TaskState}
    return site.page(
        request,
        "overview",
        overview=overview,
        queues=queues,
        sheet=sheet,
        totals=states,
        latency=max((info.latency for info in overview.queues), default=0.0),
        unknown=await site.inspector.unknown_types() if overview.servers else {},
        problems=[
            problem
            for info in overview.queues[:CHARTED_QUEUES]
            for problem in problems_of(info, site.sampler.series(info.name))
        ],
        paused=[info for info in overview.queues if info.paused],
        full=[info for info in overview.queues if info.bounds.note],
        minutes=site.sampler.minutes,
        charts=minute_charts(site.sampler),
        days=day_charts(await site.sampler.days()),
        is_cut=len(overview.queues) > CHARTED_QUEUES,
        limit=CHARTED_QUEUES,
    )


def busiest_first(queues: Sequence[QueueInfo]) -> list[QueueInfo]:
    """Sort the queues: those with pending or active tasks first, empty ones last."""

    def rank(info: QueueInfo) -> Any:
        busy = sum(info.states[state] for state in BUSY)
        return not busy, not info.total, info.name

    return sorted(queues, key=rank)


def minute_charts(sampler: Sampler, queue: str | None = None) -> list[LineChart]:
    """Return charts of throughput, latency and failures over the last minutes."""
    steps = sampler.series(queue)
    begins = f"{sampler.minutes} min ago"

    def rate(index: int) -> list[float | None]:
        return [None if step is None else step[1][index] / step[0] for step in steps]

    def chart(title: str, *series: tuple[str, str, list[float | None]], unit: str) -> LineChart:
        return line_chart(title, series, unit=unit, begins=begins, width=SAMPLES - 1)

    latency = [None if step is None else step[1].latency for step in steps]
    return [
        chart("Throughput", ("completed", "completed", rate(1)), ("enqueued", "enqueued", rate(0)),
              unit="/s"),
        chart("Latency", ("oldest pending", "pending", latency), unit=" s"),
        chart("Failures", ("failed attempts", "retry", rate(2)), ("dead", "dead", rate(3)),
              unit="/s"),
    ]  # fmt: skip


def day_charts(days: Sequence[Day]) -> dict[str, Any]:
    """Return the counters of the last days, as charts and as a table."""
    each = filled(days, DAYS)

    def bars(title: str, counter: str, css: str) -> BarChart:
        values = [(f"{day.day:%d %b}", day.counters.get(counter, 0)) for day in each]
        return bar_chart(title, values, css)

    return {
        "charts": [
            bars("Completed per day", "completed", "completed"),
            bars("Failed attempts per day", "failed", "retry"),
            bars("Dead per day", "dead", "dead"),
        ],
        "table": [day for day in reversed(each) if any(day.counters.values())],
        "count": DAYS,
    }
