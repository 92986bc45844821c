"""The leases that a server keeps from the reply to a fetch."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from qsync import Qsync, Task
from qsync.broker import ops, redis_clients
from qsync.broker.aio import AsyncBroker
from qsync.keys import QueueKeys
from qsync.server.batch_gathering import Gathering
from qsync.server.capacity import Capacity
from qsync.server.clock import boot_s
from qsync.server.config import Config
from qsync.server.crash_isolation import CrashIsolation
from qsync.server.fetched_tasks import hold
from qsync.server.leases import LeaseKeeper
from qsync.server.outage_log import Outage
from qsync.server.queue_state import QueueState
from tests.support.stores import Store


@pytest.mark.faults(17)
@pytest.mark.parametrize(("age", "left"), [(0.0, 3.0), (5.0, -2.0)])
def test_unconfirmed_lease_is_as_old_as_its_first_fetch(
    own_store: Store, prefix: str, age: float, left: float
) -> None:
    """The store becomes unavailable after it has answered a repeated fetch. The leases began with
    the first try, so they may have expired."""

    async def main() -> None:
        config, broker = Config(lease=3), AsyncBroker(redis_clients.parse(own_store.url))
        queue = QueueState(QueueKeys(prefix, "default"))
        nothing: Any = None  # unused, because the fetch returns no tasks
        leases = LeaseKeeper(broker, "s", config.lease_s, nothing, nothing, Outage())
        capacity = Capacity(config, CrashIsolation(), Gathering(lambda: None))
        call = ops.fetch(queue.keys, server="s", number=1, wanted=10, policy=config.policy())
        sent = boot_s()
        leased = hold(queue, "s/1", await broker.run(call), sent, config.lease_s, nothing, capacity)
        assert len(leased) == 2
        assert [one.expires for one in leased] == [sent + 3.0] * 2
        own_store.kill()
        assert await leases.confirm(queue, leased, since=sent - age) == leased
        assert [one.expires for one in leased] == pytest.approx([sent + left] * 2)
        await broker.aclose()

    with Qsync(own_store.url, prefix=prefix) as app:
        app.client().enqueue_many([Task("a")] * 2)
    asyncio.run(main())
