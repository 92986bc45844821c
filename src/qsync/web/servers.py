"""Servers: lists, details, and quiet and stop."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from qsync.inspector import Change
from qsync.web.bulk_actions import back_to
from qsync.web.pages import Site
from qsync.web.query import PAGE, Fields, sheet_of


async def list_all(site: Site, request: Request) -> Response:
    """Show the live servers, with how much they run."""
    found = await site.inspector.servers(tasks=False)
    servers, sheet = sheet_of(found, Fields(request.query_params.multi_items()))
    return site.page(request, "servers", servers=servers, sheet=sheet, found=found)


async def show(site: Site, request: Request) -> Response:
    """Show a server with the tasks that it holds leases on."""
    id = Fields(request.query_params.multi_items()).text("id")
    server = await site.inspector.server(id)
    if server is None:
        return site.page(
            request, "error", status=404, title="There is no such server",
            text="It has stopped, or has not been heard of for longer than its lease. What it ran "
            "is taken over by the others.",
        )  # fmt: skip
    return site.page(request, "server", server=server, most=PAGE)


async def quiet(site: Site, request: Request) -> Response:
    """Tell a server to take no more tasks."""
    id = (await site.form(request)).text("id")
    change = await site.inspector.quiet(id)
    return _after(site, request, change, id, "It has been told to take no more tasks.")


async def stop(site: Site, request: Request) -> Response:
    """Tell a server to stop, after a confirmation."""
    form = await site.form(request)
    id = form.text("id")
    if form.text("sure") != "yes":
        return site.confirm(
            request, form, title="Stop this server?", items=[id], button="Stop the server",
            text="What it runs may go on for its shutdown timeout, and is handed back then. "
            "`qsync worker` ends with it, unless something starts it anew.",
            back=back_to(request, "/server", id=id),
        )  # fmt: skip
    return _after(site, request, await site.inspector.stop(id), id, "It has been told to stop.")


def _after(site: Site, request: Request, change: Change, id: str, good: str) -> Response:
    if not change.ok:
        return site.go(request, "/servers", "That server is not there any more.", good=False)
    return site.go(request, "/server", good, id=id)
