"""Callers can read the progress of a task both while the task runs and after it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from qsync import Qsync, TaskFailed, current
from qsync.broker import ops, redis_clients
from qsync.broker.aio import AsyncBroker
from qsync.diagnostics.audit import Auditor
from tests.support.queue_driver import BINARIES, Rig
from tests.support.stores import Store, wait_until_async


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        yield rig


pytestmark = pytest.mark.timeout(120)


def test_progress_of_a_kept_task_stays_until_it_leaves(rig: Rig) -> None:
    rig.enqueue("a", "b", retention=60)
    a, b = rig.lease()
    rig.run(ops.progress(rig.keys, [(*a, 1, 3), (*b, 2, 3)]))
    rig.complete(a, retention_us=60_000_000)
    rig.complete(b)
    assert rig.dump()["progress"] == {b"a": b"1/3"}
    rig.now += 61_000_000
    rig.fetch()
    assert "progress" not in rig.dump()


def test_last_progress_is_readable_after_the_end(store: Store, prefix: str) -> None:
    """Progress that a handler reports just before it returns is stored, for handlers both on the
    event loop and in a thread."""
    app = Qsync(store.url, prefix=prefix)

    @app.task(name="loop", retention=60)
    async def loop() -> None:
        current().progress(1, 3)
        await asyncio.sleep(0)
        current().progress(3, 3)

    @app.task(name="thread", retention=60)
    def thread() -> None:
        for done in range(5):
            current().progress(done, 4)

    @app.task(name="again", retry=1, retry_delay=0, retention=60)
    async def again() -> None:
        if current().task.attempt == 1:
            current().progress(1, 2)
            raise ValueError

    async def use() -> None:
        async with app, app.server(), app.inspector() as inspector:
            for task, last in ((loop, (3, 3)), (thread, (4, 4))):
                handles = [await task.enqueue() for _ in range(20)]
                for handle in handles:
                    await handle.result(30)
                    assert (await handle.info()).progress == last
                page = await inspector.tasks("default", "completed", limit=1)
                assert page.tasks[0].progress == last
            broker = AsyncBroker(redis_clients.parse(store.url))
            report = await Auditor(broker, prefix=prefix).audit()
            await broker.aclose()
            assert (report.damages, report.unknown) == ([], [])
            retried = await again.enqueue()
            await wait_until_async(lambda: _ended(retried))
            assert (await retried.info()).progress is None

    async def _ended(handle: object) -> bool:
        return (await handle.info()).state == "completed"  # type: ignore[attr-defined,no-any-return]  # a handle

    asyncio.run(use())


@pytest.mark.parametrize("kind", ["loop", "thread", "batch"])
def test_progress_that_is_no_number_fails_the_attempt(
    valkey: Store, prefix: str, kind: str
) -> None:
    app = Qsync(valkey.url, prefix=prefix)

    def report(*_: object) -> None:
        current().progress(1, 3)
        current().progress(float("nan"), 3)

    async def report_on_loop() -> None:
        report()

    def report_in_thread() -> None:
        report()

    if kind == "batch":
        task: Any = app.batch("t", max_wait=0, retry=0, retention=60)(report)
    else:
        task = app.task(name="t", retry=0, retention=60)(
            report_on_loop if kind == "loop" else report_in_thread
        )

    async def use() -> None:
        async with app.server():
            handle = await (task.enqueue(1) if kind == "batch" else task.enqueue())
            with pytest.raises(TaskFailed, match="InvalidTask: progress: done: nan is not a finit"):
                await handle.result(20)

    asyncio.run(use())
