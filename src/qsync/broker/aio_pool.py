"""Connections that are kept at hand between exchanges.

To take one out of redis-py's pool and to put it back costs half as much as an exchange itself. So
for the pool they are in use all the time, and whoever needs one while there is none waits here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

from qsync.broker import redis_clients
from qsync.broker.protocol import LATE_S, PlainConnection, RedisConnection, wire_of

LINE_S: Final = 1.0
"""For so long after an answer of the store the callers who wait for a connection are taken to be in
a line that moves, seconds."""


class AioPool:
    """The connections of one client that are kept at hand."""

    def __init__(self, client: Any, connections: int) -> None:
        self._client = client
        self._pool = client.connection_pool
        self._free: list[RedisConnection | PlainConnection] = []
        self._room = connections
        """How many more may be in use."""
        self._line: deque[asyncio.Future[None]] = deque()
        """Callers who wait until one more may be in use, the first that came at the head."""
        self._answered = -LINE_S
        """When the store last answered, by the loop's clock."""

    @property
    def is_line(self) -> bool:
        """Whether the next caller has to wait until another has done."""
        return not self._room

    @property
    def moves(self) -> bool:
        """Whether the store answered a moment ago."""
        return asyncio.get_running_loop().time() - self._answered < LINE_S

    async def take(self, seconds: float) -> RedisConnection | PlainConnection:
        """A connection for one exchange; raises what redis-py does when it cannot connect, or
        TimeoutError after so long: for who waits in a line, once that moves no more."""
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
        """Every reply was read: the connection may serve the next exchange."""
        self._answered = asyncio.get_running_loop().time()
        self._free.append(wire)
        self._call_next()

    async def drop(self, wire: RedisConnection | PlainConnection) -> None:
        """Nobody knows what comes from the connection next."""
        try:
            await self._close(wire)
        finally:
            self._call_next()

    async def drop_all(self) -> None:
        """What is not in the midst of an exchange is closed; the next exchange connects anew."""
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
        """Wait for a turn; returns how many seconds are left to use it."""
        loop = asyncio.get_running_loop()
        ends, late = loop.time() + seconds, False
        turn = loop.create_future()
        self._line.append(turn)
        try:
            while True:
                await asyncio.wait([turn], timeout=max(ends - loop.time(), 0.0))
                now = loop.time()
                if now - ends > LATE_S and not late:  # the loop was blocked: see what has come
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
        """One less is in use: the first in the line may take its place."""
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._room += 1
