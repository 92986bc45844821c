"""qsync in a FastAPI application: a client for its requests, and the dashboard. Extra `fastapi`.

    api = FastAPI(lifespan=lifespan(app))
    mount_dashboard(api, "/ops", app, dependencies=[Depends(staff)])

    @api.post("/buy")
    async def buy(client: QueueClient) -> str:
        return (await client.enqueue(send.build(7))).id

docs/fastapi.md shows a complete program.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from qsync.app import Qsync
from qsync.client import AsyncClient
from qsync.errors import ConfigError
from qsync.instrumentation import missing
from qsync.value_text import shorten

try:
    from fastapi import APIRouter, Depends, FastAPI, Request
    from fastapi.params import Depends as DependsMarker
    from fastapi.responses import Response
    from starlette.requests import HTTPConnection
    from starlette.types import Message, Receive, Scope, Send
except ModuleNotFoundError as _error:
    raise missing(_error, "fastapi") from None

from qsync.contrib.starlette import (
    TIMEOUT_S,
    MountedDashboard,
    check_app,
    check_path,
    client_of,
    lifespan,
)

if TYPE_CHECKING:
    from qsync.inspector import Inspector
    from qsync.web.auth import Auth
    from qsync.web.pages import Mask
    from qsync.web.roles import Role, RoleOf

__all__ = ["QueueClient", "lifespan", "mount_dashboard"]


async def _client(connection: HTTPConnection) -> AsyncClient:
    return client_of(connection)


QueueClient: TypeAlias = Annotated[AsyncClient, Depends(_client)]
"""Type of a parameter that receives the client opened by `lifespan(app)`."""


def mount_dashboard(
    api: FastAPI,
    path: str,
    app: Qsync,
    *,
    dependencies: Sequence[Any] = (),
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
    """Mount the dashboard of the app at a path of the API; it starts and stops with the API.

    Each of `dependencies`, e.g. `Depends(staff)`, runs before every request; to refuse a request,
    it raises an HTTPException. The other options are those of `qsync.web.create_app`; a function
    for `auth` runs after the dependencies. `others` may also contain apps, whose inspectors are
    opened and closed with the API. Raises ConfigError if none of `dependencies`, `token` and `auth`
    restricts access, or if the path or an option is invalid.
    """
    if not isinstance(api, FastAPI):
        raise ConfigError(
            f"api: {shorten(api)} is not a FastAPI application; mount the dashboard in the "
            "outermost one"
        )
    check_app(app)
    _check_dependencies(dependencies)
    if not dependencies and token is None and auth is None:
        raise ConfigError(
            "mount_dashboard: all requests would be refused; pass dependencies=[Depends(...)], "
            "auth= or token="
        )
    if token is None and auth is None:
        auth = "host"
    options = {
        "token": token, "view_token": view_token, "auth": auth, "read_only": read_only,
        "mask": mask, "hosts": hosts, "language": language, "trace_url": trace_url, "role": role,
        "timeout": timeout,
    }  # fmt: skip
    path = check_path(path)
    dashboard = MountedDashboard(api, app, options, others)
    router = APIRouter(dependencies=list(dependencies), include_in_schema=False)

    async def show(request: Request, rest: str) -> Response:
        return _FromDashboard(dashboard, request, rest)

    router.add_api_route(
        f"{path}/{{rest:path}}", show, methods=["GET", "HEAD", "POST"],
        response_model=None,
    )  # fmt: skip
    api.include_router(router)


def _check_dependencies(dependencies: Any) -> None:
    """Raise ConfigError if this is not a sequence of Depends(...)."""
    items = dependencies if isinstance(dependencies, list | tuple) else [None]
    if not all(isinstance(item, DependsMarker) for item in items):
        raise ConfigError(
            f"dependencies: {shorten(dependencies)} is not a list of dependencies; pass "
            "[Depends(...)]"
        )


class _FromDashboard(Response):
    """A response whose headers and body come directly from the dashboard."""

    def __init__(self, dashboard: MountedDashboard, request: Request, rest: str) -> None:
        super().__init__()
        self._dashboard = dashboard
        self._request = request
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        root = scope.get("root_path", "")
        path = scope["path"]
        mounted = path[: len(path) - len(self._rest)].rstrip("/")
        if not mounted.startswith(f"{root}/"):  # a proxy has stripped the root path
            mounted = root + mounted
        inside = {**scope, "root_path": mounted, "path": f"{mounted}/{self._rest}"}
        await self._dashboard(inside, _Body(self._request), send)
        if self.background is not None:  # a dependency has added a background task
            await self.background()


class _Body:
    """Receives the body of a request, even after a dependency has read it."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._parts: AsyncIterator[bytes] | None = None
        self._done = False

    async def __call__(self) -> Message:
        if self._done:
            return await self._request.receive()
        if self._parts is None:
            self._parts = self._request.stream()
        part = await anext(self._parts, b"")
        self._done = not part
        return {"type": "http.request", "body": part, "more_body": not self._done}
