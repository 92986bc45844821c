"""Runs that end without waiting need no slot, whatever the options of their tasks."""

from __future__ import annotations

import asyncio
import time
import weakref
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from qsync import current
from qsync.errors import TaskFailed
from qsync.mux import Mux
from qsync.server.runner import Runner
from qsync.server.server import Server
from qsync.task import Task, TaskInfo
from tests.support.handlers import Panics
from tests.support.server import bench, until
from tests.support.stores import Store


def block(seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        pass


class Value:
    """Return value of a handler; a weak reference to it shows whether the server still holds it."""


def test_run_that_ends_at_its_first_step_respects_its_options(
    valkey: Store, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mux, slots = Mux(), list[str]()
    occupy = Runner.occupy

    def counted(self: Runner, leased: Any) -> None:
        slots.append(leased.message.type)
        occupy(self, leased)

    monkeypatch.setattr(Runner, "occupy", counted)

    @mux.handle("value")
    async def value(task: TaskInfo) -> object:
        return task.value(), task.attempt

    @mux.handle("progress")
    async def progress(task: TaskInfo) -> str:
        current().progress(3, 4)
        return "done"

    @mux.handle("large")
    async def large(task: TaskInfo) -> str:
        return "x" * 200

    @mux.handle("panics")
    async def panics(task: TaskInfo) -> object:
        return Panics(1)

    @mux.handle("blocks")
    async def blocks(task: TaskInfo) -> None:
        block(0.3)
        await asyncio.sleep(60)

    @mux.handle("ends")
    async def ends(task: TaskInfo) -> None:
        block(0.3)

    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            enqueue = b.client.enqueue
            late = datetime.now(UTC) + timedelta(seconds=1)
            never = await enqueue(Task("value", 1, deadline=late, retry=0))
            await until(lambda: datetime.now(UTC) > late)
            async with b.server(mux, timeout=0.2, result_limit=100):
                handles = await b.client.enqueue_many(
                    Task("value", number, retention=60, timeout=50) for number in range(20)
                )
                results = [await handle.result(timeout=10) for handle in handles]
                assert results == [(number, 1) for number in range(20)]
                await b.gone((await enqueue(Task("value", 1, headers={"a": "b"}))).id)
                await b.gone((await enqueue(Task("ends", b""))).id)
                assert slots in ([], ["value"])  # only the task past its deadline took a slot
                told = await enqueue(Task("progress", b"", retention=60))
                assert await told.result(timeout=10) == "done"
                assert (await told.info()).progress == (3, 4)
                for type, words in (
                    ("large", "exceeds the limit of 100"), ("panics", "in the encoder"),
                    ("blocks", "timed out after 0.2 s"),
                ):  # fmt: skip
                    failing = await enqueue(Task(type, b"", retention=60, retry=0))
                    with pytest.raises(TaskFailed, match=words):
                        await failing.result(timeout=10)
                assert "deadline passed" in str((await never.info()).last_error)

    asyncio.run(main())
    assert sorted(slots) == ["blocks", "large", "panics", "progress", "value"]


def test_task_whose_lease_has_expired_does_not_start(valkey: Store, prefix: str) -> None:
    mux, tokens, expired = Mux(), dict[str, str](), dict[str, str]()
    holder: list[Server] = []

    @mux.handle("expire")
    async def expire(task: TaskInfo) -> None:
        for leased in holder[0]._queues[0].held.values():
            if leased.id != task.id:
                leased.expires = 0.0
                expired[leased.id] = leased.token

    @mux.handle("later")
    async def later(task: TaskInfo) -> None:
        tokens[task.id] = task.token
        assert (task.attempt, task.crashes) == (1, 0)

    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            tasks = [Task("expire"), Task("later"), Task("later", retention=60)]
            handles = await b.client.enqueue_many(tasks)
            holder.append(b.server(mux))
            async with holder[0]:
                for handle in handles[:2]:
                    await b.gone(handle.id)
                await b.reaches(handles[2].id, "completed")

    asyncio.run(main())
    assert set(tokens) == set(expired)
    assert all(tokens[id] != expired[id] for id in tokens)  # each task started under a new lease


def test_handlers_that_raise_wait_and_return_begin_one_after_another(
    valkey: Store, prefix: str
) -> None:
    mux, stopped, all_begun = Mux(), list[str](), asyncio.Event()
    returned: list[weakref.ref[Value]] = []

    @mux.handle("raises")
    async def raises(task: TaskInfo) -> None:
        raise LookupError(task.id)

    @mux.handle("waits")
    async def waits(task: TaskInfo) -> str:
        await all_begun.wait()
        await asyncio.sleep(0)
        return task.id

    @mux.handle("returns")
    async def returns(task: TaskInfo) -> object:
        value = Value()
        returned.append(weakref.ref(value))
        return value

    @mux.handle("forever")
    async def forever(task: TaskInfo) -> None:
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            stopped.append(type(error).__name__)
            raise

    @mux.handle("last")
    async def last(task: TaskInfo) -> None:
        all_begun.set()
        assert stopped == []
        assert [reference() for reference in returned] == [None, None]

    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            forever = await b.client.enqueue(Task("forever", b"", retry=0))
            order = ("waits", "raises", "returns", "waits", "raises", "raises", "returns", "last")
            handles = await b.client.enqueue_many(
                Task(type, b"", retention=None if type == "returns" else 60, retry=0)
                for type in order
            )
            async with b.server(mux, concurrency=20):
                for type, handle in zip(order, handles, strict=True):
                    if type == "raises":
                        with pytest.raises(TaskFailed, match=f"LookupError: .*{handle.id}"):
                            await handle.result(timeout=10)
                    elif type == "waits":
                        assert await handle.result(timeout=10) == handle.id
                await handles[-1].result(timeout=10)
                await forever.cancel()
                await until(lambda: stopped == ["CancelledError"])

    asyncio.run(main())
