"""Builds the ASGI app of the dashboard."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from importlib.resources import files
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from qsync.errors import (
    ConfigError,
    InvalidTask,
    QsyncError,
    QueueFull,
    SchemaMismatch,
    StoreUnavailable,
)
from qsync.inspector import Inspector
from qsync.phrase import phrase_of
from qsync.value_text import shorten
from qsync.web import (
    bulk_actions,
    dead,
    errors,
    events,
    export,
    limits,
    monitoring,
    overview,
    queue_bounds,
    queues,
    schedule_runs,
    schedules,
    search,
    search_changes,
    servers,
    task_edit,
    tasks,
    types,
    waiting_tasks,
)
from qsync.web.auth import Auth, DenyAll, SignIn, root_of
from qsync.web.error_scan import ErrorScanner
from qsync.web.options import TIMEOUT_S, check_options, check_others
from qsync.web.pages import Mask, Site, make_environment
from qsync.web.roles import Role, RoleOf
from qsync.web.sampler import Sampler
from qsync.web.security import RequestGuard, Rules, sign_in_of
from qsync.web.translation import _, written

log: Final = logging.getLogger("qsync.web")

View = Callable[[Site, Request], Awaitable[Response]]

VIEWS: Final[dict[str, View]] = {
    "/": overview.show,
    "/queues": queues.list_all,
    "/queue": queues.show,
    "/limits": limits.list_some,
    "/types": types.list_all,
    "/type": types.show,
    "/tasks": tasks.list_some,
    "/dead": dead.list_some,
    "/errors": errors.list_all,
    "/error": errors.show,
    "/task": tasks.show,
    "/edit": task_edit.show,
    "/find": tasks.find,
    "/keys": search.show_keys,
    "/search": search.show,
    "/search/export": export.tasks,
    "/servers": servers.list_all,
    "/server": servers.show,
    "/events": events.list_all,
    "/schedules": schedules.list_all,
    "/schedule": schedules.show,
    "/schedule/runs": schedule_runs.show,
    "/more": bulk_actions.continue_page,
    "/metrics": monitoring.metrics,
    "/health": monitoring.health,
}

ACTIONS: Final[dict[str, View]] = {
    "/queue/pause": queues.pause,
    "/queue/resume": queues.resume,
    "/queue/purge": queues.purge,
    "/queue/delete": queues.delete,
    "/type/pause": types.pause,
    "/type/resume": types.resume,
    "/limit/set": limits.set_rule,
    "/limit/reset": limits.reset,
    "/limit/open": limits.open_now,
    "/queue/target": queues.set_target,
    "/dead/acknowledge": dead.acknowledge,
    "/queue/bounds": queue_bounds.set_bounds,
    "/queue/bounds/reset": queue_bounds.reset,
    "/queue/weight": queue_bounds.set_weight,
    "/queue/weight/reset": queue_bounds.reset_weight,
    "/task/run": tasks.run,
    "/task/reschedule": tasks.reschedule,
    "/task/edit": task_edit.act,
    "/task/stack": tasks.stack,
    "/task/cancel": tasks.cancel,
    "/task/delete": tasks.delete,
    "/tasks/run": waiting_tasks.run,
    "/tasks/cancel": waiting_tasks.cancel,
    "/tasks/delete": waiting_tasks.delete,
    "/search/act": search_changes.act,
    "/dead/run": dead.run,
    "/dead/delete": dead.delete,
    "/server/quiet": servers.quiet,
    "/server/stop": servers.stop,
    "/schedule/put": schedules.put,
    "/schedule/delete": schedules.delete,
    "/schedule/pause": schedules.pause,
    "/schedule/resume": schedules.resume,
    "/schedule/trigger": schedules.trigger,
    "/schedule/forget": schedules.forget,
    "/schedule/backfill": schedule_runs.backfill,
}

WITHOUT_TIMES: Final = {search.show_keys, monitoring.metrics, monitoring.health}
"""Views that show no times, so the store's clock is not read for them. `show_keys` needs no store,
and `health` reports whether the store answers."""

STATIC: Final = {
    "style.css": "text/css",
    "script.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
"""Media types of the static files; no other files are served."""


class Dashboard(Starlette):
    """The dashboard: run it, or mount it in another ASGI app.

    While the dashboard runs, it reads the queues every 5 s for its charts. A mounted dashboard gets
    no lifespan events, unless the outer app passes them on; that app can use `async with
    dashboard:` in its own lifespan. Without these events, the dashboard starts to read the queues
    at the first request, and stops when the event loop ends.
    """

    def __init__(self, sites: Sequence[Site], rules: Rules) -> None:
        self.sites = sites
        self.site: Site = sites[0]
        site = self.site
        access = sign_in_of(rules.access)
        sign_in = SignIn(access, site.environment) if access is not None else None
        super().__init__(
            routes=[*_routes(site, sign_in), *map(_mount, sites[1:])],
            middleware=[Middleware(_guard, rules=rules, sign_in=sign_in)],
            exception_handlers={HTTPException: _bind(site, _not_found)},
            lifespan=_lifespan,
        )
        self.router.redirect_slashes = False

    async def __aenter__(self) -> Self:
        for site in self.sites:
            site.sampler.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for site in self.sites:
            await site.sampler.stop()
            await site.error_scanner.stop()


def create_app(
    inspector: Inspector,
    *,
    others: Mapping[str, Inspector] | None = None,
    token: str | None = None,
    view_token: str | None = None,
    auth: Auth | Literal["host"] | None = None,
    read_only: bool = True,
    mask: Mask | None = None,
    hosts: Collection[str] | None = None,
    timeout: float = TIMEOUT_S,
    language: str | None = None,
    trace_url: str | None = None,
    role: RoleOf | Role | None = None,
) -> Dashboard:
    """Return the dashboard of the inspector's queues as an ASGI app.

    others     more stores or prefixes by display name; their pages are below /store/<name>
    token      secret that grants access: users enter it in a sign-in form, which sets a cookie;
               programs send it as `Authorization: Bearer`
    view_token second secret, for users and programs that may only read
    auth       sync or async function that takes the request. If it returns True or the user's
               name, the request is allowed; if it returns a Response, e.g. a redirect to a sign-in
               page, the dashboard sends this Response instead. "host" means that the outer app has
               already checked the request. Without token and auth, all requests are refused.
    read_only  whether all changes are refused
    mask       function that takes a task's type and payload (the bytes that a handler gets) and
               returns what to show: text, or bytes of the same kind. With a mask, results
               are hidden.
    hosts      allowed names in the Host header, against DNS rebinding; None allows any name
    timeout    time limit of a request, in seconds
    language   language of the pages, "en" or "ru"; by default the one that the browser
               prefers. Users can choose another language on each page.
    trace_url  URL of a trace, with {trace_id} in it; the page of a task links to the trace in the
               task's header `traceparent`
    role       permissions of users: `view`, `operate` or `delete`, or a function of the request,
               sync or async, that returns one of these; None allows all changes. A page shows only
               the buttons that the role allows; other changes are refused with 403.

    The caller closes the inspector. Raises ConfigError if an option is invalid.
    """
    return make_dashboard(
        inspector, others=others, token=token, view_token=view_token, auth=auth,
        read_only=read_only, mask=mask, hosts=hosts, timeout=timeout, language=language,
        trace_url=trace_url, role=role, allowed_by="create_app(..., read_only=False)",
    )  # fmt: skip


def make_dashboard(
    inspector: Inspector,
    *,
    others: Mapping[str, Inspector] | None = None,
    token: str | None = None,
    view_token: str | None = None,
    auth: Auth | Literal["host"] | None = None,
    read_only: bool = True,
    mask: Mask | None = None,
    hosts: Collection[str] | None = None,
    timeout: float = TIMEOUT_S,
    language: str | None = None,
    trace_url: str | None = None,
    role: RoleOf | Role | None = None,
    allowed_by: str,
    hosts_by: str = "hosts=",
) -> Dashboard:
    """Return the dashboard as `create_app` does.

    allowed_by   the setting that enables changes, as a user writes it; shown if changes are off
    hosts_by     the setting that allows a name in the Host header; shown if a name is refused
    """
    inspectors = _by_path(inspector, check_others(others, "inspectors"))
    options = check_options(
        token=token, view_token=view_token, auth=auth, read_only=read_only, mask=mask, hosts=hosts,
        timeout=timeout, language=language, trace_url=trace_url, role=role,
    )  # fmt: skip
    if isinstance(options.access, DenyAll):
        log.warning("the dashboard refuses all requests: pass token= or auth= to create_app()")
    environment = make_environment()
    titles = {title: path for path, (title, each) in inspectors.items()} if others else {}
    sites = [
        Site(
            inspector=each,
            environment=environment,
            sampler=Sampler(each),
            error_scanner=ErrorScanner(each),
            read_only=options.read_only,
            allowed_by=allowed_by,
            signs_in=options.signs_in,
            mask=options.mask,
            trace_url=options.trace_url,
            path=path,
            others=titles,
        )
        for path, (title, each) in inspectors.items()
    ]
    rules = Rules(
        options.access, options.read_only, allowed_by, options.hosts, hosts_by, options.timeout,
        options.language, options.role,
    )  # fmt: skip
    return Dashboard(sites, rules)


def _by_path(first: Inspector, others: Mapping[str, Inspector]) -> dict[str, tuple[str, Inspector]]:
    """Return the title and the inspector of each site by its path below the dashboard."""
    if not isinstance(first, Inspector):
        raise ConfigError(
            f"inspector: {shorten(first)} is not an Inspector; create one with Qsync.inspector()"
        )
    sites = {"": (first.prefix, first)}
    for name, inspector in others.items():
        if not isinstance(inspector, Inspector):
            raise ConfigError(
                f"others: {name}: {shorten(inspector)} is not an Inspector; create one with "
                "Qsync.inspector()"
            )
        if name == first.prefix:
            raise ConfigError(f"others: {name} is already the name of another store")
        sites[f"/store/{name}"] = (name, inspector)
    return sites


def _guard(app: Any, *, rules: Rules, sign_in: SignIn | None) -> RequestGuard:
    return RequestGuard(app, rules, sign_in)


def _routes(site: Site, sign_in: SignIn | None) -> list[BaseRoute]:
    routes: list[BaseRoute] = [
        Route(path, _bind(site, view), methods=["GET"]) for path, view in VIEWS.items()
    ]
    routes += [Route(path, _bind(site, view), methods=["POST"]) for path, view in ACTIONS.items()]
    if sign_in is not None:
        routes.append(Route("/logout", sign_in.sign_out, methods=["POST"]))
    folder = files("qsync.web") / "static"
    for name, kind in STATIC.items():
        data = (folder / name).read_bytes()
        routes.append(Route(f"/static/{name}", _file(data, kind), methods=["GET"]))
    return routes


def _mount(site: Site) -> Mount:
    """Return the pages of an additional store; the guard of the dashboard checks their requests."""
    pages = Starlette(
        routes=_routes(site, None), exception_handlers={HTTPException: _bind(site, _not_found)}
    )
    pages.router.redirect_slashes = False
    return Mount(site.path, pages)


def _file(data: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return Response(data, media_type=kind)

    return answer


def _bind(site: Site, view: Callable[..., Awaitable[Response]]) -> Any:
    """Return the view as an endpoint for a route; errors of the store become error pages."""

    async def answer(request: Request, *args: Any) -> Response:
        site.sampler.start()
        try:
            if view not in WITHOUT_TIMES:
                await site.follow_clock()
            return await view(site, request, *args)
        except QsyncError as error:
            return _failed(site, request, error)

    return answer


async def _not_found(site: Site, request: Request, error: HTTPException) -> Response:
    title = _("Page not found") if error.status_code == 404 else error.detail
    return site.page(request, "error", status=error.status_code, title=title, text="")


def _failed(site: Site, request: Request, error: QsyncError) -> Response:
    if isinstance(error, StoreUnavailable):
        title, status = _("Cannot reach the store"), 503
        text = _("Retrying automatically… `qsync doctor` may show why.")
        if request.method == "POST":
            text = _(
                "The store did not answer in time, so the change may not have been made. Go back "
                "and check before you repeat it."
            )
    elif isinstance(error, InvalidTask):
        title, status, text = _("Invalid request"), 400, written(phrase_of(error))
    elif isinstance(error, QueueFull):
        title, status = _("The store is full"), 507
        text = _("The store has no memory left for this change, so nothing was changed.")
    elif isinstance(error, ConfigError):
        title, status = _("The store denies access"), 403
        text = _(
            "`qsync acl reader` prints the permissions needed to read, `qsync acl admin` those "
            "needed to make changes."
        )
    elif isinstance(error, SchemaMismatch):
        title, status = _("The data belong to another version of qsync"), 409
        text = written(phrase_of(error))
    else:
        title, status = _("The store reported an error"), 502
        text = _("See the log of the dashboard.")
    if status in (403, 502, 507):
        log.warning("%s: %s", request.method, error)
    back = _page_of_form(request) if request.method == "POST" else ""
    return site.page(request, "error", status=status, title=title, text=text, back=back)


def _page_of_form(request: Request) -> str:
    """Return the path of the page with the form that was submitted; "" if it is not known.

    A confirmation page has the path of an action, and so cannot be opened again.
    """
    address = urlsplit(request.headers.get("referer", ""))
    root = root_of(request)
    path = address.path.removeprefix(root)
    if address.netloc != request.headers.get("host") or path not in VIEWS:
        return ""
    return f"{root}{path}" + (f"?{address.query}" if address.query else "")


@contextlib.asynccontextmanager
async def _lifespan(dashboard: Dashboard) -> AsyncIterator[None]:
    async with dashboard:
        yield
