"""Each caller gets an answer by the end of its own patience, however many callers wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from qsync import Qsync, Task
from qsync.broker import redis_clients, views
from qsync.broker.aio import AsyncBroker
from qsync.broker.blocking import Broker
from qsync.client import AsyncClient, Client
from qsync.enqueue_batching import Batcher
from qsync.errors import StoreUnavailable
from qsync.inspector import Inspector
from qsync.keys import QueueKeys
from tests.conftest import Colour
from tests.support.stores import Store, wait_until

PATIENCE_S = 1.0
MARGIN_S = 2.0
"""Tolerance for a busy machine, in seconds. If the waits of callers added up, callers would exceed
this tolerance by far."""

KEPT = Task("t", retention=60)


@pytest.fixture(params=["gone", "still"])
def away(request: pytest.FixtureRequest, own_store: Store) -> Callable[[], None]:
    """Return a function that makes the store refuse connections or hang. The store recovers after
    the test."""
    return own_store.kill if request.param == "gone" else own_store.pause


def refused_after(ask: Callable[[], Any]) -> float:
    """Return after how many seconds a call raises StoreUnavailable."""
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        ask()
    return time.monotonic() - began


def did(colour: Colour, call: Callable[[], Any]) -> Any:
    return colour.do(call())


@pytest.mark.faults(85)
def test_each_call_ends_within_its_patience(
    colour: Colour, own_store: Store, prefix: str, away: Callable[[], None]
) -> None:
    client = colour.client(own_store.url, prefix, patience=PATIENCE_S)
    handle = colour.do(client.enqueue(KEPT))
    away()
    big = Task("t", b"x" * 900_000)
    calls: dict[str, Callable[[], Any]] = {
        "enqueue": lambda: client.enqueue(Task("t")),
        "enqueue large": lambda: client.enqueue(big),
        "enqueue_many": lambda: client.enqueue_many([Task("t")] * 3000),
        "enqueue_many large": lambda: client.enqueue_many([big] * 20),
        "enqueue_many to queues": lambda: client.enqueue_many(
            [Task("t", queue=f"q{at}") for at in range(30)]
        ),
        "durable": lambda: client.enqueue(Task("t"), durability="fsync"),
        "info": handle.info,
        "result": handle.result,
        "result in time": lambda: handle.result(timeout=60),
        "cancel": handle.cancel,
        "cancel unknown": lambda: client.handle("x").cancel(),
    }
    took = {
        name: refused_after(lambda call=call: colour.do(call())) for name, call in calls.items()
    }
    # A call with durability may have to wait for the confirmation of another call, and then for its
    # own.
    limits = {name: PATIENCE_S + MARGIN_S + (4 if name == "durable" else 0) for name in took}
    assert {name: seconds for name, seconds in took.items() if seconds > limits[name]} == {}
    assert took["enqueue"] > PATIENCE_S / 4


@pytest.mark.faults(85)
async def test_concurrent_callers_do_not_wait_for_each_other(
    own_store: Store, prefix: str, away: Callable[[], None]
) -> None:
    broker = AsyncBroker(redis_clients.parse(own_store.url), patience=PATIENCE_S)
    async with AsyncClient(broker, prefix=prefix) as client:
        await client.enqueue(KEPT)
        away()
        for ask in (
            lambda at: client.enqueue(Task("t")),
            lambda at: client.handle(f"{at}").info(),
        ):
            took = await asyncio.gather(*[awaited(ask(at)) for at in range(1200)])
            assert max(took) < PATIENCE_S + MARGIN_S


@pytest.mark.faults(85)
async def test_each_of_a_steady_stream_of_callers_ends_within_its_patience(
    own_store: Store, prefix: str, away: Callable[[], None]
) -> None:
    broker = AsyncBroker(redis_clients.parse(own_store.url), patience=PATIENCE_S)
    async with AsyncClient(broker, prefix=prefix) as client:
        await client.enqueue(KEPT)
        away()
        callers = []
        loop = asyncio.get_running_loop()
        began = loop.time()
        for at in range(80):  # new callers arrive for four times the patience of a caller
            callers.append(asyncio.ensure_future(awaited(client.enqueue(Task("t")))))
            due = asyncio.Event()
            loop.call_at(began + at * PATIENCE_S / 20, due.set)
            await due.wait()
        assert max(await asyncio.gather(*callers)) < PATIENCE_S + MARGIN_S


@pytest.mark.faults(85)
def test_threads_beyond_the_pool_size_wait_no_longer_than_their_patience(
    own_store: Store, prefix: str
) -> None:
    broker = Broker(redis_clients.parse(own_store.url), connections=3, patience=PATIENCE_S)
    with Client(broker, prefix=prefix) as client:
        client.enqueue(KEPT)
        own_store.pause()
        with ThreadPoolExecutor(12) as threads:
            calls = [
                threads.submit(refused_after, lambda: client.enqueue(Task("t"))) for _ in range(12)
            ]
            assert max(call.result() for call in calls) < PATIENCE_S + MARGIN_S
        own_store.resume()


@pytest.mark.faults(85)
async def test_inspector_call_ends_within_its_patience(
    own_store: Store, prefix: str, away: Callable[[], None]
) -> None:
    broker = AsyncBroker(redis_clients.parse(own_store.url), patience=PATIENCE_S)
    inspector = Inspector(broker, prefix=prefix)
    await broker.run(views.counts(QueueKeys(prefix, "default")))
    away()
    calls = [views.counts(QueueKeys(prefix, f"q{at}")) for at in range(250)]
    for ask in (inspector._run_all(calls), inspector.queue_names(), inspector.queue("default")):
        assert await awaited(ask) < PATIENCE_S + MARGIN_S
    await inspector.aclose()


@pytest.mark.faults(85)
def test_ping_ends_within_the_patience_of_its_app(
    own_store: Store, away: Callable[[], None]
) -> None:
    app = Qsync(own_store.url, patience=PATIENCE_S)
    away()
    assert refused_after(app.ping) < PATIENCE_S + MARGIN_S
    assert asyncio.run(awaited(app.aping())) < PATIENCE_S + MARGIN_S


@pytest.mark.faults(85)
def test_store_that_returns_in_time_causes_no_error(
    colour: Colour, own_store: Store, prefix: str
) -> None:
    client = colour.client(own_store.url, prefix, patience=20)
    colour.do(client.enqueue(Task("t")))
    own_store.kill()
    waiting = [colour.begin(lambda: client.enqueue(Task("t"))) for _ in range(20)]
    own_store.restart()
    assert all(call.result(20).created for call in waiting)


@pytest.mark.faults(100)
def test_bulk_enqueue_to_thousands_of_queues_continues_while_the_store_answers(
    colour: Colour, valkey: Store, prefix: str
) -> None:
    client = colour.client(valkey.url, prefix, patience=PATIENCE_S / 2)
    tasks = [Task("t", queue=f"q{at}") for at in range(5000)]
    began = time.monotonic()
    assert all(handle.created for handle in colour.do(client.enqueue_many(tasks)))
    assert time.monotonic() - began > PATIENCE_S / 2, "it shows nothing"


@pytest.mark.faults(100)
async def test_callers_of_thousands_of_queues_continue_while_the_store_answers(
    valkey: Store, prefix: str
) -> None:
    broker = AsyncBroker(redis_clients.parse(valkey.url), patience=PATIENCE_S / 2)
    async with AsyncClient(broker, prefix=prefix) as client:
        await asyncio.gather(*[client.enqueue(Task("t", queue=f"q{at}")) for at in range(20)])
        calls = [client.enqueue(Task("t", queue=f"q{at}")) for at in range(4000)]
        began = time.monotonic()
        assert all(handle.created for handle in await asyncio.gather(*calls))
        assert time.monotonic() - began > PATIENCE_S / 2, "it shows nothing"


def test_call_within_its_patience_continues_while_the_store_answers_others() -> None:
    """While earlier callers get replies, a caller waits for its turn, even for longer than its
    patience."""
    turns: list[float] = []

    async def slow(items: list[int], left: float) -> list[int]:
        turns.append(left)
        done = asyncio.Event()
        asyncio.get_running_loop().call_later(0.04, done.set)
        await done.wait()
        return items

    async def main() -> list[int]:
        batcher: Batcher[int, int] = Batcher(
            slow, lambda _: 1, max_bytes=10, patience=0.2, too_late=TimeoutError
        )
        return await asyncio.gather(*[batcher.submit(at) for at in range(200)])

    assert asyncio.run(main()) == list(range(200))
    assert len(turns) > 10, "all callers got their turn in a few batches, so none had to wait"
    assert min(turns) > 0


def test_blocked_loop_does_not_expire_answered_callers() -> None:
    async def main() -> int:
        answered = asyncio.Event()

        async def run(items: list[int], left: float) -> list[int]:
            await answered.wait()
            return items

        batcher: Batcher[int, int] = Batcher(run, lambda _: 1, patience=0.2, too_late=TimeoutError)
        asked = [asyncio.ensure_future(batcher.submit(at)) for at in range(3)]
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        loop.call_later(0.1, _block_until, time.monotonic() + 0.6, answered.set)
        return sum(await asyncio.gather(*asked))

    assert asyncio.run(main()) == 3


def _block_until(until: float, then: Callable[[], None]) -> None:
    wait_until(lambda: time.monotonic() >= until)
    then()


async def awaited(call: Any) -> float:
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await call
    return time.monotonic() - began
