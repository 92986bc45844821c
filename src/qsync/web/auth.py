"""Authentication: by a token, by a function of the host app, or by the host app itself."""

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
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from qsync.errors import ConfigError

log = logging.getLogger("qsync.web")

Answer = bool | str | Response | None
Auth = Callable[[Request], Answer | Awaitable[Answer]]
"""The host app's function: True or the user's name lets the request in; a Response is sent instead;
any other value refuses it."""

COOKIE: Final = "qsync_session"
SESSION_S: Final = 7 * 86_400
SESSIONS: Final = 10_000
"""Largest number of sessions; a new one ends the oldest."""

SHORTEST_TOKEN: Final = 16

TRIES: Final = 5
WINDOW_S: Final = 60.0
ADDRESSES: Final = 10_000


class Access(Protocol):
    """Checks every request before any other code does."""

    async def admit(self, request: Request) -> str | Response:
        """Return the user's name (empty if unknown), or the response that refuses the request."""


def access_of(token: str | None, auth: Auth | Literal["host"] | None) -> Access:
    """Return the access for these options; ConfigError if they are invalid."""
    if token is not None and auth is not None:
        raise ConfigError("auth: give either token= or auth=")
    if token is not None:
        return TokenAccess(token)
    if auth is None:
        return DenyAll()
    if auth == "host":
        return AllowAll()
    if not callable(auth):
        raise ConfigError('auth: give a function of the request, or "host"')
    return CallbackAuth(auth)


class DenyAll:
    """Refuses all requests."""

    async def admit(self, request: Request) -> str | Response:
        """Return a refusal that says how to configure access."""
        text = "Nobody is let in: give create_app() auth= or token=, see the docs of the dashboard."
        return PlainTextResponse(f"{text}\n", 403)


class AllowAll:
    """Lets all requests in: the outer app has checked them."""

    async def admit(self, request: Request) -> str | Response:
        """Return the user's name, if the outer app sets one."""
        user = request.scope.get("user")
        name = getattr(user, "display_name", "") if user is not None else ""
        return name if isinstance(name, str) else ""


class CallbackAuth:
    """Lets in the requests that a function of the host app accepts."""

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
        # Accept only True itself: another true value is probably a bug in the function.
        return "" if answer is True else PlainTextResponse("You are not let in here.\n", 403)


class TokenAccess:
    """Lets in requests with the token: in a header, or in a cookie that the sign-in form sets."""

    def __init__(self, token: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        if len(token) < SHORTEST_TOKEN:
            msg = f"token: it has {len(token)} characters; {SHORTEST_TOKEN} is the least"
            raise ConfigError(msg)
        self._hash = _hash(token)
        self._sessions: OrderedDict[str, float] = OrderedDict()
        self._tries = LoginThrottle(clock)
        self._has_warned = False

    async def admit(self, request: Request) -> str | Response:
        """Let in a request that has a session, or the token in the Authorization header."""
        if self._is_session(request.cookies.get(COOKIE, "")):
            return ""
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer":
            return Response(status_code=401)
        refused = self.check(request, given.strip())
        return "" if refused is None else refused

    def check(self, request: Request, given: str) -> Response | None:
        """Return None for the right token, else a response: 401, or 429 after too many attempts."""
        address = request.client.host if request.client else ""
        if wait := self._tries.wait(address):
            text = f"Too many wrong tokens; try again in {wait:.0f} s.\n"
            return PlainTextResponse(text, 429, {"Retry-After": f"{wait:.0f}"})
        if hmac.compare_digest(_hash(given), self._hash):
            return None
        self._tries.failed(address)
        self._warn_of_proxy(request, address)
        return Response(status_code=401)

    def _warn_of_proxy(self, request: Request, address: str) -> None:
        """Warn once if wrong tokens are counted for a proxy, and so for all users behind it."""
        forwarded = request.headers.get("x-forwarded-for")
        if forwarded and address not in forwarded and not self._has_warned:
            self._has_warned = True
            log.warning(
                "a wrong token came through a proxy at %s, and wrong tokens lock out an address: "
                "to count those of each user apart, start with --trust-proxy %s",
                address, address,
            )  # fmt: skip

    def session(self, *, now: float | None = None) -> str:
        """Start a session of a week; return the value of its cookie.

        Sessions are kept in memory, so an ended session stays ended. A restart ends all sessions.
        """
        until = int(time.time() if now is None else now) + SESSION_S
        value = f"{until}.{secrets.token_urlsafe(32)}"
        self._sessions[value] = until
        if len(self._sessions) > SESSIONS:
            self._sessions.popitem(last=False)
        return value

    def end_session(self, request: Request) -> None:
        """Refuse the request's cookie from now on."""
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
        """Return the seconds that the address has to wait; 0 if it may try now."""
        times = self._failed.get(network_of(address))
        if times is None or len(times) < TRIES:
            return 0.0
        return max(0.0, times[0] + WINDOW_S - self._clock())

    def failed(self, address: str) -> None:
        """Count a wrong token from this address."""
        net = network_of(address)
        self._failed.setdefault(net, deque(maxlen=TRIES)).append(self._clock())
        self._failed.move_to_end(net)
        if len(self._failed) > ADDRESSES:
            self._failed.popitem(last=False)


def network_of(address: str) -> str:
    """Return the unit by which to count: an IPv4 address, or the /64 network of an IPv6 address."""
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
    """Return whether only this machine can reach an address or a name."""
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

    Browsers tell this in two headers. They omit Sec-Fetch-Site for pages loaded over plain HTTP
    from another machine; then Origin alone decides.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin", "")
    if site is None:
        if request.url.scheme == "https" or is_loopback(host_of(request)):
            return False
    elif site not in ("same-origin", "none"):
        return False
    scheme, _, netloc = origin.partition("://")
    return scheme in ("http", "https") and bool(netloc) and netloc == request.headers.get("host")
