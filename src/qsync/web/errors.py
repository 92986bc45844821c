"""The error pages: failed tasks by error, and one error with a traceback."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from qsync.inspector import ErrorGroup
from qsync.web.pages import Site
from qsync.web.query import Fields, sheet_of
from qsync.web.translation import _


async def list_all(site: Site, request: Request) -> Response:
    """List the errors of dead and retried tasks, the most frequent first."""
    fields = Fields(request.query_params.multi_items())
    scan = await site.error_scanner.read()
    groups, sheet = sheet_of(scan.groups, fields)
    return site.page(request, "errors", scan=scan, groups=groups, sheet=sheet)


async def show(site: Site, request: Request) -> Response:
    """Show an error: its tasks by queue and key, and the traceback of the latest."""
    id = Fields(request.query_params.multi_items()).text("id")
    scan = await site.error_scanner.read()
    group = _find(scan.groups, id)
    if group is None:
        text = _("No failed task has this error any more.")
        if not scan.finished:
            text = _("No failed task with this error has been found yet. Reload the page.")
        return site.page(request, "error", status=404, title=_("Error not found"), text=text)
    sample = await site.inspector.task(group.sample, queue=group.queue)
    return site.page(request, "one_error", group=group, sample=sample, scan=scan)


def _find(groups: list[ErrorGroup], id: str) -> ErrorGroup | None:
    return next((group for group in groups if group.id == id), None)
