"""A task starts soon after its due time and never before it. Many tasks that become due together do
not block other work."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest

from qsync.keys import QueueKeys
from qsync.task import Task
from tests.guarantees.conftest import Launch, Measured
from tests.guarantees.probes import pinging, slow_scripts
from tests.support.ping_probe import run_at_once
from tests.support.processes import History, percentile, task
from tests.support.server import bench, left_over
from tests.support.stores import Store, wait_until

ROUNDS = 3
"""Maximum number of rounds. Only the best round counts, because other programs may load the
machine."""

MANY = 100_000


def store_time(store: Store) -> datetime:
    seconds, us = store.command("TIME")
    return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=us)


def enqueue(store: Store, prefix: str, tasks: list[Task]) -> None:
    async def main() -> None:
        async with bench(store.url, prefix) as b:
            await b.client.enqueue_many(tasks)

    asyncio.run(main())


def lateness_of_round(
    store: Store, prefix: str, history: History, count: int, spread: timedelta
) -> list[float]:
    """Run tasks that are due one after another; return the delay of each start in ms, by the
    store's clock.

    The store uses the machine's clock, as the history does.
    """
    first = store_time(store) + timedelta(seconds=2.5)
    due: dict[str, float] = {}
    tasks: list[Task] = []
    for n in range(count):
        at = first + spread * n / count
        id = f"{first.timestamp():.0f}-{n}"
        due[id] = at.timestamp()
        tasks.append(task(id=id, process_at=at))
    enqueue(store, prefix, tasks)
    assert store_time(store) < first, "the first timer was due before all timers were enqueued"
    before = len(history.of("end"))
    history.wait("end", before + count, timeout=20)
    started = {event.id: event.wall_us / 1e6 for event in history.of("start")}
    return [1000 * (started[id] - at) for id, at in due.items()]


@pytest.mark.faults(66)
@pytest.mark.guarantee(5)
def test_timers_are_never_early_and_rarely_late(
    own_store: Store, prefix: str, launch: Launch, history: History, measured: Measured
) -> None:
    server = launch(own_store.url)
    for pid in (own_store.pid, server.pid):
        run_at_once(pid)
    best = float("inf")
    for _ in range(ROUNDS):
        late = lateness_of_round(own_store, prefix, history, 10_000, timedelta(seconds=5))
        measured("timers: smallest delay, in ms", min(late))
        measured("timers: median delay, in ms", percentile(late, 0.5))
        measured("timers: 99th percentile of the delay, in ms", percentile(late, 0.99))
        measured("timers: largest delay, in ms", max(late))
        assert min(late) >= 0
        best = min(best, percentile(late, 0.99))
        if best < 20:
            break
    assert best < 20


@pytest.mark.faults(29, 65)
@pytest.mark.guarantee(5)
@pytest.mark.slow
def test_many_simultaneously_due_tasks_block_no_other_task(
    prefix: str, launch: Launch, history: History, measured: Measured
) -> None:
    best = float("inf")
    with Store("valkey") as valkey, Store("valkey") as idle:
        for store in (valkey, idle):
            run_at_once(store.pid)
        for at in range(ROUNDS):
            slowest = round_of_many(valkey, idle, prefix, launch, history, at, measured)
            best = min(best, slowest)
            if best < 10:
                break
        assert best < 10
        wait_until(lambda: left_over(valkey.client(), prefix) == {})


def round_of_many(
    store: Store,
    idle: Store,
    prefix: str,
    launch: Launch,
    history: History,
    at: int,
    measured: Measured,
) -> float:
    """Make `MANY` tasks due at the same time; return the duration of the slowest ping or script, in
    ms."""
    with store.client() as client:
        client.config_set("slowlog-log-slower-than", 10_000)
        client.slowlog_reset()
    due = store_time(store) + timedelta(seconds=10)
    enqueue(store, prefix, [Task("work", {}, process_at=due) for _ in range(MANY)])
    assert store_time(store) < due, "the timers were due before all of them were enqueued"
    server = launch(store.url)
    with pinging(store) as pings, pinging(idle) as idle_pings:
        history.wait("end", (at + 1) * MANY, timeout=60)
    server.kill()
    starts = [event.wall_us / 1e6 - due.timestamp() for event in history.of("start")[at * MANY :]]
    assert min(starts) >= 0
    measured("many due together: time until the first start, in ms", 1000 * min(starts))
    measured("many due together: starts per second", MANY / max(starts))
    measured("many due together: pings", len(pings))
    measured("many due together: 99.9th percentile of pings, in ms", percentile(pings, 0.999))
    measured("many due together: slowest ping, in ms", max(pings))
    measured("slowest ping of an idle store, in ms", max(idle_pings))
    slow = slow_scripts(store)
    measured("many due together: scripts that took over 10 ms", slow)
    return max([*pings, *slow])


MILLION = 1_000_000


@pytest.mark.faults(29, 65)
@pytest.mark.slow
def test_a_million_tasks_due_at_once_run_within_a_minute(
    prefix: str, launch: Launch, history: History, measured: Measured
) -> None:
    """The due tasks are in one of two queues; tasks of the other queue start as usual at the same
    time."""
    with Store("valkey") as store:
        run_at_once(store.pid)
        with store.client() as client:
            client.config_set("slowlog-log-slower-than", 10_000)
            client.slowlog_reset()
            due = store_time(store) + timedelta(seconds=100)
            for _ in range(0, MILLION, MANY):
                enqueue(store, prefix, [Task("work", {}, process_at=due)] * MANY)
            assert store_time(store) < due, "the timers were due before all of them were enqueued"
            scheduled = QueueKeys(prefix, "default").key("scheduled")
            others = QueueKeys(prefix, "other").key("tasks")
            assert client.zcard(scheduled) == MILLION
            launch(store.url, queues={"default": 1, "other": 1})
            wait_until(lambda: store_time(store) >= due, timeout=120)
            waits = []
            with pinging(store) as pings:
                while client.zcard(scheduled):
                    asked_at = time.monotonic()
                    enqueue(store, prefix, [task(queue="other")])
                    wait_until(lambda: not client.exists(others))
                    waits.append(time.monotonic() - asked_at)
                took = (store_time(store) - due).total_seconds()
            first = history.path.read_bytes().split(b"\n", 1)[0].split(b" ")
    measured("a million due together: seconds until all were pending", took)
    measured(
        "a million due together: time until the first start, in seconds",
        int(first[1]) / 1e9 - due.timestamp(),
    )
    measured("a million due together: 99.9th percentile of pings, in ms", percentile(pings, 0.999))
    measured(
        "a million due together: number of waits in the other queue, and the longest in seconds",
        (len(waits), max(waits)),
    )
    assert took <= 60
    assert 0 <= int(first[1]) / 1e9 - due.timestamp() <= 1
    assert percentile(pings, 0.999) <= 10
