"""A server and a client in one event loop, for tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from qsync.broker import redis_clients, views
from qsync.broker.aio import AsyncBroker
from qsync.client import AsyncClient
from qsync.keys import QUEUE_KEYS, QueueKeys
from qsync.mux import Mux
from qsync.server.server import Server
from tests.support.acl import unlimited
from tests.support.stores import wait_until_async

KEPT = (
    "meta", "stats", "fetches", "wake", "idle", "ticks", "calls", "recent", "type_reports",
    "type_stats",
)  # fmt: skip
"""Keys of a queue that remain after its tasks are gone."""

STATES = ("scheduled", "pending", "active", "retry", "completed", "dead")


class Bench:
    """A client, a broker, and servers that are started on demand."""

    def __init__(self, url: str, prefix: str, broker: AsyncBroker, client: AsyncClient) -> None:
        self.url, self.prefix, self.broker, self.client = url, prefix, broker, client

    def server(self, mux: Mux, **config: Any) -> Server:
        """Return a server that has not been started, with options that let it recover tasks and
        stop quickly."""
        config = {"lease": 1.0, "sweep": 0.2, "shutdown_timeout": 2.0, **config}
        return Server(redis_clients.parse(self.url), prefix=self.prefix, mux=mux, **config)

    def keys(self, queue: str = "default") -> QueueKeys:
        return QueueKeys(self.prefix, queue)

    async def state(self, id: str, queue: str = "default") -> str | None:
        [shown] = await self.broker.run(views.get_tasks(self.keys(queue), [id]))
        return None if shown is None else str(shown.state)

    async def gone(self, id: str, queue: str = "default") -> None:
        """Wait until the queue no longer holds the task."""

        async def check() -> bool:
            return await self.state(id, queue) is None

        await wait_until_async(check, message=f"{id} is still there")

    async def reaches(self, id: str, state: str, queue: str = "default") -> None:
        """Wait until the task is in a state."""

        async def check() -> bool:
            return await self.state(id, queue) == state

        await wait_until_async(check, message=f"{id} is not {state}")


@contextlib.asynccontextmanager
async def bench(url: str, prefix: str) -> AsyncIterator[Bench]:
    """Yield a Bench whose connections are closed at the end."""
    broker, others = (
        AsyncBroker(redis_clients.parse(url)),
        AsyncBroker(redis_clients.parse(unlimited(url))),
    )
    try:
        async with AsyncClient(broker, prefix=prefix) as client:
            yield Bench(url, prefix, others, client)
    finally:
        await broker.aclose()
        await others.aclose()


def left_over(redis: Any, prefix: str, queue: str = "default") -> dict[str, int]:
    """Return the sizes of the non-empty keys in which a queue stores data about tasks. The result
    is empty once all tasks are gone."""
    base = QueueKeys(prefix, queue).base
    sizes = {}
    for name, (kind, _) in QUEUE_KEYS.items():
        if name in KEPT:
            continue
        if name == "schedules":
            continue
        size = redis.zcard if kind == "zset" else redis.hlen
        if count := size(f"{base}:{name}"):
            sizes[name] = count
    return sizes


async def until(predicate: Callable[[], bool], timeout: float = 10.0) -> None:  # noqa: ASYNC109 - as wait_until
    """Wait until the predicate holds."""

    async def check() -> bool:
        return predicate()

    await wait_until_async(check, timeout=timeout)


def run(work: Any) -> Any:
    """Run a coroutine on a new loop without debug mode, as in production."""
    return asyncio.run(work)
