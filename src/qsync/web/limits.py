"""The page of a queue's limits, and its actions."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from qsync.errors import InvalidTask
from qsync.limit import LimitRule, check_limit, limit_rule
from qsync.phrase import phrase, phrase_of
from qsync.web.events import last_actions
from qsync.web.pages import Site
from qsync.web.query import Fields, not_seconds, not_whole
from qsync.web.queues import no_queue
from qsync.web.translation import _


async def list_some(site: Site, request: Request) -> Response:
    """List the limits of a queue."""
    fields = Fields(request.query_params.multi_items())
    queue, chosen = fields.text("queue") or "default", fields.text("limit")
    cursor = fields.text("cursor") or None
    page = await site.inspector.limits(queue, cursor=cursor)
    shown = None
    if chosen:
        shown = await site.inspector.limit(check_limit(chosen, "limit"), queue=queue)
    which = {"action": "limit", **({"subject": chosen} if chosen else {})}
    return site.page(
        request, "limits", queue=queue, listing=page, cursor=cursor, shown=shown, chosen=chosen,
        actions=await last_actions(site, queue, **which),
    )  # fmt: skip


async def set_rule(site: Site, request: Request) -> Response:
    """Set the rule of a limit."""
    form = await site.form(request)
    queue, limit = form.text("queue") or "default", form.text("limit")
    try:
        rule = _rule(check_limit(limit, "limit"), form)
    except InvalidTask as error:
        return site.go(request, "/limits", phrase_of(error), good=False, queue=queue)
    change = await site.acting(request).set_limit(limit, rule, queue=queue)
    text = no_queue(queue)
    if change.ok:
        text = _("%(limit)s: %(rule)s.", limit=limit, rule=rule.phrase)
    return site.go(request, "/limits", text, good=change.ok, queue=queue)


async def reset(site: Site, request: Request) -> Response:
    """Remove the rule that an operator has set."""
    form = await site.form(request)
    queue, limit = form.text("queue") or "default", form.text("limit")
    change = await site.acting(request).reset_limit(check_limit(limit, "limit"), queue=queue)
    text = _("The program's rule applies again to %(limit)s.", limit=limit)
    if not change.ok:
        text = _("No rule was set for %(limit)s.", limit=limit)
    return site.go(request, "/limits", text, good=change.ok, queue=queue)


async def open_now(site: Site, request: Request) -> Response:
    """Open a limit that a handler has closed by raising RateLimited."""
    form = await site.form(request)
    queue, limit = form.text("queue") or "default", form.text("limit")
    change = await site.acting(request).open_limit(check_limit(limit, "limit"), queue=queue)
    text = _("%(limit)s is open.", limit=limit)
    if change.outcome == "too_late":
        text = _("%(limit)s was not closed.", limit=limit)
    elif not change.ok:
        text = no_queue(queue)
    return site.go(request, "/limits", text, good=change.ok, queue=queue)


def _rule(limit: str, form: Fields) -> LimitRule:
    """Parse the rule in a form; raise InvalidTask if it is invalid."""
    return limit_rule(
        phrase("limit %(limit)s", limit=limit),
        rate=_int_field("rate", form),
        per=_seconds("per", form),
        burst=_int_field("burst", form),
        concurrency=_int_field("concurrency", form),
    )


def _int_field(field: str, form: Fields) -> int | None:
    text = form.text(field).strip()
    if not text:
        return None
    if not text.isascii() or not text.isdigit():
        raise InvalidTask(not_whole(field, text))
    return int(text)


def _seconds(field: str, form: Fields) -> float | None:
    text = form.text(field).strip()
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise InvalidTask(not_seconds(field, text)) from None
