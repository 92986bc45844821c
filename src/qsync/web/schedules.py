"""Pages that show schedules, and actions on schedules."""

from __future__ import annotations

from typing import Any, Final, get_args

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from qsync.errors import InvalidTask
from qsync.inspector import Change, Inspector
from qsync.inspector.values import refused
from qsync.phrase import Phrase, phrase, phrase_of
from qsync.schedule import Missed
from qsync.task import DEFAULT
from qsync.web.bulk_actions import back_to
from qsync.web.pages import Site
from qsync.web.query import Fields, not_seconds, sheet_of
from qsync.web.tasks import failed
from qsync.web.template_filters import form_number
from qsync.web.translation import _

PAYLOAD_TEXT: Final = 48 * 1024
"""Maximum length of a field in the schedule form, in characters."""

FIELDS: Final = ("name", "type", "queue", "payload", "cron", "every", "tz", "missed")
"""Fields of the schedule form."""


async def list_all(site: Site, request: Request) -> Response:
    """List the schedules of all queues, or only those whose names begin with the filter's text."""
    fields = Fields(request.query_params.multi_items())
    prefix = fields.text("name").strip()
    infos = await site.inspector.schedules(prefix=prefix)
    schedules, sheet = sheet_of(infos, fields)
    return site.page(request, "schedules", schedules=schedules, sheet=sheet, begins=prefix)


async def show(site: Site, request: Request) -> Response:
    """Show the form for a new schedule, or for the stored schedule that the query names."""
    fields = Fields(request.query_params.multi_items())
    name, queue = _schedule_of(fields)
    if not name:
        return _form(site, request, {"queue": DEFAULT, "missed": "skip"}, is_new=True)
    info = await site.inspector.schedule(name, queue=queue)
    if info is None or not info.stored:
        return site.page(
            request, "error", status=404, title=_("There is no such schedule in the store."),
            text=_("The schedule was deleted, or it belongs to a program."),
        )  # fmt: skip
    values = {
        "name": name, "queue": queue, "type": info.type, "cron": info.cron or "",
        "every": form_number(info.every), "tz": info.tz or "", "missed": info.missed,
    }  # fmt: skip
    return _form(site, request, values, is_new=False)


async def put(site: Site, request: Request) -> Response:
    """Create a schedule, or change when a stored one ticks."""
    form = await site.form(request)
    values = {field: form.text(field, PAYLOAD_TEXT).strip() for field in FIELDS}
    is_new = form.text("new") == "yes"
    try:
        change = await (_create if is_new else _edit)(site.acting(request), values)
    except InvalidTask as error:
        return _form(site, request, values, is_new=is_new, problem=phrase_of(error))
    if change.ok or change.outcome == "not_found":
        text = _("Schedule %(name)s is changed.", name=values["name"])
        if is_new:
            text = _("Schedule %(name)s is created.", name=values["name"])
        return _after(site, request, change, text)
    problem = change.phrase or change.why or ""
    return _form(site, request, values, is_new=is_new, problem=problem)


async def _create(inspector: Inspector, values: dict[str, str]) -> Change:
    name = values["name"]
    if await inspector.stored_schedule(name) is not None:
        return refused(phrase("name: schedule %(name)s already exists", name=name))
    payload, queue = _payload(values["payload"]), values["queue"] or DEFAULT
    task = inspector.build_task(values["type"], payload, queue=queue)
    await inspector.put_schedule(name, task, **_schedule_from(values))
    return Change(outcome="done")


async def _edit(inspector: Inspector, values: dict[str, str]) -> Change:
    return await inspector.reschedule(
        values["name"], queue=values["queue"], **_schedule_from(values)
    )


def _schedule_from(values: dict[str, str]) -> dict[str, Any]:
    """Return the fields of a form that say when a schedule ticks, as arguments for the inspector.

    Raises InvalidTask if the interval is not a number.
    """
    every = values["every"]
    try:
        seconds = float(every) if every else None
    except ValueError:
        raise InvalidTask(not_seconds("every", every)) from None
    return {
        "cron": values["cron"] or None, "every": seconds, "tz": values["tz"] or None,
        "missed": values["missed"],
    }  # fmt: skip


def _payload(text: str) -> Any:
    if not text:
        return b""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise InvalidTask(phrase("payload: not JSON: %(error)s", error=str(error))) from None


def _form(
    site: Site,
    request: Request,
    values: dict[str, str],
    *,
    is_new: bool,
    problem: str | Phrase = "",
) -> Response:
    if site.is_read_only(request):
        title = _("This dashboard is read-only.")
        return site.page(request, "error", status=403, title=title, text="")
    form_values = dict.fromkeys(FIELDS, "") | values
    return site.page(
        request, "schedule", status=400 if problem else 200, given=form_values, is_new=is_new,
        problem=problem, choices=get_args(Missed),
    )  # fmt: skip


async def delete(site: Site, request: Request) -> Response:
    """Delete a schedule from the store, after confirmation."""
    form = await site.form(request)
    name, queue = _schedule_of(form)
    if form.text("sure") != "yes":
        text = _(
            "The schedule enqueues no further tasks. Tasks that it has already enqueued are not "
            "affected."
        )
        return _ask_to_delete(site, request, form, text)
    change = await site.acting(request).delete_schedule(name, queue=queue)
    return _after(site, request, change, _("Schedule %(name)s is deleted.", name=name))


async def pause(site: Site, request: Request) -> Response:
    """Pause a schedule."""
    form = await site.form(request)
    name, queue = _schedule_of(form)
    change = await site.acting(request).pause_schedule(name, queue=queue, why=form.text("why"))
    return _after(site, request, change, _("Schedule %(name)s is paused.", name=name))


async def resume(site: Site, request: Request) -> Response:
    """Resume a schedule."""
    name, queue = _schedule_of(await site.form(request))
    change = await site.acting(request).resume_schedule(name, queue=queue)
    return _after(
        site, request, change, _("Schedule %(name)s resumes with its next run.", name=name)
    )


async def trigger(site: Site, request: Request) -> Response:
    """Enqueue the task of a schedule once, now."""
    name, queue = _schedule_of(await site.form(request))
    change = await site.acting(request).trigger(name, queue=queue)
    if change.outcome != "done":
        return _after(site, request, change, "")
    text = _("Schedule %(name)s was triggered. This is its task.", name=name)
    return site.go(request, "/task", text, queue=queue, id=change.holder)


async def forget(site: Site, request: Request) -> Response:
    """Delete a program's schedule that no running server publishes, after confirmation."""
    form = await site.form(request)
    name, queue = _schedule_of(form)
    if form.text("sure") != "yes":
        text = _(
            "No running server publishes this schedule. It reappears if a server publishes it "
            "again."
        )
        return _ask_to_delete(site, request, form, text)
    change = await site.acting(request).forget_schedule(name, queue=queue)
    return _after(site, request, change, _("Schedule %(name)s is deleted.", name=name))


def _ask_to_delete(site: Site, request: Request, form: Fields, text: str) -> Response:
    return site.confirm(
        request, form, title=_("Delete this schedule?"), items=[form.text("name")], text=text,
        button=_("Delete the schedule"), back=back_to(request, "/schedules"),
    )  # fmt: skip


def _schedule_of(form: Fields) -> tuple[str, str]:
    return form.text("name"), form.text("queue")


def _after(site: Site, request: Request, change: Change, good: str) -> Response:
    text = good if change.ok else failed(change)
    return site.go(request, "/schedules", text, good=change.ok)
