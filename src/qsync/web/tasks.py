"""Tasks: lists by state, one task in full, and changes of one task."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from qsync.errors import InvalidTask
from qsync.inspector import Change, QueueInfo, Shown, TaskDetail
from qsync.inspector.payload_preview import show as show_bytes
from qsync.inspector.tasks import RUNNABLE
from qsync.state import UNFINISHED, TaskState
from qsync.web.bulk_actions import back_to
from qsync.web.pages import Mask, Site, links
from qsync.web.query import LIMIT, PAGE, Fields, Wanted, wanted

log = logging.getLogger("qsync.web")

CURSOR = 600


async def list_some(site: Site, request: Request) -> Response:
    """Show the tasks of a queue in a state."""
    fields = Fields(request.query_params.multi_items())
    which = wanted(fields)
    if which.state is TaskState.DEAD:  # the page of dead tasks has more actions
        return RedirectResponse(links(request)("/dead", which.query))
    return await listing(site, request, fields, which, "tasks")


async def listing(
    site: Site, request: Request, fields: Fields, which: Wanted, page: str
) -> Response:
    """Show a page of matching tasks; without a queue, of all queues."""
    queues = (await site.inspector.overview()).queues
    if len(queues) == 1 and not which.queue:
        which = replace(which, queue=queues[0].name)
    limit = fields.number("limit", LIMIT, 1, PAGE)
    found = None
    info = next((one for one in queues if one.name == which.queue), None)
    if which.queue and info is None:
        info = await site.inspector.queue(which.queue)
    cursor = fields.text("cursor", CURSOR) or None
    if not which.queue and queues:
        names = [one.name for one in queues if one.states[which.state]]
        found = await site.inspector.tasks_of(
            names, which.state, limit=limit, cursor=cursor, filter=which.filter
        )
    if which.queue:
        found = await site.inspector.tasks(
            which.queue, which.state, limit=limit, cursor=cursor, filter=which.filter
        )
    infos = [info] if which.queue else queues
    counts = {state: sum(one.states[state] for one in infos if one) for state in TaskState}
    return site.page(
        request, page, which=which, found=found, counts=counts, cursor=cursor,
        queues=_names(queues, which), limit=limit if limit != LIMIT else None,
    )  # fmt: skip


def _names(queues: list[QueueInfo], which: Wanted) -> list[tuple[str, int]]:
    """Return the queues to choose from, with the number of tasks that each has in the state."""
    found = [(info.name, info.states[which.state]) for info in queues]
    if which.queue and which.queue not in dict(found):
        found.append((which.queue, 0))
    return sorted(found, key=lambda one: (not one[1], one[0]))[:500]


async def find(site: Site, request: Request) -> Response:
    """Find a task by its id, in any queue."""
    id = Fields(request.query_params.multi_items()).text("id").strip()
    if not id:
        return site.page(request, "find", id="", found=[], problem="")
    try:
        found = await site.inspector.find(id)
    except InvalidTask:
        problem = "An id is 1 to 128 printable ASCII characters without spaces."
        return site.page(request, "find", status=400, id=id, found=[], problem=problem)
    if len(found) == 1:
        return RedirectResponse(links(request)("/task", queue=found[0].queue, id=id), 303)
    return site.page(request, "find", status=200 if found else 404, id=id, found=found, problem="")


async def show(site: Site, request: Request) -> Response:
    """Show one task, and why it is not running yet."""
    fields = Fields(request.query_params.multi_items())
    id, queue = fields.text("id"), fields.text("queue") or "default"
    task, told = await asyncio.gather(
        site.inspector.task(id, queue=queue), site.inspector.explain(id, queue=queue)
    )
    if task is None:
        return site.page(request, "gone", status=404, id=id, queue=queue, sentence=told.sentence)
    payload, hidden = await _payload(site, task)
    return site.page(
        request, "task", task=task, row=task.row, told=told, payload=payload, hidden=hidden,
        masked=site.mask is not None, runnable=task.row.state in RUNNABLE,
        cancellable=task.row.state in UNFINISHED,
    )  # fmt: skip


async def _payload(site: Site, task: TaskDetail) -> tuple[Shown | None, str]:
    """Return the payload to show; or None, and why it is hidden."""
    if site.mask is None:
        return task.shown, ""
    # In a thread: the mask is the user's code and may be slow.
    return await asyncio.to_thread(_masked, site.mask, task)


def _masked(mask: Mask, task: TaskDetail) -> tuple[Shown | None, str]:
    try:
        masked: Any = mask(task.row.type, task.payload)
    except Exception as error:
        log.warning("the mask of payloads failed: %s", type(error).__name__)
        return None, f"The mask failed with {type(error).__name__}, so nothing is shown."
    if isinstance(masked, str):
        return show_bytes(masked.encode(errors="backslashreplace"), is_value=False), ""
    if isinstance(masked, bytes):
        return show_bytes(masked, is_value=task.is_value), ""
    return None, "The mask returned neither text nor bytes, so nothing is shown."


async def run(site: Site, request: Request) -> Response:
    """Make a task pending now."""
    form = await site.form(request)
    id, queue = form.text("id"), form.text("queue")
    change = await site.inspector.run(id, queue=queue, state=form.text("state") or None)
    return _after(site, request, change, id, queue, "The task is pending: it runs as soon as a "
                  "server takes it.")  # fmt: skip


async def cancel(site: Site, request: Request) -> Response:
    """Cancel a task; if it runs, tell its server to stop it."""
    form = await site.form(request)
    id, queue = form.text("id"), form.text("queue")
    change = await site.inspector.cancel(id, queue=queue)
    told = (
        "Its server has been told to stop it." if change.outcome == "told" else "It is cancelled."
    )
    return _after(site, request, change, id, queue, told)


async def delete(site: Site, request: Request) -> Response:
    """Delete a task, after a confirmation."""
    form = await site.form(request)
    id, queue = form.text("id"), form.text("queue")
    if form.text("sure") != "yes":
        return site.confirm(
            request, form, title="Delete this task?", items=[id], button="Delete the task",
            text="It leaves the queue with its payload, its error and its history.",
            back=back_to(request, "/task", queue=queue, id=id),
        )  # fmt: skip
    change = await site.inspector.delete(id, queue=queue, state=form.text("state") or None)
    if change.outcome != "done":
        return _after(site, request, change, id, queue, "")
    state = form.text("state")
    path = "/dead" if state == TaskState.DEAD else "/tasks"
    return site.go(request, path, f"Task {id} is deleted.", queue=queue, state=state)


def _after(
    site: Site, request: Request, change: Change, id: str, queue: str, good: str
) -> Response:
    """Redirect to the task, with the outcome of the change."""
    text = good if change.ok else failed(change)
    return site.go(request, "/task", text, good=change.ok, queue=queue, id=id)


def failed(change: Change) -> str:
    """Say why nothing was changed."""
    match change.outcome:
        case "duplicate":
            return f"It stays where it is: task {change.holder} has its unique lock."
        case "too_late":
            return f"It is {change.state} by now, so nothing was done."
        case "refused":
            return f"Not possible: {change.why}."
        case _:
            return "It is not there any more."
