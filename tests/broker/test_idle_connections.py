"""Connections that died while idle, without either end noticing, are replaced."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
import redis.asyncio

from qsync import Mux, Qsync, Task, TaskInfo
from qsync.broker import redis_clients
from qsync.broker.aio import AsyncBroker
from qsync.broker.blocking import Broker
from qsync.keys import QueueKeys
from tests.chaos.proxy import Proxy
from tests.conftest import Colour
from tests.support.stores import Store, wait_until

IDLE = 5


def idle(broker: Broker) -> list[Any]:
    """Return the open connections of a broker that are idle."""
    return [connection for connection in broker._pool_for(None)._free if connection is not None]


def silence(proxy: Proxy, *, streaming: bool = False) -> int:
    """Block the existing connections, but no new ones; return how many. With `streaming`, block
    only connections that listen for messages."""

    def cut() -> int:
        links = [link for link in proxy._links if link.streaming or not streaming]
        for link in links:
            link.silent |= {"up", "down"}
        return len(links)

    return int(proxy._do(cut))


@pytest.mark.faults(38, 87)
@pytest.mark.parametrize("patience", [2.0, 10.0])
def test_dead_idle_connection_is_replaced_by_a_new_one(
    colour: Colour, store: Store, prefix: str, patience: float
) -> None:
    with Proxy(store.port) as proxy:
        client = colour.client(proxy.url, prefix, patience=patience)
        proxy.down.delay = 0.2  # slow replies make each call open a connection
        begun = [
            colour.begin(lambda at=at: client.enqueue(Task("t", queue=f"q{at}")))  # type: ignore[misc]
            for at in range(IDLE)
        ]
        assert all(call.result(20).created for call in begun)
        proxy.heal()
        assert silence(proxy) >= IDLE
        before, began = proxy.accepted, time.monotonic()
        assert colour.do(client.enqueue(Task("t"))).created
        assert time.monotonic() - began < min(patience, 5) + 2, (
            "too many dead connections were tried"
        )
        assert proxy.accepted > before
        colour.close_client(client)


@pytest.mark.faults(38, 87)
def test_a_server_fetches_soon_after_its_connections_died(store: Store, prefix: str) -> None:
    ran: list[float] = []
    mux = Mux()

    @mux.handle("t")
    async def t(task: TaskInfo) -> None:
        ran.append(time.monotonic())

    async def main(proxy: Proxy) -> None:
        direct = Qsync(store.url, prefix=prefix)
        app = Qsync(proxy.url, prefix=prefix)
        async with direct.async_client() as client, app.server(mux):
            await client.enqueue(Task("t"))
            await asyncio.to_thread(wait_until, lambda: len(ran) == 1)
            silence(proxy)
            began = time.monotonic()
            await client.enqueue(Task("t"))
            await asyncio.to_thread(wait_until, lambda: len(ran) == 2, 20)
            assert ran[1] - began < 10

    with Proxy(store.port) as proxy:
        asyncio.run(main(proxy))


def listeners(store: Store) -> set[bytes]:
    """Return the client ids of the listening connections."""
    lines = store.command("CLIENT", "LIST", "TYPE", "pubsub")
    return {line.split()[0] for line in lines.splitlines() if line}


@pytest.mark.faults(38, 42, 87)
def test_a_subscription_that_is_silent_is_replaced(
    colour: Colour, store: Store, prefix: str
) -> None:
    with Proxy(store.port) as proxy:
        client = colour.client(proxy.url, prefix)
        handle = colour.do(client.enqueue(Task("t", retention=60)))
        waiting = colour.begin(handle.result)
        wait_until(lambda: len(listeners(store)) == 1)
        [dead] = listeners(store)
        assert silence(proxy, streaming=True) == 1
        wait_until(lambda: listeners(store) - {dead}, 15)
        assert colour.do(handle.cancel())
        assert waiting.exception(10) is not None


@pytest.mark.faults(38)
def test_quiet_subscription_stays_open(colour: Colour, store: Store, prefix: str) -> None:
    """The subscription stays open, since the store answers its pings."""
    with Proxy(store.port) as proxy:
        client = colour.client(proxy.url, prefix)
        handle = colour.do(client.enqueue(Task("t", retention=60)))
        waiting = colour.begin(handle.result)
        pings = store.command("INFO", "commandstats").get("cmdstat_ping", {"calls": 0})["calls"]

        def asked() -> bool:
            calls = store.command("INFO", "commandstats").get("cmdstat_ping", {"calls": 0})["calls"]
            return calls >= pings + 2

        wait_until(asked, 20)
        channel = QueueKeys(prefix, "default").done
        assert store.command("PUBSUB", "SHARDNUMSUB", channel)[1] == 1
        assert colour.do(handle.cancel())
        assert waiting.exception(10) is not None


@pytest.mark.faults(38)
@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="needs TCP_KEEPIDLE")
async def test_idle_connections_use_tcp_keepalive(store: Store) -> None:
    """Keepalive is always set, regardless of redis-py's defaults and the options of a client
    object."""
    wanted = {socket.TCP_KEEPIDLE: 15, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}
    address = redis_clients.parse(store.url)
    own = redis.Redis(host="127.0.0.1", port=store.port, socket_keepalive=False)

    def options(sock: Any) -> dict[int, int]:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        return {name: sock.getsockopt(socket.IPPROTO_TCP, name) for name in wanted}

    for where in (address, redis_clients.address_of(own)):
        broker = Broker(where)
        broker.ping()
        [connection] = idle(broker)
        assert options(connection.raw._sock) == wanted
        broker.close()
    own.close()

    broker = AsyncBroker(address)
    await broker.ping()
    [wire] = broker._pool_for(None)._free
    assert options(wire.raw._writer.get_extra_info("socket")) == wanted
    await broker.aclose()


def test_broken_connection_discards_idle_ones_shared_by_threads(store: Store, prefix: str) -> None:
    with Proxy(store.port) as proxy:
        broker = Broker(redis_clients.parse(proxy.url), connections=4)
        meet = threading.Barrier(4)
        proxy.down.delay = 0.1

        def ping(_: int) -> float:
            meet.wait()
            return broker.ping()

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(ping, range(4)))
        proxy.heal()
        assert len(idle(broker)) == 4
        proxy.reset()
        broker.ping()
        assert len(idle(broker)) == 1
        broker.close()
