"""Actions on the bounds of queues, and on the weights of fairness keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from starlette.requests import Request
from starlette.responses import Response

from qsync.errors import InvalidTask
from qsync.phrase import phrase_of, within
from qsync.web.pages import Site
from qsync.web.query import not_number, not_whole
from qsync.web.queues import no_queue
from qsync.web.translation import _
from qsync.worker.child_limits import size_of

if TYPE_CHECKING:
    from qsync.bounds import WhenFull


async def set_bounds(site: Site, request: Request) -> Response:
    """Set the bounds of a queue; an empty field means no bound."""
    form = await site.form(request)
    name, when = form.text("queue"), form.text("when_full")
    try:
        change = await site.acting(request).set_bounds(
            name, max_tasks=_count(form.text("max_tasks")), max_bytes=_size(form.text("max_bytes")),
            when_full=cast("WhenFull", when or "raise"),  # set_bounds checks it
        )  # fmt: skip
    except InvalidTask as error:
        return site.go(request, "/queue", phrase_of(error), good=False, queue=name)
    text = _("Queue %(queue)s has new bounds.", queue=name) if change.ok else no_queue(name)
    return site.go(request, "/queue", text, good=change.ok, queue=name)


async def reset(site: Site, request: Request) -> Response:
    """Remove an operator's bounds."""
    name = (await site.form(request)).text("queue")
    change = await site.acting(request).reset_bounds(name)
    text = _("No operator has set bounds for queue %(queue)s.", queue=name)
    if change.ok:
        text = _("The program's bounds apply again.")
    return site.go(request, "/queue", text, good=change.ok, queue=name)


async def set_weight(site: Site, request: Request) -> Response:
    """Set the weight of a fairness key."""
    form = await site.form(request)
    name, key = form.text("queue"), form.text("key")
    try:
        weight = float(form.text("weight"))
    except ValueError:
        wrong = not_number("weight", form.text("weight"))
        return site.go(request, "/queue", wrong, good=False, queue=name)
    try:
        change = await site.acting(request).set_weight(name, key, weight)
    except InvalidTask as error:
        return site.go(request, "/queue", phrase_of(error), good=False, queue=name)
    text = no_queue(name)
    if change.ok:
        text = _("Fairness key %(key)s has weight %(weight)s.", key=key, weight=weight)
    return site.go(request, "/queue", text, good=change.ok, queue=name)


async def reset_weight(site: Site, request: Request) -> Response:
    """Reset the weight of a fairness key to 1."""
    form = await site.form(request)
    name, key = form.text("queue"), form.text("key")
    change = await site.acting(request).reset_weight(name, key)
    text = _("Fairness key %(key)s already has weight 1.", key=key)
    if change.ok:
        text = _("Fairness key %(key)s has weight 1 again.", key=key)
    return site.go(request, "/queue", text, good=change.ok, queue=name)


def _count(text: str) -> int | None:
    if not text:
        return None
    if not text.isdigit():
        raise InvalidTask(not_whole("max_tasks", text))
    return int(text)


def _size(text: str) -> int | None:
    if not text:
        return None
    try:
        return size_of(text)
    except ValueError as error:
        raise InvalidTask(within("max_bytes", phrase_of(error))) from None
