"""Connections that send little or nothing do not keep other users from the dashboard."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from qsync.web.connection_limits import ConnectionLimits
from tests.support.dashboard import quiet_server
from tests.support.stores import HOST, Store
from tests.web.test_web_command import TOKEN, running


@contextlib.contextmanager
def connected(port: int, number: int, sent: bytes = b"") -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(number):
            made.append(stack.enter_context(socket.create_connection((HOST, port), 10)))
            with contextlib.suppress(OSError):
                made[-1].sendall(sent)
        yield made


def is_closed(connection: socket.socket) -> bool:
    """Return whether the server closes the connection within 10 s."""
    connection.settimeout(10)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


HALF_FORM = (
    b"POST /login HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n"
    b"Sec-Fetch-Site: same-origin\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    b"Content-Length: 100\r\n\r\ntoken="
)


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HTTP/1.1\r\nHost: loc", HALF_FORM, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"],
    ids=["nothing", "half a head", "half a body", "a request and nothing after it"],
)
def test_idle_connections_do_not_block_other_users(
    valkey: Store, prefix: str, tmp_path: Path, sent: bytes
) -> None:
    env = {"QSYNC_URL": valkey.url, "QSYNC_PREFIX": prefix, "QSYNC_DASHBOARD_TOKEN": TOKEN}
    with running("--port", "0", folder=tmp_path, **env) as it:
        port = urlsplit(it.url).port
        assert port
        with connected(port, 250, sent):
            answer = httpx.get(it.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=5)
            assert answer.status_code == 200


def test_connection_without_a_head_is_closed_after_seconds(
    valkey: Store, prefix: str, tmp_path: Path
) -> None:
    env = {"QSYNC_URL": valkey.url, "QSYNC_PREFIX": prefix}
    with running("--port", "0", folder=tmp_path, **env) as it:
        port = urlsplit(it.url).port
        assert port
        with connected(port, 1) as [silent], connected(port, 1, b"GET / HTTP") as [half]:
            begun = time.monotonic()
            assert is_closed(silent)
            assert is_closed(half)
            assert time.monotonic() - begun < 9


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Respond when the body has arrived, but never respond to `/wait`."""
    while (message := await receive()).get("more_body"):
        pass
    if message["type"] == "http.disconnect":
        return
    while scope["path"] == "/wait" and (await receive())["type"] != "http.disconnect":
        pass
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-length", b"2")]})  # fmt: skip
    await send({"type": "http.response.body", "body": b"ok"})


@contextlib.asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[tuple[int, ConnectionLimits]]:
    limits = ConnectionLimits(**options)
    config = uvicorn.Config(
        limits.watch(answer), http=limits.protocol(), log_config=None, lifespan="off", ws="none",
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    async with quiet_server(config) as port:
        try:
            yield port, limits
        finally:
            while Peer.opened:
                Peer.opened.pop().writer.transport.abort()


class Peer:
    """The client's side of a connection."""

    opened: ClassVar[list[Peer]] = []

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int, sent: bytes = b"", source: str = HOST) -> Peer:
        made = await asyncio.open_connection(HOST, port, local_addr=(source, 0))
        made[1].write(sent)
        cls.opened.append(cls(*made))
        return cls.opened[-1]

    async def ask(self, path: str = "/") -> bytes:
        """Send a request; return the beginning of the status line, or b"" if the connection was
        closed."""
        try:
            self.writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            return (await self.reader.readuntil(b"ok"))[:12]
        except asyncio.IncompleteReadError as error:
            return error.partial[:12]
        except ConnectionError:
            return b""

    async def closed(self) -> bool:
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(self.reader.read(), 10)
        return True


OK = b"HTTP/1.1 200"
WAIT = b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n"
BODY = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx"


async def until(limits: ConnectionLimits, busy: int, reading: int = 0) -> None:
    """Wait until this many connections are busy and this many are being read."""
    async with asyncio.timeout(10):
        while True:
            held = list(limits._open)
            if (
                sum(one.is_busy for one in held) == busy
                and sum(not one.is_busy and not one.is_idle for one in held) == reading
            ):
                return
            await asyncio.sleep(0.01)


async def test_full_server_closes_oldest_idle_connection_then_one_with_a_late_body() -> None:
    async with serving(total=3, per_address=3, idle_s=60) as (port, limits):
        first, second = await Peer.open(port), await Peer.open(port)
        assert [await second.ask(), await first.ask()] == [OK, OK]
        late = await Peer.open(port, BODY)
        await until(limits, busy=0, reading=1)
        new = await Peer.open(port, WAIT)
        assert await second.closed()
        assert await first.ask() == OK, "the first connection was used more recently"
        await until(limits, busy=1, reading=1)
        newer = await Peer.open(port, WAIT)
        assert await first.closed()
        await until(limits, busy=2, reading=1)
        newest = await Peer.open(port, WAIT)
        assert await late.closed()
        await until(limits, busy=3)
        refused = await Peer.open(port)
        assert await refused.ask() == b"HTTP/1.1 503", (
            "no request is aborted to make room for another"
        )
        assert not any(one.reader.at_eof() for one in (new, newer, newest))


async def test_one_address_cannot_take_all_connections_but_a_trusted_proxy_can() -> None:
    proxy = [ip_network("127.0.0.3/32")]
    options: dict[str, Any] = {"total": 6, "per_address": 2, "idle_s": 60, "proxies": proxy}
    async with serving(**options) as (port, limits):
        flood = [await Peer.open(port, source="127.0.0.2") for _ in range(5)]
        for one in flood[:3]:
            assert await one.closed()
        held = [await Peer.open(port, WAIT, source="127.0.0.3") for _ in range(4)]
        await until(limits, busy=4)
        assert [await one.ask() for one in flood[3:]] == [OK, OK]
        other = await Peer.open(port, source="127.0.0.4")
        assert await other.ask() == OK
        assert await flood[3].closed()
        assert not any(one.reader.at_eof() for one in held)


async def test_dripping_idle_connection_is_closed_and_busy_connection_stays_open() -> None:
    async with serving(idle_s=0.3) as (port, limits):
        busy = await Peer.open(port, WAIT)
        dripping = await Peer.open(port, b"GET / HTTP/1.1\r\n")

        async def drip() -> None:
            while True:
                dripping.writer.write(b"x")
                await asyncio.sleep(0.05)

        dripping_task = asyncio.create_task(drip())
        assert await dripping.closed()
        dripping_task.cancel()
        used = await Peer.open(port)
        assert await used.ask() == OK
        assert await used.closed()
        await until(limits, busy=1)
        assert not busy.reader.at_eof()
        busy.writer.close()
        await until(limits, busy=0)
