"""The page of dead tasks, and its actions on selected tasks or on all matching tasks."""

from __future__ import annotations

from datetime import datetime

from starlette.requests import Request
from starlette.responses import Response

from qsync.inspector import Change
from qsync.state import TaskState
from qsync.web import bulk_actions
from qsync.web.pages import Site
from qsync.web.query import Fields, Selection, selection_of
from qsync.web.tasks import listing
from qsync.web.translation import _, ngettext


async def list_some(site: Site, request: Request) -> Response:
    """List the dead tasks of a queue, or of all queues."""
    fields = Fields(request.query_params.multi_items())
    return await listing(site, request, fields, selection_of(fields, TaskState.DEAD), "dead")


async def run(site: Site, request: Request) -> Response:
    """Re-run the selected tasks; or re-run all matching tasks, after confirmation."""
    form = await site.form(request)
    selection = selection_of(form, TaskState.DEAD)
    if form.text("scope") != "all" and not form.text("cursor"):

        async def rerun(id: str) -> Change:
            return await site.acting(request).run(id, queue=selection.queue, state=TaskState.DEAD)

        return await bulk_actions.apply_to_selected(site, request, "run", selection, rerun, form)
    if form.text("sure") != "yes":
        return await _ask_to_run(site, request, form, selection)

    async def step(cursor: str | None) -> bulk_actions.Step:
        return await site.acting(request).run_dead(selection.queue, selection.filter, cursor=cursor)

    return await bulk_actions.run_steps(site, request, "run", selection, step, form)


async def delete(site: Site, request: Request) -> Response:
    """Delete the selected tasks or all matching tasks, after confirmation."""
    form = await site.form(request)
    selection = selection_of(form, TaskState.DEAD)
    is_all = form.text("scope") == "all" or bool(form.text("cursor"))
    if form.text("sure") != "yes" and (is_all or form.text("id-ticked")):
        return await _ask_to_delete(site, request, form, selection)
    if not is_all:

        async def remove(id: str) -> Change:
            return await site.acting(request).delete(
                id, queue=selection.queue, state=TaskState.DEAD
            )

        return await bulk_actions.apply_to_selected(
            site, request, "delete", selection, remove, form
        )

    async def step(cursor: str | None) -> bulk_actions.Step:
        return await site.acting(request).delete_dead(
            selection.queue, selection.filter, cursor=cursor
        )

    return await bulk_actions.run_steps(site, request, "delete", selection, step, form)


async def acknowledge(site: Site, request: Request) -> Response:
    """Acknowledge the dead tasks of a queue, so that the overview no longer reports them."""
    form = await site.form(request)
    queue, text = form.text("queue"), form.text("until", 40)
    try:
        until = datetime.fromisoformat(text) if text else None
        number = await site.acting(request).acknowledge_dead(queue, until=until)
    except ValueError:  # also InvalidTask
        return site.go(request, "/", _("Not a time: %(text)s", text=text), good=False)
    told = ngettext(
        "%(num)s dead task of queue %(queue)s is acknowledged.",
        "%(num)s dead tasks of queue %(queue)s are acknowledged.",
        number, queue=queue,
    )  # fmt: skip
    return site.go(request, "/", told)


async def _ask_to_run(site: Site, request: Request, form: Fields, selection: Selection) -> Response:
    """Ask for confirmation to re-run all matching tasks."""
    matching = await bulk_actions.count(site, selection)
    queue, narrowing = selection.queue, selection.narrowing
    if selection.narrowed:
        question = matching.counted(
            "Re-run %(num)s dead task in queue %(queue)s %(filter)s?",
            "Re-run %(num)s dead tasks in queue %(queue)s %(filter)s?",
            queue=queue, filter=narrowing,
        )  # fmt: skip
    else:
        question = matching.counted(
            "Re-run %(num)s dead task in queue %(queue)s?",
            "Re-run %(num)s dead tasks in queue %(queue)s?",
            queue=queue,
        )
    sentences = [question, _("The tasks get a fresh set of attempts."), *_others(matching)]
    button = matching.counted("Re-run %(num)s task", "Re-run %(num)s tasks")
    return site.confirm(
        request, form, text=" ".join(sentences), button=button, danger=False,
        title=matching.counted("Re-run %(num)s task?", "Re-run %(num)s tasks?"),
        back=bulk_actions.back_to(request, "/dead", **selection.query),
    )  # fmt: skip


async def _ask_to_delete(
    site: Site, request: Request, form: Fields, selection: Selection
) -> Response:
    """Ask for confirmation to delete the selected or all matching tasks."""
    ids = [] if form.text("scope") == "all" else form.all("id-ticked")
    matching = bulk_actions.Matching(len(ids)) if ids else await bulk_actions.count(site, selection)
    queue, narrowing = selection.queue, selection.narrowing
    if selection.narrowed and not ids:
        question = matching.counted(
            "Delete %(num)s dead task in queue %(queue)s %(filter)s?",
            "Delete %(num)s dead tasks in queue %(queue)s %(filter)s?",
            queue=queue, filter=narrowing,
        )  # fmt: skip
    else:
        question = matching.counted(
            "Delete %(num)s dead task in queue %(queue)s?",
            "Delete %(num)s dead tasks in queue %(queue)s?",
            queue=queue,
        )
    return site.confirm(
        request, form, text=" ".join([question, *_others(matching)]), items=ids,
        title=matching.counted("Delete %(num)s task?", "Delete %(num)s tasks?"),
        button=matching.counted("Delete %(num)s task", "Delete %(num)s tasks"),
        back=bulk_actions.back_to(request, "/dead", **selection.query),
    )  # fmt: skip


def _others(matching: bulk_actions.Matching) -> list[str]:
    """Return a sentence that says how many dead tasks do not match, if any."""
    if not matching.others:
        return []
    return [
        ngettext(
            "%(num)s other dead task stays.", "%(num)s other dead tasks stay.", matching.others
        )
    ]
