"""In a cluster, a server has one thread per node, however many queues it has."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter

import pytest

from qsync import Mux, Task, TaskInfo
from tests.support.server import bench
from tests.support.stores import Cluster, wait_until_async


def heartbeats() -> int:
    return sum(thread.name == "qsync-heartbeat" for thread in threading.enumerate())


@pytest.mark.faults(100)
async def test_server_with_many_queues_has_one_heartbeat_per_node(
    cluster: Cluster, prefix: str
) -> None:
    mux = Mux()
    ran: Counter[str] = Counter()
    names = [f"q{at}" for at in range(40)]

    @mux.handle("a")
    async def a(task: TaskInfo) -> None:
        await asyncio.sleep(1.2)  # the handler runs longer than a lease, so the lease is renewed
        ran[task.queue] += 1

    async with bench(cluster.url, prefix) as using:
        before = heartbeats()
        async with using.server(mux, queues=names) as server:
            assert heartbeats() - before == cluster.primaries
            await using.client.enqueue_many([Task("a", queue=name) for name in names])
            await wait_until_async(lambda: ran.total() == len(names), timeout=30)
            assert server.lost_leases == 0
    assert {*ran.values()} == {1}
