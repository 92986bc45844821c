"""Data with the layout of another qsync version causes one clear error and no change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from qsync.broker import program_schedule_ops, redis_clients
from qsync.broker.aio import AsyncBroker
from qsync.broker.blocking import Broker
from qsync.errors import SchemaMismatch
from qsync.keys import QueueKeys
from qsync.mux import Mux
from qsync.schedule import Every, Periodic
from qsync.server.periodic import PeriodicLoop, PeriodicTask
from qsync.task import Task, TaskInfo
from qsync.worker.lease_abandoner import LeaseAbandoner
from tests.conftest import Colour
from tests.scripts.test_scripts import calls
from tests.support import lua
from tests.support.queue_driver import BINARIES, Rig
from tests.support.server import bench, until
from tests.support.stores import Store

OF_QUEUES = [
    name
    for name, (call, _) in sorted(calls().items())
    if call.keys[0].startswith(QueueKeys("p", "q").base) and name != "permissions"
]
"""Scripts that use the data of a queue. The other scripts use only keys outside queues."""

pytestmark = pytest.mark.faults(58)


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        yield rig


def bump(client: Any, keys: QueueKeys) -> None:
    """Change the layout of a queue, as a later version does."""
    assert client.hget(keys.key("meta"), "schema") in ("1", b"1")
    client.hincrby(keys.key("meta"), "schema", 2)


@pytest.mark.parametrize("name", OF_QUEUES)
def test_no_script_reads_or_writes_data_of_a_later_version(rig: Rig, name: str) -> None:
    call, _ = calls()[name]
    rig.keys = QueueKeys("p", "q")
    rig.enqueue("a", "b", unique=True, unique_key="u")
    rig.lease(1)
    bump(rig.client, rig.keys)
    before = rig.dump(lost=True)
    with pytest.raises(SchemaMismatch) as raised:
        rig.run(call)
    assert str(raised.value).startswith(f"{name}: the data of queue q at unix://")
    assert "layout 3" in str(raised.value)
    assert "layouts up to 2" in str(raised.value)
    assert rig.dump(lost=True) == before


def test_every_script_of_a_queue_checks_the_schema() -> None:
    some = {"enqueue", "fetch", "complete", "get_tasks", "audit", "repair", "wait_marker"}
    assert some <= set(OF_QUEUES)
    assert len(OF_QUEUES) == len(lua.SCRIPTS) - 12


def test_script_that_creates_a_queue_stamps_its_schema(rig: Rig) -> None:
    for make in (
        lambda: rig.enqueue("a"),
        lambda: rig.run(
            program_schedule_ops.tick(rig.keys, "hourly", 1, rig.tasks("a")[0], now_us=rig.now)
        ),
        lambda: rig.fetch(1),
    ):
        rig.reset()
        make()
        assert rig.field("meta", "schema") == b"1"


@pytest.mark.parametrize("text", ["", "\xc1 this is none"])
def test_missing_or_damaged_schema_number_stops_nothing(rig: Rig, text: str) -> None:
    """If no layout is recorded, the data has the first layout."""
    rig.enqueue("a", "b")
    if text:
        rig.set("meta", "schema", text)
    else:
        rig.client.hdel(rig.keys.key("meta"), "schema")
    [held] = rig.lease(1)
    assert rig.complete(held) == ["ok"]
    assert rig.field("meta", "schema") == b"1"


def test_client_gets_schema_mismatch_at_once(colour: Colour, store: Store, prefix: str) -> None:
    client = colour.client(store.url, prefix)
    handle = colour.do(client.enqueue(Task("x", retention=60)))
    bump(store.client(), QueueKeys(prefix, "default"))
    for act in (
        lambda: client.enqueue(Task("x")),
        lambda: client.enqueue_many([Task("x"), Task("x")]),
        handle.info,
        handle.cancel,
        lambda: handle.result(timeout=60),
    ):
        with pytest.raises(SchemaMismatch, match=r"queue default .* layout 3"):
            colour.do(act())
    assert store.client().zcard(QueueKeys(prefix, "default").key("pending")) == 1
    assert colour.do(client.enqueue(Task("x", queue="other"))).created


def test_server_ends_with_schema_mismatch(
    store: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        mux, ran = Mux(), list[str]()

        @mux.handle("x")
        async def x(task: TaskInfo) -> None:
            ran.append(task.id)

        async with bench(store.url, prefix) as b:
            server = b.server(mux, queues={"old": 1, "new": 1})
            serving = asyncio.create_task(server.run())
            first = await b.client.enqueue(Task("x", queue="new"))
            await until(lambda: first.id in ran)
            bump(store.client(), b.keys("new"))
            with pytest.raises(SchemaMismatch, match=r"queue new .* layout 3"):
                await asyncio.wait_for(serving, 10)
            assert server.broken
            with pytest.raises(SchemaMismatch, match=r"queue new .* layout 3"):
                await b.server(mux, queues={"new": 1}).run()
            again = b.server(mux, queues={"old": 1, "new": 1})
            async with again:
                second = await b.client.enqueue(Task("x", queue="old"))
                await until(lambda: second.id in ran)
                assert list(again.config.weights) == ["old"]

    with caplog.at_level(logging.ERROR, "qsync"):
        asyncio.run(main())
    lines = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert [line.getMessage().partition("supports it; ")[2] for line in lines] == [
        "the server stops",
        "this server ignores the queue until it restarts",
    ]
    assert [line.exc_info for line in lines] == [None, None]


def test_periodic_loop_skips_a_queue_of_a_later_schema(
    store: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    def entry(queue: str) -> PeriodicTask:
        return PeriodicTask(Periodic(queue, Every(3600)), lambda: Task("x", queue=queue))

    async def main() -> None:
        broker = AsyncBroker(redis_clients.parse(store.url))
        store.client().hset(QueueKeys(prefix, "new").key("meta"), "schema", 3)
        loop = PeriodicLoop(broker, prefix, [entry("new"), entry("old")])
        running = asyncio.create_task(loop.run())
        ticks = QueueKeys(prefix, "old").key("ticks")
        await until(lambda: bool(store.client().exists(ticks)) and bool(caplog.records))
        assert not running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await broker.aclose()

    with caplog.at_level(logging.INFO, "qsync"):
        asyncio.run(main())
    [line] = caplog.records
    assert line.getMessage().startswith("periodic tasks of queue new are stopped: begin_ticks: ")


def test_lease_abandoner_skips_a_queue_of_a_later_schema(
    store: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.client().hset(QueueKeys(prefix, "new").key("meta"), "schema", 3)
    broker = Broker(redis_clients.parse(store.url))
    abandoner = LeaseAbandoner(broker, prefix)
    with caplog.at_level(logging.DEBUG, "qsync"):
        abandoner.add("dead", ["new", "old"], again=False)
        assert abandoner.wait(10)
    broker.close()
    [line] = [one for one in caplog.records if "queue new" in one.getMessage()]
    assert line.getMessage().startswith("cannot abandon server dead: abandon: ")
