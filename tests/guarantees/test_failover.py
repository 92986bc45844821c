"""Tasks complete on clusters and behind Sentinels, even when a primary dies."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from qsync.errors import DuplicateTask, StoreUnavailable, TaskCancelled, TaskFailed
from qsync.mux import Mux
from qsync.task import Task, TaskInfo
from tests.guarantees.conftest import Measured
from tests.support.server import Bench, bench, left_over, until
from tests.support.stores import Cluster, Sentinel, wait_until, wait_until_async

WEIGHTS = (5, 3, 1)
SHARED = 18_000
"""Number of tasks whose shares are compared. Primaries reply one after another, so shares are exact
over some hundreds of tasks, but not over ten."""


@pytest.fixture(scope="module")
def replicated() -> Iterator[Cluster]:
    """Start a cluster for this module. If the cluster loses a primary, it continues with the other
    primaries."""
    with Cluster(config={"cluster-require-full-coverage": "no"}) as cluster:
        yield cluster


def queues_on_each(cluster: Cluster, prefix: str) -> list[str]:
    """Return the names of one queue on each primary."""
    found: dict[int, str] = {}
    for n in itertools.count():
        queue = f"queue-{n}"
        found.setdefault(cluster.holder(f"{{{prefix}:{queue}}}:tasks").port, queue)
        if len(found) == cluster.primaries:
            return list(found.values())
    raise AssertionError


@pytest.mark.faults(48, 49)
async def test_tasks_pass_all_states_on_a_cluster(replicated: Cluster, prefix: str) -> None:
    queues = queues_on_each(replicated, prefix)
    mux = Mux()

    @mux.handle("add")
    async def add(task: TaskInfo) -> int:
        return sum(task.value(list[int]))

    @mux.handle("flaky")
    async def flaky(task: TaskInfo) -> int:
        if task.attempt < 3:
            raise ValueError("not yet")
        return task.attempt

    @mux.handle("bad")
    async def bad(task: TaskInfo) -> None:
        raise ValueError("no good")

    @mux.handle("hang")
    async def hang(task: TaskInfo) -> None:
        await asyncio.Event().wait()

    async def live(b: Bench, queue: str) -> None:
        kept: dict[str, Any] = {"queue": queue, "retention": 60}
        added = await b.client.enqueue(Task("add", [1, 2, 3], **kept))
        retried = await b.client.enqueue(Task("flaky", retry=3, retry_delay=0.05, **kept))
        failed = await b.client.enqueue(Task("bad", retry=0, **kept))
        unique = Task("hang", unique=True, **kept)
        hanging = await b.client.enqueue(unique)
        with pytest.raises(DuplicateTask) as raised:
            await b.client.enqueue(unique)
        assert raised.value.id == hanging.id
        later = await b.client.enqueue(Task("add", [4], delay=0.3, **kept))
        assert await added.result(timeout=10) == 6
        assert await retried.result(timeout=10) == 3
        assert await later.result(timeout=10) == 4
        with pytest.raises(TaskFailed, match="no good"):
            await failed.result(timeout=10)
        await b.reaches(hanging.id, "active", queue)
        assert await hanging.cancel()
        with pytest.raises(TaskCancelled):
            await hanging.result(timeout=10)
        assert (await b.client.enqueue(unique)).created

    async with (
        bench(replicated.url, prefix) as b,
        b.server(mux, queues=queues, shutdown_timeout=0),
    ):
        await asyncio.gather(*[live(b, queue) for queue in queues])


@pytest.mark.faults(53)
@pytest.mark.parametrize("prefetch", [None, 0])
def test_queues_on_different_primaries_share_by_weight(
    replicated: Cluster, prefix: str, measured: Measured, prefetch: int | None
) -> None:
    weights = dict(zip(queues_on_each(replicated, prefix), WEIGHTS, strict=True))
    order: list[str] = []
    mux = Mux()

    @mux.handle("note")
    async def note(task: TaskInfo) -> None:
        order.append(task.queue)
        await asyncio.sleep(0)

    async def main() -> None:
        async with bench(replicated.url, prefix) as b:
            for queue, weight in weights.items():
                count = SHARED // 9 * weight + 500
                await b.client.enqueue_many([Task("note", queue=queue) for _ in range(count)])
            async with b.server(mux, queues=weights, prefetch=prefetch):
                await until(lambda: len(order) >= SHARED, timeout=30)

    asyncio.run(main())
    counts = Counter(order[:SHARED])
    wrong = max(abs(counts[queue] / SHARED - weight / 9) for queue, weight in weights.items())
    measured(f"cluster: largest gap between a queue's share of {SHARED} tasks and weight", wrong)
    assert wrong <= 0.02, counts


class Stream:
    """Enqueues tasks to some queues continuously, and records when each task ran."""

    def __init__(self, b: Bench, queues: list[str], *, every: float = 0.005) -> None:
        self.ran: dict[str, list[float]] = defaultdict(list)
        self.accepted: dict[str, set[str]] = defaultdict(set)
        self.done: set[str] = set()
        self.refused: Counter[str] = Counter()
        self.mux = Mux()
        self._b, self._queues, self._every = b, queues, every

        @self.mux.handle("note")
        async def note(task: TaskInfo) -> None:
            self.ran[task.queue].append(time.monotonic())
            self.done.add(task.id)

    @contextlib.asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            feeds = [group.create_task(self._feed(queue)) for queue in self._queues]
            yield
            for feed in feeds:
                feed.cancel()

    async def _feed(self, queue: str) -> None:
        while True:
            try:
                handle = await self._b.client.enqueue(Task("note", queue=queue))
                self.accepted[queue].add(handle.id)
            except StoreUnavailable:
                self.refused[queue] += 1
            await asyncio.sleep(self._every)

    def count(self, queue: str, since: float) -> int:
        """Return how many tasks of the queue ran after `since`."""
        return sum(at > since for at in self.ran[queue])

    def rate(self, queue: str, since: float = 0.0) -> float:
        """Return how many tasks ran per second after `since`, or since the first run if `since` is
        0."""
        times = [at for at in self.ran[queue] if at > since]
        return len(times) / (time.monotonic() - (since or times[0]))

    def longest_gap(self, queue: str, since: float) -> float:
        """Return the longest time after `since` in which no task of the queue ran."""
        times = [since, *(at for at in self.ran[queue] if at > since), time.monotonic()]
        return max(after - before for before, after in itertools.pairwise(times))

    def lost(self, queue: str) -> set[str]:
        return self.accepted[queue] - self.done


async def drained(store: Cluster | Sentinel, prefix: str, queues: list[str]) -> None:
    """Wait until the queues have no tasks."""
    with store.client() as client:
        await wait_until_async(
            lambda: not any(left_over(client, prefix, queue) for queue in queues), timeout=20
        )


@pytest.mark.faults(51, 52)
@pytest.mark.guarantee(7)
@pytest.mark.parametrize("how", ["killed", pytest.param("paused", marks=pytest.mark.slow)])
def test_other_queues_continue_while_a_primary_is_down(
    replicated: Cluster, prefix: str, measured: Measured, how: str
) -> None:
    queues = queues_on_each(replicated, prefix)
    hit, *others = queues
    victim = replicated.holder(f"{{{prefix}:{hit}}}:tasks")

    async def main() -> None:
        async with bench(replicated.url, prefix) as b:
            stream = Stream(b, queues, every=0.02)  # a busy machine can keep up
            async with b.server(stream.mux, queues=queues) as server:
                async with stream.flowing():
                    await until(lambda: all(len(stream.ran[queue]) > 50 for queue in queues), 30)
                    before = {queue: stream.rate(queue) for queue in queues}
                    killed_at = time.monotonic()
                    victim.kill() if how == "killed" else victim.pause()
                    # Wait until the replica has taken over and many tasks of the queue have run.
                    await until(lambda: stream.count(hit, killed_at + 0.5) > 50, 30)
                    shares = [stream.rate(one, killed_at) / before[one] for one in others]
                    gaps = {queue: stream.longest_gap(queue, killed_at) for queue in queues}
                    assert not server.broken
                await drained(replicated, prefix, queues)
            measured(
                f"cluster, primary {how}: seconds until tasks of its queue ran again", gaps[hit]
            )
            measured(
                f"cluster, primary {how}: longest time without a run in another queue, in seconds",
                max(gaps[one] for one in others),
            )
            measured(
                f"cluster, primary {how}: lowest share of its rate that another queue kept",
                min(shares),
            )
            measured(f"cluster, primary {how}: tasks lost with the primary", len(stream.lost(hit)))
            # The node timeout is 1 s. The cluster waits 5 s longer for a node that is stopped but
            # not dead.
            assert gaps[hit] <= (6 if how == "killed" else 9)
            assert max(gaps[one] for one in others) <= 1
            if how == "paused":  # a killed node is soon replaced by its replica
                assert min(shares) >= 0.9
            assert [stream.lost(one) for one in others] == [set(), set()]
            assert len(stream.lost(hit)) <= 5  # the replica lacked these writes

    asyncio.run(main())
    victim.start() if how == "killed" else victim.resume()
    wait_until(replicated.settled, timeout=20)


@pytest.mark.faults(52)
def test_unanswered_fetch_blocks_no_slot_of_other_queues(
    replicated: Cluster, prefix: str, measured: Measured
) -> None:
    """The server's only slot stays free for other queues, although the unanswered fetch may have
    leased a task for it."""
    queues = queues_on_each(replicated, prefix)
    hit, *others = queues
    victim = replicated.holder(f"{{{prefix}:{hit}}}:tasks")

    async def main() -> float:
        async with bench(replicated.url, prefix) as b:
            stream = Stream(b, queues)
            waits: list[float] = []

            async def one(queue: str) -> None:
                began, ran = time.monotonic(), len(stream.ran[queue])
                await b.client.enqueue(Task("note", queue=queue))
                await until(lambda: len(stream.ran[queue]) > ran, 20)
                waits.append(time.monotonic() - began)

            async with b.server(stream.mux, queues=queues, concurrency=1, prefetch=0):
                for queue in queues:
                    await one(queue)
                waits.clear()
                victim.pause()
                began = time.monotonic()
                while time.monotonic() - began < 3:
                    for queue in others:
                        await one(queue)
                victim.resume()
            return max(waits)

    try:
        longest = asyncio.run(main())
    finally:
        victim.resume()
    measured("cluster, primary paused: longest wait for the only slot, in seconds", longest)
    assert longest <= 2
    wait_until(replicated.settled, timeout=20)


def change_primary(sentinel: Sentinel, how: str) -> None:
    replica = sentinel.replica
    if how == "killed":
        sentinel.primary.kill()
        sentinel.wait_promoted(replica)
    else:
        sentinel.failover()


@pytest.mark.faults(21)
@pytest.mark.guarantee(7)
@pytest.mark.parametrize("how", ["killed", pytest.param("told", marks=pytest.mark.slow)])
def test_tasks_continue_after_sentinel_changes_the_primary(
    prefix: str, measured: Measured, how: str
) -> None:
    with Sentinel() as sentinel:

        async def main() -> None:
            async with bench(sentinel.url, prefix) as b:
                stream = Stream(b, ["default"])
                async with b.server(stream.mux) as server:
                    async with stream.flowing():
                        await until(lambda: stream.count("default", 0) > 50)
                        began = time.monotonic()
                        await asyncio.to_thread(change_primary, sentinel, how)
                        over = time.monotonic()
                        await until(lambda: stream.count("default", over) > 200, 20)
                        gap = stream.longest_gap("default", began)
                        assert not server.broken
                    await drained(sentinel, prefix, ["default"])
                measured(f"Sentinel, {how}: longest time without a run, in seconds", gap)
                measured(f"Sentinel, {how}: tasks lost", len(stream.lost("default")))
                assert gap <= 8
                assert len(stream.lost("default")) <= 5

        asyncio.run(main())
