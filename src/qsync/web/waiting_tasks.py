"""Actions on the selected tasks of a list, and on all waiting tasks that match."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from qsync.formatting import plural
from qsync.inspector import Change
from qsync.web import bulk_actions
from qsync.web.pages import Site
from qsync.web.query import Fields, Selection, selection_of


async def run(site: Site, request: Request) -> Response:
    """Run the selected tasks now, or all matching tasks after a confirmation."""
    form = await site.form(request)
    selection = selection_of(form)
    if form.text("scope") != "all" and not form.text("cursor"):

        async def change(id: str) -> Change:
            return await site.inspector.run(id, queue=selection.queue, state=selection.state)

        return await bulk_actions.apply_to_selected(site, request, "now", selection, change, form)
    if form.text("sure") != "yes":
        number, others = await bulk_actions.count(site, selection)
        tasks = "task" if number == "1" else "tasks"
        matching = f" {selection}" if selection.narrowed else ""
        text = f"Run {number} {selection.state} {tasks} in queue {selection.queue}{matching} now?"
        if others:
            other_tasks = plural(others, f"other {selection.state} task")
            text += f" {other_tasks} {'keeps its' if others == 1 else 'keep their'} time."
        return _ask(site, request, form, selection, "now", f"Run {number} {tasks} now", text)

    async def step(cursor: str | None) -> bulk_actions.Step:
        return await site.inspector.run_waiting(
            selection.queue, selection.state, selection.filter, cursor=cursor
        )

    return await bulk_actions.run_steps(site, request, "now", selection, step, form)


async def cancel(site: Site, request: Request) -> Response:
    """Cancel the selected tasks, after a confirmation; running ones are told to stop."""
    form = await site.form(request)
    selection = selection_of(form)
    if form.text("sure") != "yes" and (ids := form.all("id-ticked")):
        tasks = f"{plural(len(ids), f'{selection.state} task')} of queue {selection.queue}"
        text = f"{tasks} will not run."
        if selection.state == "active":
            text = f"{tasks} will be told to stop."
        button = f"Cancel {plural(len(ids), 'task')}"
        return _ask(site, request, form, selection, "cancel", button, text)

    async def change(id: str) -> Change:
        return await site.inspector.cancel(id, queue=selection.queue)

    return await bulk_actions.apply_to_selected(site, request, "cancel", selection, change, form)


async def delete(site: Site, request: Request) -> Response:
    """Delete the selected tasks with their results and history, after a confirmation."""
    form = await site.form(request)
    selection = selection_of(form)
    if form.text("sure") != "yes" and (ids := form.all("id-ticked")):
        tasks = f"{plural(len(ids), f'{selection.state} task')} of queue {selection.queue}"
        text = f"This deletes {tasks}. It cannot be undone."
        return _ask(
            site, request, form, selection, "remove", f"Delete {plural(len(ids), 'task')}", text
        )

    async def change(id: str) -> Change:
        return await site.inspector.delete(id, queue=selection.queue, state=selection.state)

    return await bulk_actions.apply_to_selected(site, request, "remove", selection, change, form)


def _ask(
    site: Site,
    request: Request,
    form: Fields,
    selection: Selection,
    action: str,
    button: str,
    text: str,
) -> Response:
    """Ask for a confirmation."""
    kind = bulk_actions.KINDS[action]
    items = [] if form.text("scope") == "all" else form.all("id-ticked")
    return site.confirm(
        request, form, title=f"{button}?", text=text, button=button, items=items,
        danger=action != "now",
        back=bulk_actions.back_to(request, kind.after, **kind.query(selection)),
    )  # fmt: skip
