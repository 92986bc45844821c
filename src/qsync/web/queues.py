"""Pages and actions of queues."""

from __future__ import annotations

from itertools import islice
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from qsync.formatting import plural
from qsync.inspector.queues import PURGED, purged_with
from qsync.state import TaskState
from qsync.web import bulk_actions
from qsync.web.forecast import forecast
from qsync.web.overview import day_charts, minute_charts
from qsync.web.pages import Site
from qsync.web.query import Fields, selection_of, sheet_of
from qsync.web.sampler import DAYS

WEIGHTS_SHOWN: Final = 100


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
    name = Fields(request.query_params.multi_items()).text("queue")
    info = await site.inspector.queue(name, days=DAYS)
    if info is None:
        return site.page(
            request, "error", status=404, title=f"Queue “{name}” does not exist",
            text="A queue appears with its first task and disappears when deleted.",
        )  # fmt: skip
    weights = await site.inspector.weights(name)
    charts = minute_charts(site.sampler, name)
    has_data = any(line.path for chart in charts for line in chart.lines)
    return site.page(
        request, "queue", info=info, charts=charts, has_data=has_data, days=day_charts(info.days),
        purged=[(state, *purged_with(state, info.states)) for state in PURGED],
        minutes=site.sampler.minutes,
        forecast=forecast(site.sampler.series(name), info.states[TaskState.PENDING]),
        weights=dict(islice(weights.items(), WEIGHTS_SHOWN)),
        weights_left=max(0, len(weights) - WEIGHTS_SHOWN),
    )  # fmt: skip


async def pause(site: Site, request: Request) -> Response:
    """Pause a queue."""
    form = await site.form(request)
    name, why = form.text("queue"), form.text("why")
    change = await site.inspector.pause(name, by=site.user(request), why=why)
    text = f"Queue {name} is paused." if change.ok else f"There is no queue {name}."
    return site.go(request, "/queue", text, good=change.ok, queue=name)


async def resume(site: Site, request: Request) -> Response:
    """Resume a queue."""
    name = (await site.form(request)).text("queue")
    change = await site.inspector.resume(name)
    text = f"Queue {name} is resumed." if change.ok else f"Queue {name} was not paused."
    return site.go(request, "/queue", text, good=change.ok, queue=name)


async def purge(site: Site, request: Request) -> Response:
    """Delete all tasks of a state, after a confirmation."""
    form = await site.form(request)
    selection = selection_of(form)
    if form.text("sure") != "yes":
        info = await site.inspector.queue(selection.queue)
        what, number = purged_with(selection.state, info.states if info else {})
        return site.confirm(
            request,
            form,
            title=f"Purge {selection.queue}?",
            text=f"This deletes {plural(number, f'{what} task')} of queue {selection.queue}. "
            "It cannot be undone.",
            button=f"Delete {plural(number, 'task')}",
            back=bulk_actions.back_to(request, "/queue", queue=selection.queue),
        )

    async def step(cursor: str | None) -> bulk_actions.Step:
        return await site.inspector.purge(selection.queue, selection.state, cursor=cursor)

    return await bulk_actions.run_steps(site, request, "purge", selection, step, form)


async def delete(site: Site, request: Request) -> Response:
    """Delete an empty queue, after a confirmation."""
    form = await site.form(request)
    name = form.text("queue")
    if form.text("sure") != "yes":
        return site.confirm(
            request, form, title=f"Delete queue {name}?", button="Delete queue",
            text="This deletes its counters, its pause and its schedules. The queue must be empty, "
            "and no running server may take tasks from it.",
            back=bulk_actions.back_to(request, "/queue", queue=name),
        )  # fmt: skip
    outcome = await site.inspector.forget(name)
    match outcome.outcome:
        case "done":
            return site.go(request, "/queues", f"Queue {name} is deleted.")
        case "not_found":
            return site.go(request, "/queues", f"There is no queue {name}.", good=False)
        case "served":
            why = f"Server {outcome.server} takes tasks from it: stop it first."
        case _:
            why = f"It holds {plural(outcome.left, 'task')}: purge or cancel them first."
    return site.go(request, "/queue", why, good=False, queue=name)
