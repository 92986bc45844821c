"""If an address has a clock, as in some tests, scripts receive the time of that clock."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from qsync import Mux, Task
from qsync.broker import redis_clients
from qsync.broker.aio import AsyncBroker
from qsync.broker.blocking import Broker
from qsync.client import AsyncClient, Client
from qsync.server.server import Server
from qsync.state import TaskState
from tests.support.stores import Store, wait_until_async

DAY_US = 86_400_000_000


def test_server_and_clients_use_the_clock(valkey: Store, prefix: str) -> None:
    asyncio.run(_use(valkey, prefix))


async def _use(valkey: Store, prefix: str) -> None:
    ahead_us = 0
    real_us = valkey_time_us(valkey)
    address = replace(redis_clients.parse(valkey.url), clock=lambda: real_us + ahead_us)
    mux, ran = Mux(), []
    mux.handle("later")(lambda task: ran.append(task.id))
    with Client(Broker(address), prefix=prefix) as client:
        handle = client.enqueue(Task("later", delay=86_400))
        info = handle.info()
        assert info.state is TaskState.SCHEDULED
        assert info.enqueued_at_us == real_us
        async with Server(address, prefix=prefix, mux=mux, sweep=0.05):
            ahead_us = 2 * DAY_US
            await wait_until_async(lambda: ran)
    async with AsyncClient(AsyncBroker(address), prefix=prefix) as other:
        handles = await other.enqueue_many([Task("later"), Task("later", delay=1)])
        for handle_ in handles:
            assert (await handle_.info()).enqueued_at_us == real_us + ahead_us


def valkey_time_us(store: Store) -> int:
    seconds, micros = store.command("TIME")
    return int(seconds) * 1_000_000 + int(micros)
