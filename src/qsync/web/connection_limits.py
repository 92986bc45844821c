"""Limits on the TCP connections of `qsync dashboard`, enforced before authentication.

A connection is *idle* while no request is in flight, *reading* while the body of its request has
not arrived, and otherwise *busy*. An idle connection is closed after IDLE_S. At the limit, a new
connection replaces the one that has been idle longest, or else the one that has been reading
longest; if all are busy, the new connection is refused.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from qsync.web.auth import network_of

Network = IPv4Network | IPv6Network

IDLE_S: Final = 5.0
"""How long a connection may be idle, and so how long the head of a request may take, in seconds."""

FLUSH_S: Final = 30.0
"""How long a client may take to read a response, in seconds."""

CONNECTIONS: Final = 200
"""Maximum number of connections."""

PER_ADDRESS: Final = 50
"""Maximum number of connections per address; a trusted proxy may use all connections."""

REFUSAL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n"
    b"Connection: close\r\n\r\n"
)

_KEY: Final = "qsync.connection"


class ConnectionLimits:
    """Keeps the connections of one server within the limits."""

    def __init__(
        self,
        *,
        proxies: Collection[Network] = (),
        total: int = CONNECTIONS,
        per_address: int = PER_ADDRESS,
        idle_s: float = IDLE_S,
    ) -> None:
        self._proxies, self._total, self._per_address = proxies, total, per_address
        self.idle_s = idle_s
        self._open: dict[_LimitedConnection, None] = {}
        self._of: Counter[str] = Counter()

    def add(self, connection: _LimitedConnection) -> bool:
        """Register a new connection; at the limit, close another one first.

        Return False if every other connection is busy.
        """
        network = connection.network
        others: list[_LimitedConnection] = []
        if self._of[network] >= self._limit(connection.host):
            others = [other for other in self._open if other.network == network]
        elif len(self._open) >= self._total:
            others = list(self._open)
        if others:
            quiet = [other for other in others if not other.is_busy]
            if not quiet:
                return False
            min(quiet, key=lambda other: (not other.is_idle, other.since)).abort()
        self._open[connection] = None
        self._of[network] += 1
        return True

    def discard(self, connection: _LimitedConnection) -> None:
        """Remove a connection that has ended."""
        if connection in self._open:
            del self._open[connection]
            self._of[connection.network] -= 1
            if not self._of[connection.network]:
                del self._of[connection.network]

    def _limit(self, host: str) -> int:
        try:
            address = ip_address(host)
        except ValueError:
            return self._per_address
        trusted = any(address in proxy for proxy in self._proxies)
        return self._total if trusted else self._per_address

    def watch(self, app: ASGIApp) -> ASGIApp:
        """Wrap the app so that each connection knows which of its requests are in flight."""

        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            connection = scope.get("state", {}).pop(_KEY, None)
            if connection is None:
                await app(scope, receive, send)
            else:
                await connection.serve(app, scope, receive, send)

        return watched

    def protocol(self) -> type[asyncio.Protocol]:
        """Return the protocol class for `uvicorn.Config(http=...)`."""
        limits = self

        class Protocol(H11Protocol):
            def __init__(self, *, app_state: dict[str, Any], **options: Any) -> None:
                self._connection = _LimitedConnection(limits)
                super().__init__(app_state={**app_state, _KEY: self._connection}, **options)

            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
                super().connection_made(transport)
                self._connection.opened(transport)

            def connection_lost(self, exc: Exception | None) -> None:
                self._connection.lost()
                super().connection_lost(exc)

        return Protocol


class _LimitedConnection:
    """One connection: its requests, and the timer that closes it when idle."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._requests = self._reading = 0
        self._timer: asyncio.TimerHandle | None = None
        self.since: float = self._loop.time()
        self.host: str = ""
        self.network: str = ""

    @property
    def is_idle(self) -> bool:
        """Whether no request is in flight."""
        return not self._requests

    @property
    def is_busy(self) -> bool:
        """Whether a completely received request is in flight."""
        return self._requests > self._reading

    def opened(self, transport: asyncio.Transport) -> None:
        """Register the connection, or refuse it."""
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self.host = str(peer[0]) if isinstance(peer, tuple) else ""
        self.network = network_of(self.host)
        if self._limits.add(self):
            self._timer = self._loop.call_later(self._limits.idle_s, self._expire)
        else:
            transport.write(REFUSAL)
            transport.close()

    def lost(self) -> None:
        """Unregister the connection."""
        self._limits.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def abort(self) -> None:
        """Close the connection immediately."""
        self.lost()
        self._transport.abort()

    async def serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Run a request of this connection."""
        reading = _has_body(scope)

        async def watched_receive() -> Message:
            nonlocal reading
            message = await receive()
            if reading and not message.get("more_body", False):
                reading = False
                self._reading -= 1
            return message

        self._requests += 1
        self._reading += reading
        self.since = self._loop.time()
        try:
            await app(scope, watched_receive, send)
        finally:
            self._requests -= 1
            self._reading -= reading
            self.since = self._loop.time()

    def _expire(self) -> None:
        """Close the connection if it has been idle for too long; otherwise check again later."""
        sending = self._transport.get_write_buffer_size() > 0
        allowed = FLUSH_S if sending else self._limits.idle_s
        remaining_s = self.since + allowed - self._loop.time()
        if self.is_idle and remaining_s <= 0:
            self.abort()
        else:
            delay = min(max(remaining_s, 0.01), self._limits.idle_s) if self.is_idle else IDLE_S
            self._timer = self._loop.call_later(delay, self._expire)


def _has_body(scope: Scope) -> bool:
    names = {name for name, value in scope["headers"] if value != b"0"}
    return b"content-length" in names or b"transfer-encoding" in names
