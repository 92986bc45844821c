"""A graceful shutdown loses no task, charges no attempt, and does not take long."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from qsync.server.signals import SAME_SIGNAL_S
from qsync.task import Task
from tests.guarantees.conftest import Launch, Measured
from tests.support.processes import History, task
from tests.support.server import bench, left_over
from tests.support.stores import Store, wait_until

TASKS = 100
GRACE_S = 1.0
LEASE_S = 30.0
"""Lease in seconds, so long that no lease expires in these tests."""

KINDS = [
    pytest.param("work", False, id="async"),
    pytest.param("work-in-thread", False, id="thread"),
    pytest.param("work", True, id="async-deaf"),
    pytest.param("work-in-thread", True, id="thread-deaf"),
]


def enqueue(store: Store, prefix: str, tasks: list[Task]) -> None:
    async def main() -> None:
        async with bench(store.url, prefix) as b:
            await b.client.enqueue_many(tasks)

    asyncio.run(main())


@pytest.mark.faults(9)
@pytest.mark.guarantee(5)
@pytest.mark.parametrize(("type", "deaf"), KINDS)
def test_task_running_after_the_grace_is_handed_back_and_starts_elsewhere(
    valkey: Store,
    prefix: str,
    launch: Launch,
    history: History,
    measured: Measured,
    type: str,
    deaf: bool,
) -> None:
    config = {"lease": LEASE_S, "concurrency": TASKS, "shutdown_timeout": GRACE_S}
    leaving = launch(valkey.url, server_id="leaving", **config)
    long = {"leaving": 600.0}
    quick = [task(type, id=f"quick-{n}", sleep_at={"leaving": 0.6}) for n in range(10)]
    tasks = [task(type, sleep_at=long, deaf=deaf) for _ in range(TASKS - len(quick))]
    enqueue(valkey, prefix, [*quick, *tasks])
    history.wait("start", TASKS, pid=leaving.pid)
    staying = launch(valkey.url, server_id="staying", **config)

    told_at = time.monotonic()
    leaving.terminate()
    status = leaving.wait(timeout=10)
    left_s = time.monotonic() - told_at
    again = history.wait("start", len(tasks), pid=staying.pid)
    handed_back_at = min(
        event.at for event in history.of("left" if deaf else "cancelled", pid=leaving.pid)
    )
    history.wait("end", TASKS)
    measured("shutdown: seconds until the server exited", left_s)
    measured(
        "shutdown: seconds from the hand-back of tasks until all had started elsewhere",
        again[-1].at - handed_back_at,
    )
    assert status == 0
    assert left_s <= GRACE_S + 2
    assert again[-1].at - handed_back_at <= 1
    assert {(event.attempt, event.crashes) for event in again} == {(1, 0)}
    # Tasks that ended within the grace period were not repeated.
    assert {event.id for event in history.of("end", pid=leaving.pid)} >= {one.id for one in quick}
    assert len(history.of("start")) == TASKS + len(tasks)
    wait_until(lambda: left_over(valkey.client(), prefix) == {})


@pytest.mark.faults(10)
@pytest.mark.parametrize(("type", "deaf"), KINDS)
def test_a_second_signal_hands_back_at_once(
    valkey: Store,
    prefix: str,
    launch: Launch,
    history: History,
    measured: Measured,
    type: str,
    deaf: bool,
) -> None:
    config = {"lease": LEASE_S, "concurrency": TASKS, "shutdown_timeout": 60.0}
    leaving = launch(valkey.url, server_id="leaving", **config)
    tasks = [task(type, sleep_at={"leaving": 600.0}, deaf=deaf) for _ in range(TASKS)]
    enqueue(valkey, prefix, tasks)
    history.wait("start", TASKS, pid=leaving.pid)
    leaving.terminate()
    wait_until(lambda: "stopping: " in leaving.log())
    same_ends = time.monotonic() + SAME_SIGNAL_S + 0.1  # after this, another signal counts
    wait_until(lambda: time.monotonic() > same_ends)
    told_at = time.monotonic()
    leaving.terminate()
    status = leaving.wait(timeout=10)
    left_s = time.monotonic() - told_at
    staying = launch(valkey.url, **config)
    again = history.wait("start", TASKS, pid=staying.pid)
    history.wait("end", TASKS, pid=staying.pid)
    measured("second signal: seconds until the server exited", left_s)
    assert status == 0
    assert left_s <= 1
    assert {(event.attempt, event.crashes) for event in again} == {(1, 0)}
    wait_until(lambda: left_over(valkey.client(), prefix) == {})


@pytest.mark.faults(10)
def test_third_signal_ends_the_process_and_leases_recover_its_tasks(
    own_store: Store, prefix: str, launch: Launch, history: History, measured: Measured
) -> None:
    """The store is down, so no task can be handed back. The shutdown does not wait for the
    store."""
    config = {"lease": 2.0, "sweep": 0.2, "concurrency": 10, "shutdown_timeout": 60.0}
    leaving = launch(own_store.url, server_id="leaving", **config)
    enqueue(own_store, prefix, [task(sleep_at={"leaving": 600.0}) for _ in range(10)])
    history.wait("start", 10, pid=leaving.pid)
    own_store.pause()
    for number in range(1, 4):
        told_at = time.monotonic()
        leaving.terminate()
        if number < 3:
            wait_until(lambda number=number: leaving.log().count("stopping") == number)  # type: ignore[misc]
            same_ends = time.monotonic() + SAME_SIGNAL_S + 0.1
            wait_until(lambda ends=same_ends: time.monotonic() > ends)  # type: ignore[misc]
    status = leaving.wait(timeout=10)
    measured("third signal: seconds until the server exited", time.monotonic() - told_at)
    assert status == 1
    assert time.monotonic() - told_at <= 0.5
    own_store.resume()
    staying = launch(own_store.url, **config)
    again = history.wait("start", 10, pid=staying.pid)
    assert {(event.attempt, event.crashes) for event in again} == {(1, 1)}
    history.wait("end", 10, pid=staying.pid)


@pytest.mark.faults(9, 11)
@pytest.mark.guarantee(5)
def test_restarting_servers_neither_lose_nor_repeat_a_task(
    valkey: Store, prefix: str, launch: Launch, history: History, measured: Measured
) -> None:
    chance = random.Random(9)
    config = {"lease": LEASE_S, "concurrency": 10}
    tasks = [task(sleep=0.002) for _ in range(4000)]
    enqueue(valkey, prefix, tasks)
    leaving = launch(valkey.url, **config)
    for _ in range(6):
        coming = launch(valkey.url, ready=False, **config)
        # The server stops in the middle of its work: some tasks are running, leased but not
        # started, or being fetched.
        history.wait("start", chance.randrange(1, 100), pid=leaving.pid)
        leaving.terminate()
        assert leaving.wait() == 0
        assert len(history.of("end")) < len(tasks), "all tasks ended too soon"
        leaving = coming.wait_ready()
    history.wait("end", len(tasks), timeout=20)
    starts = history.of("start")
    measured("servers replaced: starts", len(starts))
    measured(
        "servers replaced: starts on the last server", len(history.of("start", pid=leaving.pid))
    )
    assert len(starts) == len(tasks)
    assert {(event.attempt, event.crashes) for event in starts} == {(1, 0)}
    wait_until(lambda: left_over(valkey.client(), prefix) == {})
