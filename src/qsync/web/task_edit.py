"""The page that edits the payload of a task, and its actions: save, retry, or enqueue as a copy."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote_plus

from starlette.requests import Request
from starlette.responses import Response

from qsync.errors import InvalidTask
from qsync.inspector import Change, TaskDetail
from qsync.inspector.edit_values import (
    payload_as_json,
    payload_from_json,
    payload_version,
    too_large_for_form,
)
from qsync.inspector.tasks import RUNNABLE, TIMED
from qsync.phrase import Phrase, phrase, phrase_of
from qsync.web.events import last_actions
from qsync.web.pages import Site
from qsync.web.query import Fields
from qsync.web.security import BODY_LIMIT
from qsync.web.tasks import failed
from qsync.web.translation import _

FORM_ROOM: Final = 60 * 1024
"""Maximum size of the URL-encoded payload in the form, in bytes; the whole request may have at most
64 KiB."""

VERBS: Final = ("save", "retry", "copy")


async def show(site: Site, request: Request) -> Response:
    """Show the payload of a task in a form."""
    fields = Fields(request.query_params.multi_items())
    id, queue = fields.text("id"), fields.text("queue") or "default"
    task = await site.inspector.task(id, queue=queue)
    if task is None:
        explanation = await site.inspector.explain(id, queue=queue)
        actions = await last_actions(site, queue, task=id)
        return site.page(
            request, "gone", status=404, id=id, explanation=explanation, actions=actions
        )
    try:
        text = _text_of(site, task)
    except InvalidTask as error:
        return site.page(
            request, "error", status=409, title=_("This task cannot be edited"),
            text=phrase_of(error),
        )  # fmt: skip
    return _form(site, request, task, text)


def _text_of(site: Site, task: TaskDetail) -> str:
    if site.mask is not None:
        raise InvalidTask(phrase("Payloads are masked here, so they cannot be edited."))
    if task.message_error:
        raise InvalidTask(phrase("The message cannot be read: %(error)s", error=task.message_error))
    text = payload_as_json(task.payload, is_value=task.is_value, limit=FORM_ROOM)
    if len(quote_plus(text.replace("\n", "\r\n"))) > FORM_ROOM:
        raise too_large_for_form()
    return text


def _form(
    site: Site, request: Request, task: TaskDetail, text: str, *, problem: Phrase | str = "",
    into: str = "", delay: str = "", version: str = "",
) -> Response:  # fmt: skip
    state = task.row.state
    seen = version or payload_version(task.payload, is_value=task.is_value)
    return site.page(
        request, "edit", status=400 if problem else 200, task=task, row=task.row, text=text,
        task_version=seen, problem=problem, into=into, delay=delay, editable=state in RUNNABLE,
        timed=state in TIMED,
    )  # fmt: skip


async def act(site: Site, request: Request) -> Response:
    """Save the payload, retry the task with it, or enqueue a copy with it."""
    form = await site.form(request)
    id, queue, verb = form.text("id"), form.text("queue"), form.text("verb")
    if verb not in VERBS:
        return site.page(request, "error", status=404, title=_("Page not found"), text="")
    task = await site.inspector.task(id, queue=queue)
    if task is None:
        return site.go(request, "/task", failed(Change(outcome="not_found")), good=False,
                       queue=queue, id=id)  # fmt: skip
    text, into, delay = form.text("payload", BODY_LIMIT), form.text("into"), form.text("delay")
    text, version = text.replace("\r\n", "\n"), form.text("version")
    try:
        _text_of(site, task)
        payload = payload_from_json(text, is_value=task.is_value)
        change = await _change(site, request, form, task, verb, payload)
    except InvalidTask as error:
        return _form(site, request, task, text, problem=phrase_of(error), into=into, delay=delay,
                     version=version)  # fmt: skip
    if not change.ok:
        return site.go(request, "/task", failed(change), good=False, queue=queue, id=id)
    if change.id is not None:
        message = _("This is the copy of task %(id)s.", id=id)
        return site.go(request, "/task", message, queue=change.queue, id=change.id)
    message = _("The task runs with the new payload.") if verb == "retry" else _("Payload saved.")
    return site.go(request, "/task", message, queue=queue, id=id)


async def _change(
    site: Site, request: Request, form: Fields, task: TaskDetail, verb: str, payload: Any
) -> Change:
    row, delay = task.row, _delay_of(form.text("delay").strip())
    if verb == "copy":
        into = form.text("into").strip() or None
        return await site.acting(request).copy_task(
            row.id, payload, queue=row.queue, into=into, delay=delay
        )
    return await site.acting(request).edit_task(
        row.id, payload, queue=row.queue, state=form.text("state") or None,
        retry=verb == "retry", delay=None if verb == "retry" else delay,
        version=form.text("version") or None,
    )  # fmt: skip


def _delay_of(text: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        problem = phrase("Delay “%(text)s” is not a number of seconds.", text=text[:40])
        raise InvalidTask(problem) from None
