"""What all measures share: the store, the queue, clients and servers."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, Self

from qsync import codec
from qsync.broker import connect, ops
from qsync.broker.shell import AsyncBroker, Broker
from qsync.cli.bench.handlers import PAYLOAD
from qsync.cli.bench.scale import Scale
from qsync.cli.bench.served import BenchError, Served
from qsync.cli.bench.store import Spent, read_info, spent
from qsync.client import AsyncClient, Client
from qsync.keys import QUEUE_KEYS, GlobalKeys, QueueKeys
from qsync.task import DEFAULT, Task

STILL_S: Final = 60.0
"""When for so long no task has ended, something is wrong, seconds."""


class Rig:
    """A store, and one queue in it under a prefix that nobody else has."""

    def __init__(self, url: str, scale: Scale) -> None:
        self.url = url
        self.scale = scale
        self.prefix = f"qsync-bench-{secrets.token_hex(4)}"
        self.keys = QueueKeys(self.prefix, DEFAULT)
        self.address = connect.parse(url)
        self.broker = AsyncBroker(self.address)

    async def __aenter__(self) -> Self:
        await self.broker.ping()
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self.clean()
            keys = GlobalKeys(self.prefix)
            for name in (keys.queues, keys.servers):
                await self._unlink(name)
        finally:
            await self.broker.aclose()

    async def clean(self) -> None:
        """The queue is as if it had never been used. Each measure begins with this.

        BenchError when the store does not let us: nothing may be left in it.
        """
        await self._unlink(*[self.keys.key(name) for name in QUEUE_KEYS])
        while info := await self.info("memory"):  # a thread of the store frees it
            if not int(info.get("lazyfree_pending_objects", 0)):
                break
            await asyncio.sleep(0.005)

    async def _unlink(self, *names: str) -> None:
        if await self.broker.ask("UNLINK", *names, key=names[0]) is None:
            msg = f"the store refuses UNLINK, without which {names[0]} cannot be deleted"
            raise BenchError(msg)

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[AsyncClient]:
        """A client of this process."""
        async with AsyncClient(AsyncBroker(self.address), prefix=self.prefix) as client:
            yield client

    def blocking_client(self) -> Client:
        """A blocking client of this process."""
        return Client(Broker(self.address), prefix=self.prefix)

    @contextlib.asynccontextmanager
    async def servers(
        self, count: int = 1, *, uvloop: bool = False, **config: Any
    ) -> AsyncIterator[list[Served]]:
        """Servers of the queue that are ready, each in a process of its own."""
        async with contextlib.AsyncExitStack() as stack:
            made = [
                Served(self.url, self.prefix, server=config, uvloop=uvloop) for _ in range(count)
            ]
            yield list(await asyncio.gather(*map(stack.enter_async_context, made)))

    async def fill(self, type: str, count: int) -> None:
        """So many tasks of a type wait, with a payload of 32 bytes."""
        async with self.client() as client:
            for at in range(0, count, 20_000):
                await client.enqueue_many([Task(type, PAYLOAD)] * min(20_000, count - at))

    async def pause(self) -> None:
        """No task is fetched."""
        await self.broker.run(ops.pause(self.keys, codec.encode("qsync bench")))

    async def resume(self) -> None:
        """Tasks are fetched again."""
        await self.broker.run(ops.resume(self.keys))

    async def completed(self) -> int:
        """How many tasks have been run to their end since the queue was cleaned."""
        stats = self.keys.key("stats")
        return int(await self.broker.ask("HGET", stats, "completed", key=stats) or 0)

    async def pending(self) -> int:
        """How many tasks wait."""
        name = self.keys.key("pending")
        return int(await self.broker.ask("ZCARD", name, key=name) or 0)

    async def until_completed(self, count: int) -> float:
        """Wait until so many have been; returns when that was seen, by the monotonic clock.

        It looks more often as the end comes nearer: a dozen times in all, so that it costs those
        that work nothing, and the last time within about a millisecond.
        """
        began = seen = time.monotonic()
        first = last = await self.completed()
        while last < count:
            rate = (last - first) / max(seen - began, 1e-9)
            await asyncio.sleep(min(max((count - last) / rate / 2, 0.001), 0.5) if rate else 0.01)
            now, done = time.monotonic(), await self.completed()
            if done > last:
                seen, last = now, done
            elif now - seen > STILL_S:
                msg = f"{last} of {count} tasks have ended, and for {STILL_S:.0f} s no other did"
                raise BenchError(msg)
        return time.monotonic()

    async def spent(self) -> Spent | None:
        """What the store has spent on scripts."""
        return await spent(self.broker, self.keys.base)

    async def info(self, section: str) -> dict[str, str] | None:
        """A section of INFO of the node that has the queue."""
        return await read_info(self.broker, section, self.keys.base)


def us_per_task(before: Spent | None, after: Spent | None, tasks: int) -> float | None:
    """The store's time for each of the tasks; None where it is not told."""
    if before is None or after is None:
        return None
    return after.since(before).us / tasks


def middle(values: Sequence[float | None]) -> float | None:
    """The middle one of the rounds; None when the store did not tell it."""
    known = sorted(value for value in values if value is not None)
    return known[len(known) // 2] if known else None
