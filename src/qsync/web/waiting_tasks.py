"""Waiting, active and kept tasks: run, cancel or delete the ticked ones; or run all now."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from qsync.inspector import Change
from qsync.web import bulk_actions
from qsync.web.filters import plural
from qsync.web.pages import Site
from qsync.web.query import Fields, Wanted, wanted


async def run(site: Site, request: Request) -> Response:
    """Run the ticked tasks now, or all matching tasks after a confirmation."""
    form = await site.form(request)
    which = wanted(form)
    if form.text("scope") != "all" and not form.text("cursor"):

        async def change(id: str) -> Change:
            return await site.inspector.run(id, queue=which.queue, state=which.state)

        return await bulk_actions.apply_to_selected(site, request, "now", which, change, form)
    if form.text("sure") != "yes":
        number, others = await bulk_actions.count(site, which)
        tasks = "task" if number == "1" else "tasks"
        of = f" {which}" if which.narrowed else ""
        text = f"Run {number} {which.state} {tasks} in queue {which.queue}{of} now?"
        if others:
            text += f" {plural(others, f'other {which.state} task')} keep their time."
        return _ask(site, request, form, which, "now", f"Run {number} {tasks} now", text)

    async def step(cursor: str | None) -> bulk_actions.Step:
        return await site.inspector.run_waiting(
            which.queue, which.state, which.filter, cursor=cursor
        )

    return await bulk_actions.run_steps(site, request, "now", which, step, form)


async def cancel(site: Site, request: Request) -> Response:
    """Cancel the ticked tasks, after a confirmation; active ones are told to stop."""
    form = await site.form(request)
    which = wanted(form)
    if form.text("sure") != "yes" and (ids := form.all("id-ticked")):
        text = f"{plural(len(ids), f'{which.state} task')} of queue {which.queue} will not run."
        if which.state == "active":
            text = f"{plural(len(ids), 'task')} of queue {which.queue} will be told to stop."
        return _ask(site, request, form, which, "cancel", "Cancel the tasks", text)

    async def change(id: str) -> Change:
        return await site.inspector.cancel(id, queue=which.queue)

    return await bulk_actions.apply_to_selected(site, request, "cancel", which, change, form)


async def delete(site: Site, request: Request) -> Response:
    """Delete the ticked tasks with their results and history, after a confirmation."""
    form = await site.form(request)
    which = wanted(form)
    if form.text("sure") != "yes" and (ids := form.all("id-ticked")):
        text = f"{plural(len(ids), f'{which.state} task')} of queue {which.queue} will be deleted."
        return _ask(site, request, form, which, "remove", "Delete the tasks", text)

    async def change(id: str) -> Change:
        return await site.inspector.delete(id, queue=which.queue, state=which.state)

    return await bulk_actions.apply_to_selected(site, request, "remove", which, change, form)


def _ask(
    site: Site, request: Request, form: Fields, which: Wanted, name: str, button: str, text: str
) -> Response:
    """Ask for a confirmation."""
    kind = bulk_actions.KINDS[name]
    items = [] if form.text("scope") == "all" else form.all("id-ticked")
    return site.confirm(
        request, form, title=f"{button}?", text=text, button=button, items=items,
        danger=name != "now",
        back=bulk_actions.back_to(request, kind.after, **kind.place(which)),
    )  # fmt: skip
