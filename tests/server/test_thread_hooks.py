"""Middleware and `on_error` that run in the thread of a `def` handler, and servers that lack
handlers for some types."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest

from qsync import CallNext, ConfigError, Mux, Qsync, Task, TaskFailed, TaskInfo
from tests.support.handlers import look
from tests.support.stores import Store, wait_until_async


@pytest.fixture
def app(valkey: Store, prefix: str) -> Qsync:
    return Qsync(valkey.url, prefix=prefix)


def test_def_middleware_goes_around_a_def_handler_in_its_thread(app: Qsync) -> None:
    seen: list[tuple[str, int]] = []
    local = threading.local()

    def note(name: str) -> None:
        seen.append((name, threading.get_ident()))

    def connected(task: TaskInfo, call_next: Any) -> Any:
        note("before")
        local.connection = task.id
        try:
            return call_next() + 1
        except ValueError:
            note("failed")
            raise
        finally:
            note("after")

    async def outer(task: TaskInfo, call_next: CallNext) -> Any:
        note("outer")
        return await call_next() * 10

    def inner(task: TaskInfo, call_next: Any) -> Any:
        note("inner")
        return call_next(task)

    @app.task(name="work", retention=60, retry=0, middleware=[inner])
    def work(fails: bool) -> int:
        note("work")
        assert local.connection
        if fails:
            raise ValueError
        return 4

    @app.task(name="loop", retention=60)
    async def loop() -> int:
        note("loop")
        return 4

    def tell(error: BaseException, task: TaskInfo) -> None:
        note(f"told of {task.type}")

    async def use() -> None:
        options: Any = {"middleware": [connected, outer], "on_error": tell, "threads": 1}
        async with app, app.server(**options):
            assert await (await work.enqueue(fails=False)).result(30) == 50
            assert await (await loop.enqueue()).result(30) == 40
            with pytest.raises(TaskFailed):
                await (await work.enqueue(fails=True)).result(30)
            await wait_until_async(lambda: seen[-1][0] == "told of work")

    asyncio.run(use())
    names = [name for name, _ in seen]
    assert names == [
        "outer", "before", "inner", "work", "after", "outer", "loop",
        "outer", "before", "inner", "work", "failed", "after", "told of work",
    ]  # fmt: skip
    main = threading.get_ident()
    on_loop = {"outer", "loop"}
    assert all((thread == main) is (name in on_loop) for name, thread in seen)
    assert len({thread for _, thread in seen}) == 2


def test_def_middleware_may_change_the_task(app: Qsync) -> None:
    mux = Mux()

    def renames(task: TaskInfo, call_next: Any) -> Any:
        import msgspec

        return call_next(msgspec.structs.replace(task, payload=b"other"))

    @mux.handle("t", middleware=[renames])
    def handler(task: TaskInfo) -> bytes:
        return task.payload

    async def use() -> None:
        async with app, app.server(mux), app.async_client() as client:
            handle = await client.enqueue(Task("t", b"one", retention=60))
            assert await handle.result(30) == b"other"

    asyncio.run(use())


def test_def_middleware_of_another_handler_is_refused() -> None:
    def around(task: TaskInfo, call_next: Any) -> Any:
        return call_next()

    async def on_loop(task: TaskInfo) -> None: ...

    mux = Mux()
    with pytest.raises(
        ConfigError, match="`def` middleware works only with `def` handlers in threads"
    ):
        mux.handle("t", middleware=[around])(on_loop)
    with pytest.raises(
        ConfigError, match="`def` middleware works only with `def` handlers in threads"
    ):
        mux.handle("u", executor="process", middleware=[around])(look)


def test_two_apps_that_share_a_queue_are_named(
    valkey: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = Mux(), Mux()
    release = asyncio.Event()

    @ours.handle("ours")
    async def our(task: TaskInfo) -> None: ...

    @theirs.handle("theirs")
    async def their(task: TaskInfo) -> None:
        await release.wait()

    def said() -> list[str]:
        return [
            record.getMessage()
            for record in caplog.records
            if record.levelno == logging.WARNING and "two programs" in record.getMessage()
        ]

    async def use() -> None:
        app = Qsync(valkey.url, prefix=prefix)
        other = app.server(theirs, concurrency=1, prefetch=0)
        async with app, app.async_client() as client, app.inspector() as inspector, other:

            async def known() -> bool:
                return any("theirs" in one.types for one in await inspector.servers())

            await wait_until_async(known)
            await client.enqueue(Task("theirs"))  # from here on, the other server is full
            async with app.server(ours):
                for _ in range(3):
                    await client.enqueue(Task("theirs"))
                await wait_until_async(said)
                release.set()
            assert other.id in said()[0]

    asyncio.run(use())
    [text] = said()
    assert "type theirs" in text
    assert f"prefix {prefix}" in text
