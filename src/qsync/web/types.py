"""The pages of task types: a list by queue, one type with charts, pause and resume."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from qsync.errors import InvalidTask
from qsync.inspector import Period, TypeInfo
from qsync.inspector.slow_tasks import SLOW_TASKS_READ
from qsync.inspector.type_values import PERIODS
from qsync.inspector.types import LISTED_PERIODS
from qsync.phrase import phrase_of
from qsync.web.bulk_actions import back_to
from qsync.web.pages import Site, links
from qsync.web.query import Fields, sheet_of
from qsync.web.queues import no_queue
from qsync.web.translation import _, marked, ngettext
from qsync.web.type_charts import start_marks, type_charts, when

PERIOD_NAMES: Final[dict[Period, str]] = {
    "1h": marked("last hour"), "24h": marked("last 24 hours"), "7d": marked("last 7 days"),
    "90d": marked("last 90 days"),
}  # fmt: skip

EARLIER: Final[dict[Period, str]] = {
    "1h": marked("yesterday at this time"), "24h": marked("the day before"),
    "7d": marked("the week before"), "90d": "",
}  # fmt: skip
"""For each period, the label of the faint line that shows an earlier period in the charts."""

QUEUES_SHOWN: Final = 100

SORTS: Final[dict[str, Callable[[TypeInfo], Any]]] = {
    "started": lambda info: info.stats.started, "failed": lambda info: info.stats.failed,
    "share": lambda info: info.stats.failure_share, "wait": lambda info: info.stats.wait_p95,
    "run": lambda info: info.stats.run_p95, "backlog": lambda info: info.pending + info.waiting,
    "dead": lambda info: info.dead,
}  # fmt: skip
"""Columns by which the list can be sorted, the largest first; by default it is sorted by name."""


async def list_all(site: Site, request: Request) -> Response:
    """List the types of a queue."""
    fields = Fields(request.query_params.multi_items())
    names = (await site.inspector.queue_names())[:QUEUES_SHOWN]
    queue = fields.text("queue") or ("default" if "default" in names or not names else names[0])
    period, sort = _period(fields, LISTED_PERIODS), fields.text("sort")
    listing = await site.inspector.types(queue, period=period)
    types = listing.types
    if sort in SORTS:
        types = sorted(types, key=lambda info: SORTS[sort](info) or 0, reverse=True)
    shown, sheet = sheet_of(types, fields)
    return site.page(
        request, "types", queue=queue, names=names, listing=listing, types=shown, sheet=sheet,
        sort=sort, period=period, periods=[(each, PERIOD_NAMES[each]) for each in LISTED_PERIODS],
    )  # fmt: skip


async def show(site: Site, request: Request) -> Response:
    """Show one type."""
    fields = Fields(request.query_params.multi_items())
    queue, name = fields.text("queue") or "default", fields.text("type")
    period = _period(fields, PERIODS)
    if not name:
        return RedirectResponse(links(request)("/types", queue=queue), 303)
    stats, slow, fleet = await asyncio.gather(
        site.inspector.type_stats(name, queue=queue, period=period),
        site.inspector.slow_tasks(name, queue=queue), site.inspector.fleet(),
    )  # fmt: skip
    marks = start_marks(stats, fleet.of_queue(queue))
    return site.page(
        request, "type", queue=queue, type=name, stats=stats, charts=type_charts(stats, marks),
        slow=slow, slow_read=SLOW_TASKS_READ,
        marks=[(when(stats, mark.at), mark) for mark in marks],
        rows=[(when(stats, point.at), point.stats) for point in stats.points if point.stats],
        earlier=EARLIER[period], period=period,
        periods=[(each, PERIOD_NAMES[each]) for each in PERIODS],
    )  # fmt: skip


async def pause(site: Site, request: Request) -> Response:
    """Pause a type, after confirmation."""
    form = await site.form(request)
    queue, name, why = form.text("queue") or "default", form.text("type"), form.text("why")
    if form.text("sure") != "yes":
        return site.confirm(
            request, form, title=_("Pause type %(type)s?", type=name), button=_("Pause type"),
            text=_(
                "No server will start a task of this type in queue %(queue)s until it is resumed. "
                "Running tasks continue, and tasks of other types are not delayed.",
                queue=queue,
            ),
            back=back_to(request, "/type", queue=queue, type=name), danger=False,
        )  # fmt: skip
    try:
        change = await site.acting(request).pause_type(name, queue=queue, why=why)
    except InvalidTask as error:
        return site.go(request, "/types", phrase_of(error), good=False, queue=queue)
    text = _("Type %(type)s is paused.", type=name) if change.ok else no_queue(queue)
    return site.go(request, "/type", text, good=change.ok, queue=queue, type=name)


async def resume(site: Site, request: Request) -> Response:
    """Resume a type, after confirmation."""
    form = await site.form(request)
    queue, name = form.text("queue") or "default", form.text("type")
    if form.text("sure") != "yes":
        paused = await site.inspector.paused_types(queue)
        waiting = sum(paused_type.waiting for paused_type in paused if paused_type.type == name)
        return site.confirm(
            request, form, title=_("Resume type %(type)s?", type=name), button=_("Resume type"),
            text=ngettext(
                "%(num)s task was set aside: it returns to its place, before newer tasks.",
                "%(num)s tasks were set aside: they return to their places, before newer tasks.",
                waiting,
            ),
            back=back_to(request, "/type", queue=queue, type=name), danger=False,
        )  # fmt: skip
    change = await site.acting(request).resume_type(name, queue=queue)
    text = _("Type %(type)s was not paused.", type=name)
    if change.ok:
        text = _("Type %(type)s is resumed.", type=name)
    return site.go(request, "/type", text, good=change.ok, queue=queue, type=name)


def _period(fields: Fields, periods: tuple[Period, ...]) -> Period:
    """Return the period that a query names; by default the first one."""
    asked = fields.text("period")
    return next((period for period in periods if period == asked), periods[0])
