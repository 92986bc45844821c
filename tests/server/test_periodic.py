"""On a real store, each tick of a periodic task is enqueued once, despite all faults."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

import pytest

from qsync.broker import op_values, ops, redis_clients
from qsync.broker.aio import AsyncBroker
from qsync.broker.call import Call
from qsync.broker.op_values import Completion, FetchPolicy
from qsync.errors import InvalidTask
from qsync.keys import GlobalKeys, QueueKeys
from qsync.message import decode_message
from qsync.schedule import Cron, Every, Missed, Periodic, Schedule, tick_id
from qsync.server.periodic import GRACE_US, PeriodicLoop, PeriodicTask
from qsync.task import Task
from qsync.times import datetime_us
from tests.support.stores import Store, wait_until_async

POLICY = FetchPolicy(lease_us=30_000_000, max_crashes=3, dead_limit=100, dead_age_us=86_400_000_000)
RARE = Every(3600)


def periodic(
    name: str, schedule: Schedule, *, missed: Missed = "skip", **options: Any
) -> PeriodicTask:
    return PeriodicTask(Periodic(name, schedule, missed), lambda: Task(f"of {name}", **options))


class Far(AsyncBroker):
    """A broker with latency: its calls reach the store some seconds after they are made."""

    lag = 0.0

    async def run_many(self, calls: Sequence[Call[Any]], **options: Any) -> list[Any]:
        await asyncio.sleep(self.lag)
        return await super().run_many(calls, **options)


class Place:
    """A store and its brokers, for tick loops that share a prefix."""

    def __init__(self, store: Store, prefix: str) -> None:
        self.store, self.prefix = store, prefix
        self.broker = AsyncBroker(redis_clients.parse(store.url))
        self._brokers = [self.broker]

    @contextlib.asynccontextmanager
    async def running(self, *tasks: PeriodicTask, loops: int = 1) -> AsyncIterator[None]:
        """Run this many tick loops during the block, on separate connections; each has more latency
        than the loop before it."""
        async with asyncio.TaskGroup() as group:
            running = []
            for number in range(loops):
                broker = Far(redis_clients.parse(self.store.url))
                broker.lag = number * 0.01
                self._brokers.append(broker)
                running.append(group.create_task(PeriodicLoop(broker, self.prefix, tasks).run()))
            try:
                yield
                assert not [one for one in running if one.done()]
            finally:
                for one in running:
                    one.cancel()

    async def aclose(self) -> None:
        for broker in self._brokers:
            await broker.aclose()

    def keys(self, queue: str = "default") -> QueueKeys:
        return QueueKeys(self.prefix, queue)

    def ids(self, queue: str = "default") -> list[str]:
        """Return the ids of all tasks of a queue, in any state."""
        with self.store.client() as client:
            return sorted(id.decode() for id in client.hkeys(self.keys(queue).key("tasks")))

    def last(self, name: str, queue: str = "default") -> int | None:
        """Return the last recorded tick of a schedule."""
        with self.store.client() as client:
            found = client.hget(self.keys(queue).key("ticks"), name)
        return None if found is None else int(found)

    def set_last(self, name: str, tick_us: int, queue: str = "default") -> None:
        """Record this time as the time of the last tick."""
        with self.store.client() as client:
            client.hset(self.keys(queue).key("ticks"), name, tick_us)

    def now_us(self) -> int:
        with self.store.client() as client:
            seconds, us = client.time()
        return int(seconds) * 1_000_000 + int(us)


def run(store: Store, prefix: str, work: Callable[[Place], Any]) -> None:
    """Run the coroutine of a test, then close what it has opened."""

    async def main() -> None:
        place = Place(store, prefix)
        try:
            await work(place)
        finally:
            await place.aclose()

    asyncio.run(main())


def ticks_of(name: str, ids: Iterable[str]) -> list[int]:
    """Return the ticks of a schedule's tasks, in order."""
    times = [id.removeprefix(f"{name}@") for id in ids if id.startswith(f"{name}@")]
    return sorted(datetime_us("tick", datetime.fromisoformat(time)) for time in times)


def all_between(schedule: Schedule, first_us: int, last_us: int) -> list[int]:
    """Return the ticks of a schedule between two times."""
    ticks = [first_us]
    while ticks[-1] < last_us:
        ticks.append(schedule.next_after(ticks[-1]) or last_us)
    return ticks


def rare_hour(now_us: int) -> Every:
    """Return a schedule with an interval of about an hour whose last tick was some minutes ago and
    whose next tick is far off."""
    periods = range(3000, 3600, 60)
    return Every(next(one for one in periods if 600 < now_us / 1_000_000 % one < one - 600))


@pytest.mark.faults(67)
def test_ten_loops_enqueue_each_tick_once(store: Store, prefix: str) -> None:
    """No tick is left out, and no tick is enqueued again after its task has left the queue."""
    tasks = [periodic("a", Every(0.1)), periodic("b", Every(0.15)), periodic("c", Every(0.1))]

    async def work(place: Place) -> None:
        taken: list[str] = []
        async with place.running(*tasks, loops=10):
            number = 0
            while len(taken) < 30:
                number += 1
                fetch = ops.fetch(
                    place.keys(), server="s", number=number, wanted=500, policy=POLICY
                )
                fetched = await place.broker.run(fetch)
                taken += fetched.ids
                done = [Completion(id, f"s/{number}") for id in fetched.ids]
                await place.broker.run(ops.complete(place.keys(), done))
                await wait_until_async(place.ids)
        for task in tasks:
            ticks = ticks_of(task.periodic.name, taken)
            assert len(ticks) >= 5
            assert ticks == all_between(task.periodic.schedule, ticks[0], ticks[-1])

    run(store, prefix, work)


@pytest.mark.faults(68)
def test_new_schedule_has_no_missed_ticks(store: Store, prefix: str) -> None:
    """A schedule does not tick for times before a server first published it, whatever its option
    for missed ticks."""

    async def work(place: Place) -> None:
        new = [periodic(missed, RARE, missed=missed) for missed in ("skip", "once", "all")]
        async with place.running(*new, periodic("often", Every(0.1))):
            await wait_until_async(lambda: len(place.ids()) >= 2)
        assert {id.partition("@")[0] for id in place.ids()} <= {"often"}
        assert all(place.last(missed) for missed in ("skip", "once", "all"))

    run(store, prefix, work)


@pytest.mark.faults(68)
def test_missed_ticks_are_skipped_or_run_once_or_all(store: Store, prefix: str) -> None:
    """Five ticks pass without a server, and then ten servers start together. The servers enqueue
    exactly the missed ticks that each option asks for."""

    async def work(place: Place) -> None:
        hourly = rare_hour(place.now_us())
        latest = hourly.previous(place.now_us())
        assert latest is not None
        ticks = [latest - n * hourly.period_us for n in reversed(range(5))]
        for missed in ("skip", "once", "all"):
            place.set_last(missed, ticks[0] - hourly.period_us)
        tasks = [periodic(one, hourly, missed=one) for one in ("skip", "once", "all")]
        async with place.running(*tasks, loops=10):
            await wait_until_async(lambda: place.last("all") == latest)
            await wait_until_async(lambda: place.last("once") == latest)
        assert place.ids() == sorted(
            [tick_id("once", latest), *(tick_id("all", tick) for tick in ticks)]
        )

    run(store, prefix, work)


@pytest.mark.faults(68)
def test_a_tick_within_grace_is_on_time(store: Store, prefix: str) -> None:
    """A restart during a tick loses nothing, even with missed="skip"."""

    async def work(place: Place) -> None:
        # With a tick every 20 s, one or two missed ticks are within the grace period of 30 s;
        # earlier ticks are skipped.
        every = Every(20)
        now_us = place.now_us()
        latest = every.previous(now_us)
        assert latest is not None
        place.set_last("skip", latest - 5 * every.period_us)
        async with place.running(periodic("skip", every)):
            await wait_until_async(lambda: (place.last("skip") or 0) >= latest)
        ids = place.ids()
        assert tick_id("skip", latest) in ids
        assert tick_id("skip", latest - 2 * every.period_us) not in ids
        assert GRACE_US == 30_000_000

    run(store, prefix, work)


@pytest.mark.faults(46)
def test_last_tick_by_a_clock_that_was_days_ahead_stops_no_schedule(
    store: Store, prefix: str
) -> None:
    """After the clock has been set back, the first server continues; ticks less than an hour ahead
    are not repeated."""

    async def work(place: Place) -> None:
        now_us = place.now_us()
        place.set_last("often", now_us + 3 * 86_400_000_000)
        place.set_last("done", now_us + 3_000_000_000)
        often, done = periodic("often", Every(0.2)), periodic("done", Every(0.2))
        async with place.running(often, done):
            await wait_until_async(lambda: len(place.ids()) >= 2)
        assert now_us < (place.last("often") or 0) <= place.now_us()
        assert ticks_of("done", place.ids()) == []

    run(store, prefix, work)


@pytest.mark.faults(45)
@pytest.mark.guarantee(5)
def test_no_tick_is_enqueued_before_its_time(store: Store, prefix: str) -> None:
    """The store's clock decides, even if the server's clock is wrong."""

    async def work(place: Place) -> None:
        async with place.running(periodic("often", Every(0.2)), loops=3):
            await wait_until_async(lambda: len(place.ids()) >= 4)
        fetch = ops.fetch(place.keys(), server="s", number=1, wanted=500, policy=POLICY)
        fetched = await place.broker.run(fetch)
        for id, message in zip(fetched.ids, fetched.messages, strict=True):
            [tick_us] = ticks_of("often", [id])
            assert decode_message(message).enqueued_at_us >= tick_us

    run(store, prefix, work)


def test_tasks_go_to_their_queues_which_are_registered(store: Store, prefix: str) -> None:
    """The queue is registered before any task is enqueued, so that servers that serve it find
    it."""

    async def work(place: Place) -> None:
        tasks = [
            periodic("a", Cron("* * * * * *"), queue="one"),
            periodic("b", Every(0.2), queue="two", delay=60),
        ]
        async with place.running(*tasks):
            await wait_until_async(lambda: place.ids("one") and place.ids("two"))
        with store.client() as client:
            assert client.smembers(GlobalKeys(prefix).queues) == {b"one", b"two"}
            assert client.zcard(place.keys("two").key("scheduled")) == len(place.ids("two"))

    run(store, prefix, work)


def test_a_tick_whose_lock_is_held_is_skipped(store: Store, prefix: str) -> None:
    """With unique=True, later ticks enqueue no task while the task of an earlier tick waits."""

    async def work(place: Place) -> None:
        async with place.running(periodic("one", Every(0.1), unique=True)):
            await wait_until_async(place.ids)
            first = place.last("one")
            await wait_until_async(lambda: place.last("one") != first)
        assert len(place.ids()) == 1

    run(store, prefix, work)


@pytest.mark.faults(70)
def test_dead_tick_does_not_prevent_the_next(store: Store, prefix: str) -> None:
    async def work(place: Place) -> None:
        async with place.running(periodic("one", Every(0.1))):
            await wait_until_async(place.ids)
            fetch = ops.fetch(place.keys(), server="s", number=1, wanted=1, policy=POLICY)
            [id] = (await place.broker.run(fetch)).ids
            kill = ops.kill(place.keys(), [op_values.Killed(id, "s/1", True, b"")])
            assert await place.broker.run(kill) == ["ok"]
            [killed] = ticks_of("one", [id])
            await wait_until_async(lambda: ticks_of("one", place.ids())[-1] > killed)

    run(store, prefix, work)


def test_task_that_cannot_be_built_stops_no_other_schedule(
    store: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The ticks of the broken schedule are skipped, and the logged error does not quote the
    exception."""
    calls = 0

    def build() -> Task:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise InvalidTask("hunter2")
        return Task("broken")

    async def work(place: Place) -> None:
        broken = PeriodicTask(Periodic("broken", Every(0.1)), build)
        async with place.running(broken, periodic("fine", Every(0.1))):
            await wait_until_async(lambda: len(place.ids()) >= 3)
        assert all(id.startswith("fine@") for id in place.ids())

    with caplog.at_level(logging.ERROR, "qsync.server"):
        run(store, prefix, work)
    text = "periodic task 'broken': this tick is skipped, since building its task raised"
    assert text in caplog.text
    assert "hunter2" not in caplog.text


@pytest.mark.faults(17, 25)
@pytest.mark.guarantee(7)
def test_ticks_survive_an_outage_of_the_store(caplog: pytest.LogCaptureFixture) -> None:
    """Ticks continue when the store is back, and scripts that it has lost are sent again."""
    with Store(aof=True) as store:

        async def work(place: Place) -> None:
            async with place.running(periodic("often", Every(0.1)), loops=2):
                await wait_until_async(place.ids)
                await asyncio.to_thread(store.kill)
                await wait_until_async(lambda: "cannot enqueue periodic tasks" in caplog.text)
                await asyncio.to_thread(store.start)
                before = place.last("often") or 0
                await wait_until_async(lambda: (place.last("often") or 0) > before)

        with caplog.at_level(logging.WARNING, "qsync.server"):
            run(store, "p", work)


@pytest.mark.faults(26)
@pytest.mark.guarantee(7)
def test_ticks_survive_a_full_store(
    store: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused ticks are retried, and no tick within the grace period is lost."""

    async def work(place: Place) -> None:
        async with place.running(periodic("often", Every(0.1))):
            await wait_until_async(place.ids)
            store.command("CONFIG", "SET", "maxmemory", 1)
            try:
                await wait_until_async(lambda: "cannot enqueue periodic tasks" in caplog.text)
                stopped_at = place.last("often") or 0
                await wait_until_async(lambda: place.now_us() > stopped_at + 300_000)
                assert place.last("often") == stopped_at
            finally:
                store.command("CONFIG", "SET", "maxmemory", 0)
            until = place.now_us()
            await wait_until_async(lambda: (place.last("often") or 0) >= until)
        ticks = ticks_of("often", place.ids())
        assert ticks == all_between(Every(0.1), ticks[0], ticks[-1])

    run(store, prefix, work)


def test_cancelled_loop_writes_nothing(store: Store, prefix: str) -> None:
    async def work(place: Place) -> None:
        async with place.running(periodic("often", Every(0.1))):
            await wait_until_async(place.ids)
        stopped_at = place.last("often")
        until = place.now_us() + 250_000
        await wait_until_async(lambda: place.now_us() > until)
        assert place.last("often") == stopped_at

    run(store, prefix, work)
