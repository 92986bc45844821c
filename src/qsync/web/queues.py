"""Queues: lists, details, and pause, resume, purge and delete."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from qsync.inspector.queues import PURGED, purged_with
from qsync.web import bulk_actions
from qsync.web.filters import plural
from qsync.web.overview import by_day, minutes
from qsync.web.pages import Site
from qsync.web.query import Fields, sheet_of, wanted
from qsync.web.sampler import DAYS, QUEUES


async def list_all(site: Site, request: Request) -> Response:
    """Show all queues, by name."""
    fields = Fields(request.query_params.multi_items())
    cursor = fields.text("cursor", 20) or None
    seen = await site.inspector.overview(cursor=cursor)
    queues, sheet = sheet_of(seen.queues, fields)
    return site.page(request, "queues", queues=queues, sheet=sheet, seen=seen, cursor=cursor)


async def show(site: Site, request: Request) -> Response:
    """Show one queue."""
    name = _query(request).text("queue")
    info = await site.inspector.queue(name, days=DAYS)
    if info is None:
        return site.page(
            request, "error", status=404, title="There is no such queue",
            text="A queue is there from its first task on, and until it is forgotten.",
        )  # fmt: skip
    charts = minutes(site.sampler, name)
    known = any(line.path for chart in charts for line in chart.lines)
    return site.page(
        request, "queue", info=info, charts=charts, known=known, days=by_day(info.days),
        purged=[(state, *purged_with(state, info.states)) for state in PURGED], most=QUEUES,
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
    text = f"Queue {name} goes on." if change.ok else f"Queue {name} was not paused."
    return site.go(request, "/queue", text, good=change.ok, queue=name)


async def purge(site: Site, request: Request) -> Response:
    """Delete all tasks of a state, after a confirmation."""
    form = await site.form(request)
    which = wanted(form)
    if form.text("sure") != "yes":
        info = await site.inspector.queue(which.queue)
        what, number = purged_with(which.state, info.states if info else {})
        return site.confirm(
            request,
            form,
            title=f"Purge {which.queue}?",
            text=f"{plural(number, f'{what} task')} will be deleted. They cannot be brought back.",
            button=f"Delete all {what} tasks",
            back=bulk_actions.back_to(request, "/queue", queue=which.queue),
        )

    async def step(cursor: str | None) -> bulk_actions.Step:
        return await site.inspector.purge(which.queue, which.state, cursor=cursor)

    return await bulk_actions.run_steps(site, request, "purge", which, step, form)


async def delete(site: Site, request: Request) -> Response:
    """Forget an empty queue, after a confirmation."""
    form = await site.form(request)
    name = form.text("queue")
    if form.text("sure") != "yes":
        return site.confirm(
            request, form, title=f"Delete queue {name}?", button="Delete the queue",
            text="It is forgotten with its counters, its pause and its schedules. It has to be "
            "empty, and no live server may take from it.",
            back=bulk_actions.back_to(request, "/queue", queue=name),
        )  # fmt: skip
    found = await site.inspector.forget(name)
    match found.outcome:
        case "done":
            return site.go(request, "/queues", f"Queue {name} is deleted.")
        case "not_found":
            return site.go(request, "/queues", f"There is no queue {name}.", good=False)
        case "served":
            why = f"Server {found.server} takes from it: stop that first."
        case _:
            why = f"It holds {plural(found.left, 'task')}: purge or cancel them first."
    return site.go(request, "/queue", why, good=False, queue=name)


def _query(request: Request) -> Fields:
    return Fields(request.query_params.multi_items())
