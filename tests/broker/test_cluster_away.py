"""An unreachable cluster node affects only calls that need it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis.exceptions as failures

from qsync import Mux, Qsync, Task, TaskInfo, current
from qsync.broker import ops, redis_clients
from qsync.broker.aio import AsyncBroker
from qsync.broker.blocking import Broker
from qsync.broker.op_values import FetchPolicy
from qsync.broker.slot_map import SlotMap
from qsync.errors import StoreUnavailable, TaskCancelled, TaskNotFound
from qsync.keys import GlobalKeys, QueueKeys
from qsync.new_task import new_nonce, new_task
from qsync.schedule import Every, Periodic
from qsync.server.periodic import PeriodicLoop, PeriodicTask
from qsync.worker.lease_abandoner import LeaseAbandoner
from tests.conftest import Colour
from tests.support.stalled_node import (
    SOON_S,
    lists_away,
    partial_cluster,
    registration_awaited_by_clients,
    wrong_with_a_node_away,
)
from tests.support.stores import HOST, Cluster, available, wait_until, wait_until_async


@pytest.fixture(scope="module")
def partial() -> Iterator[Cluster]:
    """Yield a cluster that serves the slots of its reachable nodes."""
    if not available("valkey"):
        pytest.skip("needs valkey")
    with partial_cluster() as cluster:
        yield cluster


@pytest.fixture(params=["gone", "still"])
def queue(request: pytest.FixtureRequest, partial: Cluster, prefix: str) -> Iterator[str]:
    """Yield a queue whose node is reachable while the node with the set of queues is not."""
    with lists_away(partial, prefix, gone=request.param == "gone") as found:
        yield found


@pytest.mark.faults(86)
def test_enqueues_of_a_fresh_client_and_of_an_old_one_do_not_wait(
    colour: Colour, partial: Cluster, prefix: str, queue: str
) -> None:
    client = colour.client(partial.url, prefix)
    took = []
    for _ in range(3):
        began = time.monotonic()
        assert colour.do(client.enqueue(Task("t", queue=queue))).created
        took.append(time.monotonic() - began)
        client._announcer._next.clear()  # register the queue again, as happens every minute
    began = time.monotonic()
    handles = colour.do(client.enqueue_many([Task("t", queue=queue)] * 300))
    took.append(time.monotonic() - began)
    assert len(handles) == 300
    assert max(took) < SOON_S


@pytest.mark.faults(86)
def test_a_fresh_server_starts_runs_tasks_and_ticks(
    partial: Cluster, prefix: str, queue: str
) -> None:
    mux, ran, ticked = Mux(), asyncio.Event(), asyncio.Event()

    @mux.handle("t")
    async def t(task: TaskInfo) -> None:
        ran.set()

    @mux.handle("tick")
    async def tick(task: TaskInfo) -> None:
        ticked.set()

    async def main() -> None:
        async with Qsync(partial.url, prefix=prefix) as app, app.async_client() as client:
            address = redis_clients.parse(partial.url)
            ticks = PeriodicTask(Periodic("often", Every(0.5)), lambda: Task("tick", queue=queue))
            broker = AsyncBroker(address)
            began = time.monotonic()
            async with app.server(mux, queues=[queue], shutdown_timeout=0):
                await client.enqueue(Task("t", queue=queue))
                await ran.wait()
                assert time.monotonic() - began < 2 * SOON_S
                loop = asyncio.ensure_future(PeriodicLoop(broker, prefix, [ticks]).run())
                await ticked.wait()
                loop.cancel()
                await asyncio.gather(loop, return_exceptions=True)
                await broker.aclose()
                assert time.monotonic() - began < 3 * SOON_S
                stopping = time.monotonic()
            assert time.monotonic() - stopping < 2 * SOON_S

    asyncio.run(asyncio.wait_for(main(), 50))


@pytest.mark.faults(86)
def test_server_with_limits_and_bounds_starts_while_the_node_of_one_queue_is_frozen(
    partial: Cluster, prefix: str
) -> None:
    lists = partial.holder(GlobalKeys(prefix).queues)
    frozen = [
        name
        for name in map("f{}".format, range(200))
        if partial.holder(QueueKeys(prefix, name).key("tasks")) is lists
    ][:2]
    running, most, ran = 0, 0, list[str]()

    async def main() -> None:
        nonlocal running, most
        async with Qsync(partial.url, prefix=prefix) as app, app.async_client() as client:
            app.limit("one", concurrency=1, per_queue=True)
            app.queue(frozen[1], max_tasks=1000)  # the server does not serve this queue

            @app.task(name="t", limits=["one"])
            async def t() -> None:
                nonlocal running, most
                running += 1
                most = max(most, running)
                for _ in range(5):
                    await asyncio.sleep(0)
                ran.append(current().task.queue)
                running -= 1

            await client.enqueue_many(
                [t.options(queue=frozen[0]).build()] * 20
            )  # no server has stored the limit so far
            with lists_away(partial, prefix, gone=False) as queue:
                began = time.monotonic()
                server = app.server(queues=[queue, frozen[0]], shutdown_timeout=1, sweep=0.2)
                await server.start()
                await client.enqueue(t.options(queue=queue).build())
                await wait_until_async(lambda: ran == [queue])
                assert time.monotonic() - began < SOON_S
            await wait_until_async(lambda: len(ran) == 21, 30)
            await server.stop()
            async with app.inspector() as inspector:
                bounds = await inspector.bounds(frozen[1])
            assert bounds.in_force.max_tasks == 1000

    asyncio.run(asyncio.wait_for(main(), 60))
    assert most == 1  # no task of the frozen queue started before its limit was stored


@pytest.mark.faults(86)
def test_other_nodes_work_while_one_node_is_frozen(partial: Cluster, prefix: str) -> None:
    assert wrong_with_a_node_away(partial, prefix) is None


def test_planted_mistake_is_found(partial: Cluster, prefix: str) -> None:
    with registration_awaited_by_clients():
        assert wrong_with_a_node_away(partial, prefix)


@pytest.mark.faults(86)
def test_queue_is_registered_after_failed_attempts(
    colour: Colour, partial: Cluster, prefix: str
) -> None:
    client = colour.client(partial.url, prefix)
    colour.do(client.enqueue(Task("t", queue="mail")))
    names = GlobalKeys(prefix).queues
    wait_until(lambda: members(partial, names) == {b"mail"})


@pytest.mark.faults(86)
def test_tasks_of_a_dead_server_are_abandoned_on_reachable_nodes(
    partial: Cluster, prefix: str, queue: str
) -> None:
    lists = partial.holder(GlobalKeys(prefix).queues)
    names = [f"x{at}" for at in range(60)]
    away = [name for name in names if partial.holder(QueueKeys(prefix, name).key("tasks")) is lists]
    assert len(away) > 5
    keys = QueueKeys(prefix, queue)
    policy = FetchPolicy(lease_us=60_000_000, max_crashes=3, dead_limit=10, dead_age_us=10**12)
    address = redis_clients.parse(partial.url)
    with contextlib.closing(Broker(address)) as broker:
        sent = new_task(Task("t", queue=queue), new_nonce())
        broker.run(ops.enqueue(keys, [sent]))
        taken = broker.run(ops.fetch(keys, server="dead", number=1, wanted=1, policy=policy))
        assert taken.ids == [sent.id]
        abandoner = LeaseAbandoner(Broker(address, connections=1), prefix)
        began = time.monotonic()
        abandoner.add("dead", [*away, queue])
        wait_until(
            lambda: (
                broker.run(ops.fetch(keys, server="s", number=1, wanted=0, policy=policy)).recovered
            )
        )
        assert time.monotonic() - began < SOON_S


def members(cluster: Cluster, key: str) -> set[bytes]:
    with cluster.client() as client:
        return set(client.smembers(key))


@pytest.mark.faults(85)
def test_find_ends_within_its_patience_when_many_queues_are_unreachable(
    colour: Colour, partial: Cluster, prefix: str
) -> None:
    client = colour.client(partial.url, prefix, patience=1.0)
    colour.do(client.enqueue_many([Task("t", queue=f"q{at}") for at in range(30)]))
    wait_until(lambda: len(members(partial, GlobalKeys(prefix).queues)) == 30)
    lists = partial.holder(GlobalKeys(prefix).queues)
    away = next(node for node in partial.nodes if node is not lists)
    away.pause()
    try:
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            colour.do(client.find("x"))
        assert time.monotonic() - began < SOON_S
    finally:
        away.resume()
        wait_until(partial.settled, 30)


@pytest.mark.faults(50)
def test_inbox_is_read_after_its_slot_moved(partial: Cluster, prefix: str) -> None:
    mux, begun = Mux(), asyncio.Event()

    @mux.handle("t")
    async def t(task: TaskInfo) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def main() -> None:
        async with Qsync(partial.url, prefix=prefix) as app, app.async_client() as client:
            server = app.server(mux, lease=60)  # a cancel without a message takes 20 s
            async with server:
                handle = await client.enqueue(Task("t"))
                await begun.wait()
                await asyncio.to_thread(move_slot, partial, GlobalKeys(prefix).inbox(server.id))
                # Moving the slot ends the blocked read; the next read finds the new node.
                began = time.monotonic()
                await handle.cancel()
                await wait_until_async(lambda: server._capacity.running == 0, 15)
                assert time.monotonic() - began < 5

    asyncio.run(asyncio.wait_for(main(), 50))


@pytest.mark.faults(50)
def test_subscription_follows_its_slot(colour: Colour, partial: Cluster, prefix: str) -> None:
    channel = QueueKeys(prefix, "default").done
    client = colour.client(partial.url, prefix)
    handle = colour.do(client.enqueue(Task("t", retention=60)))
    waiting = colour.begin(handle.result)
    before = partial.holder(channel)
    wait_until(lambda: before.command("PUBSUB", "SHARDNUMSUB", channel)[1] == 1)
    move_slot(partial, channel)
    after = partial.holder(channel)
    assert after is not before
    wait_until(lambda: after.command("PUBSUB", "SHARDNUMSUB", channel)[1] == 1, 20)
    assert colour.do(handle.cancel())
    assert isinstance(waiting.exception(10), TaskCancelled | TaskNotFound)


def move_slot(cluster: Cluster, key: str) -> None:
    """Move the slot of a key to another node, with all keys in the slot."""
    source = cluster.holder(key)
    target = next(node for node in cluster.nodes if node is not source)
    slot = source.command("CLUSTER", "KEYSLOT", key)
    ids = [node.command("CLUSTER", "MYID").decode() for node in (source, target)]
    target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
    source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
    with source.client() as client:
        for name in client.execute_command("CLUSTER GETKEYSINSLOT", slot, 1000):
            client.execute_command("MIGRATE", HOST, target.port, name, 0, 5000)
    for node in (target, source, *cluster.nodes):
        node.command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])


# the map


A, B, C = ("a", 1), ("b", 2), ("c", 3)
REPLY: list[Any] = [[0, 8000, [b"a", 1, b"id"], [b"c", 3, b"id"]], [8001, 16383, [b"b", 2, b"id"]]]


def key_of(slots: SlotMap, node: tuple[str, int]) -> str:
    return next(f"k{at}" for at in range(1000) if slots.holder(f"k{at}") == node)


def test_slot_map_is_loaded_corrected_and_reloaded_if_suspect() -> None:
    slots = SlotMap([A])
    assert slots.holder("k") is None
    with pytest.raises(failures.SlotNotCoveredError, match="slot of k"):
        slots.best_guess("k")
    slots.learn(REPLY, A)
    assert slots.primaries == (A, B)
    assert set(slots.candidates()) == {A, B, C}
    at_a, at_b = key_of(slots, A), key_of(slots, B)
    assert slots.redirect(failures.ConnectionError("refused"), A) is None
    assert slots.holder(at_a) is None, "the node of the slot is unknown again"
    assert slots.best_guess(at_a) == A
    assert slots.holder(at_b) == B, "others do not wait"
    assert slots.candidates()[-1] == A, "it is asked last"
    moved = failures.MovedError("5 c:3")
    assert slots.redirect(moved, A) == C
    assert slots.redirect(failures.AskError("5 b:2"), A) == B
    assert slots.redirect(failures.ResponseError("WRONGTYPE"), B) is None
    assert slots.holder(at_b) == B
    slots.redirect(failures.ClusterDownError("CLUSTERDOWN"), B)
    assert slots.holder(at_b) is None
    slots.learn(REPLY, B)
    assert slots.holder(at_a) == A


def test_node_without_host_is_on_the_host_of_the_queried_node() -> None:
    slots = SlotMap([A])
    slots.learn([[0, 16383, [b"", 7, b"id"]]], A)
    assert slots.holder("k") == ("a", 7)
    assert slots.redirect(failures.MovedError("5 :9"), A) == ("a", 9)


def test_invalid_or_empty_slot_map_is_rejected() -> None:
    slots = SlotMap([A])
    for reply in (failures.ConnectionError("x"), failures.ResponseError("y"), []):
        assert isinstance(slots.learn(reply, A), failures.ConnectionError | failures.ResponseError)
    assert slots.candidates() == [A]


@pytest.mark.faults(85)
def test_idle_server_stops_without_waiting_for_a_frozen_node(partial: Cluster, prefix: str) -> None:
    """The server immediately hands back the tasks of its queue on a live node."""
    names = [f"q{at}" for at in range(30)]
    by_node = {partial.holder(QueueKeys(prefix, name).base): name for name in names}
    away = partial.holder(QueueKeys(prefix, names[0]).base)
    holder, there = next((node, name) for node, name in by_node.items() if node is not away)
    mux, begun = Mux(), asyncio.Event()

    @mux.handle("t")
    async def t(task: TaskInfo) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def main() -> None:
        async with Qsync(partial.url, prefix=prefix) as app, app.async_client() as client:
            server = app.server(
                mux, queues={names[0]: 1, there: 1}, concurrency=1, prefetch=5, shutdown_timeout=0.5
            )
            async with server:
                await client.enqueue_many([Task("t", queue=there) for _ in range(3)])
                await begun.wait()
                away.pause()
                began = time.monotonic()
            # Besides shutdown_timeout, allow about a second each to stop a handler, wake other
            # servers, renew leases, and delete the record.
            assert time.monotonic() - began < 0.5 + 5 * 1.0
            # Ask the node directly, because a cluster client might wait for the stopped node.
            assert holder.command("ZCARD", QueueKeys(prefix, there).key("pending")) == 3

    try:
        asyncio.run(asyncio.wait_for(main(), 50))
    finally:
        away.resume()
        wait_until(partial.settled, 30)
