"""The first page: totals, charts of the last minutes and charts by day."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from qsync.inspector import Day, QueueInfo
from qsync.state import TaskState
from qsync.web.charts import BarChart, LineChart, bar_chart, line_chart
from qsync.web.pages import Site
from qsync.web.query import Fields, sheet_of
from qsync.web.sampler import DAYS, QUEUES, SAMPLES, Sampler, filled


async def show(site: Site, request: Request) -> Response:
    """Show the overview."""
    seen = await site.inspector.overview()
    queues, sheet = sheet_of(by_need(seen.queues), Fields(request.query_params.multi_items()))
    states = {state: sum(info.states[state] for info in seen.queues) for state in TaskState}
    return site.page(
        request,
        "overview",
        seen=seen,
        queues=queues,
        sheet=sheet,
        totals=states,
        latency=max((info.latency for info in seen.queues), default=0.0),
        unknown=await site.inspector.unknown_types() if seen.servers else {},
        stopped=[info for info in seen.queues if info.paused],
        charts=minutes(site.sampler),
        days=by_day(await site.sampler.days()),
        cut=len(seen.queues) > QUEUES,
        most=QUEUES,
    )


def by_need(queues: Sequence[QueueInfo]) -> list[QueueInfo]:
    """Sort the queues: those with pending or active tasks first, empty ones last."""

    def need(info: QueueInfo) -> Any:
        waiting = info.states[TaskState.PENDING] + info.states[TaskState.ACTIVE]
        return not waiting, not info.total, info.name

    return sorted(queues, key=need)


def minutes(sampler: Sampler, queue: str | None = None) -> list[LineChart]:
    """Return charts of throughput, latency and failures over the last minutes."""
    steps = sampler.series(queue)
    begins = f"{sampler.minutes} min ago"

    def rate(at: int) -> list[float | None]:
        return [None if step is None else step[1][at] / step[0] for step in steps]

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


def by_day(days: Sequence[Day]) -> dict[str, Any]:
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
