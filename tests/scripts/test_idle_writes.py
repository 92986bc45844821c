"""An idle queue causes no writes, and a late duplicate of a fetch does no harm."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from qsync import Mux, Qsync, TaskInfo
from qsync.broker import (
    op_values,
    operator_ops,
    ops,
    program_schedule_ops,
    redis_clients,
    views,
)
from qsync.broker.blocking import Broker
from qsync.broker.op_values import FetchPolicy
from qsync.keys import GlobalKeys, QueueKeys
from qsync.new_task import NewTask, new_nonce, new_task
from qsync.task import Task
from tests.support.stores import Store, wait_until_async

S = 1_000_000
START = 1_700_000_000 * S
POLICY = FetchPolicy(lease_us=30 * S, max_crashes=3, dead_limit=100, dead_age_us=86_400 * S)


class Queue:
    def __init__(self, store: Store, prefix: str) -> None:
        self.store = store
        self.keys = QueueKeys(prefix, "default")
        self.broker = Broker(redis_clients.parse(store.url))
        self.now_us = START
        self.numbers: dict[str, int] = {}

    def run(self, call: Any) -> Any:
        return self.broker.run(call)

    def fetch(self, server: str = "s", wanted: int = 100, **options: Any) -> op_values.FetchResult:
        number = self.numbers[server] = self.numbers.get(server, 0) + 1
        return self.repeat(server, number, wanted, **options)

    def repeat(
        self, server: str, number: int, wanted: int = 100, **options: Any
    ) -> op_values.FetchResult:
        call = ops.fetch(
            self.keys, server=server, number=number, wanted=wanted, policy=POLICY,
            now_us=self.now_us, **options,
        )  # fmt: skip
        fetched: op_values.FetchResult = self.run(call)
        return fetched

    def enqueue(self, task: Task) -> NewTask:
        sent = new_task(task, new_nonce())
        self.run(ops.enqueue(self.keys, [sent], now_us=self.now_us))
        return sent

    def written(self) -> int:
        """Return the size of the append-only file, in bytes."""
        info: dict[str, Any] = self.store.client().info("persistence")
        return int(info["aof_current_size"])

    def hour(self, servers: int = 10) -> int:
        """Simulate an hour in which idle servers check twice a minute; return the number of bytes
        written."""
        for server in range(servers):
            self.fetch(f"s{server}")
        before = self.written()
        for _ in range(120):
            self.now_us += 30 * S
            for server in range(servers):
                assert self.fetch(f"s{server}").ids == []
        return self.written() - before


@pytest.fixture
def queue(prefix: str) -> Iterator[Queue]:
    with Store("valkey", aof=True) as store:
        queue = Queue(store, prefix)
        yield queue
        queue.broker.close()


@pytest.mark.faults(99)
def test_empty_queue_causes_no_writes(queue: Queue) -> None:
    assert queue.hour() == 0


@pytest.mark.faults(99)
def test_queue_with_scheduled_tasks_causes_no_writes(queue: Queue) -> None:
    queue.enqueue(Task("a", delay=7200, unique=True))
    assert queue.hour() == 0


@pytest.mark.faults(99)
def test_used_queue_causes_no_writes_once_it_is_swept(queue: Queue) -> None:
    """Once the records of servers and clients have expired, nothing more is written."""
    sent = queue.enqueue(Task("a"))
    dead = queue.enqueue(Task("a"))
    queue.fetch("s0")
    token = f"s0/{queue.numbers['s0']}"
    queue.run(ops.complete(queue.keys, [op_values.Completion(sent.id, token)], now_us=queue.now_us))
    queue.run(
        ops.kill(queue.keys, [op_values.Killed(dead.id, token, True, b"")], now_us=queue.now_us)
    )
    queue.now_us += 3601 * S
    queue.hour(1)
    assert queue.hour() == 0


def test_paused_queue_with_waiting_tasks_causes_no_writes(queue: Queue) -> None:
    queue.run(operator_ops.pause(queue.keys, b"somebody", now_us=queue.now_us))
    assert queue.hour() == 0


@pytest.mark.faults(99)
@pytest.mark.parametrize("queues", [1, 3])
def test_idle_servers_write_nothing(queue: Queue, prefix: str, queues: int) -> None:
    """Servers announce themselves constantly, so their records are not written to the AOF."""
    names = [f"q{at}" for at in range(queues)]

    def announced() -> list[float]:
        """Return the times until which each server counts as live."""
        with queue.store.client() as client:
            return [score for _, score in client.zrange(servers, 0, -1, withscores=True)]

    async def main() -> int:
        async with contextlib.AsyncExitStack() as running:
            for _ in range(10):
                server = app.server(mux, queues=names, lease=3, sweep=0.2, shutdown_timeout=0)
                await running.enter_async_context(server)
            await wait_until_async(lambda: len(announced()) == 10)
            latest = max(announced())
            await wait_until_async(lambda: min(announced()) > latest)  # all servers have fetched
            before = queue.written()
            latest = max(announced())
            await wait_until_async(lambda: min(announced()) > latest)
            assert len(announced()) == 10
            return queue.written() - before

    app, mux, servers = Qsync(queue.store.url, prefix=prefix), Mux(), GlobalKeys(prefix).servers
    app.limit("customer", concurrency=2)
    with app.client() as client:
        client.schedules.put("yearly", Task("t"), cron="0 3 1 1 *")
        client.schedules.put("later", Task("t", queue=names[0]), cron="0 3 1 1 *")

    @mux.handle("t")
    async def t(task: TaskInfo) -> None: ...

    assert asyncio.run(main()) == 0


@pytest.mark.faults(99)
def test_publications_of_many_servers_write_no_more_than_those_of_one(queue: Queue) -> None:
    """Ten servers each publish every minute, but the store writes at most once every half
    minute."""

    def publish(record: bytes = b"record", task: bytes = b"task") -> int:
        before = queue.written()
        schedules = [("hourly", record, task)]
        call = program_schedule_ops.publish_schedules
        queue.run(call(queue.keys, schedules, now_us=queue.now_us))
        queue.run(
            program_schedule_ops.begin_ticks(
                queue.keys, ["hourly"], digests=["ab"], now_us=queue.now_us
            )
        )
        return queue.written() - before

    assert publish() > 0
    writes = 0
    for _ in range(600):  # an hour
        queue.now_us += 6 * S
        writes += publish() > 0
    assert 60 <= writes <= 120
    assert publish() == 0
    assert publish(record=b"another") > 0
    assert publish(record=b"another", task=b"another") > 0
    queue.now_us -= 10 * S
    assert publish(record=b"another", task=b"another") > 0, "the clock was set back"
    [published] = queue.run(views.schedules(queue.keys, "hourly"))[1]
    assert published.seen_at_us == queue.now_us
    assert (published.record, published.task) == (b"another", b"another")


async def test_restarted_store_soon_lists_its_servers(queue: Queue, prefix: str) -> None:
    mux = Mux()

    @mux.handle("t")
    async def t(task: TaskInfo) -> None: ...

    async with (
        Qsync(queue.store.url, prefix=prefix) as app,
        app.server(mux, lease=60, shutdown_timeout=0) as server,  # announces itself every 30 s
        contextlib.aclosing(app.inspector()) as inspector,
    ):
        await wait_until_async(inspector.servers)
        queue.store.kill()
        queue.store.restart()
        await wait_until_async(inspector.servers)
        [known] = await inspector.servers()
        assert known.id == server.id


def test_late_copy_of_a_repeated_fetch_leases_nothing(queue: Queue) -> None:
    """The first copy of the call was stuck on a dead connection while the second copy was
    answered."""
    assert queue.repeat("s", 7, again=True).ids == []
    sent = queue.enqueue(Task("a"))
    assert queue.repeat("s", 7).ids == []
    assert queue.repeat("s", 8).ids == [sent.id]


def test_repeated_fetch_includes_new_tasks(queue: Queue) -> None:
    assert queue.repeat("s", 7).ids == []
    sent = queue.enqueue(Task("a"))
    assert queue.repeat("s", 7, again=True).ids == [sent.id]
    assert queue.repeat("s", 7, again=True).ids == [sent.id]


def test_fetch_reports_whether_more_tasks_wait(queue: Queue) -> None:
    for _ in range(3):
        queue.enqueue(Task("a"))
    assert [queue.fetch(wanted=wanted).left for wanted in (0, 2, 1, 1)] == [
        True,
        True,
        False,
        False,
    ]
    queue.enqueue(Task("a"))
    queue.run(operator_ops.pause(queue.keys, b"somebody", now_us=queue.now_us))
    assert not queue.fetch().left
