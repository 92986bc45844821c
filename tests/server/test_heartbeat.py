"""If the loop is blocked and cannot read the reply to a fetch, the heartbeat thread handles it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from qsync import Qsync, Task
from qsync.broker import ops, redis_clients
from qsync.broker.aio import AsyncBroker
from qsync.broker.blocking import Broker
from qsync.broker.op_values import HandedBack
from qsync.keys import QueueKeys
from qsync.server.config import Config
from qsync.server.fetched_tasks import hand_back_unread, hold
from qsync.server.leases import LeaseKeeper, ThreadLeaseKeeper
from qsync.server.outage_log import Outage
from qsync.server.queue_state import FetchInFlight, LeasedTask, QueueState
from tests.support.server import until
from tests.support.stores import Store


def blocked(
    store: Store, prefix: str, check: Callable[[ThreadLeaseKeeper, QueueState], None]
) -> None:
    """Set up a server that has requested ten tasks and runs only its heartbeat."""

    async def main() -> None:
        config, broker = Config(lease=6), Broker(redis_clients.parse(store.url))
        queue = QueueState(QueueKeys(prefix, "default"))
        call = ops.fetch(queue.keys, server="s", number=1, wanted=10, policy=config.policy())
        queue.in_flight = FetchInFlight(call, "s/1", since=-1e9)
        broker.run(call)
        try:
            check(ThreadLeaseKeeper(broker, 6.0, Outage()), queue)
        finally:
            broker.close()

    asyncio.run(main())


@pytest.mark.faults(4)
def test_heartbeat_hands_back_fetched_tasks_of_a_blocked_loop(store: Store, prefix: str) -> None:
    client = Qsync(store.url, prefix=prefix).client()
    client.enqueue_many([Task("a", id=str(n)) for n in range(3)])

    def check(leases: ThreadLeaseKeeper, queue: QueueState) -> None:
        raw = store.client()
        assert raw.zcard(queue.keys.key("active")) == 3
        for _ in range(2):
            leases.hand_back_unread(queue)
            assert raw.zrange(queue.keys.key("pending"), 0, -1) == [b"0", b"1", b"2"]
        assert queue.revoked_token == "s/1"

    blocked(store, prefix, check)
    client.close()


@pytest.mark.faults(4)
def test_heartbeat_renews_nothing_after_the_store_lost_its_data(store: Store, prefix: str) -> None:
    """The store has lost its record of the fetch, so it would execute the repeated call as a new
    fetch."""
    client = Qsync(store.url, prefix=prefix).client()
    client.enqueue(Task("a"))

    def check(leases: ThreadLeaseKeeper, queue: QueueState) -> None:
        leases.hand_back_unread(queue)
        store.client().flushall()
        client.enqueue(Task("b"))
        assert leases.renew_unread(queue)
        leases.hand_back_unread(queue)
        assert store.client().zcard(queue.keys.key("pending")) == 1
        assert store.client().zcard(queue.keys.key("active")) == 0

    blocked(store, prefix, check)
    client.close()


@pytest.mark.faults(4)
async def test_loop_hands_back_the_tasks_of_a_repetition_whose_reply_is_lost(
    store: Store, prefix: str
) -> None:
    """The fetch found nothing. Then a task was enqueued, and the heartbeat thread repeated the
    fetch, which leased the task."""
    with contextlib.closing(Broker(redis_clients.parse(store.url))) as broker:
        queue = QueueState(QueueKeys(prefix, "default"))
        call = ops.fetch(queue.keys, server="s", number=1, wanted=1, policy=Config().policy())
        fetch = queue.in_flight = FetchInFlight(call, "s/1", since=-1e9)
        assert broker.run(call).ids == []
        with Qsync(store.url, prefix=prefix).client() as client:
            client.enqueue_many([Task("a", id="a"), Task("a", id="b")])
        assert ThreadLeaseKeeper(broker, 6.0, Outage()).renew_unread(queue)
        assert queue.repeated_token == "s/1"
        raw = store.client()
        assert raw.zrange(queue.keys.key("active"), 0, -1) == [b"a"]

        nothing: Any = None  # unused, because no handler is stopped
        async_broker = AsyncBroker(redis_clients.parse(store.url))
        leases = LeaseKeeper(async_broker, "s", 6.0, nothing, nothing, Outage())
        queue.in_flight = None
        repeating = asyncio.ensure_future(leases.repeat(queue, fetch))
        await asyncio.sleep(0)
        assert queue.in_flight is fetch, (
            "the heartbeat thread renews the leases while the fetch is repeated"
        )
        again = await repeating
        assert again is not None
        assert (again.ids, queue.in_flight) == (["a"], None)
        first = msgspec.structs.replace(again, ids=["a"])
        settled: list[tuple[LeasedTask, Any]] = []
        runner: Any = SimpleNamespace(settle=lambda *entry: settled.append(entry))
        hold_tasks = partial(hold, lease_s=6.0, runner=runner, capacity=nothing)
        hand_back_unread(queue, fetch, first, again, hold_tasks, runner)
        assert settled == [], "the loop has already read the reply with this task"
        first = msgspec.structs.replace(again, ids=[])
        hand_back_unread(queue, fetch, first, again, hold_tasks, runner)
        [(leased, record)] = settled
        assert record == HandedBack("a", "s/1")
        assert queue.held == {"a": leased}, "the lease is renewed until it is handed back"
        await async_broker.aclose()


@pytest.mark.faults(4)
def test_heartbeat_returns_the_leases_that_are_still_held(store: Store, prefix: str) -> None:
    """If the store has lost its data, the leases that are still held differ from those in the reply
    that the loop reads next."""
    client = Qsync(store.url, prefix=prefix).client()

    def check(leases: ThreadLeaseKeeper, queue: QueueState) -> None:
        store.client().flushall()
        client.enqueue(Task("b", id="b"))
        assert leases.renew_unread(queue)
        assert queue.unread_ids == ["b"]

    blocked(store, prefix, check)
    client.close()


@pytest.mark.parametrize("steps", range(4))
async def test_cancellation_during_an_announcement_is_not_lost(
    valkey: Store, prefix: str, steps: int
) -> None:
    """On Python 3.11, asyncio.wait_for ignores a cancellation that coincides with a result."""
    async with Qsync(valkey.url, prefix=prefix) as app, app.server() as server:
        control = server._control
        announcing = asyncio.create_task(control.announce())
        await until(lambda: len(control._again._waiters) == 2)  # type: ignore[attr-defined]
        control.announce_now()
        for _ in range(steps):
            await asyncio.sleep(0)
        announcing.cancel()
        done, _ = await asyncio.wait([announcing], timeout=5)
        assert done
