"""Start and end times in the status of a task."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from qsync import Qsync, TaskFailed
from tests.support.stores import Store


def test_status_shows_when_a_task_began_and_ended(store: Store, prefix: str) -> None:
    app = Qsync(store.url, prefix=prefix)
    release = asyncio.Event()

    @app.task(name="waits", retention=60)
    async def waits() -> None:
        await release.wait()

    @app.task(name="thread", retention=60)
    def thread() -> int:
        return 1

    @app.task(name="fails", retry=0, retention=60)
    async def fails() -> None:
        raise ValueError

    async def use() -> None:
        async with app, app.server():
            began = datetime.now(UTC)
            waiting = await waits.enqueue()
            thread_handle = await thread.enqueue()
            assert await thread_handle.result(30) == 1
            status = await waiting.info()
            assert (status.started_at, status.finished_at) == (None, None)
            released = datetime.now(UTC)
            release.set()
            await waiting.result(30)
            failing = await fails.enqueue()
            with pytest.raises(TaskFailed):
                await failing.result(30)
            ended = datetime.now(UTC)
            # The server and the test read different clocks of the machine.
            slack = timedelta(milliseconds=20)
            for handle in (waiting, thread_handle, failing):
                status = await handle.info()
                assert status.started_at is not None
                assert status.finished_at is not None
                assert began - slack <= status.started_at <= status.finished_at
                assert status.finished_at <= ended + slack
            status = await waiting.info()
            assert status.started_at is not None
            assert status.finished_at is not None
            assert released - slack <= status.finished_at

    asyncio.run(use())


def test_cancelled_task_has_an_end(store: Store, prefix: str) -> None:
    app = Qsync(store.url, prefix=prefix)

    @app.task(name="later", retention=60, delay=100)
    async def later() -> None: ...

    async def use() -> None:
        async with app:
            before = datetime.now(UTC)
            handle = await later.enqueue()
            assert await handle.cancel()
            status = await handle.info()
            assert status.started_at is None
            assert status.finished_at is not None
            assert before <= status.finished_at <= datetime.now(UTC)

    asyncio.run(use())
