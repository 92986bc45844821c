"""The parts that all measurements share: the store, the queue, clients and servers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any, Final, Self

from benchmarks.handlers import PAYLOAD
from benchmarks.scale import Scale
from benchmarks.server_process import BenchmarkError, ServerProcess
from benchmarks.store import CommandUsage, read_info, read_script_usage
from qsync import codec
from qsync.broker import limit_ops, operator_ops, redis_clients
from qsync.broker.aio import AsyncBroker
from qsync.broker.blocking import Broker
from qsync.client import AsyncClient, Client
from qsync.keys import QUEUE_KEYS, GlobalKeys, QueueKeys
from qsync.limit import LimitRule
from qsync.task import DEFAULT, Task

STALL_TIMEOUT_S: Final = 60.0
"""Time without a completed task after which the benchmark gives up, in seconds."""

FILL_BATCH: Final = 20_000


class Harness:
    """A store, and a queue in it under its own prefix."""

    def __init__(self, url: str, scale: Scale) -> None:
        self.url = url
        self.scale = scale
        self.prefix = f"qsync-bench-{secrets.token_hex(4)}"
        self.keys = QueueKeys(self.prefix, DEFAULT)
        self.address = redis_clients.parse(url)
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
        """Delete all data of the queue. Each measurement begins with a call of this method.

        Raises BenchmarkError if the store forbids this, since the benchmark must be able to clean
        up.
        """
        await self._unlink(*[self.keys.key(name) for name in QUEUE_KEYS])
        while info := await self.info("memory"):  # wait until the store has freed the memory
            if not int(info.get("lazyfree_pending_objects", 0)):
                break
            await asyncio.sleep(0.005)

    async def _unlink(self, *names: str) -> None:
        if await self.broker.ask("UNLINK", *names, key=names[0]) is None:
            raise BenchmarkError(
                f"the store refuses UNLINK, without which {names[0]} cannot be deleted"
            )

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[AsyncClient]:
        """Open a client in this process."""
        async with AsyncClient(AsyncBroker(self.address), prefix=self.prefix) as client:
            yield client

    def blocking_client(self) -> Client:
        """Return a blocking client in this process."""
        return Client(Broker(self.address), prefix=self.prefix)

    @contextlib.asynccontextmanager
    async def servers(
        self, count: int = 1, *, uvloop: bool = False, **config: Any
    ) -> AsyncIterator[list[ServerProcess]]:
        """Start servers for the queue, each in its own process; yield them when they are ready."""
        async with contextlib.AsyncExitStack() as stack:
            servers = [
                ServerProcess(self.url, self.prefix, server=config, uvloop=uvloop)
                for _ in range(count)
            ]
            yield list(await asyncio.gather(*map(stack.enter_async_context, servers)))

    async def fill(
        self, type: str, count: int, *, keys: int | None = None, name: str = "customer"
    ) -> None:
        """Enqueue tasks of a type, each with a payload of 32 bytes.

        With `keys`, the tasks get the limits `name:0`, `name:1` and so on, in turn.
        """
        tasks = [Task(type, PAYLOAD)]
        if keys is not None:
            tasks = [Task(type, PAYLOAD, limits=[f"{name}:{key}"]) for key in range(keys)]
        endless = itertools.cycle(tasks)
        async with self.client() as client:
            for start in range(0, count, FILL_BATCH):
                batch = min(FILL_BATCH, count - start)
                await client.enqueue_many(list(itertools.islice(endless, batch)))

    async def put_rule(self, name: str, rule: LimitRule | None) -> None:
        """Publish the rule of a limit; do nothing if it is None."""
        if rule is not None:
            await self.broker.run(limit_ops.put_limit_rules(self.keys, {name: rule}))

    async def pause(self) -> None:
        """Pause the queue."""
        await self.broker.run(operator_ops.pause(self.keys, codec.encode("benchmark")))

    async def resume(self) -> None:
        """Resume the queue."""
        await self.broker.run(operator_ops.resume(self.keys))

    async def completed(self) -> int:
        """Return the number of tasks that have completed since `clean` was called."""
        stats = self.keys.key("stats")
        return int(await self.broker.ask("HGET", stats, "completed", key=stats) or 0)

    async def pending(self) -> int:
        """Return the number of pending tasks."""
        name = self.keys.key("pending")
        return int(await self.broker.ask("ZCARD", name, key=name) or 0)

    async def until_completed(self, count: int) -> float:
        """Wait until this many tasks have completed; return the time, by the monotonic clock.

        Poll only about a dozen times, so as not to slow down the servers. Poll more often towards
        the end, so that the time is accurate to about a millisecond.
        """
        began = progressed_at = time.monotonic()
        first = last = await self.completed()
        while last < count:
            rate = (last - first) / max(progressed_at - began, 1e-9)
            await asyncio.sleep(min(max((count - last) / rate / 2, 0.001), 0.5) if rate else 0.01)
            now, completed = time.monotonic(), await self.completed()
            if completed > last:
                progressed_at, last = now, completed
            elif now - progressed_at > STALL_TIMEOUT_S:
                raise BenchmarkError(
                    f"{last} of {count} tasks completed, and then none for {STALL_TIMEOUT_S:.0f} s"
                )
        return time.monotonic()

    async def script_usage(self) -> CommandUsage | None:
        """Return the time and number of the store's script calls, or None if it does not report
        them."""
        return await read_script_usage(self.broker, self.keys.base)

    async def info(self, section: str) -> dict[str, str] | None:
        """Return a section of INFO from the queue's node, or None if INFO is forbidden."""
        return await read_info(self.broker, section, self.keys.base)
