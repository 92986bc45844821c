"""Dead tasks: found by type, error and age; run again or deleted, ticked ones or all that fit."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from qsync.inspector import Change
from qsync.state import TaskState
from qsync.web import work
from qsync.web.params import Fields, Wanted, wanted
from qsync.web.site import Site
from qsync.web.tasks import listing
from qsync.web.texts import plural


async def list_some(site: Site, request: Request) -> Response:
    """Dead tasks of a queue."""
    fields = Fields(request.query_params.multi_items())
    return await listing(site, request, fields, wanted(fields, TaskState.DEAD), "dead")


async def run(site: Site, request: Request) -> Response:
    """The ticked ones are pending now, or all that fit once that is confirmed."""
    form = await site.form(request)
    which = wanted(form, TaskState.DEAD)
    if form.text("scope") != "all" and not form.text("cursor"):

        async def rerun(id: str) -> Change:
            return await site.inspector.run(id, queue=which.queue, state=TaskState.DEAD)

        return await work.ticked(site, request, "run", which, rerun, form)
    if form.text("sure") != "yes":
        return await _ask(site, request, form, which, "run again", "Run all again")

    async def step(cursor: str | None) -> work.Step:
        return await site.inspector.run_dead(which.queue, which.filter, cursor=cursor)

    return await work.go_on(site, request, "run", which, step, form)


async def delete(site: Site, request: Request) -> Response:
    """The ticked ones are deleted, or all that fit, once that is confirmed."""
    form = await site.form(request)
    which = wanted(form, TaskState.DEAD)
    every = form.text("scope") == "all" or bool(form.text("cursor"))
    if form.text("sure") != "yes" and (every or form.text("id-ticked")):
        return await _ask(site, request, form, which, "deleted", "Delete")
    if not every:

        async def remove(id: str) -> Change:
            return await site.inspector.delete(id, queue=which.queue, state=TaskState.DEAD)

        return await work.ticked(site, request, "delete", which, remove, form)

    async def step(cursor: str | None) -> work.Step:
        return await site.inspector.delete_dead(which.queue, which.filter, cursor=cursor)

    return await work.go_on(site, request, "delete", which, step, form)


async def _ask(
    site: Site, request: Request, form: Fields, which: Wanted, done: str, button: str
) -> Response:
    """Ask before it is done to many."""
    ids = [] if form.text("scope") == "all" else form.all("id-ticked")
    if ids:
        text = f"{plural(len(ids), 'dead task')} of queue {which.queue} will be {done}."
    else:
        info = await site.inspector.queue(which.queue)
        number = info.states[TaskState.DEAD] if info else 0
        of = f" that are {which}" if which.narrowed else ""
        text = f"All dead tasks of queue {which.queue}{of} will be {done}. "
        text += f"{plural(number, 'task')} of it {'is' if number == 1 else 'are'} dead by now."
    return site.confirm(
        request, form, title=f"{button}?", text=text, button=button, items=ids,
        back=work.back_to(request, "/dead", **which.query),
    )  # fmt: skip
