"""Finds calls that wait for a hanging cluster node although they do not need it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from qsync.broker import aio, base, blocking, redis_clients, registry_ops, views
from qsync.broker.aio import AsyncBroker
from qsync.broker.base import DEFAULT_PATIENCE_S, noop
from qsync.broker.blocking import Broker
from qsync.broker.call import Call
from qsync.client import AsyncClient, Client
from qsync.errors import StoreUnavailable
from qsync.keys import GlobalKeys, QueueKeys
from qsync.schedule import Every, Periodic
from qsync.server import periodic
from qsync.server.periodic import PeriodicLoop, PeriodicTask
from qsync.task import Task
from tests.scripts.model.mistakes import exchanged
from tests.support.stores import Cluster, wait_until, wait_until_async

SOON_S: Final = 3.0
"""Maximum duration of a call, in seconds. A call that waits for the stopped node takes 5 s; a busy
machine delays other calls by less."""

FRESH: Final = 12
"""Number of brokers that have no slot map yet. Each broker first asks a random node for the map,
and one node in three is stopped."""


def partial_cluster() -> Cluster:
    """Return a cluster, not yet started, that serves the slots of its reachable nodes."""
    config = {"cluster-require-full-coverage": "no"}
    return Cluster("valkey", replicas=0, node_timeout_ms=1000, config=config)


@contextlib.contextmanager
def lists_away(cluster: Cluster, prefix: str, *, gone: bool) -> Iterator[str]:
    """Yield a queue whose node is reachable while the node that lists the queues refuses
    connections or hangs. Clients have that node in their URL."""
    lists = cluster.holder(GlobalKeys(prefix).queues)
    queue = next(
        f"q{at}"
        for at in range(100)
        if cluster.holder(QueueKeys(prefix, f"q{at}").key("tasks")) is not lists
    )
    if gone:
        lists.kill()
    else:
        lists.pause()
    try:
        yield queue
    finally:
        if gone:
            lists.restart()
        else:
            lists.resume()
        wait_until(cluster.settled, 30)


def wrong_with_a_node_away(cluster: Cluster, prefix: str) -> str | None:
    """Use a queue while the node that lists the queues hangs; return the first call that waited for
    that node, or None.

    No other test may use the cluster.
    """
    with lists_away(cluster, prefix, gone=False) as queue:
        return (
            _blocking(cluster.url, prefix, queue)
            or asyncio.run(_awaited(cluster.url, prefix, queue))
            or asyncio.run(_periodic(cluster.url, prefix, queue))
        )


def _late(what: str, began: float) -> str | None:
    late = time.monotonic() - began > SOON_S
    return f"{what} waited for a node that it does not need" if late else None


def _blocking(url: str, prefix: str, queue: str) -> str | None:
    address = redis_clients.parse(url)
    for _ in range(FRESH):
        with contextlib.closing(Broker(address)) as broker:
            began = time.monotonic()
            broker.run(views.counts(QueueKeys(prefix, queue)))
            if wrong := _late("a first call", began):
                return wrong
    with Client(Broker(address), prefix=prefix) as client:
        began = time.monotonic()
        with contextlib.suppress(StoreUnavailable):
            client.enqueue(Task("t", queue=queue))
        return _late("an enqueue", began)


async def _awaited(url: str, prefix: str, queue: str) -> str | None:
    address = redis_clients.parse(url)
    for _ in range(FRESH):
        async with contextlib.aclosing(AsyncBroker(address)) as broker:
            began = time.monotonic()
            await broker.run(views.counts(QueueKeys(prefix, queue)))
            if wrong := _late("a first async call", began):
                return wrong
    async with AsyncClient(AsyncBroker(address), prefix=prefix) as client:
        began = time.monotonic()
        with contextlib.suppress(StoreUnavailable):
            await client.enqueue(Task("t", queue=queue))
        return _late("an async enqueue", began)


async def _periodic(url: str, prefix: str, queue: str) -> str | None:
    broker = AsyncBroker(redis_clients.parse(url))
    often = PeriodicTask(Periodic("often", Every(0.5)), lambda: Task("tick", queue=queue))
    keys = QueueKeys(prefix, queue)

    async def enqueued() -> int:
        return (await broker.run(views.counts(keys))).stats.get("enqueued", 0)

    before = await enqueued()
    loop = asyncio.ensure_future(PeriodicLoop(broker, prefix, [often]).run())

    async def ticked() -> bool:
        return await enqueued() > before

    try:
        await wait_until_async(ticked, timeout=SOON_S)
    except AssertionError:
        return "periodic tasks waited for a node that they do not need"
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
        await broker.aclose()
    return None


# Mistakes


@contextlib.contextmanager
def registration_awaited_by_clients() -> Iterator[None]:
    """Mistake: an enqueue waits until its queue is registered in the store."""
    blocking, awaited = Client._send, AsyncClient._send

    def send(
        self: Client, keys: QueueKeys, calls: Sequence[Call[Any]], *rest: Callable[[], None]
    ) -> Any:
        if self._announcer.due(keys.queue):
            register = registry_ops.register(self._global_keys, [keys.queue])
            self._broker.run_many([register], ends=base.ends_in(DEFAULT_PATIENCE_S))
        return blocking(self, keys, calls, *rest)

    async def send_async(
        self: AsyncClient,
        keys: QueueKeys,
        calls: Sequence[Call[Any]],
        ends: float,
        overlap: Callable[[], None] = noop,
    ) -> Any:
        if self._announcer.due(keys.queue):
            register = registry_ops.register(self._global_keys, [keys.queue])
            await self._broker.run_many([register], ends=ends)
        return await awaited(self, keys, calls, ends, overlap)

    with exchanged(Client, "_send", send), exchanged(AsyncClient, "_send", send_async):
        yield


def registration_awaited_by_periodic_tasks() -> contextlib.AbstractContextManager[None]:
    """Mistake: ticks wait until their queue is registered in the store."""
    real = periodic._PeriodicQueue._learn

    async def learn(self: Any) -> float:
        if self._registry.due(self._keys.queue):
            await self._broker.run_many([registry_ops.register(self._globals, [self._keys.queue])])
        return await real(self)

    return exchanged(periodic._PeriodicQueue, "_learn", learn)


@contextlib.contextmanager
def map_requested_from_one_node() -> Iterator[None]:
    """Mistake: while one node has not answered, no other node is asked for the slot map."""
    with exchanged(aio, "MAP_S", 60.0), exchanged(blocking, "MAP_S", 60.0):
        yield
