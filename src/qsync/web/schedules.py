"""Page and actions of schedules."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from qsync.inspector import Change
from qsync.web.bulk_actions import back_to
from qsync.web.pages import Site
from qsync.web.query import Fields, sheet_of
from qsync.web.tasks import failed


async def list_all(site: Site, request: Request) -> Response:
    """List the schedules of all queues."""
    everything = await site.inspector.schedules()
    schedules, sheet = sheet_of(everything, Fields(request.query_params.multi_items()))
    return site.page(request, "schedules", schedules=schedules, sheet=sheet)


async def pause(site: Site, request: Request) -> Response:
    """Pause a schedule."""
    form = await site.form(request)
    name, queue = _schedule_of(form)
    change = await site.inspector.pause_schedule(
        name, queue=queue, by=site.user(request), why=form.text("why")
    )
    return _after(site, request, change, f"Schedule {name} is paused.")


async def resume(site: Site, request: Request) -> Response:
    """Resume a schedule."""
    name, queue = _schedule_of(await site.form(request))
    change = await site.inspector.resume_schedule(name, queue=queue)
    return _after(site, request, change, f"Schedule {name} resumes with its next run.")


async def trigger(site: Site, request: Request) -> Response:
    """Enqueue the task of a schedule once, now."""
    name, queue = _schedule_of(await site.form(request))
    change = await site.inspector.trigger(name, queue=queue)
    if change.outcome != "done":
        return _after(site, request, change, "")
    text = f"Schedule {name} was triggered. This is its task."
    return site.go(request, "/task", text, queue=queue, id=change.holder)


async def forget(site: Site, request: Request) -> Response:
    """Delete a schedule, after a confirmation."""
    form = await site.form(request)
    name, queue = _schedule_of(form)
    if form.text("sure") != "yes":
        return site.confirm(
            request, form, title="Delete this schedule?", items=[name],
            button="Delete schedule",
            text="No running server publishes it. A server that does brings it back.",
            back=back_to(request, "/schedules"),
        )  # fmt: skip
    change = await site.inspector.forget_schedule(name, queue=queue)
    return _after(site, request, change, f"Schedule {name} is deleted.")


def _schedule_of(form: Fields) -> tuple[str, str]:
    return form.text("name"), form.text("queue")


def _after(site: Site, request: Request, change: Change, good: str) -> Response:
    text = good if change.ok else failed(change)
    return site.go(request, "/schedules", text, good=change.ok)
