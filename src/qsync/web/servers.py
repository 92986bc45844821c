"""Pages that show servers, and actions on servers."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from qsync.inspector import Change
from qsync.web.bulk_actions import back_to
from qsync.web.events import last_actions
from qsync.web.pages import Site
from qsync.web.query import PAGE_SIZE, Fields, sheet_of
from qsync.web.translation import _


async def list_all(site: Site, request: Request) -> Response:
    """List the running servers."""
    running = await site.inspector.servers(tasks=False)
    servers, sheet = sheet_of(running, Fields(request.query_params.multi_items()))
    return site.page(request, "servers", servers=servers, sheet=sheet, running=running)


async def show(site: Site, request: Request) -> Response:
    """Show a server with the tasks on which it holds leases."""
    id = Fields(request.query_params.multi_items()).text("id")
    server = await site.inspector.server(id)
    if server is None:
        return site.page(
            request, "error", status=404, title=_("Server not found"),
            text=_(
                "The server has stopped, or has not reported for longer than its lease. Other "
                "servers take over its tasks."
            ),
        )  # fmt: skip
    actions = await last_actions(site, "", subject=id)
    return site.page(request, "server", server=server, limit=PAGE_SIZE, actions=actions)


async def quiet(site: Site, request: Request) -> Response:
    """Drain a server: it takes no new tasks."""
    id = (await site.form(request)).text("id")
    change = await site.acting(request).quiet(id)
    return _after(site, request, change, id, _("The server was told to take no new tasks."))


async def stop(site: Site, request: Request) -> Response:
    """Stop a server, after confirmation."""
    form = await site.form(request)
    id = form.text("id")
    if form.text("sure") != "yes":
        return site.confirm(
            request, form, title=_("Stop this server?"), items=[id], button=_("Stop server"),
            text=_(
                "Running tasks get the shutdown timeout to finish, then return to the queue. "
                "`qsync worker` exits when its last server stops; a supervisor may restart it."
            ),
            back=back_to(request, "/server", id=id),
        )  # fmt: skip
    change = await site.acting(request).stop(id)
    return _after(site, request, change, id, _("The server was told to stop."))


def _after(site: Site, request: Request, change: Change, id: str, good: str) -> Response:
    if not change.ok:
        return site.go(request, "/servers", _("The server is no longer running."), good=False)
    return site.go(request, "/server", good, id=id)
