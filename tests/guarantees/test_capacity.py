"""More primaries handle more tasks, and a store can hold ten million tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import pytest

from qsync import Mux, Task
from qsync.keys import QueueKeys
from tests.guarantees.conftest import Launch, Measured
from tests.guarantees.probes import slow_scripts
from tests.support.server import bench, left_over, until
from tests.support.stores import Cluster, Store, wait_until

TASKS: Final = 15_000
"""Number of tasks in each queue."""

ROUNDS: Final = 3

TEN_MILLION: Final = 10_000_000
CHUNK: Final = 100_000


def spread(cluster: Cluster, prefix: str) -> dict[Store, list[str]]:
    """Return the names of three queues on each primary."""
    names: dict[Store, list[str]] = {node: [] for node in cluster.nodes}
    number = 0
    while any(len(held) < 3 for held in names.values()):
        number += 1
        queue = f"queue{number}"
        names[cluster.holder(QueueKeys(prefix, queue).base)].append(queue)
    return names


def cpu_s(node: Store) -> float:
    with node.client() as client:
        used: dict[str, Any] = client.info("cpu")
    return float(used["used_cpu_user"] + used["used_cpu_sys"])


async def work(cluster: Cluster, prefix: str, queues: Sequence[str]) -> float:
    """Enqueue and run the tasks; return the CPU time of the busiest primary, in seconds."""
    mux, done = Mux(), 0

    @mux.handle("nothing")
    async def nothing(payload: bytes) -> None:
        nonlocal done
        done += 1

    before = [cpu_s(node) for node in cluster.nodes]
    async with bench(cluster.url, prefix) as b:
        for queue in queues:
            await b.client.enqueue_many([Task("nothing", b"", queue=queue)] * TASKS)
        async with b.server(mux, queues=queues, lease=30.0):
            await until(lambda: done == TASKS * len(queues), timeout=60)
    spent = [cpu_s(node) - cpu for node, cpu in zip(cluster.nodes, before, strict=True)]
    return max(spent)


def test_three_primaries_have_over_twice_the_throughput_of_one(
    cluster: Cluster, prefix: str, measured: Measured
) -> None:
    """The CPU time of the busiest primary is compared, because all primaries share the cores of
    this machine."""
    names = spread(cluster, prefix)
    one = next(iter(names.values()))[:3]
    three = [queues[-1] for queues in names.values()]
    for _ in range(ROUNDS):
        together = asyncio.run(work(cluster, prefix, one))
        apart = asyncio.run(work(cluster, prefix, three))
        measured("capacity of three primaries divided by that of one", together / apart)
        if together / apart >= 2.0:
            break
    assert together / apart >= 2.0


@pytest.mark.slow
def test_ten_million_tasks_are_drained(prefix: str, launch: Launch, measured: Measured) -> None:
    base = QueueKeys(prefix, "default").base

    async def fill(store: Store) -> None:
        async with bench(store.url, prefix) as b:
            for _ in range(TEN_MILLION // CHUNK):
                await b.client.enqueue_many([Task("nothing", b"")] * CHUNK)

    with Store("valkey") as store, store.client() as client:
        asyncio.run(fill(store))
        assert client.zcard(f"{base}:pending") == TEN_MILLION
        measured("bytes a task", client.info("memory")["used_memory"] / TEN_MILLION)
        servers = [launch(store.url), launch(store.url)]
        wait_until(lambda: client.hlen(f"{base}:tasks") == 0, timeout=1500, every=1.0)
        for server in servers:
            server.terminate()
            assert server.wait() == 0
        assert int(client.hget(f"{base}:stats", "completed")) == TEN_MILLION
        assert left_over(client, prefix) == {}
        measured("scripts over 10 ms", slow_scripts(store))
