"""The page of dead tasks, and its actions on the selected or all matching tasks."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from qsync.formatting import plural
from qsync.inspector import Change
from qsync.state import TaskState
from qsync.web import bulk_actions
from qsync.web.pages import Site
from qsync.web.query import Fields, Selection, selection_of
from qsync.web.tasks import listing


async def list_some(site: Site, request: Request) -> Response:
    """List the dead tasks of a queue, or of all."""
    fields = Fields(request.query_params.multi_items())
    return await listing(site, request, fields, selection_of(fields, TaskState.DEAD), "dead")


async def run(site: Site, request: Request) -> Response:
    """Re-run the selected tasks, or all matching tasks after a confirmation."""
    form = await site.form(request)
    selection = selection_of(form, TaskState.DEAD)
    if form.text("scope") != "all" and not form.text("cursor"):

        async def rerun(id: str) -> Change:
            return await site.inspector.run(id, queue=selection.queue, state=TaskState.DEAD)

        return await bulk_actions.apply_to_selected(site, request, "run", selection, rerun, form)
    if form.text("sure") != "yes":
        return await _ask(site, request, form, selection, "Re-run")

    async def step(cursor: str | None) -> bulk_actions.Step:
        return await site.inspector.run_dead(selection.queue, selection.filter, cursor=cursor)

    return await bulk_actions.run_steps(site, request, "run", selection, step, form)


async def delete(site: Site, request: Request) -> Response:
    """Delete the selected tasks or all matching tasks, after a confirmation."""
    form = await site.form(request)
    selection = selection_of(form, TaskState.DEAD)
    is_all = form.text("scope") == "all" or bool(form.text("cursor"))
    if form.text("sure") != "yes" and (is_all or form.text("id-ticked")):
        return await _ask(site, request, form, selection, "Delete")
    if not is_all:

        async def remove(id: str) -> Change:
            return await site.inspector.delete(id, queue=selection.queue, state=TaskState.DEAD)

        return await bulk_actions.apply_to_selected(
            site, request, "delete", selection, remove, form
        )

    async def step(cursor: str | None) -> bulk_actions.Step:
        return await site.inspector.delete_dead(selection.queue, selection.filter, cursor=cursor)

    return await bulk_actions.run_steps(site, request, "delete", selection, step, form)


async def _ask(
    site: Site, request: Request, form: Fields, selection: Selection, verb: str
) -> Response:
    """Ask for a confirmation that names the number of tasks."""
    ids = [] if form.text("scope") == "all" else form.all("id-ticked")
    number, others = (f"{len(ids):,}", 0) if ids else await bulk_actions.count(site, selection)
    tasks = "task" if number == "1" else "tasks"
    matching = f" {selection}" if selection.narrowed and not ids else ""
    text = f"{verb} {number} dead {tasks} in queue {selection.queue}{matching}?"
    if verb == "Re-run":
        text += " They get a fresh set of attempts."
    if others:
        text += f" {plural(others, 'other dead task')} {'stays' if others == 1 else 'stay'}."
    return site.confirm(
        request, form, title=f"{verb} {number} {tasks}?", text=text, items=ids,
        button=f"{verb} {number} {tasks}", danger=verb == "Delete",
        back=bulk_actions.back_to(request, "/dead", **selection.query),
    )  # fmt: skip
