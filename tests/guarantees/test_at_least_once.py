"""Every accepted task runs, whichever part is killed, and leaves no keys behind."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections import Counter
from typing import Any

import pytest

from qsync.errors import StoreUnavailable
from qsync.task import Task
from tests.guarantees.conftest import Launch, Measured
from tests.support.processes import Event, History, ServerProcess, task
from tests.support.server import bench, left_over
from tests.support.stores import Store, wait_until

TASKS = 20_000
BATCH = 100
SERVERS = 4
KILLS = 20
RESTARTS = 2
LASTS_S = 11.0
"""How long the test enqueues tasks and kills processes, in seconds."""

DEAD = {"tasks", "dead", "crashes"}
"""Keys in which dead tasks remain."""


def mixed_tasks(chance: random.Random) -> list[Task]:
    """Return tasks that together use every part of the data model.

    The tasks are short. Three kills in a row would hit a task of 0.4 s with a probability of 1 in
    500. That task would then be treated as the cause of the crashes.
    """
    tasks = []
    for n in range(TASKS):
        options: dict[str, Any] = {"id": f"t{n}", "retry_delay": 0.05}
        options["sleep"] = chance.choice([0.0, 0.0, 0.0, 0.001, 0.005, 0.01])
        kind = chance.random()
        if kind < 0.01:
            options["sleep"] = 0.05
        elif kind < 0.05:
            options["fail"] = 1
        elif kind < 0.10:
            options |= {"unique": True, "unique_key": f"lock-{n}"}
        elif kind < 0.15:
            options["fairness_key"] = f"tenant-{n % 7}"
        elif kind < 0.20:
            options["delay"] = chance.uniform(0, 2)
        elif kind < 0.25:
            options["retention"] = 1.0
        type = "work-in-thread" if chance.random() < 0.1 else "work"
        tasks.append(task(type, **options))
    return tasks


async def enqueue_all(url: str, prefix: str, tasks: list[Task]) -> int:
    """Enqueue at a steady rate, retrying during store outages; return how many calls had to be
    repeated."""
    repeated = 0
    began = time.monotonic()
    async with bench(url, prefix) as b:
        for at in range(0, len(tasks), BATCH):
            due = began + LASTS_S * at / len(tasks)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            while True:
                try:
                    await b.client.enqueue_many(tasks[at : at + BATCH])
                    break
                except StoreUnavailable:
                    repeated += 1
    return repeated


class Chaos:
    """Kills servers and the store and starts them again."""

    def __init__(self, chance: random.Random, store: Store, launch: Launch) -> None:
        self._chance, self._store, self._launch = chance, store, launch
        self.servers = [self._start() for _ in range(SERVERS)]
        self.killed: dict[int, float] = {}
        """Time of the kill, by process id of the killed server."""
        self.outages: list[tuple[float, float]] = []
        for server in self.servers:
            server.wait_ready()

    def run(self) -> None:
        plan = ["server"] * KILLS + ["store"] * RESTARTS
        self._chance.shuffle(plan)
        began = time.monotonic()
        for at, what in enumerate(plan):
            due = began + LASTS_S * (at + self._chance.random()) / len(plan)
            wait_until(lambda due=due: time.monotonic() >= due)  # type: ignore[misc]
            if what == "store":
                self._restart_store()
            else:
                self._kill_server()

    def _start(self) -> ServerProcess:
        return self._launch(self._store.url, ready=False, concurrency=20)

    def _kill_server(self) -> None:
        at = self._chance.randrange(SERVERS)
        self.servers[at].wait_ready()
        self.killed[self.servers[at].pid] = time.monotonic()
        self.servers[at].kill()
        self.servers[at] = self._start()

    def _restart_store(self) -> None:
        began = time.monotonic()
        self._store.kill()
        self._store.start()
        self.outages.append((began, time.monotonic()))


def unexplained(history: History, chaos: Chaos) -> list[str]:
    """Return the ids of tasks that ran again although there was no failure, killed server or
    outage.

    The leases of live servers may expire during a store outage and up to one lease duration after
    it.
    """
    starts: dict[str, list[Event]] = {}
    for event in history.of("start"):
        starts.setdefault(event.id, []).append(event)
    found = []
    for id, events in starts.items():
        events.sort()
        for before, again in itertools.pairwise(events):
            failed = again.attempt > before.attempt
            killed = before.pid in chaos.killed
            away = any(
                begin - 1.5 <= again.at <= end + 1.5 or begin - 1.5 <= before.at <= end + 1.5
                for begin, end in chaos.outages
            )
            if not (failed or killed or away):
                found.append(id)
    return found


@pytest.mark.faults(1, 17, 79, 80)
@pytest.mark.guarantee(1, 5)
@pytest.mark.parametrize("seed", [1, *[pytest.param(n, marks=pytest.mark.slow) for n in (2, 3)]])
def test_every_accepted_task_runs_and_leaves_nothing(
    own_store: Store, prefix: str, launch: Launch, history: History, measured: Measured, seed: int
) -> None:
    measured("seed", seed)
    chance = random.Random(seed)
    tasks = mixed_tasks(chance)
    chaos = Chaos(chance, own_store, launch)
    killing = threading.Thread(target=chaos.run)
    killing.start()
    try:
        repeated = asyncio.run(enqueue_all(own_store.url, prefix, tasks))
    finally:
        killing.join()
    assert len(chaos.killed) == KILLS
    assert len(chaos.outages) == RESTARTS
    wait_until(lambda: left_over(own_store.client(), prefix).keys() <= DEAD, timeout=30, every=0.1)

    started = history.ids("start")
    ended = Counter(event.id for event in history.of("end"))
    measured("enqueue calls repeated by the caller", repeated)
    measured("tasks accepted", len(tasks))
    measured("tasks that did not run", len({one.id for one in tasks} - started))
    measured("starts", len(history.of("start")))
    measured(
        "tasks whose handler returned more than once", sum(count > 1 for count in ended.values())
    )
    measured(
        "maximum number of crashes counted for a task", max(e.crashes for e in history.of("start"))
    )
    measured(
        "longest outage of the store, in seconds", max(end - begin for begin, end in chaos.outages)
    )
    assert {one.id for one in tasks} == ended.keys()
    assert unexplained(history, chaos) == []
    with own_store.client() as client:
        dead = {id.decode() for id in client.zrange(f"{{{prefix}:default}}:dead", 0, -1)}
        stats = client.hgetall(f"{{{prefix}:default}}:stats")
        lasting_keys = {key.decode() for key in client.scan_iter() if client.ttl(key) == -1}
    assert not dead, [event for event in history.of("start") if event.id in dead]
    assert left_over(own_store.client(), prefix) == {}
    assert int(stats[b"enqueued"]) == int(stats[b"completed"]) == TASKS
    base = f"{{{prefix}:default}}"
    assert lasting_keys - {f"{base}:wake", f"{base}:calls", f"{base}:recent"} == {
        f"{base}:meta", f"{base}:stats", f"{base}:fetches", f"{prefix}:queues", f"{prefix}:servers",
    }  # fmt: skip
