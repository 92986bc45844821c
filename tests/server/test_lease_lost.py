"""Handlers can detect that their server has lost the lease."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

import pytest

from qsync.app import Qsync
from qsync.errors import LeaseLost
from qsync.mux import Mux
from qsync.server.current import current
from qsync.task import Task, TaskInfo
from tests.server.test_waiting_tasks import take_over
from tests.support.server import bench, until
from tests.support.stores import Store

PAUSE = threading.Event()
"""An event that is never set; waiting for it lets the event loop run between two reports."""


def test_handler_in_thread_learns_of_lost_lease_by_progress_and_enqueues(
    valkey: Store, prefix: str
) -> None:
    mux, raised, begun = Mux(), list[str](), threading.Event()
    app = Qsync(valkey.url, prefix=prefix)

    @app.task(queue="unserved")
    def child() -> None: ...

    @mux.handle("long")
    def long(task: TaskInfo) -> None:
        client = current().client
        begun.set()
        with suppress(LeaseLost):  # the lease may be lost between the check and the report
            while not current().cancelled:
                current().progress(1, 2)
                PAUSE.wait(0.001)
        for what in (
            lambda: current().progress(2, 2),
            lambda: client.enqueue(Task("child", queue="unserved")),
            lambda: client.enqueue_many([Task("child", queue="unserved")]),
            child.enqueue_sync,
        ):
            try:
                what()
            except LeaseLost as error:
                raised.append(str(error))
        assert task.id in raised[0]

    async def main() -> None:
        async with bench(valkey.url, prefix) as b, b.server(mux, lease=0.9) as server:
            await b.client.enqueue(Task("long"))
            await until(begun.is_set)
            await take_over(b, server.holder, count=1)
            await until(lambda: len(raised) == 4)

    asyncio.run(main())
    app.close()


async def test_handler_on_loop_learns_of_lost_lease_after_cancellation(
    valkey: Store, prefix: str
) -> None:
    mux, raised, begun = Mux(), list[LeaseLost](), asyncio.Event()

    @mux.handle("long")
    async def long(task: TaskInfo) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            with pytest.raises(LeaseLost) as progress:
                current().progress(1, 1)
            with pytest.raises(LeaseLost) as enqueue:
                await current().client.enqueue(Task("child", queue="unserved"))
            raised.extend([progress.value, enqueue.value])
            raise

    async with bench(valkey.url, prefix) as b, b.server(mux, lease=0.9) as server:
        await b.client.enqueue(Task("long"))
        await begun.wait()
        await take_over(b, server.holder, count=1)
        await until(lambda: len(raised) == 2)


async def test_a_handler_that_is_stopped_for_another_reason_may_still_enqueue(
    valkey: Store, prefix: str
) -> None:
    mux, ended = Mux(), list[str]()

    @mux.handle("long")
    def long(task: TaskInfo) -> None:
        while not current().cancelled:
            current().progress(1, 2)
            PAUSE.wait(0.001)
        current().progress(2, 2)
        ended.append(current().client.enqueue(Task("child", queue="unserved")).id)

    async with bench(valkey.url, prefix) as b, b.server(mux):
        await b.client.enqueue(Task("long", timeout=0.3, retry=0))
        await until(lambda: bool(ended))
        assert await b.state(ended[0], "unserved") == "pending"
