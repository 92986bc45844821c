"""A minimal HTTP server with its own thread and event loop, so it responds while other threads
block.

The server supports GET and HEAD, one request per connection, with limits on size, time and
connections.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from qsync.errors import ConfigError

log: Final = logging.getLogger("qsync.worker")

HEAD_LIMIT: Final = 8192
"""Maximum size of a request, in bytes."""

HEAD_S: Final = 5.0
"""Time within which a request must arrive, in seconds."""

ANSWER_TIMEOUT_S: Final = 10.0
"""Time within which a response must be sent and read by the client, in seconds."""

CONNECTIONS: Final = 64
"""Maximum number of connections per address; a further connection evicts the oldest from its
address."""

ALL_CONNECTIONS: Final = 256
"""Maximum number of connections from all addresses."""

PRIVATE: Final = ("localhost", "local", "internal", "svc", "lan", "arpa")
"""Last labels of names outside public DNS, e.g. of cluster services."""


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response."""

    body: bytes
    kind: str = "application/json"
    status: int = 200


Query = Mapping[str, str]
Route = Callable[[Query], Awaitable[Response]]


@dataclass(eq=False, slots=True)
class _HealthConnection:
    address: str
    writer: asyncio.StreamWriter
    asked: bool = False
    """Whether the request has been read."""


class HealthServer:
    """Serves routes (path -> function) until it is closed; raises ConfigError if the port is
    unusable.

    The functions run on the event loop of the server's thread. A new connection is always accepted.
    At the limit, the server evicts the oldest connection that has sent no request, or else the
    oldest. To protect against DNS rebinding, the server checks the Host header of each request. The
    header must contain an IP address, a name that public DNS does not have, `host`, or one of
    `names`.
    """

    def __init__(
        self, host: str, port: int, routes: Mapping[str, Route], names: Iterable[str] = ()
    ) -> None:
        try:
            family, *_, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            self._socket = socket.create_server(address[:2], family=family, backlog=CONNECTIONS)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"cannot listen on {host} port {port}: {error}") from None
        self._routes = routes
        self._names = {name.lower() for name in (host, *names)}
        self._open: dict[_HealthConnection, None] = {}
        """Open connections, the oldest first."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="qsync-http", daemon=True)

    @property
    def port(self) -> int:
        """The bound port, even if port 0 was requested."""
        port: int = self._socket.getsockname()[1]
        return port

    def start(self) -> None:
        """Start serving."""
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5.0)
        elif self._thread.ident is None:
            self._loop.close()  # the thread was never started
        self._socket.close()

    def _run(self) -> None:
        loop = self._loop
        asyncio.set_event_loop(loop)
        server = loop.run_until_complete(
            asyncio.start_server(self._serve, sock=self._socket, limit=HEAD_LIMIT)
        )
        try:
            loop.run_forever()
        finally:
            server.close()
            pending = asyncio.all_tasks(loop)
            for task in pending:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        connection = _HealthConnection(str(peer[0]) if peer else "", writer)
        self._make_room(connection.address)
        self._open[connection] = None
        try:
            async with asyncio.timeout(HEAD_S):
                head = await reader.readuntil(b"\r\n\r\n")
            connection.asked = True
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                writer.write(_encode(*await self._answer(head)))
                await writer.drain()
        except asyncio.LimitOverrunError:
            writer.write(_encode(_plain(431), True))
        except (OSError, EOFError, TimeoutError):  # the client is gone or too slow
            writer.transport.abort()
        finally:
            self._open.pop(connection, None)
            writer.close()

    def _make_room(self, address: str) -> None:
        """Evict a connection if a new connection from this address would exceed a limit."""
        among = [connection for connection in self._open if connection.address == address]
        if len(among) < CONNECTIONS:
            if len(self._open) < ALL_CONNECTIONS:
                return
            among = list(self._open)
        oldest = next((connection for connection in among if not connection.asked), among[0])
        del self._open[oldest]
        oldest.writer.transport.abort()

    def _knows(self, head: bytes) -> bool:
        """Return whether the Host header is allowed."""
        lines = head.decode("latin-1").split("\r\n")[1:]
        hosts = [line[5:].strip().lower() for line in lines if line[:5].lower() == "host:"]
        if not hosts:
            return True  # HTTP/1.0 may omit Host; a browser always sends it
        try:
            name = urlsplit(f"//{hosts[0]}").hostname or ""
        except ValueError:
            return False
        return len(hosts) == 1 and (name in self._names or _is_private(name))

    async def _answer(self, head: bytes) -> tuple[Response, bool]:
        """Return the response to a request, and whether to send its body."""
        line = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(line) != 3 or not line[2].startswith("HTTP/1."):
            return _plain(400), True
        if not self._knows(head):
            reason = "Host: not a name of this port; add it with qsync worker --health-name"
            return bad_request(reason, 421), True
        method, target, _ = line
        if method not in ("GET", "HEAD"):
            return _plain(405), True
        wants_body = method == "GET"
        try:
            parts = urlsplit(target)
            query = dict(parse_qsl(parts.query, max_num_fields=20))
        except ValueError:
            return _plain(400), wants_body
        route = self._routes.get(parts.path)
        if route is None:
            return _plain(404), wants_body
        try:
            return await route(query), wants_body
        except Exception as error:
            # Hide the error's text, which may name the store, because any client that reaches the
            # port sees the response.
            log.error("GET %s raised %s", parts.path, type(error).__name__, exc_info=True)
            return _plain(500), wants_body


def _is_private(name: str) -> bool:
    """Return whether this is an IP address, or a name that public DNS does not have."""
    try:
        ip_address(name.partition("%")[0])
    except ValueError:
        labels = name.rstrip(".").split(".")
        return len(labels) == 1 or labels[-1] in PRIVATE
    return True


def _plain(status: int) -> Response:
    return Response(f"{HTTPStatus(status).phrase}\n".encode(), "text/plain; charset=utf-8", status)


def _encode(response: Response, wants_body: bool) -> bytes:
    lines = [
        f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}",
        f"Content-Type: {response.kind}",
        f"Content-Length: {len(response.body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
    ]
    if response.status == HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append("Allow: GET, HEAD")
    head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
    return head + response.body if wants_body else head


def bad_request(reason: str, status: int = 400) -> Response:
    """Return an error response whose body is one line with the reason."""
    return Response(f"{reason}\n".encode(), "text/plain; charset=utf-8", status)
