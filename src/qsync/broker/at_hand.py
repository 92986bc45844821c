"""Connections that are kept at hand between exchanges.

To take one out of redis-py's pool and to put it back costs half as much as an exchange itself. For
the pool they are in use all the time; when somebody waits for one there, it gets the next.
"""

from __future__ import annotations

import asyncio
from typing import Any

from qsync.broker import connect
from qsync.broker.wire import PlainWire, Wire, wire_of


class AtHand:
    """The connections of one client that are kept at hand."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._pool = client.connection_pool
        self._free: list[Wire | PlainWire] = []
        self._waiting = 0

    async def take(self, seconds: float) -> Wire | PlainWire:
        """A connection for one exchange; raises what redis-py does when it cannot connect, or
        TimeoutError after so long."""
        while self._free:
            wire = self._free.pop()
            if wire.is_open:
                return wire
            await self.drop(wire)
        self._waiting += 1
        try:
            async with asyncio.timeout(seconds):
                return wire_of(await self._pool.get_connection())
        finally:
            self._waiting -= 1

    async def give_back(self, wire: Wire | PlainWire) -> None:
        """Every reply was read: the connection may serve the next exchange."""
        if self._waiting:
            await self._release(wire)
        else:
            self._free.append(wire)

    async def drop(self, wire: Wire | PlainWire) -> None:
        """Nobody knows what comes from the connection next."""
        await wire.connection.disconnect(nowait=True)
        await self._pool.release(wire.connection)

    async def drop_all(self) -> None:
        """What is not in the midst of an exchange is closed; the next exchange connects anew."""
        free, self._free = self._free, []
        for wire in free:
            await self.drop(wire)
        await self._pool.disconnect(inuse_connections=False)

    async def aclose(self) -> None:
        """Close all connections."""
        self._free.clear()
        await connect.aclose(self._client)

    async def _release(self, wire: Wire | PlainWire) -> None:
        wire.release()
        await self._pool.release(wire.connection)
