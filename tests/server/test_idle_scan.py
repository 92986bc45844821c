"""If a server has many queues, idle queues cost almost nothing, and the server still finds all
waiting tasks."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from qsync import Mux, Task, TaskInfo
from qsync.broker import operator_ops, ops, views
from qsync.broker.views import WorkCheck
from qsync.server.server import Server
from tests.scripts.test_idle_writes import Queue
from tests.support.server import Bench, bench
from tests.support.stores import Store, wait_until_async

S = 1_000_000
LEASE_US = 30 * S


def fetches(server: Server) -> int:
    """Return the number of fetches that a server has made from all its queues."""
    return sum(queue.number for queue in server._queues)


class Counting:
    """A mux that counts runs by queue."""

    def __init__(self) -> None:
        self.ran: Counter[str] = Counter()
        self.mux = Mux()
        self.mux.handle("a")(self._run)

    async def _run(self, task: TaskInfo) -> None:
        self.ran[task.queue] += 1

    async def reaches(self, count: int) -> None:
        await wait_until_async(lambda: self.ran.total() >= count, timeout=30)


async def looked(server: Server, times: int) -> None:
    """Wait until a server has checked its queues this many times."""
    await wait_until_async(lambda: min(queue.answered for queue in server._queues) > 0)
    for _ in range(times):
        before = max(queue.answered for queue in server._queues)
        await wait_until_async(lambda: min(queue.answered for queue in server._queues) > before)  # noqa: B023


@pytest.mark.faults(99)
async def test_idle_server_of_many_queues_fetches_from_none(store: Store, prefix: str) -> None:
    names = [f"q{at}" for at in range(200)]
    async with (
        bench(store.url, prefix) as using,
        using.server(Mux(), queues=names, sweep=0.1) as server,
    ):
        await looked(server, 3)
        before = fetches(server)
        await looked(server, 5)
        # The server fetches from each queue once in five minutes, regardless of the checks.
        assert fetches(server) - before <= len(names) // 4


@pytest.mark.faults(100)
async def test_tasks_in_many_queues_take_few_fetches(store: Store, prefix: str) -> None:
    """600 queues have two tasks each, and 600 others stay empty."""
    count = 600

    counting = Counting()
    async with bench(store.url, prefix) as using:
        tasks = [Task("a", queue=f"q{at}") for at in range(count) for _ in range(2)]
        await using.client.enqueue_many(tasks)
        names = [f"q{at}" for at in range(2 * count)]
        async with using.server(counting.mux, queues=names, sweep=60.0) as server:
            await counting.reaches(2 * count)
            assert fetches(server) <= 3 * count
    assert {*counting.ran.values()} == {2}


@pytest.mark.faults(100)
@pytest.mark.parametrize("queues", [3, 150])
@pytest.mark.parametrize("lost", [False, True])
async def test_server_finds_a_task_in_one_of_many_queues(
    store: Store, prefix: str, queues: int, *, lost: bool
) -> None:
    """After a wake, the server finds the task immediately. If the wake is lost, the server finds
    the task in its next check."""

    counting = Counting()
    names = [f"q{at}" for at in range(queues)]
    async with bench(store.url, prefix) as using:
        sweep = 0.3 if lost else 60.0
        async with using.server(counting.mux, queues=names, sweep=sweep) as server:
            await looked(server, 0)
            if lost:
                await add_unheard(store, using, names[-1])
            else:
                await using.client.enqueue(Task("a", queue=names[-1]))
            await counting.reaches(1)


async def add_unheard(store: Store, using: Bench, queue: str) -> None:
    """Enqueue a task while its queue is paused, so that no wake is sent."""
    keys = using.keys(queue)
    await using.broker.run(operator_ops.pause(keys, b"test"))
    await using.client.enqueue(Task("a", queue=queue))
    with store.client() as redis:
        await wait_until_async(lambda: not redis.exists(keys.key("wake")))
        redis.hdel(keys.key("meta"), "paused", "paused_at")


async def test_task_of_one_of_many_queues_starts_at_its_time(store: Store, prefix: str) -> None:
    counting = Counting()
    names = [f"q{at}" for at in range(150)]
    async with (
        bench(store.url, prefix) as using,
        using.server(counting.mux, queues=names, sweep=60.0, lease=60.0) as server,
    ):
        await looked(server, 0)
        for delay in (0.4, 0.2, 0.6):
            await using.client.enqueue(Task("a", queue="q7", delay=delay))
        await counting.reaches(3)


async def test_server_of_many_queues_recovers_tasks_of_a_dead_one(
    store: Store, prefix: str
) -> None:
    counting = Counting()
    names = [f"q{at}" for at in range(150)]
    async with bench(store.url, prefix) as using:
        await using.client.enqueue(Task("a", queue="q7"))
        server = using.server(counting.mux, queues=names)
        fetch = ops.fetch(
            using.keys("q7"), server="dead", number=1, wanted=1, policy=server.config.policy()
        )
        assert len((await using.broker.run(fetch)).ids) == 1
        async with server:
            await counting.reaches(1)


# Replies to checks.


@pytest.fixture
def queue(store: Store, prefix: str) -> Any:
    queue = Queue(store, prefix)
    yield queue
    queue.broker.close()


def look(queue: Queue) -> WorkCheck:
    found: WorkCheck = queue.run(
        views.check_for_work(queue.keys, lease_us=LEASE_US, now_us=queue.now_us)
    )
    return found


def test_check_of_an_empty_queue_finds_nothing(queue: Queue) -> None:
    assert look(queue) == (None, False, False)
    queue.fetch()
    generation = queue.fetch().generation
    assert look(queue) == (generation, False, False)


def test_check_finds_tasks_that_may_be_fetched(queue: Queue) -> None:
    queue.enqueue(Task("a"))
    assert look(queue).waits
    queue.run(operator_ops.pause(queue.keys, b"somebody", now_us=queue.now_us))
    assert not look(queue).waits


def test_check_finds_due_tasks(queue: Queue) -> None:
    queue.enqueue(Task("a", delay=60))
    assert look(queue)[1:] == (False, False)
    queue.now_us += 60 * S
    assert look(queue)[1:] == (False, True)
    assert len(queue.fetch().ids) == 1
    assert look(queue)[1:] == (False, False)
    queue.now_us += LEASE_US // 4 + 1
    assert look(queue).due, "some server must record that servers are alive"
    queue.fetch("other")
    assert not look(queue).due
    queue.now_us += LEASE_US
    assert look(queue).due
