"""A connection pool of an asyncio broker.

Taking a connection from redis-py's pool and returning it costs half as much as an exchange. So
redis-py's pool sees these connections as always in use, and callers wait for a free one here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

from qsync.broker import redis_clients
from qsync.broker.protocol import LATE_S, PlainConnection, RedisConnection, wire_of

LINE_S: Final = 1.0
"""Time after the store's last reply, in seconds, for which waiting callers do not time out."""


class AioPool:
    """A pool of the connections of one client."""

    def __init__(self, client: Any, connections: int) -> None:
        self._client = client
        self._pool = client.connection_pool
        self._free: list[RedisConnection | PlainConnection] = []
        self._room = connections
        """Number of further connections that may be in use."""
        self._line: deque[asyncio.Future[None]] = deque()
        """Callers that wait for a connection, first come first."""
        self._answered = -LINE_S
        """Time of the store's last reply, by the loop's clock."""

    @property
    def is_line(self) -> bool:
        """Return whether the next caller has to wait for a connection."""
        return not self._room

    @property
    def moves(self) -> bool:
        """Return whether the store replied within the last LINE_S."""
        return asyncio.get_running_loop().time() - self._answered < LINE_S

    async def take(self, seconds: float) -> RedisConnection | PlainConnection:
        """Return a connection for one exchange.

        Raises redis-py's error if it cannot connect, and TimeoutError after `seconds`. A caller
        that waits for a free connection does not time out while other callers get replies.
        """
        if self._room:
            self._room -= 1
        else:
            seconds = await self._wait_in_line(seconds)
        try:
            while self._free:
                wire = self._free.pop()
                if wire.is_open:
                    return wire
                await self._close(wire)
            async with asyncio.timeout(seconds):
                return wire_of(await self._pool.get_connection())
        except BaseException:
            self._call_next()
            raise

    def give_back(self, wire: RedisConnection | PlainConnection) -> None:
        """Return a connection to the pool; all its replies must have been read."""
        self._answered = asyncio.get_running_loop().time()
        self._free.append(wire)
        self._call_next()

    async def drop(self, wire: RedisConnection | PlainConnection) -> None:
        """Close a connection whose protocol state is unknown."""
        try:
            await self._close(wire)
        finally:
            self._call_next()

    async def drop_all(self) -> None:
        """Close all idle connections; the next exchange connects again."""
        free, self._free = self._free, []
        for wire in free:
            await self._close(wire)
        await self._pool.disconnect(inuse_connections=False)

    async def aclose(self) -> None:
        """Close all connections."""
        self._free.clear()
        await redis_clients.aclose(self._client)

    async def _close(self, wire: RedisConnection | PlainConnection) -> None:
        await wire.connection.disconnect(nowait=True)
        await self._pool.release(wire.connection)

    async def _wait_in_line(self, seconds: float) -> float:
        """Wait for a turn; return how many seconds are left to use it."""
        loop = asyncio.get_running_loop()
        ends, late = loop.time() + seconds, False
        turn = loop.create_future()
        self._line.append(turn)
        try:
            while True:
                await asyncio.wait([turn], timeout=max(ends - loop.time(), 0.0))
                now = loop.time()
                if now - ends > LATE_S and not late:  # the loop was blocked: read what has arrived
                    ends, late = now + LATE_S / 2, True
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
        """Give the place of a returned connection to the first waiting caller, if there is one."""
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._room += 1
