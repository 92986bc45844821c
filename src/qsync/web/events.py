"""The record of operators' actions: its page, and the last actions that other pages show."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from qsync.errors import ConfigError
from qsync.inspector import OperatorEvent
from qsync.inspector.event_values import ACTIONS
from qsync.web.pages import Site
from qsync.web.query import Fields, sheet_of

EVENTS_READ: Final = 500
EVENTS_SHOWN: Final = 5
"""Number of latest actions that the pages of queues, tasks, schedules, limits and servers show."""

QUEUE_CHOICES: Final = 500


async def list_all(site: Site, request: Request) -> Response:
    """List the latest actions on all queues, or on one queue."""
    fields = Fields(request.query_params.multi_items())
    queue, action = fields.text("queue"), fields.text("action", 40)
    listed = await site.inspector.events(
        queue=queue or None, action=action or None, limit=EVENTS_READ
    )
    events, sheet = sheet_of(listed, fields)
    overview = await site.inspector.overview()
    names = [info.name for info in overview.queues]
    return site.page(
        request, "events", events=events, sheet=sheet, queue=queue, action=action,
        queues=sorted({*names[:QUEUE_CHOICES], *([queue] if queue else [])}), actions=ACTIONS,
        overview=overview,
    )  # fmt: skip


async def last_actions(site: Site, queue: str, **which: Any) -> list[OperatorEvent]:
    """Return the latest actions to show on another page; empty if the store user may not read them.

    An empty `queue` selects the actions that belong to no queue.
    """
    try:
        return await site.inspector.events(queue=queue, limit=EVENTS_SHOWN, **which)
    except ConfigError:
        return []
