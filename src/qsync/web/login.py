"""The sign-in form for the token, and the cookie that it sets."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from jinja2 import Environment
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from qsync.errors import InvalidTask
from qsync.web.auth import COOKIE, SESSION_S, TokenAccess
from qsync.web.query import parse_form

NEXT_LIMIT: Final = 2000


FORM: Final = "/login"
SHEET: Final = "/login.css"
"""Path of the form's style sheet. Only the form and its style sheet are served without sign-in."""


class SignIn:
    """Serves the form and its style sheet to users without a session."""

    def __init__(self, access: TokenAccess, environment: Environment) -> None:
        self._access = access
        self._template = environment.get_template("login.html")
        self._sheet = environment.get_template("login.css").render()

    def form(self, request: Request, *, wanted: str = "", wrong: bool = False) -> Response:
        """Return the form with status 401; after sign-in it leads to the requested page."""
        root = root_of(request)
        if not wanted and request.method == "GET" and request.url.path != f"{root}{FORM}":
            wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        text = self._template.render(root=root, wanted=local(wanted, root), wrong=wrong)
        return HTMLResponse(text, 401, {"WWW-Authenticate": 'Bearer realm="qsync"'})

    async def answer(self, request: Request, route: str) -> Response:
        """Answer both paths; the right token starts a session and leads to the wanted page."""
        if route == SHEET:
            return Response(self._sheet, media_type="text/css")
        if request.method != "POST":
            return self.form(request)
        try:
            fields = parse_form(await request.body())
        except InvalidTask:
            return self.form(request, wrong=True)
        wanted = fields.text("next", NEXT_LIMIT)
        refused = self._access.check(request, fields.text("token", 1000).strip())
        if refused is not None and refused.status_code == 401:
            return self.form(request, wanted=wanted, wrong=True)
        if refused is not None:
            return refused
        root = root_of(request)
        response = RedirectResponse(local(wanted, root), 303)
        response.set_cookie(
            COOKIE,
            self._access.session(),
            max_age=SESSION_S,
            path=root or "/",
            secure=is_secure(request),
            httponly=True,
            samesite="strict",
        )
        return response

    def sign_out(self, request: Request) -> Response:
        """End the session, on the server and in the browser."""
        self._access.end_session(request)
        response = RedirectResponse(root_of(request) + "/", 303)
        response.delete_cookie(
            COOKIE,
            path=root_of(request) or "/",
            secure=is_secure(request),
            httponly=True,
            samesite="strict",
        )
        return response


def is_secure(request: Request) -> bool:
    """Return whether the browser uses TLS, to this server or to a trusted proxy."""
    return request.url.scheme == "https"


def root_of(request: Request) -> str:
    """Return the path at which the dashboard is mounted, without a trailing slash."""
    return quote(str(request.scope.get("root_path", "")).rstrip("/"), safe="/~!$&'()*+,;=:@-._")


def local(wanted: str, root: str) -> str:
    """Return `wanted` if it is a path of the dashboard, else the path of the first page."""
    inside = wanted.startswith(f"{root}/") and not wanted.startswith("//")
    plain = wanted.isascii() and wanted.isprintable() and "\\" not in wanted and ".." not in wanted
    return wanted if inside and plain else f"{root}/"
