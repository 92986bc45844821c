"""Authentication: by a token with a sign-in form, by a function of the host app, or by the host app
itself."""

from __future__ import annotations

import hashlib
import hmac
import inspect
import ipaddress
import logging
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import Final, Literal, Protocol
from urllib.parse import quote, urlsplit

from jinja2 import Environment
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

from qsync.errors import ConfigError, InvalidTask
from qsync.value_text import class_name, shorten
from qsync.web.language import VARY
from qsync.web.query import parse_form
from qsync.web.translation import _, duration

log: Final = logging.getLogger("qsync.web")

Answer = bool | str | Response | None
Auth = Callable[[Request], Answer | Awaitable[Answer]]
"""Function of the host app that checks a request. True or the user's name allows the request; a
Response is sent instead of the page; any other value refuses the request."""

COOKIE: Final = "qsync_session"
SESSION_S: Final = 7 * 86_400
MAX_SESSIONS: Final = 10_000
"""Maximum number of sessions; when a new one exceeds it, the oldest ends."""

MIN_TOKEN_LENGTH: Final = 16

VIEW_MARK: Final = ".view"
"""Suffix that is added to the name of a read-only session's cookie."""

MAX_ATTEMPTS: Final = 5
"""Number of wrong tokens that an address may send within ATTEMPTS_WINDOW_S."""

ATTEMPTS_WINDOW_S: Final = 60.0

MAX_ADDRESSES: Final = 10_000
"""Maximum number of addresses whose wrong tokens are counted."""


NEXT_LIMIT: Final = 2000
"""Maximum length of the path to which the sign-in form redirects."""

LOGIN_PATH: Final = "/login"
LOGIN_STYLE_PATH: Final = "/login.css"
"""Paths of the sign-in form and its style sheet; only these are served without sign-in."""


class Access(Protocol):
    """Checks every request before any other code of the dashboard handles it."""

    async def admit(self, request: Request) -> str | Response:
        """Return the user's name (empty if unknown), or the response that refuses the request."""


def access_of(
    token: str | None, auth: Auth | Literal["host"] | None, view_token: str | None = None
) -> Access:
    """Return the access check that these options configure; raise ConfigError if they are
    invalid."""
    for field, text in (("token", token), ("view_token", view_token)):
        if text is not None and not isinstance(text, str):
            # Only the class is named, because the value may be a secret.
            raise ConfigError(f"{field}: {class_name(text)} is not a string")
    if token is not None and auth is not None:
        raise ConfigError("auth: pass either token= or auth=, not both")
    if view_token is not None and token is None:
        raise ConfigError("view_token: also pass token=, for users who may make changes")
    if view_token is not None and view_token == token:
        raise ConfigError("view_token: must differ from token=")
    if token is not None:
        return TokenAccess(token, view_token=view_token)
    if auth is None:
        return DenyAll()
    if isinstance(auth, str) and auth == "host":
        return AllowAll()
    if not callable(auth):
        raise ConfigError(f"auth: {shorten(auth)} is neither a function of the request nor 'host'")
    return CallbackAuth(auth)


class DenyAll:
    """Refuses all requests."""

    async def admit(self, request: Request) -> str | Response:
        """Return a refusal that says how to configure access."""
        text = _("All requests are refused. Pass auth= or token= to create_app(); see the docs.")
        return PlainTextResponse(f"{text}\n", 403)


class AllowAll:
    """Allows all requests, because the outer app has already checked them."""

    async def admit(self, request: Request) -> str | Response:
        """Return the user's name, if the outer app sets one."""
        user = request.scope.get("user")
        name = getattr(user, "display_name", "") if user is not None else ""
        return name if isinstance(name, str) else ""


class CallbackAuth:
    """Allows the requests that a function of the host app accepts."""

    def __init__(self, auth: Auth) -> None:
        self._auth = auth

    async def admit(self, request: Request) -> str | Response:
        """Call the function."""
        answer = self._auth(request)
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, Response):
            return answer
        if isinstance(answer, str) and answer:
            return answer
        # Accept only True itself, because any other truthy value is probably a bug in the function.
        return "" if answer is True else PlainTextResponse(f"{_('Access denied.')}\n", 403)


class TokenAccess:
    """Allows requests that have the token in a header, or a session from the sign-in form."""

    def __init__(self, token: str, *, view_token: str | None = None) -> None:
        for field, text in (("token", token), ("view_token", view_token)):
            if text is not None and len(text) < MIN_TOKEN_LENGTH:
                raise ConfigError(
                    f"{field}: {len(text)} characters are too few; use at least {MIN_TOKEN_LENGTH}"
                )
        self._hash = _hash(token)
        self._view_hash = None if view_token is None else _hash(view_token)
        self._sessions: OrderedDict[str, float] = OrderedDict()
        self._throttle = LoginThrottle()
        self._has_warned = False

    async def admit(self, request: Request) -> str | Response:
        """Allow a request that has a session, or the token in the Authorization header."""
        cookie = request.cookies.get(COOKIE, "")
        if self._is_session(cookie):
            if cookie.endswith(VIEW_MARK):
                request.scope["qsync.host_role"] = "view"
            return ""
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer":
            return Response(status_code=401)
        refused = self.check(request, token.strip())
        return "" if refused is None else refused

    def check(self, request: Request, token: str) -> Response | None:
        """Return None if the token is right; otherwise a response with status 401, or 429 after
        too many wrong tokens."""
        address = request.client.host if request.client else ""
        if wait := self._throttle.wait(address):
            text = _("Too many wrong tokens. Try again in %(wait)s.", wait=duration(wait))
            return PlainTextResponse(f"{text}\n", 429, {"Retry-After": f"{wait:.0f}"})
        if hmac.compare_digest(_hash(token), self._hash):
            return None
        if self._view_hash is not None and hmac.compare_digest(_hash(token), self._view_hash):
            request.scope["qsync.host_role"] = "view"
            return None
        self._throttle.failed(address)
        self._warn_of_proxy(request, address)
        return Response(status_code=401)

    def _warn_of_proxy(self, request: Request, address: str) -> None:
        """Warn once if wrong tokens count against a proxy, and therefore against all its users."""
        forwarded = request.headers.get("x-forwarded-for")
        if forwarded and address not in forwarded and not self._has_warned:
            self._has_warned = True
            log.warning(
                "a wrong token came through a proxy at %s; wrong tokens lock out this address and "
                "thus all users of the proxy. To count them per user, start with --trust-proxy %s",
                address, address,
            )  # fmt: skip

    def session(self, *, now: float | None = None, view: bool = False) -> str:
        """Start a session that lasts a week; return the value of its cookie.

        If `view` is true, the session is read-only. Sessions are kept in memory, so a cookie is
        useless once its session has ended, and a restart ends all sessions.
        """
        until = int(time.time() if now is None else now) + SESSION_S
        value = f"{until}.{secrets.token_urlsafe(32)}{VIEW_MARK if view else ''}"
        self._sessions[value] = until
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)
        return value

    def end_session(self, request: Request) -> None:
        """End the session that the request's cookie identifies."""
        self._sessions.pop(request.cookies.get(COOKIE, ""), None)

    def _is_session(self, value: str) -> bool:
        return time.time() < self._sessions.get(value, 0.0)


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()


class LoginThrottle:
    """Counts wrong tokens by address: after five within a minute, further attempts are refused."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: OrderedDict[str, deque[float]] = OrderedDict()

    def wait(self, address: str) -> float:
        """Return how long the address has to wait, in seconds; 0 if it may try now."""
        times = self._failed.get(network_of(address))
        if times is None or len(times) < MAX_ATTEMPTS:
            return 0.0
        return max(0.0, times[0] + ATTEMPTS_WINDOW_S - self._clock())

    def failed(self, address: str) -> None:
        """Count a wrong token from this address."""
        net = network_of(address)
        self._failed.setdefault(net, deque(maxlen=MAX_ATTEMPTS)).append(self._clock())
        self._failed.move_to_end(net)
        if len(self._failed) > MAX_ADDRESSES:
            self._failed.popitem(last=False)


def network_of(address: str) -> str:
    """Return the key under which wrong tokens are counted: an IPv4 address itself, or the /64
    network of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def is_loopback(host: str) -> bool:
    """Return whether a host name or address can be reached only from this machine."""
    if host.lower() == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def host_of(request: Request) -> str:
    """Return the name in the Host header without its port; empty if there is none."""
    try:
        return urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    except ValueError:
        return ""


def same_origin(request: Request) -> bool:
    """Return whether a request that changes something comes from a page of this dashboard.

    Browsers send this information in the headers Sec-Fetch-Site and Origin. For
    pages loaded over plain HTTP from another machine, browsers omit Sec-Fetch-Site, and Origin
    alone decides.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin", "")
    if site is None:
        if request.url.scheme == "https" or is_loopback(host_of(request)):
            return False
    elif site not in ("same-origin", "none"):
        return False
    scheme, _, netloc = origin.partition("://")
    return scheme in ("http", "https") and bool(netloc) and netloc == request.headers.get("host")


class SignIn:
    """Serves the sign-in form and its style sheet to users without a session."""

    def __init__(self, access: TokenAccess, environment: Environment) -> None:
        self._access = access
        self._template = environment.get_template("login.html")
        self._style = environment.get_template("login.css").render()

    def form(self, request: Request, *, next_path: str = "", wrong: bool = False) -> Response:
        """Return the form with status 401; after sign-in, the user gets the requested page."""
        root = root_of(request)
        if not next_path and request.method == "GET" and request.url.path != f"{root}{LOGIN_PATH}":
            next_path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        text = self._template.render(root=root, next_path=local_path(next_path, root), wrong=wrong)
        headers = {"WWW-Authenticate": 'Bearer realm="qsync"', "Vary": VARY}
        return HTMLResponse(text, 401, headers)

    async def answer(self, request: Request, route: str) -> Response:
        """Handle a request for the form. The right token starts a session, and the response
        redirects to the field `next`."""
        if route == LOGIN_STYLE_PATH:
            return Response(self._style, media_type="text/css")
        if request.method != "POST":
            return self.form(request)
        try:
            fields = parse_form(await request.body())
        except InvalidTask:
            return self.form(request, wrong=True)
        next_path = fields.text("next", NEXT_LIMIT)
        refused = self._access.check(request, fields.text("token", 1000).strip())
        if refused is not None and refused.status_code == 401:
            return self.form(request, next_path=next_path, wrong=True)
        if refused is not None:
            return refused
        root = root_of(request)
        response = RedirectResponse(local_path(next_path, root), 303)
        response.set_cookie(
            COOKIE,
            self._access.session(view=request.scope.get("qsync.host_role") == "view"),
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


def local_path(next_path: str, root: str) -> str:
    """Return the path if it belongs to the dashboard, otherwise the path of the first page."""
    is_inside = next_path.startswith(f"{root}/") and not next_path.startswith("//")
    is_plain = (
        next_path.isascii()
        and next_path.isprintable()
        and "\\" not in next_path
        and ".." not in next_path
    )
    return next_path if is_inside and is_plain else f"{root}/"
