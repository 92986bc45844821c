"""If a handler ignores a request to stop, its task still ends and its slot becomes free."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from typing import Any

import pytest

from qsync.broker import ops
from qsync.errors import QsyncError
from qsync.mux import Mux
from qsync.server import stopping, thread_pool
from qsync.server.server import Server
from qsync.task import Task, TaskInfo
from tests.support.server import Bench, bench, until
from tests.support.stores import Store

TIMEOUT, STUBBORN = 0.8, 0.3


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (stopping, thread_pool):
        monkeypatch.setattr(module, "HUNG_AFTER_S", STUBBORN)


class Deaf:
    """Handlers that hang until `let_go` is called, in a coroutine and in a thread."""

    def __init__(self) -> None:
        self.mux = Mux()
        self.over = threading.Event()
        self.ran = 0
        self.mux.handle("hang")(self._hang)
        self.mux.handle("loop")(self._loop)
        self.mux.handle("note")(self._note)

    async def _hang(self, task: TaskInfo) -> None:
        while not self.over.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    def _loop(self, task: TaskInfo) -> None:
        while not self.over.is_set():
            time.sleep(0.01)

    async def _note(self, task: TaskInfo) -> None:
        self.ran += 1


def hung(server: Server) -> int:
    return server._runner.stopping._hung.count


async def hang(b: Bench, type: str, count: int, **options: Any) -> list[str]:
    tasks = [Task(type, timeout=TIMEOUT, retry=0, **options) for _ in range(count)]
    return [handle.id for handle in await b.client.enqueue_many(tasks)]


@pytest.mark.faults(6)
@pytest.mark.parametrize("type", ["hang", "loop"])
async def test_hung_handler_frees_its_slot_and_is_counted_until_it_ends(
    store: Store, prefix: str, type: str
) -> None:
    deaf = Deaf()
    async with (
        bench(store.url, prefix) as b,
        b.server(deaf.mux, concurrency=1, threads=1, max_hung=2) as server,
    ):
        began = time.monotonic()
        for id in await hang(b, type, 2):
            await b.reaches(id, "dead")
        assert time.monotonic() - began < 2 * (TIMEOUT + STUBBORN) + 5
        await until(lambda: hung(server) == 2)
        assert server._capacity.running == 0
        await b.gone((await b.client.enqueue(Task("note"))).id)
        assert deaf.ran == 1, "the only slot is free"
        deaf.over.set()
        await until(lambda: hung(server) == 0)
        await b.gone((await b.client.enqueue(Task(type))).id)
        assert not server.overloaded_by_hung


@pytest.mark.faults(6)
async def test_the_task_of_a_hung_handler_is_retried(store: Store, prefix: str) -> None:
    deaf, attempts = Deaf(), list[int]()

    @deaf.mux.handle("once")
    async def once(task: TaskInfo) -> None:
        attempts.append(task.attempt)
        if task.attempt == 1:
            await deaf._hang(task)

    async with bench(store.url, prefix) as b, b.server(deaf.mux, concurrency=1):
        task = Task("once", timeout=TIMEOUT, retry=1, retry_delay=0)
        await b.gone((await b.client.enqueue(task)).id)
        assert attempts == [1, 2]
        deaf.over.set()


@pytest.mark.faults(6)
@pytest.mark.parametrize("type", ["hang", "loop"])
async def test_run_raises_when_too_many_handlers_hang(store: Store, prefix: str, type: str) -> None:
    deaf = Deaf()
    async with bench(store.url, prefix) as b:
        server = b.server(deaf.mux, concurrency=5, max_hung=2)
        running = asyncio.create_task(server.run())
        ids = await hang(b, type, 3)
        with pytest.raises(QsyncError, match="more than 2 handlers kept running"):
            await asyncio.wait_for(running, 10)
        assert [await b.state(id) for id in ids] == ["dead"] * 3
        deaf.over.set()


@pytest.mark.faults(6)
def test_embedded_server_logs_too_many_hung_handlers_once_and_stops_fetching(
    store: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        deaf = Deaf()
        async with bench(store.url, prefix) as b:
            async with b.server(deaf.mux, concurrency=3, max_hung=0) as server:
                await hang(b, "hang", 3)
                await until(lambda: hung(server) == 3)
                assert server.overloaded_by_hung
                assert server.condition().stopping
                handle = await b.client.enqueue(Task("note"))
                fetched = server._queues[0].last_fetch
                await until(lambda: server._queues[0].last_fetch > fetched)
                assert await b.state(handle.id) == "pending"
                deaf.over.set()
            assert deaf.ran == 0

    with caplog.at_level(logging.ERROR, "qsync.server"):
        asyncio.run(main())
    said = [record.getMessage() for record in caplog.records if "max_hung" in record.getMessage()]
    assert said == [
        "hung handlers: 1, more than max_hung=0; the server takes no new tasks and stops"
    ]


def test_internal_error_while_marking_a_task_is_not_charged_to_it(
    store: Store, prefix: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    async def main() -> None:
        deaf = Deaf()
        async with bench(store.url, prefix) as b:
            handle = await b.client.enqueue(Task("note", retry=0))
            store.client().hset(b.keys().key("crashes"), handle.id, 1)
            with monkeypatch.context() as patch:
                patch.setattr(ops, "mark_started", broken)
                async with b.server(deaf.mux):
                    await b.reaches(handle.id, "scheduled")
            assert deaf.ran == 0
            store.client().zadd(b.keys().key("scheduled"), {handle.id: 1})
            async with b.server(deaf.mux):
                await b.gone(handle.id)
            assert deaf.ran == 1

    asyncio.run(main())
    assert any(record.exc_info for record in caplog.records if "cannot mark" in record.message)
