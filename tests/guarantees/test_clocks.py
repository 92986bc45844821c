"""Server clocks may be wrong and may jump. Only the store's clock decides what is due or
expired."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from qsync.errors import TaskFailed
from qsync.schedule import Every
from qsync.times import datetime_us
from tests.guarantees.conftest import Launch, Measured
from tests.support.processes import History, ServerProcess, task
from tests.support.server import bench
from tests.support.stores import Store, wait_until

HOUR_S = 3600.0
LEASE_S = 1.0


@pytest.mark.faults(45, 75)
@pytest.mark.guarantee(5)
def test_servers_with_wrong_and_jumping_clocks_run_every_task_once(
    valkey: Store, prefix: str, launch: Launch, history: History, measured: Measured
) -> None:
    """No task starts before it is due, leases and deadlines expire on time, and no task is lost."""
    servers = [
        launch(valkey.url, clock_s=offset, lease=LEASE_S, concurrency=100)
        for offset in (HOUR_S, -HOUR_S)
    ]
    chance = random.Random(45)
    due: dict[str, float] = {}

    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            now = datetime.now(UTC)
            timers = []
            for n in range(300):
                at = now + timedelta(seconds=chance.uniform(0.3, 4.0))
                due[f"timer-{n}"] = at.timestamp()
                timers.append(task(id=f"timer-{n}", process_at=at))
            long = [task(id=f"long-{n}", sleep=3.5 * LEASE_S, retention=600) for n in range(20)]
            retried = [task(id=f"retried-{n}", fail=1, retry_delay=1.0) for n in range(20)]
            kept = [task(id=f"kept-{n}", retention=60) for n in range(20)]
            in_time = now + timedelta(seconds=30)
            met = [task(id=f"met-{n}", delay=1.0, deadline=in_time) for n in range(20)]
            too_late = now + timedelta(seconds=1)
            just_before = too_late - timedelta(microseconds=1)
            missed = [
                task(id=f"missed-{n}", process_at=just_before, deadline=too_late, retention=60)
                for n in range(20)
            ]
            await b.client.enqueue_many([*timers, *long, *retried, *kept, *met, *missed])
            await asyncio.to_thread(history.wait, "start", 20)
            for server in servers:
                server.leap()
            await asyncio.to_thread(history.wait, "end", 380, timeout=20)
            for one in (*long, *kept):
                assert await b.client.handle(str(one.id)).result(timeout=10)
            for one in missed:
                with pytest.raises(TaskFailed, match="deadline"):
                    await b.client.handle(str(one.id)).result(timeout=10)

    asyncio.run(main())
    starts = history.of("start")
    late = [
        event.wall_us / 1e6 - due[event.id] for event in starts if event.id.startswith("timer-")
    ]
    measured("wrong clocks: smallest delay of a timer, in seconds", min(late))
    measured("wrong clocks: largest delay of a timer, in seconds", max(late))
    assert min(late) >= 0
    assert {event.crashes for event in starts} == {0}
    runs = Counter((event.id, event.attempt) for event in starts)
    assert set(runs.values()) == {1}
    assert {id for id, attempt in runs if attempt > 1} == {f"retried-{n}" for n in range(20)}
    for n in range(20):
        first, second = history.of("start", id=f"retried-{n}")
        assert second.wall_us - first.wall_us >= 1e6
    assert not [event for event in starts if event.id.startswith("missed-")]
    assert {event.pid for event in starts} == {server.pid for server in servers}
    for server in servers:
        assert "was lost" not in server.log()
        server.terminate()
        assert server.wait() == 0


SCHEDULERS = 10


@pytest.mark.faults(45, 67)
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("schedules", "ticks", "kills"),
    [(20, 600, 3), pytest.param(100, 10_000, 20, marks=pytest.mark.slow)],
)
def test_ten_killed_schedulers_with_wrong_clocks_enqueue_each_tick_once(
    valkey: Store,
    prefix: str,
    launch: Launch,
    history: History,
    measured: Measured,
    schedules: int,
    ticks: int,
    kills: int,
) -> None:
    """Every tick runs. Only a tick that was running on a killed server may run twice."""
    chance = random.Random(ticks)
    every = Every(0.25)

    def start(ready: bool) -> ServerProcess:
        return launch(
            valkey.url, ready=ready, clock_s=chance.choice((-HOUR_S, HOUR_S)), concurrency=10,
            ticks=schedules, every_s=0.25, max_crashes=100,
        )  # fmt: skip

    servers = [start(ready=False) for _ in range(SCHEDULERS)]
    for server in servers:
        server.wait_ready()
    for kill in range(1, kills + 1):
        wait_until(
            lambda kill=kill: len(history.ids("end")) >= ticks * kill // (kills + 1),  # type: ignore[misc]
            timeout=120, every=0.1,
        )  # fmt: skip
        at = chance.randrange(SCHEDULERS)
        servers[at].kill()
        servers[at] = start(ready=False)
        servers[chance.randrange(SCHEDULERS)].wait_ready().leap()
    wait_until(lambda: len(history.ids("end")) >= ticks, timeout=120, every=0.1)
    for server in servers:
        server.wait_ready().terminate()
    for server in servers:
        assert server.wait() == 0
    starts = history.of("start")
    made: dict[str, set[int]] = defaultdict(set)
    for id in {event.id for event in starts}:
        made[id.partition("@")[0]].add(tick_of(id))
    measured("ticks, made", sum(map(len, made.values())))
    measured("ticks, starts", len(starts))
    assert len(made) == schedules
    for times in made.values():
        assert times == set(between(every, min(times), max(times))), "none is left out"
    waiting = {id.decode() for id in valkey.command("HKEYS", f"{{{prefix}:default}}:tasks")}
    enqueued = int(valkey.command("HGET", f"{{{prefix}:default}}:stats", "enqueued"))
    assert enqueued == len({event.id for event in starts} | waiting) >= ticks
    runs = Counter(event.id for event in starts if event.crashes == 0)
    assert set(runs.values()) == {1}
    assert all(event.wall_us >= tick_of(event.id) for event in starts)


def tick_of(id: str) -> int:
    return datetime_us("tick", datetime.fromisoformat(id.partition("@")[2]))


def between(every: Every, first: int, last: int) -> Iterator[int]:
    """Return all ticks from the first time to the second."""
    tick: int | None = first
    while tick is not None and tick <= last:
        yield tick
        tick = every.next_after(tick)
