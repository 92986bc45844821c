"""qsync in a Starlette application: a client for its requests, and the dashboard. Extra `web`.

    site = Starlette(routes=..., lifespan=lifespan(app))
    mount_dashboard(site, "/ops", app, auth=staff)

    async def buy(request: Request) -> Response:
        handle = await client_of(request).enqueue(send.build(7))

For FastAPI see `qsync.contrib.fastapi`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Final, Literal

from qsync.app import Qsync
from qsync.client import AsyncClient
from qsync.errors import ConfigError
from qsync.instrumentation import missing
from qsync.value_text import shorten

try:
    from starlette.applications import Starlette
    from starlette.requests import HTTPConnection
    from starlette.types import Receive, Scope, Send
except ModuleNotFoundError as _error:
    raise missing(_error, "web") from None

if TYPE_CHECKING:
    # At run time, these are imported only by `mount_dashboard`, because they need all packages of
    # the extra.
    from qsync.inspector import Inspector
    from qsync.web import Dashboard
    from qsync.web.auth import Auth
    from qsync.web.pages import Mask
    from qsync.web.roles import Role, RoleOf

__all__ = ["client_of", "lifespan", "mount_dashboard"]

State = Mapping[str, Any]
Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]

CLIENT: Final = "qsync_client"
"""Name of the client in the state that the lifespan yields."""

RUNNING: Final = "qsync_running"
"""Name, in the site's state, of a list with an (app, client) pair for each running lifespan. There
may be several pairs, because the lifespans of a site's test clients may overlap."""

TIMEOUT_S: Final = 10.0
"""Default time limit of a request to the dashboard, in seconds; copied here because
`qsync.web.options` needs all packages of the extra."""

_SECOND_APP: Final = (
    "lifespan: the site already has the client of another lifespan(...); open the second client in "
    "your own lifespan: async with other.async_client() as client"
)


def lifespan(app: Qsync, inner: Lifespan | None = None) -> Lifespan:
    """Return a lifespan for Starlette or FastAPI that opens a client of the app and closes it.

    `inner` is your own lifespan, which also runs. Your lifespan starts after the client is opened
    and ends before the client is closed. The state that your lifespan yields is in `request.state`
    as usual. When the site stops, the shared clients of the app, which `task.enqueue()` uses, are
    closed as well.
    """

    if not isinstance(app, Qsync):
        raise ConfigError(f"lifespan: {shorten(app)} is not a Qsync")

    @contextlib.asynccontextmanager
    async def opened(site: Starlette) -> AsyncIterator[State]:
        async with app, app.async_client() as client, contextlib.AsyncExitStack() as stack:
            stack.enter_context(_in_state(site, app, client))
            own = None if inner is None else await stack.enter_async_context(inner(site))
            if CLIENT in (own or {}):
                raise ConfigError(_SECOND_APP)
            yield {**(own or {}), CLIENT: client}

    return opened


@contextlib.contextmanager
def _in_state(site: Starlette, app: Qsync, client: AsyncClient) -> Iterator[None]:
    """Keep the client in the site's state during the block; raise ConfigError if the state has the
    client of another app."""
    running = _running(site)
    if any(other is not app for other, _ in running):
        raise ConfigError(_SECOND_APP)
    pair = app, client
    setattr(site.state, RUNNING, [*running, pair])
    try:
        yield
    finally:  # remove the client, so that `client_of` raises its error for a later request
        setattr(site.state, RUNNING, [other for other in _running(site) if other is not pair])


def _running(site: Starlette) -> list[tuple[Qsync, AsyncClient]]:
    pairs: list[tuple[Qsync, AsyncClient]] = getattr(site.state, RUNNING, [])
    return pairs


def client_of(connection: HTTPConnection) -> AsyncClient:
    """Return the client that `lifespan(app)` opened, for a request or a WebSocket of the site.

    Raises ConfigError if no such lifespan is running.
    """
    client: AsyncClient | None = getattr(connection.state, CLIENT, None)
    if client is None:  # the server did not pass on the state
        client = next((client for _, client in reversed(_running(connection.app))), None)
    if client is None:
        raise ConfigError(
            "client: the lifespan of the site is not running; pass lifespan=lifespan(app) to the "
            "outermost application, and start it in tests (with TestClient(site) as client: ...)"
        )
    return client


def mount_dashboard(
    site: Starlette,
    path: str,
    app: Qsync,
    *,
    token: str | None = None,
    view_token: str | None = None,
    auth: Auth | Literal["host"] | None = None,
    read_only: bool = True,
    mask: Mask | None = None,
    language: str | None = None,
    trace_url: str | None = None,
    role: RoleOf | Role | None = None,
    hosts: Collection[str] | None = None,
    timeout: float = TIMEOUT_S,
    others: Mapping[str, Qsync | Inspector] | None = None,
) -> None:
    """Mount the dashboard of the app at a path of the site; it starts and stops with the site.

    The options are those of `qsync.web.create_app`; `others` may also contain apps, whose
    inspectors are opened and closed with the site. Raises ConfigError if neither `token` nor `auth`
    restricts access, or if the path or an option is invalid.
    """
    if not isinstance(site, Starlette):
        raise ConfigError(f"site: {shorten(site)} is not a Starlette application")
    check_app(app)
    if token is None and auth is None:
        raise ConfigError("mount_dashboard: all requests would be refused; pass auth= or token=")
    options = {
        "token": token, "view_token": view_token, "auth": auth, "read_only": read_only,
        "mask": mask, "hosts": hosts, "language": language, "trace_url": trace_url, "role": role,
        "timeout": timeout,
    }  # fmt: skip
    path = check_path(path)
    site.mount(path, MountedDashboard(site, app, options, others))


def check_app(app: object) -> None:
    """Raise ConfigError if the argument `app` is not a Qsync."""
    if not isinstance(app, Qsync):
        raise ConfigError(f"app: {shorten(app)} is not a Qsync")


def check_path(path: str) -> str:
    """Return the path without a trailing slash; raise ConfigError unless the path has the form
    "/ops", without parameters."""
    if not isinstance(path, str) or not re.fullmatch(r"(?=/+[^/])/[^{}]*", path):
        raise ConfigError(f"path: {shorten(path)} is not a valid path; pass one such as '/ops'")
    return path.rstrip("/")


class MountedDashboard:
    """The dashboard as an ASGI app that runs while the site runs.

    An inspector belongs to one event loop, so each run of the site gets a new one. Raises
    ConfigError, and leaves the site unchanged, if an option is invalid.
    """

    def __init__(
        self,
        site: Starlette,
        app: Qsync,
        options: dict[str, Any],
        others: Mapping[str, Qsync | Inspector] | None,
    ) -> None:
        self._app = app
        self._options = options
        self._others = _check(app, options, others)
        self._dashboard: Dashboard | None = None
        outer = site.router.lifespan_context

        @contextlib.asynccontextmanager
        async def running(site: Any) -> AsyncIterator[State | None]:
            async with self._running(), outer(site) as state:
                yield state

        site.router.lifespan_context = running  # type: ignore[assignment]  # its state is a Mapping

    @contextlib.asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        from qsync.web.app import make_dashboard

        async with contextlib.AsyncExitStack() as stack:
            inspector = await stack.enter_async_context(self._app.inspector())
            others = {
                name: await stack.enter_async_context(other.inspector())
                if isinstance(other, Qsync)
                else other
                for name, other in self._others.items()
            }
            dashboard = make_dashboard(
                inspector, others=others, allowed_by="mount_dashboard(..., read_only=False)",
                **self._options,
            )  # fmt: skip
            self._dashboard = await stack.enter_async_context(dashboard)
            try:
                yield
            finally:
                self._dashboard = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request to the dashboard. Raise ConfigError if the site is not running."""
        if self._dashboard is None:
            raise ConfigError(
                "mount_dashboard: the lifespan of the site is not running; mount the dashboard in "
                "the outermost application, since mounted applications have no lifespan"
            )
        await self._dashboard(scope, receive, send)


def _check(
    app: Qsync, options: dict[str, Any], others: Mapping[str, Qsync | Inspector] | None
) -> dict[str, Qsync | Inspector]:
    """Check the options of the dashboard, and return `others` as a dict."""
    from qsync.inspector import Inspector
    from qsync.web.options import check_options, check_others

    check_options(**options)
    checked = check_others(others, "apps or inspectors")
    for name, other in checked.items():
        if not isinstance(other, Qsync | Inspector):
            raise ConfigError(
                f"others: {name}: {shorten(other)} is neither a Qsync nor an Inspector"
            )
        if name == app.prefix:
            raise ConfigError(f"others: {name} is already the name of another store")
    return checked
