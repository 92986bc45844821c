"""The parts of a server, which start and stop together with the server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from qsync.broker.address import Address
from qsync.broker.aio import AsyncBroker
from qsync.client import AsyncClient
from qsync.running_task import running
from qsync.server.thread_pool import Threads

Work = Callable[[], Awaitable[None]]


class Part(Protocol):
    """A part that starts and stops with a server."""

    async def start(self) -> None:
        """Start the part; return once the next one may start."""

    async def stop(self) -> None:
        """Stop the part; return once it has ended."""


class StopAction:
    """A part that acts only when the server stops."""

    def __init__(self, work: Work, *, closes: bool = False) -> None:
        self._work = work
        self.closes = closes
        """True if `work` only frees resources of this process."""

    async def start(self) -> None:
        """Do nothing."""

    async def stop(self) -> None:
        """Do the work."""
        await self._work()


class Loops:
    """Coroutines that run until the server stops; `on_error` gets any error that they raise."""

    def __init__(self, on_error: Callable[[Exception], None], *works: Work) -> None:
        self._on_error = on_error
        self._works = works
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start the coroutines, each in its own asyncio task."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._guard(work)) for work in self._works]

    async def stop(self) -> None:
        """Cancel the coroutines."""
        await cancel(self._tasks)

    async def _guard(self, work: Work) -> None:
        try:
            await work()
        except Exception as error:
            self._on_error(error)


class PartGroup:
    """Parts that are started and stopped at the same time."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts

    async def start(self) -> None:
        """Start the parts."""
        await asyncio.gather(*[part.start() for part in self._parts])

    async def stop(self) -> None:
        """Stop the parts."""
        await asyncio.gather(*[part.stop() for part in self._parts])


async def outside_handlers(work: Coroutine[Any, Any, None]) -> None:
    """Await the work. If a handler calls this, the work has an asyncio task of its own, so that it
    goes on when the handler is cancelled."""
    if running.get(None) is None:
        await work
    else:
        await asyncio.shield(asyncio.get_running_loop().create_task(work))


async def take_back(client: AsyncClient) -> None:
    """Close the client that handlers have used."""
    client.borrowed = False
    await client.aclose()


async def cancel(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Cancel asyncio tasks, and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(slots=True)
class ReplacedParts:
    """Parts of a server that its creator may replace, e.g. for tests.

    `threads` runs the `def` handlers; None means a pool of threads. If `ticks` is false, schedules
    do not tick. `batch_wait_s` is the longest time that a batch waits for more tasks, in seconds;
    None means the time that its handler sets.
    """

    broker: Callable[[Address], AsyncBroker] = AsyncBroker
    threads: Threads | None = None
    ticks: bool = True
    batch_wait_s: float | None = None
