"""Actions on the selected tasks of a list, and on all waiting tasks that match."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from qsync.inspector import Change
from qsync.state import TaskState
from qsync.web import bulk_actions
from qsync.web.names import state_name
from qsync.web.pages import Site
from qsync.web.query import Fields, Selection, selection_of
from qsync.web.translation import _, ngettext


async def run(site: Site, request: Request) -> Response:
    """Run the selected tasks now; or run all matching tasks now, after confirmation."""
    form = await site.form(request)
    selection = selection_of(form)
    if form.text("scope") != "all" and not form.text("cursor"):

        async def change(id: str) -> Change:
            return await site.acting(request).run(id, queue=selection.queue, state=selection.state)

        return await bulk_actions.apply_to_selected(site, request, "now", selection, change, form)
    if form.text("sure") != "yes":
        return await _ask_to_run(site, request, form, selection)

    async def step(cursor: str | None) -> bulk_actions.Step:
        return await site.acting(request).run_waiting(
            selection.queue, selection.state, selection.filter, cursor=cursor
        )

    return await bulk_actions.run_steps(site, request, "now", selection, step, form)


async def cancel(site: Site, request: Request) -> Response:
    """Cancel the selected tasks, after confirmation; tell servers to stop the running ones."""
    form = await site.form(request)
    selection = selection_of(form)
    if form.text("sure") != "yes" and (ids := form.all("id-ticked")):
        state, queue = state_name(selection.state), selection.queue
        text = ngettext(
            "%(num)s %(state)s task of queue %(queue)s will not run.",
            "%(num)s %(state)s tasks of queue %(queue)s will not run.",
            len(ids), state=state, queue=queue,
        )  # fmt: skip
        if selection.state is TaskState.ACTIVE:
            text = ngettext(
                "%(num)s active task of queue %(queue)s will be told to stop.",
                "%(num)s active tasks of queue %(queue)s will be told to stop.",
                len(ids), queue=queue,
            )  # fmt: skip
        title = ngettext("Cancel %(num)s task?", "Cancel %(num)s tasks?", len(ids))
        button = ngettext("Cancel %(num)s task", "Cancel %(num)s tasks", len(ids))
        return _ask(site, request, form, selection, "cancel", title, button, text)

    async def change(id: str) -> Change:
        return await site.acting(request).cancel(id, queue=selection.queue)

    return await bulk_actions.apply_to_selected(site, request, "cancel", selection, change, form)


async def delete(site: Site, request: Request) -> Response:
    """Delete the selected tasks with their results and history, after confirmation."""
    form = await site.form(request)
    selection = selection_of(form)
    if form.text("sure") != "yes" and (ids := form.all("id-ticked")):
        deletes = ngettext(
            "This deletes %(num)s %(state)s task of queue %(queue)s.",
            "This deletes %(num)s %(state)s tasks of queue %(queue)s.",
            len(ids), state=state_name(selection.state), queue=selection.queue,
        )  # fmt: skip
        title = ngettext("Delete %(num)s task?", "Delete %(num)s tasks?", len(ids))
        button = ngettext("Delete %(num)s task", "Delete %(num)s tasks", len(ids))
        text = f"{deletes} {_('This cannot be undone.')}"
        return _ask(site, request, form, selection, "remove", title, button, text)

    async def change(id: str) -> Change:
        return await site.acting(request).delete(id, queue=selection.queue, state=selection.state)

    return await bulk_actions.apply_to_selected(site, request, "remove", selection, change, form)


async def _ask_to_run(site: Site, request: Request, form: Fields, selection: Selection) -> Response:
    """Ask for confirmation to run all matching tasks now."""
    matching = await bulk_actions.count(site, selection)
    state, queue = state_name(selection.state), selection.queue
    if selection.narrowed:
        text = matching.counted(
            "Run %(num)s %(state)s task in queue %(queue)s %(filter)s now?",
            "Run %(num)s %(state)s tasks in queue %(queue)s %(filter)s now?",
            state=state, queue=queue, filter=selection.narrowing,
        )  # fmt: skip
    else:
        text = matching.counted(
            "Run %(num)s %(state)s task in queue %(queue)s now?",
            "Run %(num)s %(state)s tasks in queue %(queue)s now?",
            state=state, queue=queue,
        )  # fmt: skip
    if matching.others:
        others = ngettext(
            "%(num)s other %(state)s task keeps its due time.",
            "%(num)s other %(state)s tasks keep their due times.",
            matching.others, state=state,
        )  # fmt: skip
        text = f"{text} {others}"
    title = matching.counted("Run %(num)s task now?", "Run %(num)s tasks now?")
    button = matching.counted("Run %(num)s task now", "Run %(num)s tasks now")
    return _ask(site, request, form, selection, "now", title, button, text)


def _ask(
    site: Site,
    request: Request,
    form: Fields,
    selection: Selection,
    action: str,
    title: str,
    button: str,
    text: str,
) -> Response:
    """Ask for confirmation."""
    kind = bulk_actions.KINDS[action]
    items = [] if form.text("scope") == "all" else form.all("id-ticked")
    return site.confirm(
        request, form, title=title, text=text, button=button, items=items,
        danger=action != "now",
        back=bulk_actions.back_to(request, kind.after, **kind.query(selection)),
    )  # fmt: skip
