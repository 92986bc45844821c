"""A task that kills its process is dead after three crashes. Tasks that run at the same time
succeed."""

from __future__ import annotations

import asyncio
import random

import pytest

from qsync.broker import ops
from qsync.task import Task
from tests.guarantees.conftest import Launch, Measured
from tests.support.processes import History, ServerProcess, task
from tests.support.server import Bench, bench, left_over
from tests.support.stores import Store, wait_until_async

INNOCENTS = 50


def mixed(chance: random.Random) -> tuple[list[Task], str]:
    """Return short and long tasks, some of them in threads, with a poison task among them; also
    return the id of the poison task.

    Tasks of one lease are recovered in the order of their ids, so the ids must be random.
    """
    names = [f"{chance.randrange(16**8):08x}" for _ in range(INNOCENTS + 1)]
    tasks = [
        task(
            chance.choice(["work", "work", "work-in-thread"]),
            id=f"{names[n]}-innocent",
            sleep=chance.choice([0.0, 0.0, 0.0, 0.01, 0.01, 0.3]),
        )
        for n in range(INNOCENTS)
    ]
    poison = f"{names[-1]}-poison"
    tasks.insert(chance.randrange(len(tasks) + 1), task(id=poison, die=True))
    return tasks, poison


async def supervise(b: Bench, server: ServerProcess, start: Launch) -> ServerProcess:
    """If the server has died, let its leases expire and start another server, as a supervisor
    does."""
    if server.running:
        return server
    server.wait()
    cursor = "0"
    while True:
        cursor, _ = await b.broker.run(ops.abandon(b.keys(), server.id, cursor=cursor))
        if cursor == "0":
            break
    return start()


@pytest.mark.faults(7, 8)
@pytest.mark.guarantee(5)
@pytest.mark.parametrize(
    ("seed", "concurrency"),
    [
        (1, 100),
        (2, 10),
        (3, 3),
        *[pytest.param(4 + n, (100, 10, 3)[n % 3], marks=pytest.mark.slow) for n in range(21)],
    ],
)
def test_poison_task_starts_three_times_and_other_tasks_succeed(
    valkey: Store,
    prefix: str,
    launch: Launch,
    history: History,
    measured: Measured,
    seed: int,
    concurrency: int,
) -> None:
    tasks, poison = mixed(random.Random(seed))
    measured("position of the poison task", [one.id for one in tasks].index(poison))
    measured(
        "position of the poison task in the order of ids",
        sorted(str(one.id) for one in tasks).index(poison),
    )

    def start() -> ServerProcess:
        return launch(valkey.url, ready=False, concurrency=concurrency)

    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            await b.client.enqueue_many(tasks)
            running = [start(), start()]

            async def over() -> bool:
                for at, server in enumerate(running):
                    running[at] = await supervise(b, server, start)
                return await b.state(poison) == "dead" and left_over(
                    valkey.client(), prefix
                ).keys() == {"tasks", "dead", "crashes"}

            await wait_until_async(over, timeout=40)
            info = await b.client.handle(poison).info()
            assert info.last_error == "crashed 3 times"
            assert info.crashes == 3

    asyncio.run(main())
    measured("starts of the other tasks", len(history.of("start")) - 3)
    measured(
        "maximum number of crashes of another task",
        max(e.crashes for e in history.of("start") if e.id != poison),
    )
    assert len(history.of("start", id=poison)) == 3
    assert history.ids("end") == {one.id for one in tasks} - {poison}
    left = left_over(valkey.client(), prefix)
    assert left == {"tasks": 1, "dead": 1, "crashes": 1}
