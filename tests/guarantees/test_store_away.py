"""During a store outage, servers wait without using much CPU time. When the store returns, they
settle all tasks."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.guarantees.conftest import Launch, Measured
from tests.support.processes import History, task
from tests.support.server import bench, left_over
from tests.support.stores import Store, wait_until

TASKS = 100
AWAY_S = 3.0


def completed(store: Store, prefix: str) -> int:
    with store.client() as client:
        return int(client.hget(f"{{{prefix}:default}}:stats", "completed") or 0)


@pytest.mark.faults(17, 28, 39)
@pytest.mark.guarantee(1, 7)
@pytest.mark.parametrize(
    ("how", "servers", "lease_s"),
    [
        ("killed", 1, 1.0),
        ("paused", 2, 30.0),
        pytest.param("paused", 1, 1.0, marks=pytest.mark.slow),
        pytest.param("killed", 2, 30.0, marks=pytest.mark.slow),
    ],
)
def test_tasks_survive_an_outage_of_the_store(
    own_store: Store,
    prefix: str,
    launch: Launch,
    history: History,
    measured: Measured,
    how: str,
    servers: int,
    lease_s: float,
) -> None:
    """Half of the tasks end while the store is unavailable, the other half after it has returned.

    With one server, leases of 1 s expire in the meantime, but no other server can take the tasks.
    With two servers and leases of 30 s, no lease expires. With one or two servers, each task runs
    once.
    """
    running = [launch(own_store.url, lease=lease_s, concurrency=TASKS) for _ in range(servers)]

    async def enqueue() -> None:
        async with bench(own_store.url, prefix) as b:
            await b.client.enqueue_many(
                [task(sleep=2.0 if n % 2 else 5.0, retention=600) for n in range(TASKS)]
            )

    asyncio.run(enqueue())
    history.wait("start", TASKS)
    before = [(server.cpu_s(), time.monotonic()) for server in running]
    own_store.kill() if how == "killed" else own_store.pause()
    back_at = time.monotonic() + AWAY_S
    wait_until(lambda: time.monotonic() >= back_at, every=0.05)
    shares = [
        (server.cpu_s() - cpu_s) / (time.monotonic() - since)
        for server, (cpu_s, since) in zip(running, before, strict=True)
    ]
    measured("store down: largest share of a core that a server used", max(shares))
    own_store.start() if how == "killed" else own_store.resume()
    assert own_store.command("PING")
    returned_at = time.monotonic()

    wait_until(lambda: completed(own_store, prefix) >= TASKS // 2)
    late_s = time.monotonic() - returned_at
    wait_until(lambda: completed(own_store, prefix) == TASKS)
    last_end = max(event.at for event in history.of("end"))
    measured(
        "store down: seconds from its return until the tasks that had ended were settled", late_s
    )
    measured(
        "store down: seconds from the last end of a task until it was settled",
        time.monotonic() - last_end,
    )
    assert late_s <= 2
    assert all(server.running for server in running)
    starts = history.of("start")
    assert len(starts) == len({event.id for event in starts}) == TASKS
    assert len(history.of("end")) == TASKS
    assert max(shares) < 0.2
    assert left_over(own_store.client(), prefix) == {
        "tasks": TASKS, "completed": TASKS, "results": TASKS,
    }  # fmt: skip


@pytest.mark.faults(17, 28)
@pytest.mark.guarantee(5)
@pytest.mark.slow
def test_two_servers_with_expired_leases_repeat_nothing(
    own_store: Store, prefix: str, launch: Launch, history: History, measured: Measured
) -> None:
    """Leases expire while the store is unavailable. When the store returns, each server can renew
    its own leases."""
    running = [launch(own_store.url, lease=1.5, concurrency=TASKS) for _ in range(2)]

    async def enqueue() -> None:
        async with bench(own_store.url, prefix) as b:
            await b.client.enqueue_many([task(sleep=4.5, retention=600) for _ in range(TASKS)])

    asyncio.run(enqueue())
    history.wait("start", TASKS)
    own_store.kill()
    back_at = time.monotonic() + AWAY_S
    wait_until(lambda: time.monotonic() >= back_at, every=0.05)
    own_store.start()
    wait_until(lambda: completed(own_store, prefix) == TASKS, timeout=20)
    starts = history.of("start")
    measured("store down: tasks that ran again because their leases expired", len(starts) - TASKS)
    assert all(server.running for server in running)
    assert len(starts) == len({event.id for event in starts}) == TASKS
    with own_store.client() as client:
        stats = client.hgetall(f"{{{prefix}:default}}:stats")
    assert b"crashed" not in stats
    assert b"lost" not in stats
