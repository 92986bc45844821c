"""Clients find a task by its id alone, and log a warning if no live server can produce an awaited
result."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

import pytest

from qsync import Client, Qsync
from qsync.broker import redis_clients
from qsync.broker.blocking import Broker
from qsync.errors import ConfigError, InvalidTask, QsyncError, ResultTimeout, TaskNotFound
from qsync.task import Task
from qsync.task_lookup import QUEUES_LIMIT, Search
from tests.conftest import Colour
from tests.support.client_driver import Hand
from tests.support.stores import Cluster, Store, wait_until


@dataclass
class Invoice:
    number: int
    amount: Decimal


@pytest.fixture
def client(colour: Colour, store: Store, prefix: str) -> Any:
    return colour.client(store.url, prefix)


@pytest.fixture
def hand(store: Store, prefix: str) -> Iterator[Hand]:
    with Hand(store.url, prefix) as hand:
        yield hand


def test_find_searches_all_queues(client: Any, colour: Colour) -> None:
    for number in range(130):
        colour.do(client.enqueue(Task("t", queue=f"queue-{number:03}")))
    sent = colour.do(client.enqueue(Task("t", id="wanted", queue="queue-125")))
    found = colour.do(client.find("wanted"))
    assert found == sent
    assert found.queue == "queue-125"
    assert colour.do(found.info()).id == "wanted"


def test_failed_find_names_the_searched_queues(client: Any, colour: Colour, prefix: str) -> None:
    with pytest.raises(TaskNotFound) as caught:
        colour.do(client.find("missing"))
    assert f"no queue, since there is none with the prefix {prefix!r}" in str(caught.value)
    for number in range(12):
        colour.do(client.enqueue(Task("t", queue=f"q{number:02}")))
    with pytest.raises(TaskNotFound) as caught:
        colour.do(client.find("missing"))
    said = str(caught.value)
    assert "'missing'" in said
    assert f"none of the 12 queues with the prefix {prefix!r} (q00, q01, " in said
    assert "q09 and 2 more)" in said
    assert "retention" in said
    with pytest.raises(InvalidTask, match="id"):
        colour.do(client.find("no id"))


def test_find_prefers_the_task_that_has_not_ended(client: Any, colour: Colour, hand: Hand) -> None:
    colour.do(client.enqueue(Task("t", id="twice", retention=60)))
    hand.succeed(*hand.take())
    colour.do(client.enqueue(Task("t", id="twice", queue="later")))
    assert colour.do(client.find("twice")).queue == "later"


def test_find_reads_a_bounded_number_of_queues() -> None:
    search = Search("id", "p", [f"q{number}" for number in range(QUEUES_LIMIT + 50)])
    asked = 0
    for calls in search.calls():
        asked += len(calls)
        search.note([[None]] * len(calls))
    assert asked == QUEUES_LIMIT
    with pytest.raises(TaskNotFound, match=f"first {QUEUES_LIMIT} of the {QUEUES_LIMIT + 50} "):
        search.queue()


def test_find_works_in_a_cluster(
    colour: Colour, cluster: Cluster, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks are also found in queues that the store does not list yet, since enqueues do not wait
    until their queue is listed."""
    client = colour.client(cluster.url, prefix)
    colour.do(client.enqueue(Task("t", queue="q0")))
    wait_until(lambda: not client._announcer.unconfirmed)
    monkeypatch.setattr(client._registrations, "add", lambda queue, call: None)
    for number in range(6):
        colour.do(client.enqueue(Task("t", id=f"id{number}", queue=f"q{number}")))
    assert colour.do(client.find("id0")).queue == "q0"
    assert colour.do(client.find("id4")).queue == "q4"


def test_handle_of_a_missing_task_names_the_queue_and_find(client: Any, colour: Colour) -> None:
    colour.do(client.enqueue(Task("t", id="elsewhere", queue="lower")))
    with pytest.raises(TaskNotFound, match=r"not in queue 'default'.*client\.find\(id\)"):
        colour.do(client.handle("elsewhere").info())


def test_handle_and_find_return_results_of_the_requested_type(store: Store, prefix: str) -> None:
    app = Qsync(store.url, prefix=prefix)

    @app.task(name="make", retention=60)
    async def make(number: int) -> Invoice:
        return Invoice(number, Decimal("1.10"))

    async def use() -> None:
        async with app, app.server(), app.async_client() as client:
            task = await make.enqueue(7)
            wanted = Invoice(7, Decimal("1.10"))
            assert await task.result(5) == wanted
            assert await client.handle(task.id, type=Invoice).result(5) == wanted
            assert await (await client.find(task.id, type=Invoice)).result(5) == wanted
            untyped = await client.handle(task.id).result(5)
            assert untyped == {"number": 7, "amount": Decimal("1.10")}
            with pytest.raises(QsyncError, match="does not have the requested type"):
                await client.handle(task.id, type=int).result(5)
            with pytest.raises(ConfigError):
                client.handle(task.id, type=Client)
            [many] = await client.enqueue_many([make.build(8)])
            assert await many.result(5) == Invoice(8, Decimal("1.10"))
            assert await (await client.enqueue(make.build(9))).result(5) == Invoice(
                9, Decimal("1.10")
            )

    asyncio.run(use())


def test_result_of_bytes_has_every_type_that_allows_bytes(store: Store, prefix: str) -> None:
    app = Qsync(store.url, prefix=prefix)

    @app.task(name="read", retention=60)
    async def read(present: bool) -> bytes | None:
        return b"\xff" if present else None

    async def use() -> None:
        async with app, app.server(), app.async_client() as client:
            id = (await read.enqueue(True)).id
            assert await client.handle(id).result(5) == b"\xff"
            for type in (bytes, bytes | None, bytes | str, Annotated[bytes, "doc"], Any, object):
                assert await client.handle(id, type=type).result(5) == b"\xff"
            for type in (str, int, str | None):
                with pytest.raises(QsyncError, match=r"requested type: .*got `bytes`"):
                    await client.handle(id, type=type).result(5)
            assert (
                await client.handle((await read.enqueue(False)).id, type=bytes | None).result(5)
                is None
            )

    asyncio.run(use())


def warnings_of(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING and text in record.getMessage()
    ]


def test_wait_without_timeout_and_without_server_is_logged(
    client: Any, colour: Colour, hand: Hand, caplog: pytest.LogCaptureFixture
) -> None:
    handle = colour.do(client.enqueue(Task("t", retention=60)))
    waiting = colour.begin(lambda: handle.result())
    wait_until(lambda: warnings_of(caplog, "no live server serves queue 'default'"))
    hand.succeed(*hand.take())
    assert waiting.result(10) is None
    [said] = warnings_of(caplog, "no live server")
    assert handle.id in said
    assert "result(timeout=seconds)" in said


def test_wait_with_a_timeout_or_with_a_server_is_not_logged(
    store: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = Qsync(store.url, prefix=prefix)
    over = asyncio.Event()

    @app.task(name="slow", retention=60)
    async def slow() -> None:
        await over.wait()

    async def use() -> None:
        async with app, app.async_client() as client:
            handle = await client.enqueue(Task("slow", queue="unserved", retention=60))
            with pytest.raises(ResultTimeout):
                await handle.result(1.5)
            async with app.server():
                waiting = asyncio.create_task((await slow.enqueue()).result())
                with pytest.raises(ResultTimeout):  # the wait is long enough for two searches
                    await (await client.enqueue(Task("slow", retention=60))).result(2.6)
                over.set()
                await waiting

    asyncio.run(use())
    assert warnings_of(caplog, "no live server") == []


def test_blocking_client_in_a_running_loop_is_logged_once(
    store: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Client(Broker(redis_clients.parse(store.url)), prefix=prefix) as client:
        client.enqueue(Task("t"))
        assert warnings_of(caplog, "blocking Client") == []

        async def use() -> None:
            client.enqueue(Task("t"))
            client.enqueue(Task("t"))
            await asyncio.to_thread(client.enqueue, Task("t"))

        asyncio.run(use())
    [said] = warnings_of(caplog, "blocking Client")
    assert f"prefix {prefix!r}" in said
    assert "AsyncClient" in said
