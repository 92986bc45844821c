"""Helpers of the chaos tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from qsync.broker import redis_clients
from qsync.broker.aio import AsyncBroker
from qsync.diagnostics.audit import Auditor, Damage
from qsync.keys import QueueKeys
from qsync.task import Task
from tests.support.counters import with_counted
from tests.support.server import bench, left_over
from tests.support.stores import Store, wait_until


def enqueue(url: str, prefix: str, tasks: Iterable[Task]) -> list[str]:
    """Enqueue the tasks and return their ids."""

    async def main() -> list[str]:
        async with bench(url, prefix) as b:
            return [handle.id for handle in await b.client.enqueue_many(list(tasks))]

    return asyncio.run(main())


def damages(store: Store, prefix: str) -> list[Damage]:
    """Return the damage that an audit finds."""

    async def main() -> list[Damage]:
        broker = AsyncBroker(redis_clients.parse(store.url))
        try:
            return (await Auditor(broker, prefix=prefix).audit()).damages
        finally:
            await broker.aclose()

    return asyncio.run(main())


def pass_time(seconds: float) -> None:
    """Wait for this many seconds."""
    ends = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= ends, timeout=seconds + 5)


def counter(store: Store, prefix: str, name: str, queue: str = "default") -> int:
    """Return a counter of a queue."""
    keys = QueueKeys(prefix, queue)
    with store.client() as client:
        stats, meta = client.hgetall(keys.key("stats")), client.hgetall(keys.key("meta"))
    return int(with_counted(stats, meta).get(name.encode(), 0))


def wait_empty(store: Store, prefix: str, timeout: float = 20) -> None:
    """Wait until all tasks have ended and left the queue."""
    with store.client() as client:
        wait_until(
            lambda: left_over(client, prefix).keys() <= {"calls"},
            timeout=timeout,
            every=0.05,
            message=f"still there: {left_over(client, prefix)}",
        )
