"""Pages that show queues, and actions on queues."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from qsync.inspector.queues import PURGED, check_purged, purged_with
from qsync.inspector.search_query import term_of
from qsync.state import TaskState
from qsync.web import bulk_actions
from qsync.web.events import last_actions
from qsync.web.forecast import forecast
from qsync.web.overview import day_charts, days_of, minute_charts
from qsync.web.pages import Site
from qsync.web.problems import floods
from qsync.web.query import Fields, selection_of, sheet_of
from qsync.web.translation import _, ngettext

WEIGHTS_SHOWN: Final = 100
KEYS_SHOWN: Final = 10

SHARES: Final = 10
"""Maximum number of types, and of servers, that the page of a queue shows."""


async def list_all(site: Site, request: Request) -> Response:
    """List all queues, by name."""
    fields = Fields(request.query_params.multi_items())
    cursor = fields.text("cursor", 20) or None
    overview = await site.inspector.overview(cursor=cursor)
    queues, sheet = sheet_of(overview.queues, fields)
    return site.page(
        request, "queues", queues=queues, sheet=sheet, overview=overview, cursor=cursor
    )


async def show(site: Site, request: Request) -> Response:
    """Show one queue."""
    fields = Fields(request.query_params.multi_items())
    name, days = fields.text("queue"), days_of(fields)
    info = await site.inspector.queue(name, days=days)
    if info is None:
        return site.page(
            request, "error", status=404, title=_("Queue “%(queue)s” does not exist", queue=name),
            text=_("A queue appears with its first task and disappears when deleted."),
        )  # fmt: skip
    weights, shares, fleet, inside = await asyncio.gather(
        site.inspector.weights(name), site.inspector.key_shares(name), site.inspector.fleet(),
        site.inspector.composition(name),
    )  # fmt: skip
    servers = fleet.of_queue(name)
    charts = minute_charts(site.sampler, name)
    has_data = any(line.path for chart in charts for line in chart.lines)
    return site.page(
        request, "queue", info=info, charts=charts, has_data=has_data,
        days=day_charts(info.days, days),
        inside=inside, unhandled=fleet.unknown_types.get(name, ()), most=SHARES, term=term_of,
        actions=await last_actions(site, name),
        purged=[(state, *purged_with(state, info.states)) for state in PURGED],
        minutes=site.sampler.minutes,
        forecast=forecast(site.sampler.series(name), info.states[TaskState.PENDING]),
        servers=servers, slots=sum(server.concurrency for server in servers),
        busy=sum(server.running for server in servers),
        shares=shares, flooding=next(iter(shares.keys), "") if floods({name: shares}) else "",
        keys=[(key, search_for(name, key)) for key in islice(shares.keys, KEYS_SHOWN)],
        weights=dict(islice(weights.items(), WEIGHTS_SHOWN)),
        weights_left=max(0, len(weights) - WEIGHTS_SHOWN),
    )  # fmt: skip


async def set_target(site: Site, request: Request) -> Response:
    """Set or remove the latency target of a queue."""
    form = await site.form(request)
    name, text = form.text("queue"), form.text("target").strip()
    try:
        target = float(text) if text else None
        change = await site.acting(request).set_latency_target(name, target or None)
    except ValueError:  # also InvalidTask
        message = _("Latency target “%(text)s” is not a number of seconds.", text=text[:40])
        return site.go(request, "/queue", message, good=False, queue=name)
    message = _("Latency target saved.")
    if not change.ok:
        message = _("Queue “%(queue)s” does not exist", queue=name)
    return site.go(request, "/queue", message, good=change.ok, queue=name)


def search_for(queue: str, key: str) -> str:
    """Return a search query for a fairness key's pending tasks; "" if the key has a quote."""
    return "" if '"' in key else f'queue:{queue} state:pending key:"{key}"'


async def pause(site: Site, request: Request) -> Response:
    """Pause a queue."""
    form = await site.form(request)
    name, why = form.text("queue"), form.text("why")
    change = await site.acting(request).pause(name, why=why)
    text = _("Queue %(queue)s is paused.", queue=name) if change.ok else no_queue(name)
    return site.go(request, "/queue", text, good=change.ok, queue=name)


async def resume(site: Site, request: Request) -> Response:
    """Resume a queue."""
    name = (await site.form(request)).text("queue")
    change = await site.acting(request).resume(name)
    text = _("Queue %(queue)s was not paused.", queue=name)
    if change.ok:
        text = _("Queue %(queue)s is resumed.", queue=name)
    return site.go(request, "/queue", text, good=change.ok, queue=name)


async def purge(site: Site, request: Request) -> Response:
    """Delete all tasks in a state, after confirmation."""
    form = await site.form(request)
    selection = selection_of(form)
    check_purged(selection.state)
    if form.text("sure") != "yes":
        info = await site.inspector.queue(selection.queue)
        state_name, number = purged_with(selection.state, info.states if info else {})
        deletes = ngettext(
            "This deletes %(num)s %(state)s task of queue %(queue)s.",
            "This deletes %(num)s %(state)s tasks of queue %(queue)s.",
            number, state=_(state_name), queue=selection.queue,
        )  # fmt: skip
        return site.confirm(
            request,
            form,
            title=_("Purge queue %(queue)s?", queue=selection.queue),
            text=f"{deletes} {_('This cannot be undone.')}",
            button=ngettext("Delete %(num)s task", "Delete %(num)s tasks", number),
            back=bulk_actions.back_to(request, "/queue", queue=selection.queue),
        )

    async def step(cursor: str | None) -> bulk_actions.Step:
        return await site.acting(request).purge(selection.queue, selection.state, cursor=cursor)

    return await bulk_actions.run_steps(site, request, "purge", selection, step, form)


async def delete(site: Site, request: Request) -> Response:
    """Delete an empty queue, after confirmation."""
    form = await site.form(request)
    name = form.text("queue")
    if form.text("sure") != "yes":
        return site.confirm(
            request, form, title=_("Delete queue %(queue)s?", queue=name), button=_("Delete queue"),
            text=_(
                "This deletes the queue's counters, pause and schedules. The queue must be empty, "
                "and no running server may take tasks from it."
            ),
            back=bulk_actions.back_to(request, "/queue", queue=name),
        )  # fmt: skip
    outcome = await site.acting(request).forget(name)
    match outcome.outcome:
        case "done":
            return site.go(request, "/queues", _("Queue %(queue)s is deleted.", queue=name))
        case "not_found":
            return site.go(request, "/queues", no_queue(name), good=False)
        case "served":
            why = _(
                "Server %(id)s takes tasks from the queue: stop the server first.",
                id=outcome.server,
            )
        case _:
            why = ngettext(
                "The queue holds %(num)s task: purge or cancel it first.",
                "The queue holds %(num)s tasks: purge or cancel them first.",
                outcome.left,
            )
    return site.go(request, "/queue", why, good=False, queue=name)


def no_queue(name: str) -> str:
    """Return the message that there is no such queue."""
    return _("There is no queue %(queue)s.", queue=name)
