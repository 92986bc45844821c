"""The dashboard in a Django site, under WSGI and ASGI. This module also needs the extra `web`.

The dashboard is an ASGI app whose connections belong to one event loop, while Django runs views on
many threads. Therefore, each process starts one thread with an event loop for the dashboard at the
first request, and views wait for that thread's responses.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any, Final

from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.urls import NoReverseMatch, reverse
from django.views.decorators.csrf import csrf_exempt

from qsync.contrib.django.configuration import ROLES, configuration
from qsync.contrib.django.project import project_app
from qsync.instrumentation import missing

if TYPE_CHECKING:
    from qsync.web import Dashboard

VIEW_TIMEOUT_S: Final = 30.0
"""Maximum time that a view waits, in seconds; the dashboard itself ends a request after 10 s."""


class _User:
    """A user with the attribute that the dashboard reads."""

    def __init__(self, name: str) -> None:
        self.display_name = name


class DashboardThread:
    """Runs the dashboard of the project on an event loop in a separate thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._dashboard: Dashboard | None = None
        self._exits = contextlib.AsyncExitStack()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="qsync-dashboard", daemon=True
        )
        self._thread.start()

    def answer(self, scope: dict[str, Any], body: bytes) -> HttpResponse:
        """Return the response of the dashboard; block until it has arrived."""
        future = asyncio.run_coroutine_threadsafe(self._answer(scope, body), self._loop)
        return future.result(VIEW_TIMEOUT_S)

    async def _answer(self, scope: dict[str, Any], body: bytes) -> HttpResponse:
        if self._dashboard is None:
            await self._open()
        answer = _Answer(body)
        dashboard: Any = self._dashboard
        await dashboard(scope, answer.receive, answer.send)
        return answer.response()

    async def _open(self) -> None:
        try:
            from qsync.web.app import make_dashboard
        except ModuleNotFoundError as error:
            raise missing(error, "web") from None
        settings = configuration()
        inspector = project_app().inspector()
        dashboard = make_dashboard(
            inspector, auth="host", read_only=settings.read_only, mask=settings.mask,
            language=settings.language, trace_url=settings.trace_url,
            allowed_by='QSYNC["DASHBOARD"] = {"READ_ONLY": False}',
        )  # fmt: skip
        self._dashboard = dashboard
        await self._exits.enter_async_context(inspector)
        await self._exits.enter_async_context(dashboard)

    def close(self) -> None:
        """Close the connections and end the thread; no view may be waiting for a response."""
        asyncio.run_coroutine_threadsafe(self._exits.aclose(), self._loop).result(VIEW_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _Answer:
    """Passes the body of a request to the dashboard, and collects its response."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._status = 500
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []

    async def receive(self) -> dict[str, Any]:
        return {"type": "http.request", "body": self._body, "more_body": False}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], list(message["headers"])
        else:
            self._parts.append(message.get("body", b""))

    def response(self) -> HttpResponse:
        response = HttpResponse(b"".join(self._parts), status=self._status)
        del response["Content-Type"]
        for name, value in self._headers:
            response[name.decode("latin-1")] = value.decode("latin-1")
        return response


_threads: dict[int, DashboardThread] = {}
"""The dashboard's thread by process id, because a forked process does not inherit threads."""

_lock = threading.Lock()


def dashboard_thread() -> DashboardThread:
    """Return this process's thread; the first call starts it."""
    with _lock:
        thread = _threads.get(os.getpid())
        if thread is None:
            _threads.clear()
            thread = _threads[os.getpid()] = DashboardThread()
        return thread


def close_dashboard() -> None:
    """Close the dashboard of this process; the next request opens another."""
    with _lock:
        thread = _threads.pop(os.getpid(), None)
    if thread is not None:
        thread.close()


@csrf_exempt  # the dashboard checks Sec-Fetch-Site and Origin, and accepts only its own forms
def dashboard(request: HttpRequest, rest: str) -> HttpResponse:
    """Show the dashboard to staff users; send others to the sign-in page, or respond with 403."""
    user = getattr(request, "user", None)
    if user is None:
        raise ImproperlyConfigured(
            "qsync.contrib.django.urls: requests have no user; add "
            "django.contrib.auth.middleware.AuthenticationMiddleware to MIDDLEWARE"
        )
    if not user.is_authenticated:
        return redirect_to_login(request.get_full_path(), _login())
    if not hasattr(user, "is_staff"):
        raise ImproperlyConfigured(
            f"qsync.contrib.django.urls: {user._meta.label} has no is_staff, which decides who may "
            f"see the dashboard; add a field or a property with this name to the model"
        )
    if not (user.is_active and user.is_staff):
        raise PermissionDenied
    scope = _scope(request, rest, str(user.get_username()))  # the user name may be a number
    scope["qsync.host_role"] = _role(request)
    return dashboard_thread().answer(scope, request.body)


def _role(request: HttpRequest) -> str:
    """Return the user's role; `view` if the function in the setting returns an invalid role."""
    role = configuration().role
    answer = role(request) if callable(role) else role
    return answer if answer in ROLES else "view"


def _login() -> str | None:
    """Return the URL of the admin's sign-in page; None if there is no admin, so that LOGIN_URL is
    used."""
    try:
        return str(reverse("admin:login"))
    except NoReverseMatch:
        return None


def _scope(request: HttpRequest, rest: str, user: str) -> dict[str, Any]:
    """Return the ASGI scope of the request."""
    path = request.path
    root = path[: len(path) - len(rest)].rstrip("/")
    headers = {name.lower(): value for name, value in request.headers.items()}
    headers["host"] = request.get_host()
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.scheme,
        "path": f"{root}/{rest}",
        "raw_path": f"{root}/{rest}".encode(),
        "root_path": root,
        "query_string": request.META.get("QUERY_STRING", "").encode("latin-1"),
        "headers": [
            (name.encode("latin-1"), value.encode("latin-1", "replace"))
            for name, value in headers.items()
        ],
        "client": (request.META.get("REMOTE_ADDR", ""), 0),
        "server": None,
        "user": _User(user),
        "qsync.language": getattr(request, "LANGUAGE_CODE", None),  # of LocaleMiddleware
    }
