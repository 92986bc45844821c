"""A server id may be reused by a restarted process, or by two servers at the same time."""

from __future__ import annotations

import asyncio

import pytest

from qsync import Mux, Task, TaskInfo
from qsync.broker import ops, registry_ops, views
from qsync.keys import GlobalKeys
from qsync.message import decode_failure
from qsync.server.server import Server
from tests.support.server import Bench, bench
from tests.support.stores import Store, wait_until_async


async def _dead_server(using: Bench, number: int) -> list[str]:
    """Return the ids of the tasks that `worker-0` leased in its fetch `number` before it died."""
    server = using.server(Mux(), server_id="worker-0")
    fetch = ops.fetch(
        using.keys(), server="worker-0", number=number, wanted=10, policy=server.config.policy()
    )
    return (await using.broker.run(fetch)).ids


@pytest.mark.faults(89)
async def test_restarted_server_with_the_same_id_fetches_at_once(store: Store, prefix: str) -> None:
    """The previous run made a thousand fetches; the new run counts from the beginning again."""

    ran: asyncio.Queue[str] = asyncio.Queue()
    mux = Mux()

    @mux.handle("a")
    async def a(task: TaskInfo) -> None:
        await ran.put(task.id)

    async with bench(store.url, prefix) as using:
        left = await using.client.enqueue(Task("b"))
        assert await _dead_server(using, 1000) == [left.id]
        async with using.server(mux, server_id="worker-0", sweep=60.0):
            for _ in range(3):
                handle = await using.client.enqueue(Task("a"))
                assert await asyncio.wait_for(ran.get(), 10) == handle.id


@pytest.mark.faults(89)
async def test_two_servers_with_one_id_both_work(store: Store, prefix: str) -> None:
    ran: list[Server] = []
    gate = asyncio.Event()

    def serving(using: Bench) -> Server:
        mux = Mux()
        server = using.server(mux, server_id="worker-0", concurrency=1)

        @mux.handle("a")
        async def a(_: TaskInfo) -> None:
            ran.append(server)
            await gate.wait()

        return server

    async with (
        bench(store.url, prefix) as using, serving(using) as first, serving(using) as second
    ):  # fmt: skip
        await using.client.enqueue_many([Task("a"), Task("a")])
        await wait_until_async(lambda: len(ran) == 2)
        assert {*ran} == {first, second}
        gate.set()


@pytest.mark.faults(89)
async def test_crash_of_the_previous_run_is_counted(store: Store, prefix: str) -> None:
    """A restarted server does not take over the leases of its predecessor; otherwise, a task that
    kills its server would never be charged with a crash."""

    mux = Mux()
    crashes: asyncio.Queue[int] = asyncio.Queue()

    @mux.handle("a")
    async def a(task: TaskInfo) -> None:
        await crashes.put(task.crashes)

    async with bench(store.url, prefix) as using:
        handle = await using.client.enqueue(Task("a"))
        assert await _dead_server(using, 5) == [handle.id]
        async with using.server(mux, server_id="worker-0"):
            assert await asyncio.wait_for(crashes.get(), 20) == 1


@pytest.mark.faults(89)
async def test_order_to_the_previous_run_does_not_reach_the_next(store: Store, prefix: str) -> None:
    ran = asyncio.Event()
    mux = Mux()

    @mux.handle("a")
    async def a(_: TaskInfo) -> None:
        ran.set()

    async with bench(store.url, prefix) as using:
        await using.broker.run(
            registry_ops.send_order(GlobalKeys(prefix), "worker-0", b'["stop"]', ttl_ms=60_000)
        )
        await using.broker.run(
            registry_ops.send_order(GlobalKeys(prefix), "worker-0", b"\x91\xa4stop", ttl_ms=60_000)
        )
        server = using.server(mux, server_id="worker-0")
        async with server:
            inbox = GlobalKeys(prefix).inbox("worker-0")
            await wait_until_async(lambda: not store.client().exists(inbox))
            await using.client.enqueue(Task("a"))
            await asyncio.wait_for(ran.wait(), 10)
            assert not server.condition().stopping


async def test_token_names_the_server_without_the_run(store: Store, prefix: str) -> None:
    """Views, the history of failures and requests to the server use the server's id without the
    number of the run."""

    mux = Mux()
    started: asyncio.Queue[str] = asyncio.Queue()

    @mux.handle("a")
    async def a(task: TaskInfo) -> None:
        await started.put(task.token)
        if task.attempt == 1:
            raise ValueError("once")
        await asyncio.Event().wait()

    async with bench(store.url, prefix) as using, using.server(mux, server_id="worker-0"):
        handle = await using.client.enqueue(Task("a", retry_delay=0.01))
        tokens = [await asyncio.wait_for(started.get(), 10) for _ in range(2)]
        assert all(token.startswith("worker-0~") for token in tokens)
        [shown] = await using.broker.run(views.get_tasks(using.keys(), [handle.id]))
        assert shown is not None
        [brief] = decode_failure(shown.failure).history
        assert brief.server == "worker-0"
        await handle.cancel()
        await using.gone(handle.id)


@pytest.mark.faults(89)
async def test_abandon_ends_the_leases_of_every_run(store: Store, prefix: str) -> None:
    async with bench(store.url, prefix) as using:
        handle = await using.client.enqueue(Task("a"))
        holder = "worker-0~0123abcd"
        policy = using.server(Mux()).config.policy()
        fetch = ops.fetch(using.keys(), server=holder, number=1, wanted=1, policy=policy)
        assert (await using.broker.run(fetch)).ids == [handle.id]
        for other in ("worker", "worker-0~0"):
            assert (await using.broker.run(ops.abandon(using.keys(), other)))[1] == 0
        assert (await using.broker.run(ops.abandon(using.keys(), "worker-0")))[1] == 1
