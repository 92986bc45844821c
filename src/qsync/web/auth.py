"""Who is let in: whoever has the token, whom the host app knows, or nobody."""

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
"""Of the host app: True or the user's name lets in; a Response is sent instead; else nobody."""

COOKIE: Final = "qsync_session"
SESSION_S: Final = 7 * 86_400
SESSIONS: Final = 10_000
"""Most sessions at a time; a new one ends the oldest."""

SHORTEST_TOKEN: Final = 16

TRIES: Final = 5
WINDOW_S: Final = 60.0
ADDRESSES: Final = 10_000


class Access(Protocol):
    """Decides about every request, before anything else looks at it."""

    async def admit(self, request: Request) -> str | Response:
        """The name of the user, empty when nobody knows; or what to answer instead."""


def access_of(token: str | None, auth: Auth | Literal["host"] | None) -> Access:
    """The access that is asked for; ConfigError when it is none."""
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
    """Lets nobody in."""

    async def admit(self, request: Request) -> str | Response:
        """Say what to do."""
        text = "Nobody is let in: give create_app() auth= or token=, see the docs of the dashboard."
        return PlainTextResponse(f"{text}\n", 403)


class AllowAll:
    """Lets in whoever the app around it does."""

    async def admit(self, request: Request) -> str | Response:
        """The user, as far as the app around it says."""
        user = request.scope.get("user")
        name = getattr(user, "display_name", "") if user is not None else ""
        return name if isinstance(name, str) else ""


class CallbackAuth:
    """Lets in whom a function of the host app does."""

    def __init__(self, auth: Auth) -> None:
        self._auth = auth

    async def admit(self, request: Request) -> str | Response:
        """Ask it."""
        answer = self._auth(request)
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, Response):
            return answer
        if isinstance(answer, str) and answer:
            return answer
        # Only True itself: an object that happens to be true is a mistake in somebody's function.
        return "" if answer is True else PlainTextResponse("You are not let in here.\n", 403)


class TokenAccess:
    """Lets in whoever has the token: in a header, or in a cookie that a form sets."""

    def __init__(self, token: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        if len(token) < SHORTEST_TOKEN:
            msg = f"token: it has {len(token)} characters; {SHORTEST_TOKEN} is the least"
            raise ConfigError(msg)
        self._hash = _hash(token)
        self._sessions: OrderedDict[str, float] = OrderedDict()
        self._tries = LoginThrottle(clock)
        self._has_warned = False

    async def admit(self, request: Request) -> str | Response:
        """Whoever has a session, or the token in the header Authorization."""
        if self._is_session(request.cookies.get(COOKIE, "")):
            return ""
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer":
            return Response(status_code=401)
        refused = self.check(request, given.strip())
        return "" if refused is None else refused

    def check(self, request: Request, given: str) -> Response | None:
        """None for the token; what to answer to another, or to one too many of them."""
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
        """Say once that wrong tokens are counted for a proxy, and so for everybody behind it."""
        forwarded = request.headers.get("x-forwarded-for")
        if forwarded and address not in forwarded and not self._has_warned:
            self._has_warned = True
            log.warning(
                "a wrong token came through a proxy at %s, and wrong tokens lock out an address: "
                "to count those of each user apart, start with --trust-proxy %s",
                address, address,
            )  # fmt: skip

    def session(self, *, now: float | None = None) -> str:
        """Begin a session of a week; returns the value of its cookie.

        Sessions are kept in memory, so that one that was ended stays ended: a restart ends all.
        """
        until = int(time.time() if now is None else now) + SESSION_S
        value = f"{until}.{secrets.token_urlsafe(32)}"
        self._sessions[value] = until
        if len(self._sessions) > SESSIONS:
            self._sessions.popitem(last=False)
        return value

    def end_session(self, request: Request) -> None:
        """Refuse the cookie of the request from now on."""
        self._sessions.pop(request.cookies.get(COOKIE, ""), None)

    def _is_session(self, value: str) -> bool:
        return time.time() < self._sessions.get(value, 0.0)


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()


class LoginThrottle:
    """Counts wrong tokens by address: five a minute, and then none is looked at."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: OrderedDict[str, deque[float]] = OrderedDict()

    def wait(self, address: str) -> float:
        """How many seconds the address has to wait; 0 when it may try."""
        times = self._failed.get(network_of(address))
        if times is None or len(times) < TRIES:
            return 0.0
        return max(0.0, times[0] + WINDOW_S - self._clock())

    def failed(self, address: str) -> None:
        """One more from there."""
        net = network_of(address)
        self._failed.setdefault(net, deque(maxlen=TRIES)).append(self._clock())
        self._failed.move_to_end(net)
        if len(self._failed) > ADDRESSES:
            self._failed.popitem(last=False)


def network_of(address: str) -> str:
    """What one attacker has: an IPv4 address, or the /64 of an IPv6 address."""
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
    """Whether only this machine reaches an address, or a name, of this kind."""
    if host.lower() == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def host_of(request: Request) -> str:
    """The name in the header Host, without its port; empty when there is none."""
    try:
        return urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    except ValueError:
        return ""


def same_origin(request: Request) -> bool:
    """Whether a request that changes something comes from a page of ours.

    Browsers say so in two headers. They leave Sec-Fetch-Site out where the page came in the clear
    from another machine; then Origin alone must do.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin", "")
    if site is None:
        if request.url.scheme == "https" or is_loopback(host_of(request)):
            return False
    elif site not in ("same-origin", "none"):
        return False
    scheme, _, netloc = origin.partition("://")
    return scheme in ("http", "https") and bool(netloc) and netloc == request.headers.get("host")
