"""A handler that blocks the event loop delays other tasks, but no task is lost, repeated or charged
with a crash."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from qsync import Task
from tests.chaos.doing import counter, damages
from tests.guarantees.conftest import Launch, Measured
from tests.support.processes import History, task
from tests.support.server import bench, left_over
from tests.support.stores import Store

LEASE_S = 0.6
HELD_LEASE_S = 2.0


@pytest.mark.faults(4)
def test_blocked_loop_keeps_its_leases_and_logs_the_blocker_once(
    valkey: Store, prefix: str, launch: Launch, history: History, measured: Measured
) -> None:
    blocked = launch(valkey.url, server_id="blocked", lease=LEASE_S, concurrency=30)
    others = [task(sleep=1.0) for _ in range(10)]
    others += [task("work-in-thread", sleep=1.0) for _ in range(10)]
    # When the loop blocks, these tasks are waiting for a slot or are still in the queue.
    others += [task(sleep=0.01) for _ in range(100)]
    block = task("block", id="block", sleep=5 * LEASE_S)

    async def enqueue() -> None:
        async with bench(valkey.url, prefix) as b:
            await b.client.enqueue_many([*others, block])

    asyncio.run(enqueue())
    history.wait("start", 1, id="block")
    launch(valkey.url, lease=LEASE_S)  # this server takes over tasks
    history.wait("end", len(others) + 1)
    starts = history.of("start")
    measured("blocked loop: starts", len(starts))
    measured("blocked loop: tasks", len(others) + 1)
    assert len(starts) == len(others) + 1
    assert {event.crashes for event in starts} == {0}
    assert history.of("end", id="block")[0].pid == blocked.pid
    log = blocked.log()
    assert log.count("blocked the event loop") == 1
    assert log.count("in blocks_the_loop") == 1
    assert log.count("WARNING") == 1
    blocked.terminate()
    assert blocked.wait() == 0
    assert left_over(valkey.client(), prefix) == {}


@pytest.mark.faults(4)
def test_tasks_in_a_fetch_of_a_blocked_loop_are_not_charged(
    valkey: Store, prefix: str, launch: Launch, history: History, measured: Measured
) -> None:
    config = {"lease": 0.3, "concurrency": 10}
    for _ in range(2):
        launch(valkey.url, **config)
    tasks = [task(sleep=0.005) for _ in range(2000)]
    for at in range(50, len(tasks), 100):
        tasks[at] = task("block", sleep=0.45)

    async def enqueue() -> None:
        async with bench(valkey.url, prefix) as b:
            await b.client.enqueue_many(tasks)

    asyncio.run(enqueue())
    history.wait("end", len(tasks), timeout=40)
    starts = history.of("start")
    charged = sum(event.crashes > 0 for event in starts)
    measured("blocked while fetching: tasks charged with a crash", charged)
    assert charged == 0
    assert len(starts) == len(tasks)


@pytest.mark.faults(4)
def test_tasks_leased_by_a_blocked_server_run_elsewhere(
    valkey: Store, prefix: str, launch: Launch, history: History, measured: Measured
) -> None:
    """The server has free slots, and its fetch is in flight when the loop blocks, so it cannot
    start the tasks that it leases."""
    blocked = launch(valkey.url, server_id="blocked", concurrency=10)

    async def enqueue(*tasks: Task) -> None:
        async with bench(valkey.url, prefix) as b:
            await b.client.enqueue_many(tasks)

    asyncio.run(enqueue(task("block", id="block", sleep=6.0)))
    history.wait("start", 1, id="block")
    asyncio.run(enqueue(*[task(id=f"quick{n}") for n in range(5)]))
    launch(valkey.url, lease=LEASE_S)
    history.wait("end", 6)
    quick = [event for event in history.of("end") if event.id.startswith("quick")]
    [block] = history.of("end", id="block")
    measured(
        "blocked loop: seconds from the end of the other tasks to the end of the block",
        block.at - max(event.at for event in quick),
    )
    assert {event.pid for event in quick}.isdisjoint({blocked.pid})
    assert all(event.at < block.at for event in quick)
    assert {event.crashes for event in history.of("start")} == {0}


@pytest.mark.faults(5)
@pytest.mark.guarantee(3)
def test_server_with_a_held_interpreter_loses_only_its_leases(
    valkey: Store, prefix: str, launch: Launch, history: History, tmp_path: Path
) -> None:
    """While the interpreter is held, not even the heartbeat runs, so another server runs the tasks
    and its results count."""
    # The lease is long enough for servers that get little CPU time.
    holder = launch(valkey.url, server_id="holder", lease=HELD_LEASE_S)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    hold = task("hold", id="hold", hold_at={"holder": str(fifo)}, retention=600)
    beside = [task(sleep_at={"holder": 600.0}, retention=600) for _ in range(5)]

    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            handles = await b.client.enqueue_many(beside)
            await asyncio.to_thread(history.wait, "start", 5)
            handles.append(await b.client.enqueue(hold))
            await asyncio.to_thread(history.wait, "start", 1, id="hold")
            other = await asyncio.to_thread(
                launch, valkey.url, server_id="other", lease=HELD_LEASE_S
            )
            results = [await handle.result(timeout=30) for handle in handles]
            assert results == ["other"] * 6
            assert not history.of("end", pid=holder.pid)
            fifo.write_bytes(b"")  # release the interpreter
            await asyncio.to_thread(history.wait, "end", 1, id="hold", pid=holder.pid)
            holder.terminate()
            assert await asyncio.to_thread(holder.wait) == 0
            for status in [await handle.info() for handle in handles]:
                assert (status.state, status.attempt) == ("completed", 1)
            assert [await handle.result() for handle in handles] == results
            assert {event.crashes for event in history.of("start", pid=other.pid)} == {1}

    asyncio.run(main())
    assert counter(valkey, prefix, "crashed") == counter(valkey, prefix, "completed") == 6
    assert damages(valkey, prefix) == []
