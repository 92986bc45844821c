"""If the store is full or refuses settlements, tasks still end and no attempt is charged."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Iterator

import pytest

from qsync import Mux, QsyncError, QueueFull, Snooze, Task, TaskInfo
from qsync.broker import redis_clients, registry_ops, views
from qsync.broker.blocking import Broker
from qsync.broker.views import Counts
from qsync.keys import GlobalKeys
from qsync.message import decode_failure
from qsync.server import schedule_notes
from tests.conftest import Colour
from tests.support.server import Bench, bench, until
from tests.support.stores import Store, wait_until_async

LONG = b"r" * 5000
SHORT = b"s" * 50


@contextlib.contextmanager
def full(store: Store) -> Iterator[None]:
    """Let the store refuse new data during the block."""
    with store.client() as client:
        client.config_set("maxmemory", 1)
        try:
            yield
        finally:
            client.config_set("maxmemory", 0)


async def counts(b: Bench) -> Counts:
    return await b.broker.run(views.counts(b.keys()))


async def completed(b: Bench, number: int) -> None:
    async def check() -> bool:
        return (await counts(b)).stats.get("completed", 0) == number

    await wait_until_async(check, message=f"not {number} completed")


class Work:
    """Handlers that wait until `go_on` is set, and then return bytes or nothing, depending on the
    type."""

    def __init__(self) -> None:
        self.mux = Mux()
        self.ran: list[str] = []
        self.go_on = asyncio.Event()
        for type, result in {"long": LONG, "short": SHORT, "plain": None}.items():
            self._add(type, result)

    def _add(self, type: str, result: bytes | None) -> None:
        @self.mux.handle(type)
        async def handler(task: TaskInfo) -> bytes | None:
            self.ran.append(task.id)
            await self.go_on.wait()
            return result


@pytest.mark.faults(61, 83)
def test_full_store_drains_tasks_with_results(
    store: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each task runs once. If the store has no memory for a result, `result()` raises an error and
    a line is logged."""
    caplog.set_level(logging.WARNING, "qsync.server")

    async def main() -> None:
        work = Work()
        work.go_on.set()
        async with bench(store.url, prefix) as b:
            kept = {
                type: await b.client.enqueue_many([Task(type, retention=600)] * 50)
                for type in ("long", "short", "plain")
            }
            await b.client.enqueue_many([Task("plain")] * 50)
            with full(store):
                async with b.server(work.mux):
                    await completed(b, 200)
            for handle in kept["long"]:
                with pytest.raises(QsyncError, match="no memory for the result"):
                    await handle.result(5)
            assert [await handle.result(5) for handle in kept["short"]] == [SHORT] * 50
            assert [await handle.result(5) for handle in kept["plain"]] == [None] * 50
            assert (await counts(b)).stats.get("crashed", 0) == 0
        assert len(work.ran) == len(set(work.ran)) == 200

    asyncio.run(main())
    assert any("are lost" in one.getMessage() for one in caplog.records)


@pytest.mark.faults(61, 83)
async def test_memory_that_ended_tasks_free_is_used_for_results(
    own_store: Store, prefix: str
) -> None:
    """Tasks without a result are completed first; this frees enough memory for the results of the
    others."""

    work = Work()
    async with bench(own_store.url, prefix) as b, b.server(work.mux, prefetch=0):
        await b.client.enqueue_many([Task("plain", b"x" * 500_000)] * 8)
        kept = await b.client.enqueue_many([Task("long", retention=600)] * 8)
        await until(lambda: len(work.ran) == 16)
        with own_store.client() as client:
            used = client.info("memory")["used_memory"]
            client.config_set("maxmemory", used - 500_000)
            work.go_on.set()
            await completed(b, 16)
            client.config_set("maxmemory", 0)
        assert [await handle.result(5) for handle in kept] == [LONG] * 8


@contextlib.contextmanager
def results_refused(store: Store, b: Bench) -> Iterator[None]:
    """During the block, let the store refuse to settle any task with a retention."""
    with store.client() as client:
        client.set(b.keys().key("results"), "not a hash")
        try:
            yield
        finally:
            client.delete(b.keys().key("results"))


@pytest.mark.faults(61, 83)
async def test_server_fetches_nothing_while_the_store_refuses_settlements(
    store: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "qsync.server")  # also shows repeated refusals

    work = Work()
    work.go_on.set()
    async with bench(store.url, prefix) as b:
        await b.client.enqueue_many([Task("long", retention=600)] * 1000)
        async with b.server(work.mux, concurrency=10, prefetch=0):
            with results_refused(store, b):
                await until(lambda: said(caplog) >= 3)
                ran = len(work.ran)  # the server fetched all of them before the first refusal
                await until(lambda: said(caplog) >= 6)
                assert len(work.ran) == ran < 200
            await completed(b, 1000)
    assert len(work.ran) == len(set(work.ran)) == 1000


def said(caplog: pytest.LogCaptureFixture) -> int:
    """Return the number of log lines about refused settlements."""
    return sum("cannot settle" in one.getMessage() for one in caplog.records)


@pytest.mark.faults(61, 83)
async def test_stop_while_the_store_refuses_settlements_charges_no_crash(
    store: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The tasks are handed back without counting an attempt, and run again when the store accepts
    settlements."""
    caplog.set_level(logging.DEBUG, "qsync.server")  # also shows repeated refusals

    work = Work()
    work.go_on.set()
    async with bench(store.url, prefix) as b:
        handles = await b.client.enqueue_many([Task("long", retention=600)] * 5)
        with results_refused(store, b):
            server = b.server(work.mux, shutdown_timeout=0)
            async with server:
                await until(lambda: said(caplog) >= 1)
                server._force.set()  # a second SIGTERM also sets this event
            with store.client() as client:
                assert client.zcard(b.keys().key("pending")) == 5
        async with b.server(work.mux):
            assert [await handle.result(5) for handle in handles] == [LONG] * 5
        assert (await counts(b)).stats.get("crashed", 0) == 0


async def test_stop_while_notes_of_ticks_are_sent_hands_back_refused_tasks(
    valkey: Store, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even while a call that records ticks hangs, the server hands back the tasks whose settlement
    the store has refused."""
    sending = asyncio.Event()

    async def hang(*_: object) -> None:
        sending.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(schedule_notes, "send_notes", hang)
    work = Work()
    async with bench(valkey.url, prefix) as b:
        tick = Task("plain", id="report@2026-11-24T02:00:00Z")
        await b.client.enqueue_many([tick, *[Task("long", retention=600)] * 5])
        with results_refused(valkey, b):
            server = b.server(work.mux, shutdown_timeout=0)
            async with server:
                await until(lambda: len(work.ran) == 6)
                work.go_on.set()
                await asyncio.wait_for(sending.wait(), 10)
                server._force.set()  # a second SIGTERM also sets this event
            with valkey.client() as client:
                assert client.zcard(b.keys().key("pending")) == 5


@pytest.mark.faults(61, 83)
async def test_failures_add_little_data_to_a_full_store(own_store: Store, prefix: str) -> None:
    """Errors are truncated and the history is left out. Attempts, delays and deaths stay the
    same."""
    mux, attempts = Mux(), Counter[str]()

    @mux.handle("bad")
    async def bad(task: TaskInfo) -> None:
        attempts[task.id] += 1
        raise ValueError("no good: " + "x" * 3000)

    @mux.handle("later")
    async def later(task: TaskInfo) -> None:
        raise Snooze(3600)

    tasks = [Task("bad", id=f"b{n}", retry=3, retry_delay=0) for n in range(200)]
    tasks += [Task("later", id=f"l{n}") for n in range(20)]
    tasks += [Task("unknown", id=f"u{n}") for n in range(20)]
    async with bench(own_store.url, prefix) as b:
        await b.client.enqueue_many(tasks)
        failures = b.keys().key("failures")

        async def settled() -> bool:
            states = (await counts(b)).states
            return (states["dead"], states["scheduled"]) == (200, 40)

        with full(own_store):
            async with b.server(mux):
                await wait_until_async(settled)
            with own_store.client() as client:
                records = dict(client.hgetall(failures))
                assert len(records) == 240
                assert max(map(len, records.values())) < 150
        assert set(attempts.values()) == {4}
        last = decode_failure(records[b"b0"])
        assert (last.attempts, last.error[:22]) == (4, "ValueError: no good: x")
        await b.client.enqueue(Task("bad", id="whole", retry=0))
        async with b.server(mux):
            await b.reaches("whole", "dead")
        with own_store.client() as client:
            assert len(client.hget(failures, "whole")) > 2000


async def test_names_of_queues_add_no_data_to_a_full_store(
    own_store: Store, prefix: str, colour: Colour
) -> None:
    """A program may have a queue for each customer, and the first enqueue to each queue registers
    its name."""
    client = colour.client(own_store.url, prefix)
    with own_store.client() as redis, full(own_store):
        for n in range(5):
            with pytest.raises(QueueFull):
                colour.do(client.enqueue(Task("t", queue=f"q{n}")))
            with pytest.raises(QueueFull):
                colour.do(client.schedules.put(f"s{n}", Task("t", queue=f"q{n}"), every=60))
        assert redis.keys(f"*{prefix}*") == []
    assert colour.do(client.enqueue(Task("t", queue="q0"))).created


def test_unread_orders_of_a_server_are_bounded(store: Store, prefix: str) -> None:
    keys = GlobalKeys(prefix)
    broker = Broker(redis_clients.parse(store.url))
    for n in range(1100):
        send = registry_ops.send_order(keys, "hung", b"%d" % n, ttl_ms=60_000)
        assert broker.run(send) == min(n + 1, 1000)
    with store.client() as client:
        assert client.lrange(keys.inbox("hung"), -1, -1) == [b"1099"]
    broker.close()
