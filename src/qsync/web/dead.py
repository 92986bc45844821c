"""Dead tasks: search by type, error and age; run or delete the ticked or all matching ones."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from qsync.inspector import Change
from qsync.state import TaskState
from qsync.web import bulk_actions
from qsync.web.filters import plural
from qsync.web.pages import Site
from qsync.web.query import Fields, Wanted, wanted
from qsync.web.tasks import listing


async def list_some(site: Site, request: Request) -> Response:
    """Show the dead tasks of a queue."""
    fields = Fields(request.query_params.multi_items())
    return await listing(site, request, fields, wanted(fields, TaskState.DEAD), "dead")


async def run(site: Site, request: Request) -> Response:
    """Run the ticked tasks again, or all matching tasks after a confirmation."""
    form = await site.form(request)
    which = wanted(form, TaskState.DEAD)
    if form.text("scope") != "all" and not form.text("cursor"):

        async def rerun(id: str) -> Change:
            return await site.inspector.run(id, queue=which.queue, state=TaskState.DEAD)

        return await bulk_actions.apply_to_selected(site, request, "run", which, rerun, form)
    if form.text("sure") != "yes":
        return await _ask(site, request, form, which, "Re-run")

    async def step(cursor: str | None) -> bulk_actions.Step:
        return await site.inspector.run_dead(which.queue, which.filter, cursor=cursor)

    return await bulk_actions.run_steps(site, request, "run", which, step, form)


async def delete(site: Site, request: Request) -> Response:
    """Delete the ticked tasks or all matching tasks, after a confirmation."""
    form = await site.form(request)
    which = wanted(form, TaskState.DEAD)
    every = form.text("scope") == "all" or bool(form.text("cursor"))
    if form.text("sure") != "yes" and (every or form.text("id-ticked")):
        return await _ask(site, request, form, which, "Delete")
    if not every:

        async def remove(id: str) -> Change:
            return await site.inspector.delete(id, queue=which.queue, state=TaskState.DEAD)

        return await bulk_actions.apply_to_selected(site, request, "delete", which, remove, form)

    async def step(cursor: str | None) -> bulk_actions.Step:
        return await site.inspector.delete_dead(which.queue, which.filter, cursor=cursor)

    return await bulk_actions.run_steps(site, request, "delete", which, step, form)


async def _ask(site: Site, request: Request, form: Fields, which: Wanted, verb: str) -> Response:
    """Ask for a confirmation that names the number of tasks."""
    ids = [] if form.text("scope") == "all" else form.all("id-ticked")
    number, others = (f"{len(ids):,}", 0) if ids else await bulk_actions.count(site, which)
    tasks = "task" if number == "1" else "tasks"
    that = f" {which}" if which.narrowed and not ids else ""
    text = f"{verb} {number} dead {tasks} in queue {which.queue}{that}?"
    if verb == "Re-run":
        text += " They get a fresh set of attempts."
    if others:
        text += f" {plural(others, 'other dead task')} {'stays' if others == 1 else 'stay'}."
    return site.confirm(
        request, form, title=f"{verb} {number} {tasks}?", text=text, items=ids,
        button=f"{verb} {number} {tasks}", danger=verb == "Delete",
        back=bulk_actions.back_to(request, "/dead", **which.query),
    )  # fmt: skip
