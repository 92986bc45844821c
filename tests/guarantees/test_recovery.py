"""If a server dies, its tasks soon run again on a live server."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from qsync.broker import ops
from qsync.keys import QueueKeys
from qsync.mux import Mux
from qsync.new_task import new_nonce, new_task
from qsync.task import Task, TaskInfo
from tests.guarantees.conftest import Launch, Measured
from tests.support.processes import History, ServerProcess, task
from tests.support.server import bench, left_over, until
from tests.support.stores import Store, wait_until

TASKS = 20


def kill_and_watch(
    launch: Launch, url: str, prefix: str, victim: ServerProcess, phase_s: float
) -> tuple[ServerProcess, list[float]]:
    """Kill a server with running tasks; return the server that recovered the tasks, and the
    delays."""

    async def enqueue() -> set[str]:
        async with bench(url, prefix) as b:
            tasks = [task(sleep_at={victim.id: 600}) for _ in range(TASKS)]
            return {handle.id for handle in await b.client.enqueue_many(tasks)}

    ids, history = asyncio.run(enqueue()), victim.history
    history.wait("start", TASKS, pid=victim.pid)
    rescuer = launch(url, **victim.config)
    phase_ends = time.monotonic() + phase_s
    wait_until(lambda: time.monotonic() >= phase_ends)
    killed_at = time.monotonic()
    victim.kill()
    again = history.wait("start", TASKS, pid=rescuer.pid, timeout=60)
    assert {event.id for event in again} == ids
    assert {event.crashes for event in again} == {1}
    history.wait("end", TASKS, pid=rescuer.pid)
    return rescuer, [event.at - killed_at for event in again]


@pytest.mark.faults(1)
@pytest.mark.guarantee(4)
@pytest.mark.parametrize("rounds", [5, pytest.param(200, marks=pytest.mark.slow)])
def test_tasks_of_a_killed_server_start_again_within_lease_and_sweep(
    valkey: Store, prefix: str, launch: Launch, measured: Measured, rounds: int
) -> None:
    chance = random.Random(rounds)
    delays: list[float] = []
    victim = launch(valkey.url, lease=1.0, sweep=0.2)
    for _ in range(rounds):
        # Leases are renewed after a third of their duration, so the kill may come at any moment
        # between two renewals.
        phase_s = chance.uniform(0, 0.4)
        victim, found = kill_and_watch(launch, valkey.url, prefix, victim, phase_s)
        delays += found
    measured("recovery: longest delay, in seconds", max(delays))
    measured("recovery: shortest delay, in seconds", min(delays))
    assert max(delays) <= 1.2
    assert left_over(valkey.client(), prefix) == {}


@pytest.mark.faults(1)
@pytest.mark.guarantee(4)
@pytest.mark.slow
def test_tasks_start_again_within_35_seconds_with_the_defaults(
    valkey: Store, prefix: str, launch: Launch, measured: Measured
) -> None:
    victim = launch(valkey.url, lease=30.0, sweep=5.0)
    _, delays = kill_and_watch(launch, valkey.url, prefix, victim, 0.0)
    measured("recovery with default settings: longest delay, in seconds", max(delays))
    assert max(delays) <= 35


@pytest.mark.faults(42)
def test_lost_wake_delays_a_task_by_no_more_than_a_sweep(
    valkey: Store, prefix: str, launch: Launch, history: History, measured: Measured
) -> None:
    launch(valkey.url, sweep=0.5)
    delays = []
    for at in range(1, 6):
        call = ops.enqueue(QueueKeys(prefix, "default"), [new_task(task(), new_nonce())])
        with valkey.client() as client, client.pipeline(transaction=True) as pipe:
            pipe.eval(call.script.text, len(call.keys), *call.keys, *call.args)
            # No server sees the wake-up message.
            pipe.delete(QueueKeys(prefix, "default").key("wake"))
            enqueued_at = time.monotonic()
            pipe.execute()
        delays.append(history.wait("start", at)[-1].at - enqueued_at)
    measured("wake-up message lost: longest time until the task started, in seconds", max(delays))
    assert max(delays) <= 0.6


BURST = 200


@pytest.mark.faults(42)
def test_burst_during_upkeep_runs_at_once(valkey: Store, prefix: str, measured: Measured) -> None:
    """Upkeep finds the tasks before a wake-up message arrives, and a full batch shows that there
    are more."""
    chance, mux, ran = random.Random(7), Mux(), list[str]()

    @mux.handle("note")
    async def note(task: TaskInfo) -> None:
        ran.append(task.id)

    async def main() -> list[float]:
        took = []
        config = {"concurrency": 10, "prefetch": 0, "sweep": 0.1, "queues": ["one", "two"]}
        async with bench(valkey.url, prefix) as b, b.server(mux, **config):
            for at in range(1, 51):
                await asyncio.sleep(chance.uniform(0.0, 0.1))
                began = time.monotonic()
                queue = chance.choice(["one", "two"])
                await b.client.enqueue_many([Task("note", queue=queue)] * BURST)
                await until(lambda at=at: len(ran) == at * BURST)  # type: ignore[misc]
                took.append(time.monotonic() - began)
        return took

    took = asyncio.run(main())
    measured("bursts of 200 tasks: duration of the longest, in seconds", max(took))
    assert max(took) < 1  # at ten tasks per sweep, a burst would take 2 s
