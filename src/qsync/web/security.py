"""ASGI middleware that checks each request: host, origin, user, permission and size.

A refused request reaches no other code of the dashboard.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qsync.errors import InvalidTask
from qsync.phrase import phrase_of
from qsync.web.auth import (
    LOGIN_PATH,
    LOGIN_STYLE_PATH,
    Access,
    SignIn,
    TokenAccess,
    host_of,
    same_origin,
)
from qsync.web.language import Language, language_of, use
from qsync.web.language_switch import LANGUAGE_PATH, choose_language
from qsync.web.roles import Role, RoleOf, refusal, role_of
from qsync.web.translation import _, written

log: Final = logging.getLogger("qsync.web")

BODY_LIMIT: Final = 64 * 1024
QUERY_LIMIT: Final = 8 * 1024

HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # With `no-referrer`, browsers would send `Origin: null` with this dashboard's own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class TooLargeError(Exception):
    """Raised when a request's body exceeds BODY_LIMIT."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings of RequestGuard.

    hosts     allowed names in the Host header; None allows any name
    language  language that the host application sets; None means the browser's
    role      role of all users, or a function of the request
    """

    access: Access
    read_only: bool
    allowed_by: str
    hosts: Collection[str] | None
    hosts_by: str
    timeout: float
    language: Language | None
    role: RoleOf | Role


class RequestGuard:
    """ASGI middleware that checks each request before the app handles it."""

    def __init__(self, app: ASGIApp, rules: Rules, sign_in: SignIn | None) -> None:
        self._app = app
        self._rules = rules
        self._sign_in = sign_in

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it to the app."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # the dashboard has no WebSockets
            await send({"type": "websocket.close", "code": 1008})
            return
        await _Exchange(self._app, self._rules, self._sign_in, send).answer(scope, receive)


class _Exchange:
    """Handles one request, from the checks to the response."""

    def __init__(self, app: ASGIApp, rules: Rules, sign_in: SignIn | None, send: Send) -> None:
        self._app, self._rules, self._sign_in = app, rules, sign_in
        self._to_client = send
        self._has_started = False
        self._limit: asyncio.Timeout | None = None

    async def answer(self, scope: Scope, receive: Receive) -> None:
        request = Request(scope, _Limited(receive))
        use(language_of(request, self._rules.language))
        try:
            async with asyncio.timeout(self._rules.timeout) as self._limit:
                response = self._refuse(request) or await self._admit(request)
                await (response or self._app)(scope, request.receive, self._send)
            return
        except TooLargeError:
            refusal = _too_large()
        except TimeoutError:
            text = _("The request took too long; the store may be slow. Try again.")
            if request.method == "POST":
                text = _(
                    "The request took too long; the store may be slow. The change may not have "
                    "been made: go back and check before you repeat it."
                )
            refusal = _text(text, 504)
        except Exception:
            log.exception("%s %s", request.method, route_of(scope)[:80])
            refusal = _text(_("Internal error; see the log of the dashboard."), 500)
        if not self._has_started:
            await refusal(scope, receive, self._send)

    def _refuse(self, request: Request) -> Response | None:
        """Return a refusal if no user may make the request; otherwise None."""
        hosts = self._rules.hosts
        if hosts is not None and host_of(request) not in hosts:
            text = _(
                "This Host header is not allowed; allow it with %(option)s.",
                option=self._rules.hosts_by,
            )
            return _text(text, 421)
        if request.method not in ("GET", "HEAD", "POST"):
            text = _("Method not allowed.")
            return PlainTextResponse(f"{text}\n", 405, {"Allow": "GET, HEAD, POST"})
        if len(request.scope.get("query_string", b"")) > QUERY_LIMIT:
            return _text(_("The address is too long."), 414)
        if request.method == "POST":
            return _refuse_post(request)
        return None

    async def _admit(self, request: Request) -> Response | None:
        """Return None if the user may make the request, otherwise the refusal."""
        access, route = self._rules.access, route_of(request.scope)
        chooses = request.method == "POST" and route == LANGUAGE_PATH
        if self._sign_in is not None and chooses:  # the language form is on the sign-in page, too
            return await _choose(request)
        if self._sign_in is not None and route in (LOGIN_PATH, LOGIN_STYLE_PATH):
            return await self._sign_in.answer(request, route)
        user = await access.admit(request)
        if isinstance(user, Response):
            if self._sign_in is not None and user.status_code == 401:
                return self._sign_in.form(request)
            return user
        request.scope["qsync.user"] = user
        if chooses:
            return await _choose(request)
        if request.method == "POST" and self._rules.read_only and route != "/logout":
            text = _("Read-only: %(option)s enables changes.", option=self._rules.allowed_by)
            return _text(text, 403)
        return await self._check_role(request)

    async def _check_role(self, request: Request) -> Response | None:
        """Record the role of the user; return a refusal if the role does not allow the change."""
        role: Role | None = request.scope.get("qsync.host_role")
        role = role or await role_of(self._rules.role, request)
        request.scope["qsync.role"] = role
        path = site_route(route_of(request.scope))
        if request.method != "POST" or path == "/logout":
            return None
        why = refusal(role, path)
        return None if why is None else _text(why, 403)

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._has_started = True
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
        await self._to_client(message)
        if message.get("more_body") and self._limit is not None:  # extend the limit
            self._limit.reschedule(asyncio.get_running_loop().time() + self._rules.timeout)


class _Limited:
    """Receives a request's body; raises TooLargeError beyond BODY_LIMIT."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._size = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._size += len(message.get("body", b""))
        if self._size > BODY_LIMIT:
            raise TooLargeError
        return message


def _refuse_post(request: Request) -> Response | None:
    if not same_origin(request):
        text = _(
            "This request did not come from a page of this dashboard, so nothing was changed. "
            "The headers Origin and Sec-Fetch-Site of the browser must show that the request comes "
            "from this site. In scripts, use `qsync` or an Inspector instead of the forms."
        )
        return _text(text, 403)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        return _text(_("The request body is not a form."), 415)
    length = request.headers.get("content-length", "")
    if length.isdigit() and len(length) < 20 and int(length) > BODY_LIMIT:
        return _too_large()
    return None


def site_route(route: str) -> str:
    """Return the path without the prefix `/store/<name>` of an additional store."""
    parts = route.split("/", 3)
    return f"/{parts[3]}" if len(parts) == 4 and parts[1] == "store" else route


def route_of(scope: Scope) -> str:
    """Return the path below the dashboard's mount path."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(root) else path


def sign_in_of(access: Access) -> TokenAccess | None:
    """Return the access check if it uses a sign-in form, otherwise None."""
    return access if isinstance(access, TokenAccess) else None


async def _choose(request: Request) -> Response:
    try:
        return await choose_language(request)
    except InvalidTask as error:
        return _text(written(phrase_of(error)), 400)


def _too_large() -> Response:
    return _text(_("The form exceeds %(size)s bytes.", size=BODY_LIMIT), 413)


def _text(text: str, status: int) -> Response:
    return PlainTextResponse(f"{text}\n", status)
