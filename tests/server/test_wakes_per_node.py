"""In a cluster, a server with many queues waits on one connection per node, not one per queue."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from qsync import Mux, Qsync, Task, TaskInfo
from qsync.broker import operator_ops, ops, views
from qsync.client import AsyncClient
from qsync.keys import QueueKeys
from qsync.server.server import Server
from tests.broker.test_cluster_away import move_slot
from tests.scripts.test_idle_writes import Queue
from tests.support.server import Bench, bench
from tests.support.stores import Cluster, Store, available, wait_until, wait_until_async

S = 1_000_000
NAMES = [f"q{at}" for at in range(66)]
NEVER_S = 60.0
"""Interval between sweeps, so long that tasks are found only through messages."""


@pytest.fixture(scope="module")
def partial() -> Iterator[Cluster]:
    """Yield a cluster that serves the slots of its reachable nodes."""
    if not available("valkey"):
        pytest.skip("needs valkey")
    config = {"cluster-require-full-coverage": "no"}
    with Cluster("valkey", replicas=0, node_timeout_ms=1000, config=config) as cluster:
        yield cluster


class Ran:
    """A mux that records when and where it ran tasks."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}
        self.by: Counter[str] = Counter()
        self.gate = asyncio.Event()
        self.gate.set()

    def mux(self, name: str = "") -> Mux:
        mux = Mux()

        @mux.handle("a")
        async def a(task: TaskInfo) -> None:
            self.at[task.id] = time.perf_counter()
            self.by[name] += 1
            await self.gate.wait()

        return mux

    async def lag(self, client: AsyncClient, queue: str) -> float:
        """Return the seconds from an enqueue to the start of the handler."""
        began = time.perf_counter()
        handle = await client.enqueue(Task("a", queue=queue))
        await wait_until_async(lambda: handle.id in self.at, every=0.0005)
        return self.at[handle.id] - began


def idle_in(cluster: Cluster, prefix: str, server: Server, names: list[str] = NAMES) -> int:
    """Return the number of queues in which a server is registered as idle."""
    with cluster.client() as client:
        keys = [QueueKeys(prefix, name).key("idle") for name in names]
        return sum(client.zscore(key, server.holder) is not None for key in keys)


async def all_idle(cluster: Cluster, prefix: str, server: Server, names: list[str] = NAMES) -> None:
    count = len(names)
    await wait_until_async(lambda: idle_in(cluster, prefix, server, names) == count, timeout=20)


def clients(node: Store, **having: str) -> list[dict[str, str]]:
    """Return the fields of each client connection of a node; `having` selects by field."""
    lines = node.command("CLIENT", "LIST")
    found = []
    for line in lines if isinstance(lines, list) else lines.decode().splitlines():
        fields = (
            line
            if isinstance(line, dict)
            else dict(part.partition("=")[::2] for part in line.split())
        )
        if all(fields.get(name) == value for name, value in having.items()):
            found.append(fields)
    return found


def blocked(nodes: list[Store]) -> int:
    return sum("b" in one["flags"] for node in nodes for one in clients(node))


def subscribed(nodes: list[Store]) -> int:
    return sum(one["ssub"] != "0" for node in nodes for one in clients(node))


@contextlib.asynccontextmanager
async def serving(
    cluster: Cluster, prefix: str, names: list[str] = NAMES, **config: Any
) -> AsyncIterator[tuple[Ran, Bench, Server]]:
    """Yield a server that is idle in all of its many queues."""
    ran = Ran()
    config = {"sweep": NEVER_S, "lease": 60.0, **config}
    async with (
        bench(cluster.url, prefix) as using,
        using.server(ran.mux(), queues=names, **config) as server,
    ):
        await all_idle(cluster, prefix, server, names)
        yield ran, using, server


async def test_server_of_many_queues_blocks_on_no_queue_and_is_woken(
    cluster: Cluster, prefix: str
) -> None:
    before = [len(clients(node)) for node in cluster.nodes]
    others = blocked(cluster.nodes), subscribed(cluster.nodes)
    async with serving(cluster, prefix) as (ran, using, _):
        assert subscribed(cluster.nodes) - others[1] == cluster.primaries
        assert blocked(cluster.nodes) - others[0] == 1, "the server blocks only on its inbox"
        lags = [await ran.lag(using.client, name) for name in NAMES]
        after = [len(clients(node)) for node in cluster.nodes]
        # The server has at most 8 connections for calls and one for heartbeats; each other broker
        # has at most 8.
        assert max(now - then for now, then in zip(after, before, strict=True)) < 30
    assert statistics.median(lags) < 0.05
    assert max(lags) < 2


async def test_woken_server_is_woken_again(cluster: Cluster, prefix: str) -> None:
    async with serving(cluster, prefix) as (ran, using, server):
        for _ in range(5):
            await ran.lag(using.client, "q7")
        await all_idle(cluster, prefix, server)
        handles = await using.client.enqueue_many(
            [Task("a", queue=name) for name in NAMES for _ in range(3)]
        )
        await wait_until_async(lambda: all(one.id in ran.at for one in handles), timeout=20)


async def test_server_that_is_full_wakes_another(cluster: Cluster, prefix: str) -> None:
    ran = Ran()
    ran.gate.clear()
    names = NAMES[:6]
    config: dict[str, Any] = {"sweep": NEVER_S, "lease": 60.0, "concurrency": 1, "prefetch": 0}
    async with (
        bench(cluster.url, prefix) as using,
        using.server(ran.mux("one"), queues=names, **config) as one,
        using.server(ran.mux("two"), queues=names, **config) as two,
    ):
        await all_idle(cluster, prefix, one, names)
        await all_idle(cluster, prefix, two, names)
        for number, name in enumerate(names[:2], 1):
            await using.client.enqueue(Task("a", queue=name))
            await wait_until_async(lambda: len(ran.at) == number)  # noqa: B023
        assert ran.by == {"one": 1, "two": 1}
        # Now both servers are full, so a third task waits until one of them has a free slot.
        await using.client.enqueue(Task("a", queue=names[2]))
        await wait_until_async(lambda: idle_in(cluster, prefix, one, names[2:3]) == 0)
        ran.gate.set()
        await wait_until_async(lambda: len(ran.at) == 3)


async def test_stopped_server_is_not_woken(cluster: Cluster, prefix: str) -> None:
    ran = Ran()
    config: dict[str, Any] = {"queues": NAMES[:3], "sweep": NEVER_S, "lease": 60.0}
    async with (
        bench(cluster.url, prefix) as using,
        using.server(ran.mux("first"), **config) as first,
    ):
        await all_idle(cluster, prefix, first, NAMES[:3])
        async with using.server(ran.mux("second"), **config) as second:
            await all_idle(cluster, prefix, second, NAMES[:3])
            await first.stop()
            await ran.lag(using.client, "q0")
            assert ran.by == {"second": 1}
            assert idle_in(cluster, prefix, first, ["q0"]) == 0


# Lost subscriptions.


@pytest.mark.faults(42)
async def test_lost_subscription_is_opened_again(cluster: Cluster, prefix: str) -> None:
    async with serving(cluster, prefix) as (ran, using, server):
        for node in cluster.nodes:
            node.command("CLIENT", "KILL", "TYPE", "pubsub")
        lags = [await ran.lag(using.client, name) for name in NAMES]
        assert max(lags) < 5
        await all_idle(cluster, prefix, server)
        lags = [await ran.lag(using.client, name) for name in NAMES]
        assert statistics.median(lags) < 0.05


@pytest.mark.faults(52)
async def test_frozen_node_does_not_delay_queues_of_other_nodes(
    partial: Cluster, prefix: str
) -> None:
    silent = partial.nodes[0]
    lists = partial.holder(f"{prefix}:queues")
    if silent is lists:
        silent = partial.nodes[1]
    others = [n for n in NAMES if partial.holder(QueueKeys(prefix, n).base) is not silent]
    rest = [name for name in NAMES if name not in others]

    async with serving(partial, prefix) as (ran, using, _):
        for name in NAMES:  # let the client make its first call on each queue
            await ran.lag(using.client, name)
        silent.pause()
        try:
            lags = [await ran.lag(using.client, name) for name in others]
            assert statistics.median(lags) < 0.05
            assert max(lags) < 2
        finally:
            silent.resume()
            await asyncio.to_thread(wait_until, partial.settled, 30)
        for name in rest:
            await ran.lag(using.client, name)


async def test_replica_that_takes_over_wakes_the_server(prefix: str) -> None:
    if not available("valkey"):
        pytest.skip("needs valkey")

    with Cluster("valkey", replicas=1, node_timeout_ms=1000) as cluster:
        async with serving(cluster, prefix, sweep=0.5) as (ran, using, server):
            for node in cluster.nodes[3:]:
                node.command("CLUSTER", "FAILOVER", "TAKEOVER")
            new = cluster.nodes[3:]
            await wait_until_async(lambda: subscribed(new) == 3, timeout=20)
            await all_idle(cluster, prefix, server)
            assert max([await ran.lag(using.client, name) for name in NAMES]) < 2
            wait_until(cluster.settled, 30)


def acl_user(cluster: Cluster, name: str, *channels: str) -> str:
    """Create a user who has all rights, but only on these channels; return a URL that logs in as
    this user."""
    for node in cluster.nodes:
        node.command(
            "ACL", "SETUSER", name, "reset", "on", ">secret", "~*", "+@all",
            "resetchannels", *channels,
        )  # fmt: skip
    return cluster.url.replace("redis+cluster://", f"redis+cluster://{name}:secret@")


async def test_server_without_channels_blocks_on_each_queue(partial: Cluster, prefix: str) -> None:
    names = NAMES[:8]
    url = acl_user(partial, "deaf", "&{*}:done")

    ran, before = Ran(), blocked(partial.nodes)
    async with (
        bench(url, prefix) as using,
        using.server(ran.mux(), queues=names, sweep=NEVER_S, lease=60.0),
    ):
        count = before + len(names) + 1
        await wait_until_async(lambda: blocked(partial.nodes) == count)
        assert statistics.median([await ran.lag(using.client, n) for n in names]) < 0.05


async def test_server_blocks_for_tasks_of_a_client_without_publish_rights(
    partial: Cluster, prefix: str
) -> None:
    url = acl_user(partial, "mute", "&{*}:done")

    async with serving(partial, prefix, NAMES[:8], sweep=2.0) as (ran, _, _):
        app = Qsync(url, prefix=prefix)
        async with app, app.async_client() as mute:
            before = blocked(partial.nodes)
            assert await ran.lag(mute, "q3") < 5  # a periodic check finds the first task
            await wait_until_async(lambda: blocked(partial.nodes) == before + 1)
            assert statistics.median([await ran.lag(mute, "q3") for _ in range(9)]) < 0.05


async def test_blocking_server_and_notified_server_both_get_tasks(
    cluster: Cluster, prefix: str
) -> None:
    """Servers with a single queue, and servers of earlier releases, wait in a blocking call."""

    async with (
        serving(cluster, prefix, concurrency=1, prefetch=0) as (ran, using, _),
        using.server(ran.mux("one"), sweep=NEVER_S, lease=60.0, queues=["q0"]),
    ):
        ran.gate.clear()
        for _ in range(2):
            await using.client.enqueue(Task("a", queue="q0"))
        await wait_until_async(lambda: len(ran.at) == 2)
        assert ran.by == {"": 1, "one": 1}
        ran.gate.set()


@pytest.mark.faults(50)
async def test_queue_whose_slot_moves_wakes_its_server(partial: Cluster, prefix: str) -> None:
    async with serving(partial, prefix) as (ran, using, server):
        for name in NAMES[:3]:
            await asyncio.to_thread(move_slot, partial, QueueKeys(prefix, name).base)
        assert max([await ran.lag(using.client, name) for name in NAMES]) < 5
        await all_idle(partial, prefix, server)
        assert subscribed(partial.nodes) == partial.primaries
        lags = [await ran.lag(using.client, name) for name in NAMES]
        assert statistics.median(lags) < 0.05


# Scripts.


@pytest.fixture
def queue(store: Store, prefix: str) -> Any:
    queue = Queue(store, prefix)
    yield queue
    queue.broker.close()


def listen(queue: Queue, server: str = "s", keep_us: int = 3600 * S) -> ops.IdleCheck:
    call = ops.mark_idle(
        queue.keys, server=server, lease_us=30 * S, keep_us=keep_us, now_us=queue.now_us
    )
    found: ops.IdleCheck = queue.run(call)
    return found


@contextlib.contextmanager
def hearing(store: Store, queue: Queue, server: str) -> Iterator[Any]:
    with store.client() as client:
        pubsub = client.pubsub()
        pubsub.ssubscribe(queue.keys.wake_channel(server))
        assert pubsub.get_sharded_message(timeout=5)["type"] == "ssubscribe"
        yield pubsub
        pubsub.close()


def elements(store: Store, queue: Queue, name: str) -> list[bytes]:
    with store.client() as client:
        key = queue.keys.key(name)
        found: list[bytes] = (client.lrange if name == "wake" else client.zrange)(key, 0, -1)
        return found


def test_idle_server_is_sent_a_message_once(store: Store, queue: Queue) -> None:
    with hearing(store, queue, "s") as pubsub:
        assert not listen(queue).waits
        assert elements(store, queue, "idle") == [b"s"]
        queue.enqueue(Task("a"))
        assert pubsub.get_sharded_message(timeout=5)["data"] == b"1"
        assert elements(store, queue, "idle") == elements(store, queue, "wake") == []
        queue.enqueue(Task("a"))
        assert elements(store, queue, "wake") == [b"1"], (
            "the element is for the next server that blocks"
        )
        assert listen(queue)[1:] == (True, False, True, False)
        assert elements(store, queue, "idle") == elements(store, queue, "wake") == []


def test_server_that_waits_longest_is_woken_and_a_dead_one_forgotten(
    store: Store, queue: Queue
) -> None:
    with hearing(store, queue, "b") as b, hearing(store, queue, "c") as c:
        for server in "abc":
            listen(queue, server)
            queue.now_us += 1
        queue.enqueue(Task("a"))
        assert b.get_sharded_message(timeout=5)["type"] == "smessage"
        assert c.get_sharded_message(timeout=0.05) is None
        assert elements(store, queue, "idle") == [b"c"]
    queue.enqueue(Task("a"))
    assert elements(store, queue, "idle") == []
    assert elements(store, queue, "wake") == [b"1"]


def test_ids_not_renewed_are_forgotten(store: Store, queue: Queue) -> None:
    listen(queue, "dead")
    listen(queue, "s")
    queue.now_us += 2000 * S
    listen(queue, "s")
    queue.now_us += 1900 * S
    listen(queue, "other")
    assert elements(store, queue, "idle") == [b"s", b"other"]


def test_element_for_an_idle_server_shows_an_unsent_message(store: Store, queue: Queue) -> None:
    """To wake a server, clients of earlier releases push an element instead of sending a
    message."""
    assert not listen(queue).woken
    with store.client() as client:
        client.lpush(queue.keys.key("wake"), "1")
    assert listen(queue)[3:] == (True, True)
    assert listen(queue)[3:] == (False, False)


def test_old_element_is_removed_before_a_server_is_idle(store: Store, queue: Queue) -> None:
    queue.enqueue(Task("a", id="a", delay=60))
    assert elements(store, queue, "wake") == [b"1"]
    assert listen(queue)[3:] == (True, False)
    assert elements(store, queue, "idle") == []
    assert listen(queue)[3:] == (False, False)
    assert elements(store, queue, "idle") == [b"s"]


def test_listening_to_an_idle_queue_writes_once(store: Store, queue: Queue) -> None:
    listen(queue)
    with store.client() as client:
        before = client.info("persistence")["rdb_changes_since_last_save"]
        for _ in range(5):
            listen(queue)
        assert client.info("persistence")["rdb_changes_since_last_save"] == before


def test_key_of_another_type_stops_no_task(store: Store, queue: Queue) -> None:
    with store.client() as client:
        client.set(queue.keys.key("idle"), "x")
    assert not listen(queue).waits
    queue.enqueue(Task("a"))
    assert elements(store, queue, "wake") == [b"1"]
    assert listen(queue)[1:] == (True, False, True, True)
    assert len(queue.fetch().ids) == 1


def test_forgotten_queue_has_no_idle_servers(store: Store, queue: Queue) -> None:
    listen(queue)
    queue.run(operator_ops.delete_queue(queue.keys))
    with store.client() as client:
        assert not client.exists(queue.keys.key("idle"), queue.keys.key("meta"))
    assert not queue.run(views.check_for_work(queue.keys, lease_us=S, now_us=queue.now_us)).waits
