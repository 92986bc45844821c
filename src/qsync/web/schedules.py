"""Schedules: their next ticks, and pause, resume, trigger and forget."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from qsync.inspector import Change
from qsync.web.bulk_actions import back_to
from qsync.web.pages import Site
from qsync.web.query import Fields, sheet_of
from qsync.web.tasks import failed


async def list_all(site: Site, request: Request) -> Response:
    """Show the schedules of all queues."""
    found = await site.inspector.schedules()
    schedules, sheet = sheet_of(found, Fields(request.query_params.multi_items()))
    return site.page(request, "schedules", schedules=schedules, sheet=sheet)


async def pause(site: Site, request: Request) -> Response:
    """Pause a schedule."""
    form = await site.form(request)
    name, queue = _named(form)
    change = await site.inspector.pause_schedule(
        name, queue=queue, by=site.user(request), why=form.text("why")
    )
    return _after(site, request, change, f"Schedule {name} is paused.")


async def resume(site: Site, request: Request) -> Response:
    """Resume a schedule."""
    name, queue = _named(await site.form(request))
    change = await site.inspector.resume_schedule(name, queue=queue)
    return _after(site, request, change, f"Schedule {name} goes on with its next tick.")


async def trigger(site: Site, request: Request) -> Response:
    """Enqueue the task of a schedule once, now."""
    name, queue = _named(await site.form(request))
    change = await site.inspector.trigger(name, queue=queue)
    if change.outcome != "done":
        return _after(site, request, change, "")
    text = f"Schedule {name} was triggered; this is its task."
    return site.go(request, "/task", text, queue=queue, id=change.holder)


async def forget(site: Site, request: Request) -> Response:
    """Forget a schedule, after a confirmation."""
    form = await site.form(request)
    name, queue = _named(form)
    if form.text("sure") != "yes":
        return site.confirm(
            request, form, title="Forget this schedule?", items=[name],
            button="Forget the schedule",
            text="No server has published it lately. One that does brings it back.",
            back=back_to(request, "/schedules"),
        )  # fmt: skip
    change = await site.inspector.forget_schedule(name, queue=queue)
    return _after(site, request, change, f"Schedule {name} is forgotten.")


def _named(form: Fields) -> tuple[str, str]:
    return form.text("name"), form.text("queue")


def _after(site: Site, request: Request, change: Change, good: str) -> Response:
    text = good if change.ok else failed(change)
    return site.go(request, "/schedules", text, good=change.ok)
