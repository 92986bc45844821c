"""Connections that are kept at hand between exchanges.

To take one out of redis-py's pool and to put it back costs half as much as an exchange itself. For
the pool they are in use all the time; when somebody waits for one there, it gets the next.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any


class AtHand:
    """The connections of one pool that are kept at hand."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._free: list[Any] = []
        self._waiting = 0

    async def take(self) -> Any:
        """A connection for one exchange; raises what redis-py does when it cannot connect."""
        while self._free:
            connection = self._free.pop()
            if _is_open(connection):
                return connection
            await self.drop(connection)
        self._waiting += 1
        try:
            return await self._pool.get_connection()
        finally:
            self._waiting -= 1

    async def give_back(self, connection: Any) -> None:
        """Every reply was read: the connection may serve the next exchange."""
        if self._waiting:
            await self._pool.release(connection)
        else:
            self._free.append(connection)

    @asynccontextmanager
    async def left_in_pool(self) -> AsyncGenerator[None]:
        """The first connection that is free goes to whoever asks the pool itself meanwhile."""
        self._waiting += 1
        try:
            if self._free:
                await self._pool.release(self._free.pop())
            yield
        finally:
            self._waiting -= 1

    async def drop(self, connection: Any) -> None:
        """Nobody knows what comes from the connection next."""
        await connection.disconnect(nowait=True)
        await self._pool.release(connection)

    async def drop_all(self) -> None:
        """What is not in the midst of an exchange is closed; the next exchange connects anew."""
        free, self._free = self._free, []
        for connection in free:
            await self.drop(connection)
        await self._pool.disconnect(inuse_connections=False)


def _is_open(connection: Any) -> bool:
    """Whether the other side has not closed it meanwhile, as far as is known here."""
    reader = connection._reader
    return reader is not None and not reader.at_eof() and reader.exception() is None
