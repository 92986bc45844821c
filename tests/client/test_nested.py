"""Handlers can enqueue children with fixed ids and wait for the results of their children."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from qsync.broker import redis_clients, views
from qsync.broker.aio import AsyncBroker
from qsync.errors import DuplicateTask, ResultTimeout
from qsync.inspector import Inspector
from qsync.mux import Mux
from qsync.server.current import current
from qsync.state import TaskState
from qsync.task import Task, TaskInfo
from tests.support.server import bench, until
from tests.support.stores import Store, wait_until_async


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("colour", ["async", "thread"])
async def test_a_second_attempt_gets_the_handles_of_its_children(
    valkey: Store, prefix: str, colour: str, many: bool
) -> None:
    mux, held = Mux(), list[str]()

    def child(task: TaskInfo, n: int) -> Task:
        return Task("child", {"n": n}, id=f"{task.id}-{n}", queue="unserved", retention=60)

    async def parent(task: TaskInfo) -> None:
        client, tasks = current().client, [child(task, n) for n in range(2)]
        handles = (
            await client.enqueue_many(tasks)
            if many
            else [await client.enqueue(one) for one in tasks]
        )
        held.extend(one.id for one in handles)
        if task.attempt < 3:
            raise ValueError("again")

    def parent_in_thread(task: TaskInfo) -> None:
        client, tasks = current().client, [child(task, n) for n in range(2)]
        handles = client.enqueue_many(tasks) if many else [client.enqueue(one) for one in tasks]
        held.extend(one.id for one in handles)
        if task.attempt < 3:
            raise ValueError("again")

    mux.handle("parent")(parent if colour == "async" else parent_in_thread)

    async with bench(valkey.url, prefix) as b, b.server(mux):
        handle = await b.client.enqueue(Task("parent", retry=5, retry_delay=0))
        await b.gone(handle.id)
        assert held == [f"{handle.id}-{n}" for n in range(2)] * 3
        counts = await b.broker.run(views.counts(b.keys("unserved")))
        assert counts.states[TaskState.PENDING] == 2


def test_child_with_another_message_or_parent_is_a_duplicate(valkey: Store, prefix: str) -> None:
    mux, outcomes = Mux(), list[str]()

    @mux.handle("parent")
    async def parent(task: TaskInfo) -> None:
        payload = {"other": task.attempt} if task.value()["changes"] else {}
        try:
            await current().client.enqueue(Task("child", payload, id="child", queue="unserved"))
            outcomes.append("handle")
        except DuplicateTask:
            outcomes.append("duplicate")
        if task.attempt == 1:
            raise ValueError("again")

    async def main() -> None:
        async with bench(valkey.url, prefix) as b, b.server(mux):
            for changes in (True, False):
                task = Task("parent", {"changes": changes}, retry_delay=0)
                await b.gone((await b.client.enqueue(task)).id)
            with pytest.raises(DuplicateTask):
                await b.client.enqueue(Task("child", {}, id="child", queue="unserved"))

    asyncio.run(main())
    assert outcomes == ["handle", "duplicate", "duplicate", "duplicate"]


@pytest.mark.parametrize("colour", ["async", "thread"])
async def test_parents_that_fill_all_slots_are_logged_and_explained(
    valkey: Store, prefix: str, colour: str, caplog: pytest.LogCaptureFixture
) -> None:
    mux, children, release = Mux(), list[str](), threading.Event()

    @mux.handle("child")
    async def child(task: TaskInfo) -> str:
        return "done"

    async def parent(task: TaskInfo) -> None:
        handle = await current().client.enqueue(Task("child", retention=60))
        children.append(handle.id)
        waiting = asyncio.ensure_future(handle.result())
        while not release.is_set():
            await asyncio.wait({waiting}, timeout=0.05)
        waiting.cancel()

    def parent_in_thread(task: TaskInfo) -> None:
        handle = current().client.enqueue(Task("child", retention=60))
        children.append(handle.id)
        while not release.is_set():
            try:
                handle.result(timeout=2.5)
            except ResultTimeout:
                continue

    mux.handle("parent")(parent if colour == "async" else parent_in_thread)

    broker = AsyncBroker(redis_clients.parse(valkey.url))
    inspector = Inspector(broker, prefix=prefix)
    async with (
        bench(valkey.url, prefix) as b,
        b.server(mux, concurrency=2, threads=2, lease=30) as server,
    ):
        parents = await b.client.enqueue_many([Task("parent")] * 2)
        await until(lambda: len(children) == 2)

        async def explained() -> bool:
            told = await inspector.explain(children[0])
            return "wait for results of tasks in the same queues" in told.sentence

        def warnings() -> list[logging.LogRecord]:
            return [one for one in caplog.records if "wait for results" in one.getMessage()]

        await wait_until_async(explained)
        await until(lambda: bool(warnings()))  # the warning may come after the explanation
        told = warnings()
        assert len(told) == 1
        assert told[0].levelno == logging.WARNING
        assert any(one.id in told[0].getMessage() for one in parents)
        assert any(one in told[0].getMessage() for one in children)
        assert not server.broken
        release.set()
        for id in children:
            await b.reaches(id, "completed")
    await broker.aclose()


def test_parents_that_leave_a_slot_are_not_logged(
    valkey: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    mux = Mux()

    @mux.handle("child")
    async def child(task: TaskInfo) -> str:
        return "done"

    @mux.handle("parent")
    async def parent(task: TaskInfo) -> str:
        handle = await current().client.enqueue(Task("child", retention=60))
        return str(await handle.result(timeout=10))

    async def main() -> None:
        async with bench(valkey.url, prefix) as b, b.server(mux, concurrency=3):
            handles = await b.client.enqueue_many([Task("parent", retention=60)] * 2)
            assert [await one.result(timeout=10) for one in handles] == ["done"] * 2

    asyncio.run(main())
    assert "wait for results" not in caplog.text
