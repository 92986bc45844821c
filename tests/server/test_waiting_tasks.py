"""Tasks that wait for a thread or a process never start once they are stopped."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from qsync.broker import ops
from qsync.mux import Mux
from qsync.server.queue_state import HandlerNotStarted
from qsync.server.thread_pool import ProcessPool, ThreadPool
from qsync.task import Task, TaskInfo
from tests.server.test_executors import INFO, handler
from tests.support import handlers as process_handlers
from tests.support.client_driver import POLICY
from tests.support.server import Bench, bench, until
from tests.support.stores import Store, wait_until_async

COUNT = 10


class Bodies:
    """A `def` handler that records which tasks begin and then runs until released."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.gate = threading.Event()
        self.mux = Mux()
        self.mux.handle("stay")(self.stay)
        self.mux.handle("other")(self.other)  # otherwise, only one task per thread is leased

    async def other(self, task: TaskInfo) -> None:
        """Do nothing, because no task calls this handler."""

    def stay(self, task: TaskInfo) -> None:
        self.begun.append(task.id)
        self.gate.wait(20)


async def reach(b: Bench, ids: list[str], *states: str | None) -> None:
    """Wait until all these tasks are in one of these states."""

    async def check() -> bool:
        return {await b.state(id) for id in ids} <= set(states)

    await wait_until_async(check, message=f"not all are {states}")


async def take_over(b: Bench, server_id: str, count: int = COUNT) -> None:
    """Let the leases of this server expire immediately, and let another server lease its tasks."""
    got: set[str] = set()
    numbers = itertools.count(1)

    async def taken() -> bool:  # repeated, because a renewal may extend some leases
        await b.broker.run(ops.abandon(b.keys(), server_id))
        for _ in range(2):  # the first fetch finds the expired leases
            call = ops.fetch(
                b.keys(), server="other", number=next(numbers), wanted=COUNT, policy=POLICY
            )
            got.update((await b.broker.run(call)).ids)
        return len(got) == count

    await wait_until_async(taken)


@pytest.mark.faults(101)
@pytest.mark.parametrize("grace", [0.0, 0.3])
def test_handlers_waiting_for_a_thread_do_not_begin_at_shutdown(
    valkey: Store, prefix: str, grace: float
) -> None:
    bodies = Bodies()

    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            server = b.server(bodies.mux, threads=2, concurrency=COUNT, shutdown_timeout=grace)
            async with server:
                handles = await b.client.enqueue_many([Task("stay") for _ in range(COUNT)])
                await until(lambda: len(bodies.begun) == 2)
            await reach(b, [one.id for one in handles], "pending")
            assert {(await one.info()).crashes for one in handles} == {0}
            bodies.gate.set()

    asyncio.run(main())
    assert len(bodies.begun) == 2


def test_shutdown_hands_back_waiting_tasks_and_lets_running_ones_end(
    valkey: Store, prefix: str
) -> None:
    bodies = Bodies()

    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            server = b.server(bodies.mux, threads=1, concurrency=COUNT, shutdown_timeout=20)
            await server.start()
            handles = await b.client.enqueue_many([Task("stay") for _ in range(COUNT)])
            await until(lambda: len(bodies.begun) == 1)
            stopping = asyncio.create_task(server.stop())
            rest = [one.id for one in handles if one.id not in bodies.begun]
            await reach(b, rest, "pending")
            assert not stopping.done()
            bodies.gate.set()
            await stopping
            assert await b.state(bodies.begun[0]) is None

    asyncio.run(main())
    assert len(bodies.begun) == 1


@pytest.mark.faults(101)
@pytest.mark.parametrize("threads", [1, 3])
def test_handlers_waiting_for_a_thread_do_not_begin_at_their_timeout(
    valkey: Store, prefix: str, threads: int
) -> None:
    bodies = Bodies()

    async def main() -> None:
        async with (
            bench(valkey.url, prefix) as b,
            b.server(bodies.mux, threads=threads, concurrency=COUNT, timeout=0.6),
        ):
            handles = await b.client.enqueue_many([Task("stay", retry=0) for _ in range(COUNT)])
            await reach(b, [one.id for one in handles], "dead")
            bodies.gate.set()
            after = await b.client.enqueue(Task("stay"))
            await b.gone(after.id)
            assert bodies.begun.pop() == after.id

    asyncio.run(main())
    assert len(bodies.begun) == threads


def test_handlers_cancelled_while_waiting_do_not_begin(valkey: Store, prefix: str) -> None:
    bodies = Bodies()

    async def main() -> None:
        async with (
            bench(valkey.url, prefix) as b,
            b.server(bodies.mux, threads=2, concurrency=COUNT, lease=30),
        ):
            handles = await b.client.enqueue_many([Task("stay") for _ in range(COUNT)])
            await until(lambda: len(bodies.begun) == 2)
            first = [one for one in handles if one.id in bodies.begun]
            rest = [one for one in handles if one.id not in bodies.begun]
            assert all(await asyncio.gather(*[one.cancel() for one in [*first, *rest]]))
            await reach(b, [one.id for one in handles], None)
            bodies.gate.set()

    asyncio.run(main())
    assert len(bodies.begun) == 2


@pytest.mark.faults(101)
def test_handlers_of_tasks_run_elsewhere_do_not_begin(valkey: Store, prefix: str) -> None:
    bodies = Bodies()

    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            server = b.server(bodies.mux, threads=2, concurrency=COUNT, lease=0.9)
            async with server:
                await b.client.enqueue_many([Task("stay") for _ in range(COUNT)])
                await until(lambda: len(bodies.begun) == 2)
                await take_over(b, server.holder)
                await until(lambda: server.lost_leases >= COUNT)
                bodies.gate.set()

    asyncio.run(main())
    assert len(bodies.begun) == 2


def test_deadline_that_passes_while_a_task_waits_for_a_thread_is_respected(
    valkey: Store, prefix: str
) -> None:
    bodies = Bodies()

    async def main() -> None:
        async with (
            bench(valkey.url, prefix) as b,
            b.server(bodies.mux, threads=1, concurrency=COUNT),
        ):
            await b.client.enqueue(Task("stay"))
            await until(lambda: len(bodies.begun) == 1)
            deadline = datetime.now(UTC) + timedelta(seconds=0.3)
            late = await b.client.enqueue(Task("stay", deadline=deadline))
            await b.reaches(late.id, "active")
            await until(lambda: datetime.now(UTC) > deadline)
            bodies.gate.set()
            await b.reaches(late.id, "dead")
            info = await late.info()
            assert info.last_error is not None
            assert "deadline" in info.last_error

    asyncio.run(main())
    assert len(bodies.begun) == 1


class Claim:
    """A claim on a task. The test can withdraw the claim."""

    def __init__(self) -> None:
        self.given = True

    def wait(self) -> None:
        pass

    def may_begin(self) -> bool:
        return self.given


async def test_free_thread_checks_whether_the_next_task_may_begin() -> None:
    pool, claim = ThreadPool(1), Claim()
    gate, inside, called = threading.Event(), threading.Event(), list[int]()

    def hold() -> None:
        inside.set()
        gate.wait(10)

    first = pool.submit(contextvars.copy_context(), hold, (), {})
    await until(inside.is_set)
    second = pool.submit(contextvars.copy_context(), called.append, (1,), {}, claim)
    claim.given = False
    gate.set()
    await first
    with pytest.raises(HandlerNotStarted):
        await second
    assert called == []
    assert pool.lost == 0
    await pool.close(1)


async def test_calls_that_wait_too_long_for_a_thread_are_taken_back() -> None:
    pool, gate, inside, called = ThreadPool(1), threading.Event(), threading.Event(), list[int]()

    def hold() -> None:
        inside.set()
        gate.wait(10)

    def submit(number: int, claim: Claim | None) -> asyncio.Future[None]:
        context = contextvars.copy_context()
        return pool.submit(context, called.append, (number,), {}, claim)

    first = pool.submit(contextvars.copy_context(), hold, (), {}, Claim())
    await until(inside.is_set)
    hook, task = submit(1, None), submit(2, Claim())
    pool.take_back(60)
    assert not task.done(), "the task has waited for less than 60 s"
    pool.take_back(0)
    with pytest.raises(HandlerNotStarted):
        await task
    assert not first.done(), "its function has begun"
    gate.set()
    await asyncio.gather(first, hook)
    await submit(3, Claim())
    assert called == [1, 3]
    await pool.close(1)


@pytest.mark.faults(101)
async def test_free_process_checks_whether_the_next_task_may_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[2]), *sys.path])

    pool, claim = ProcessPool(1), Claim()
    first = asyncio.create_task(
        pool.run(handler(process_handlers.wait_for), waiting_in(tmp_path / "1"), None)
    )
    await until((tmp_path / "1" / "pid").exists)
    second = asyncio.create_task(
        pool.run(handler(process_handlers.wait_for), waiting_in(tmp_path / "2"), None, claim)
    )
    claim.given = False
    (tmp_path / "1" / "go").touch()
    assert await first == "waited"
    with pytest.raises(HandlerNotStarted):
        await second
    assert not (tmp_path / "2" / "pid").exists()
    value = await pool.run(handler(process_handlers.look), INFO, None)
    assert value["current"] == "id1", "the slot is free again"
    await pool.close(0)


def waiting_in(folder: Path) -> TaskInfo:
    folder.mkdir()
    fields: dict[str, Any] = {name: getattr(INFO, name) for name in INFO.__struct_fields__}
    return TaskInfo(**{**fields, "payload": str(folder).encode()})


def test_waiting_process_tasks_are_handed_back_at_shutdown(
    valkey: Store, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[2]), *sys.path])
    mux = Mux()
    mux.handle("wait", executor="process")(process_handlers.wait_for)
    folders = [tmp_path / str(n) for n in range(4)]
    for folder in folders:
        folder.mkdir()

    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            server = b.server(mux, processes=1, concurrency=COUNT, shutdown_timeout=20)
            await server.start()
            handles = [await b.client.enqueue(Task("wait", str(one).encode())) for one in folders]
            await until(lambda: any((one / "pid").exists() for one in folders))
            [ran] = [one for one in folders if (one / "pid").exists()]
            stopping = asyncio.create_task(server.stop())
            rest = [h.id for h, one in zip(handles, folders, strict=True) if one != ran]
            await reach(b, rest, "pending")
            (ran / "go").touch()
            await stopping

    asyncio.run(main())
    assert sum((one / "pid").exists() for one in folders) == 1
