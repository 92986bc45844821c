"""Handlers that catch their cancellation and return."""

from __future__ import annotations

import asyncio

import pytest

from qsync import Mux, Task, TaskCancelled, TaskInfo
from tests.support.server import bench
from tests.support.stores import Store


class Swallowing:
    """A handler that returns when it is cancelled."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.mux = Mux()
        self.mux.handle("t")(self._run)

    async def _run(self, task: TaskInfo) -> str:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "swallowed"
        return "never"


@pytest.mark.faults(6)
async def test_handler_that_swallows_its_timeout_has_timed_out(store: Store, prefix: str) -> None:
    work = Swallowing()
    async with bench(store.url, prefix) as b, b.server(work.mux):
        handle = await b.client.enqueue(Task("t", retry=0, timeout=0.2, retention=60))
        await b.reaches(handle.id, "dead")
        status = await handle.info()
        assert "timed out after 0.2 s" in (status.last_error or "")


async def test_handler_that_swallows_its_cancel_is_cancelled(store: Store, prefix: str) -> None:
    work = Swallowing()
    async with bench(store.url, prefix) as b, b.server(work.mux):
        handle = await b.client.enqueue(Task("t", retention=60))
        await work.begun.wait()
        await handle.cancel()
        with pytest.raises(TaskCancelled):
            await handle.result(10)


async def test_handler_that_ends_in_the_grace_of_a_shutdown_is_completed(
    store: Store, prefix: str
) -> None:
    work = Swallowing()
    async with bench(store.url, prefix) as b:
        async with b.server(work.mux, shutdown_timeout=0.1):
            handle = await b.client.enqueue(Task("t", retention=60))
            await work.begun.wait()
        assert await handle.result(5) == "swallowed"
