"""The connection pool of an asyncio broker.

Taking a connection from redis-py's pool and returning it costs half as much as an exchange. So
redis-py's pool counts these connections as always in use, and callers wait here for a free
connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

from qsync.broker import redis_clients, redis_errors
from qsync.broker.base import LINE_S, LOOP_BLOCKED_S
from qsync.broker.error_mapping import opening
from qsync.broker.protocol import PlainConnection, RedisConnection, wrap_connection

CLOSED_TEXT: Final = "the broker was closed while it was connecting"


class AioPool:
    """A pool of one client's connections."""

    def __init__(self, client: Any, connections: int) -> None:
        self._client = client
        self._pool = client.connection_pool
        self._free: list[RedisConnection | PlainConnection] = []
        self.available: int = connections
        """Number of connections that callers may still take; if 0, the next caller waits."""
        self._queue: deque[asyncio.Future[None]] = deque()
        """Callers that wait for a connection, in the order in which they are served."""
        self._answered = -LINE_S
        """Time of the store's last reply, by the loop's clock."""
        self._closed = False

    @property
    def is_served(self) -> bool:
        """Return whether the store replied within the last LINE_S."""
        return asyncio.get_running_loop().time() - self._answered < LINE_S

    def take(self) -> RedisConnection | PlainConnection | None:
        """Return an idle, open connection for one exchange, or None; do not wait for one."""
        if self._free and self.available and self._free[-1].is_open:
            self.available -= 1
            return self._free.pop()
        return None

    async def acquire(self, seconds: float) -> RedisConnection | PlainConnection:
        """Return a connection for one exchange.

        Raises redis-py's error if it cannot connect, and TimeoutError after `seconds`. A caller
        that waits for a free connection does not time out while other callers get replies.
        """
        if self.available:
            self.available -= 1
        else:
            seconds = await self._wait_for_turn(seconds)
        try:
            while self._free:
                connection = self._free.pop()
                if connection.is_open:
                    return connection
                await self._close(connection)
            return wrap_connection(await self._connect(seconds))
        except BaseException:
            self._call_next()
            raise

    def release(self, connection: RedisConnection | PlainConnection) -> None:
        """Return a connection to the pool; all its replies must have been read."""
        self._answered = asyncio.get_running_loop().time()
        self._free.append(connection)
        self._call_next()

    async def discard(self, connection: RedisConnection | PlainConnection) -> None:
        """Close a connection whose protocol state is unknown."""
        try:
            await self._close(connection)
        finally:
            self._call_next()

    async def discard_all(self) -> None:
        """Close all idle connections; the next exchange connects again."""
        free, self._free = self._free, []
        for connection in free:
            await self._close(connection)
        await self._pool.disconnect(inuse_connections=False)

    async def aclose(self) -> None:
        """Close all connections, including those that are being opened."""
        self._closed = True
        self._free.clear()
        await redis_clients.aclose(self._client)

    async def _connect(self, seconds: float) -> Any:
        try:
            with opening():
                async with asyncio.timeout(seconds):
                    raw = await self._pool.get_connection()
        except BaseException:
            if self._closed:  # redis-py keeps a connection whose caller was cancelled
                await self._pool.disconnect(inuse_connections=False)
            raise
        if self._closed:  # the connection was not in the pool yet when the pool was closed
            await raw.disconnect(nowait=True)
            raise redis_errors.ConnectionError(CLOSED_TEXT)
        return raw

    async def _close(self, connection: RedisConnection | PlainConnection) -> None:
        await connection.raw.disconnect(nowait=True)
        await self._pool.release(connection.raw)

    async def _wait_for_turn(self, seconds: float) -> float:
        """Wait until this caller may take or open a connection; return how many seconds are left
        for that."""
        loop = asyncio.get_running_loop()
        ends, late = loop.time() + seconds, False
        turn = loop.create_future()
        self._queue.append(turn)
        try:
            while True:
                await asyncio.wait([turn], timeout=max(ends - loop.time(), 0.0))
                now = loop.time()
                # If the event loop was blocked, wait a little longer, because the loop must first
                # read what has arrived.
                if now - ends > LOOP_BLOCKED_S and not late:
                    ends, late = now + LOOP_BLOCKED_S / 2, True
                ends = max(ends, self._answered + LINE_S)
                if turn.done():
                    return max(ends - now, 0.0)
                if now >= ends:
                    raise TimeoutError
        except BaseException:
            if turn.done():
                self._call_next()
            turn.cancel()
            raise

    def _call_next(self) -> None:
        """Give the slot of a returned connection to the first waiting caller, if there is one."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.available += 1
