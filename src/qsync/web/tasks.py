"""The task pages (lists by state, and one task), and actions on one task."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from qsync.errors import InvalidTask
from qsync.inspector import Change, QueueInfo, Shown, TaskDetail
from qsync.inspector.edits import COPY_HEADER
from qsync.inspector.task_detail import show as show_bytes
from qsync.inspector.tasks import RUNNABLE, TIMED
from qsync.inspector.values import refused
from qsync.phrase import phrase
from qsync.state import UNFINISHED, TaskState
from qsync.times import MAX_SECONDS
from qsync.value_text import shorten
from qsync.web.attempts import bars_of, outcomes, trace_link
from qsync.web.bulk_actions import back_to
from qsync.web.events import last_actions
from qsync.web.names import state_name
from qsync.web.pages import Mask, Site, links
from qsync.web.query import DEFAULT_LIMIT, PAGE_SIZE, Fields, Selection, selection_of
from qsync.web.translation import _, utc

log: Final = logging.getLogger("qsync.web")

MAX_CURSOR_LENGTH: Final = 600
MAX_SEARCHED: Final = 10**12
QUEUE_CHOICES: Final = 500


async def list_some(site: Site, request: Request) -> Response:
    """List the tasks in a state, of one queue or of all queues."""
    fields = Fields(request.query_params.multi_items())
    selection = selection_of(fields)
    if selection.state is TaskState.DEAD:  # the page of dead tasks has more actions
        return RedirectResponse(links(request)("/dead", selection.query))
    return await listing(site, request, fields, selection, "tasks")


async def listing(
    site: Site, request: Request, fields: Fields, selection: Selection, page: str
) -> Response:
    """Show a page of the matching tasks of a queue, or of all queues if none is selected."""
    queues = (await site.inspector.overview()).queues
    if len(queues) == 1 and not selection.queue:
        selection = replace(selection, queue=queues[0].name)
    limit = fields.number("limit", DEFAULT_LIMIT, 1, PAGE_SIZE)
    result = None
    info = next((queue for queue in queues if queue.name == selection.queue), None)
    if selection.queue and info is None:
        info = await site.inspector.queue(selection.queue)
    cursor = fields.text("cursor", MAX_CURSOR_LENGTH) or None
    if not selection.queue and queues:
        names = [queue.name for queue in queues if queue.states[selection.state]]
        result = await site.inspector.tasks_of(
            names, selection.state, limit=limit, cursor=cursor, filter=selection.filter
        )
    if selection.queue:
        result = await site.inspector.tasks(
            selection.queue, selection.state, limit=limit, cursor=cursor, filter=selection.filter
        )
    is_unknown = bool(selection.type) and await _is_unknown(site, selection)
    infos = [info] if selection.queue else queues
    counts = {state: sum(queue.states[state] for queue in infos if queue) for state in TaskState}
    return site.page(
        request, page, selection=selection, listing=result, counts=counts, cursor=cursor,
        is_unknown=is_unknown,
        searched=fields.number("searched", 0, 0, MAX_SEARCHED) + (result.scanned if result else 0),
        queues=_queue_choices(queues, selection), limit=limit if limit != DEFAULT_LIMIT else None,
    )  # fmt: skip


async def _is_unknown(site: Site, selection: Selection) -> bool:
    """Return whether no running server has a handler for the selected type."""
    unknown = (await site.inspector.fleet()).unknown_types
    return selection.type in unknown.get(selection.queue, ())


def _queue_choices(queues: list[QueueInfo], selection: Selection) -> list[tuple[str, int]]:
    """Return the queues to choose from, each with its number of tasks in the selected state."""
    choices = [(info.name, info.states[selection.state]) for info in queues]
    if selection.queue and selection.queue not in dict(choices):
        choices.append((selection.queue, 0))
    return sorted(choices, key=lambda choice: (not choice[1], choice[0]))[:QUEUE_CHOICES]


async def find(site: Site, request: Request) -> Response:
    """Find a task by its id, in any queue."""
    id = Fields(request.query_params.multi_items()).text("id").strip()
    if not id:
        return site.page(request, "find", id="", rows=[], problem="")
    try:
        rows = await site.inspector.find(id)
    except InvalidTask:
        problem = _("Invalid id: use 1 to 128 printable ASCII characters without spaces.")
        return site.page(request, "find", status=400, id=id, rows=[], problem=problem)
    if len(rows) == 1:
        return RedirectResponse(links(request)("/task", queue=rows[0].queue, id=id), 303)
    return site.page(request, "find", status=200 if rows else 404, id=id, rows=rows, problem="")


async def show(site: Site, request: Request) -> Response:
    """Show one task, and why it is not running yet."""
    fields = Fields(request.query_params.multi_items())
    id, queue = fields.text("id"), fields.text("queue") or "default"
    task, explanation = await asyncio.gather(
        site.inspector.task(id, queue=queue), site.inspector.explain(id, queue=queue)
    )
    actions = await last_actions(site, queue, task=id)
    if task is None:
        return site.page(
            request, "gone", status=404, id=id, explanation=explanation, actions=actions
        )
    payload, hidden = await _payload(site, task)
    stack = None
    if task.row.server is not None:
        stack = await site.inspector.stack_seen(task.row.server, id, queue=queue)
    origin = task.headers.get(COPY_HEADER, "")
    return site.page(
        request, "task", task=task, stack=stack, bars=bars_of(task, explanation, actions),
        outcomes=outcomes(), trace=trace_link(site.trace_url, task),
        copy_of=origin.partition("/")[::2] if "/" in origin else None,
        row=task.row, explanation=explanation, actions=actions,
        payload=payload, hidden=hidden,
        masked=site.mask is not None, runnable=task.row.state in RUNNABLE,
        cancellable=task.row.state in UNFINISHED, timed=task.row.state in TIMED,
    )  # fmt: skip


async def _payload(site: Site, task: TaskDetail) -> tuple[Shown | None, str]:
    """Return the payload to show, or None and the reason why it is hidden."""
    if site.mask is None:
        return task.shown, ""
    # Run the mask in a thread, because it is the user's code and may be slow.
    return await asyncio.to_thread(_masked, site.mask, task)


def _masked(mask: Mask, task: TaskDetail) -> tuple[Shown | None, str]:
    try:
        masked: Any = mask(task.row.type, task.payload)
    except Exception as error:
        log.warning("the mask of payloads failed: %s", type(error).__name__)
        return None, _("Hidden: the mask failed with %(error)s.", error=type(error).__name__)
    if isinstance(masked, str):
        return show_bytes(masked.encode(errors="backslashreplace"), is_value=False), ""
    if isinstance(masked, bytes):
        return show_bytes(masked, is_value=task.is_value), ""
    return None, _("Hidden: the mask returned neither text nor bytes.")


async def run(site: Site, request: Request) -> Response:
    """Make a waiting or dead task pending immediately."""
    form = await site.form(request)
    id, queue = form.text("id"), form.text("queue")
    change = await site.acting(request).run(id, queue=queue, state=form.text("state") or None)
    text = _("The task is pending.")
    if change.state is TaskState.LIMITED:
        text = _("The task waits for its limits, or for the end of a pause of its type.")
    return _after(site, request, change, id, queue, text)


async def reschedule(site: Site, request: Request) -> Response:
    """Change when a task is due."""
    form = await site.form(request)
    id, queue, text = form.text("id"), form.text("queue"), form.text("delay").strip()
    try:
        change = await site.acting(request).reschedule_task(id, queue=queue, delay=float(text))
    except ValueError:  # also InvalidTask
        why = phrase(
            "delay: %(value)s is not a number of seconds from 0 to %(longest)s",
            value=shorten(text), longest=round(MAX_SECONDS),
        )  # fmt: skip
        change = refused(why)
    good = _("The task is due at %(time)s.", time=utc(change.at))
    return _after(site, request, change, id, queue, good)


async def stack(site: Site, request: Request) -> Response:
    """Ask the server of a running task for the stack of its handler; redirect to the task."""
    form = await site.form(request)
    id, queue = form.text("id"), form.text("queue")
    answer = await site.inspector.stack(id, queue=queue)
    text, good = _("The server sent the stack of the handler."), answer is not None
    if answer is None:
        text = _("The server did not answer: the task has ended, or the server's loop is blocked.")
    return site.go(request, "/task", text, good=good, queue=queue, id=id)


async def cancel(site: Site, request: Request) -> Response:
    """Cancel a task; if the task is running, tell its server to stop it."""
    form = await site.form(request)
    id, queue = form.text("id"), form.text("queue")
    change = await site.acting(request).cancel(id, queue=queue)
    is_running = change.outcome == "told"
    text = _("The task is cancelled.")
    if is_running:
        text = _("The server was told to stop the task.")
    return _after(site, request, change, id, queue, text)


async def delete(site: Site, request: Request) -> Response:
    """Delete a task, after confirmation."""
    form = await site.form(request)
    id, queue = form.text("id"), form.text("queue")
    if form.text("sure") != "yes":
        return site.confirm(
            request, form, title=_("Delete this task?"), items=[id], button=_("Delete task"),
            text=_("This deletes the task's payload, errors and history, and cannot be undone."),
            back=back_to(request, "/task", queue=queue, id=id),
        )  # fmt: skip
    change = await site.acting(request).delete(id, queue=queue, state=form.text("state") or None)
    if change.outcome != "done":
        return _after(site, request, change, id, queue, "")
    state = form.text("state")
    path = "/dead" if state == TaskState.DEAD else "/tasks"
    return site.go(request, path, _("Task %(id)s is deleted.", id=id), queue=queue, state=state)


def _after(
    site: Site, request: Request, change: Change, id: str, queue: str, good: str
) -> Response:
    """Redirect to the task, with the outcome of the change."""
    text = good if change.ok else failed(change)
    return site.go(request, "/task", text, good=change.ok, queue=queue, id=id)


def failed(change: Change) -> str:
    """Return why nothing was changed."""
    match change.outcome:
        case "duplicate":
            return _("Not changed: task %(id)s holds the unique lock.", id=change.holder)
        case "too_late":
            return _("Not changed: the task is now %(state)s.", state=state_name(change.state))
        case "refused":
            return _("Not possible: %(reason)s.", reason=change.phrase or change.why)
        case _:
            return _("Not found: it no longer exists.")
