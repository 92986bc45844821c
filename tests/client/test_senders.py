"""Enqueues are repeated if their replies are lost, but take effect only once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from qsync.broker import ops, redis_clients
from qsync.broker.aio import AsyncBroker
from qsync.broker.blocking import Broker
from qsync.broker.enqueue_packet import pack_enqueue
from qsync.broker.exchanges import evalsha
from qsync.broker.protocol import pack_command
from qsync.broker.script import load
from qsync.client import AsyncClient, Client
from qsync.errors import DuplicateTask, QsyncError
from qsync.idempotency import CallId, CallSequences
from qsync.new_task import new_nonce, new_task
from qsync.task import Task
from tests.chaos.proxy import Proxy
from tests.support.client_driver import Hand
from tests.support.stores import Store, wait_until

pytestmark = [pytest.mark.faults(34), pytest.mark.guarantee(5)]


@pytest.fixture
def proxy(valkey: Store) -> Iterator[Proxy]:
    with Proxy(valkey.port) as proxy:
        yield proxy


@pytest.fixture
def hand(valkey: Store, prefix: str) -> Iterator[Hand]:
    with Hand(valkey.url, prefix) as hand:
        # Load the scripts first, since otherwise the first lost reply would be NOSCRIPT.
        hand.broker.client_at(None).script_load(load("enqueue").text)
        yield hand


def ends_all(hand: Hand, count: int) -> None:
    """Fetch and complete this many tasks, as a server does."""
    key = hand.keys.key("pending")
    client = hand.broker.client_at(None)
    wait_until(lambda: client.zcard(key) == count)
    for at in range(0, count, 500):
        for held in hand.take(min(500, count - at)):
            hand.finish(held)


def empty(hand: Hand) -> bool:
    return not hand.broker.client_at(None).hlen(hand.keys.key("tasks"))


@pytest.mark.parametrize("many", [False, True])
def test_a_task_that_ended_while_its_reply_was_lost_runs_once(
    proxy: Proxy, hand: Hand, prefix: str, many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a warm connection, a single enqueue is sent as a prepared packet.
    monkeypatch.setattr("qsync.broker.blocking_connection.WARM_S", 60.0)
    broker = Broker(redis_clients.parse(proxy.url), read_timeout=0.3, patience=20)
    with Client(broker, prefix=prefix) as client, ThreadPoolExecutor(1) as threads:
        client.enqueue(Task("t"))
        hand.finish(hand.one())
        tasks = [Task("t")] * (1100 if many else 1)
        proxy.down.swallow = 1.0
        call = threads.submit(client.enqueue_many, tasks)
        ends_all(hand, len(tasks))
        proxy.down.swallow = 0.0
        assert all(handle.created for handle in call.result(20))
    assert empty(hand)


def test_task_of_a_shared_round_trip_runs_once_after_a_lost_reply(
    proxy: Proxy, hand: Hand, prefix: str
) -> None:
    async def enqueue() -> bool:
        broker = AsyncBroker(redis_clients.parse(proxy.url), read_timeout=0.3, patience=20)
        async with AsyncClient(broker, prefix=prefix) as client:
            await client.enqueue(Task("t"))
            await asyncio.to_thread(hand.finish, hand.one())
            proxy.down.swallow = 1.0
            one, other, third = (asyncio.ensure_future(client.enqueue(Task("t"))) for _ in range(3))
            await asyncio.to_thread(ends_all, hand, 3)
            proxy.down.swallow = 0.0
            handles = await asyncio.gather(one, other, third)
            return all(handle.created for handle in handles)

    assert asyncio.run(enqueue())
    assert empty(hand)


@pytest.mark.faults(72)
def test_repeated_call_is_not_a_duplicate_of_its_own_window(
    proxy: Proxy, hand: Hand, prefix: str
) -> None:
    broker = Broker(redis_clients.parse(proxy.url), read_timeout=0.3, patience=20)
    with Client(broker, prefix=prefix) as client, ThreadPoolExecutor(1) as threads:
        client.enqueue(Task("t"))
        hand.finish(hand.one())
        proxy.down.swallow = 1.0
        call = threads.submit(client.enqueue, Task("t", unique=60))
        ends_all(hand, 1)
        proxy.down.swallow = 0.0
        assert call.result(20).created
    assert empty(hand)


def test_client_has_one_sender_per_concurrent_call(valkey: Store, hand: Hand, prefix: str) -> None:
    with Client(Broker(redis_clients.parse(valkey.url)), prefix=prefix) as client:
        for _ in range(20):
            client.enqueue(Task("t"))
        client.enqueue_many([Task("t")] * 700)
        assert hand.broker.client_at(None).hlen(hand.keys.key("calls")) == 3


def test_numbers_increase_and_concurrent_calls_have_separate_senders() -> None:
    senders = CallSequences()
    with senders.acquire(2) as first:
        assert len({one.sender for one in first}) == 2
        with senders.acquire(1) as [third]:
            assert third.sender not in {one.sender for one in first}
    with senders.acquire(3) as again:
        assert {one.sender for one in again} == {one.sender for one in [*first, third]}
        assert {one.number for one in again} == {2}


def test_threads_share_senders_and_no_number_is_used_twice() -> None:
    senders = CallSequences()

    def lend(_: int) -> list[CallId]:
        given = []
        for _ in range(300):
            with senders.acquire(2) as numbers:
                given += numbers
        return given

    with ThreadPoolExecutor(8) as threads:
        given = [one for part in threads.map(lend, range(8)) for one in part]
    assert len(set(given)) == len(given) == 4800


@pytest.mark.faults(12)
def test_packet_is_the_command_of_the_call(valkey: Store, hand: Hand, prefix: str) -> None:
    for id, payload, number in (("", b"", 1), ("own-id", "é" * 70_000, 12_345_678)):
        task = new_task(Task("t", payload, id=id or None), new_nonce())
        call = ops.enqueue(hand.keys, [task], sender="s" * 22, number=number)
        packet = pack_enqueue(hand.keys, task, "s" * 22, number)
        assert packet == pack_command(evalsha(call))


def test_lone_enqueues_go_as_packets_unless_an_option_needs_more(
    valkey: Store, hand: Hand, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qsync.broker.blocking_connection.WARM_S", 60.0)
    with Client(hand.broker, prefix=prefix) as client:
        sent: list[bool] = []
        converse = hand.broker.converse

        def noted(packet: bytes, expected: bytes) -> bool:
            sent.append(converse(packet, expected))
            return sent[-1]

        hand.broker.converse = noted  # type: ignore[method-assign]
        client.enqueue(Task("t"))  # registers the queue
        handle = client.enqueue(Task("t"))
        assert sent == [True]
        assert handle.created
        assert handle.info().state == "pending"
        client.enqueue(Task("t", delay=60))
        client.enqueue(Task("t", id="own"))
        with pytest.raises(DuplicateTask):
            client.enqueue(Task("t", b"other", id="own"))
        assert sent == [True]
        hand.broker.client_at(None).script_flush()
        assert [client.enqueue(Task("t")).created for _ in range(3)] == [True] * 3
        assert sent == [True, False, False, False], "no prepared packets for a while"
        hand.broker._unexpected_until = 0.0
        assert client.enqueue(Task("t")).created
        assert sent[-1]
        assert hand.broker.client_at(None).hlen(hand.keys.key("tasks")) == 8


async def test_lone_async_enqueues_go_as_packets_unless_an_option_needs_more(
    proxy: Proxy, hand: Hand, prefix: str
) -> None:
    broker = AsyncBroker(redis_clients.parse(proxy.url))
    async with AsyncClient(broker, prefix=prefix) as client:
        sent: list[bool] = []
        converse = broker.converse

        async def noted(packet: bytes, expected: bytes, *, seconds: float) -> bool:
            sent.append(await converse(packet, expected, seconds=seconds))
            return sent[-1]

        broker.converse = noted  # type: ignore[method-assign]
        await client.enqueue(Task("t"))  # registers the queue
        handle = await client.enqueue(Task("t"))
        assert sent == [True]
        assert handle.created
        assert (await handle.info()).state == "pending"
        await client.enqueue(Task("t", delay=60))
        await client.enqueue(Task("t", id="own"))
        with pytest.raises(DuplicateTask):
            await client.enqueue(Task("t", b"other", id="own"))
        assert sent == [True]
        await asyncio.to_thread(hand.broker.client_at(None).script_flush)
        assert [(await client.enqueue(Task("t"))).created for _ in range(2)] == [True] * 2
        assert sent == [True, False, True], "a script that the store forgot is sent again"
        proxy.reset()
        assert (await client.enqueue(Task("t"))).created
        tasks = await asyncio.to_thread(hand.broker.client_at(None).hlen, hand.keys.key("tasks"))
        assert tasks == 7


def test_copied_process_memory_raises_an_error(valkey: Store, hand: Hand, prefix: str) -> None:
    """A machine that was restored twice from one snapshot has two clients with the same
    identity."""
    with Client(Broker(redis_clients.parse(valkey.url)), prefix=prefix) as client:
        with client._call_sequences.acquire(1) as [snapshot]:
            pass
        client.enqueue(Task("t"))
        client.enqueue(Task("t"))
        client._call_sequences._free = [snapshot]
        with pytest.raises(QsyncError, match="another process has the identity of this client"):
            client.enqueue_many([Task("t")])
    assert hand.broker.client_at(None).hlen(hand.keys.key("tasks")) == 2
