"""With qsync.testing.inline, tasks run within the call and use every part of qsync except the
store."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import Any

import pytest

from qsync import (
    CallNext,
    ConfigError,
    InvalidTask,
    Mux,
    Qsync,
    Retry,
    Task,
    TaskInfo,
    TaskNotFound,
    current,
)
from qsync.testing import context, inline


@dataclass
class Invoice:
    number: int


ran: list[Any] = []


@pytest.fixture
def app() -> Qsync:
    ran.clear()

    async def around(task: TaskInfo, call_next: CallNext) -> Any:
        ran.append(f"before {task.type}")
        return await call_next()

    mux = Mux()
    mux.handle("plain")(lambda task: ran.append(task.payload))
    return Qsync("redis://127.0.0.1:1", mux=mux, middleware=[around], patience=0)


def test_a_blocking_enqueue_runs_a_def_handler_in_its_thread(app: Qsync) -> None:
    @app.task(name="send", retention=60)
    def send(invoice: Invoice) -> Invoice:
        ran.append((invoice, threading.current_thread()))
        return Invoice(invoice.number + 1)

    @app.task(name="outer")
    async def outer(number: int) -> None:
        handle = await send.enqueue(Invoice(number))
        assert await handle.result() == Invoice(number + 1)

    with inline(app):
        handle = send.enqueue_sync(Invoice(7))
        assert ran == ["before send", (Invoice(7), threading.current_thread())]
        assert handle.result() == Invoice(8)
        assert handle.created
        assert handle.info().state == "completed"
        outer.enqueue_sync(9)
        assert ran[2:4] == ["before outer", "before send"]
        assert ran[4][0] == Invoice(9)
        with app.client() as client:
            client.enqueue_many([Task("plain", b"a", delay=60), Task("plain", b"b")])
        assert ran[5:] == ["before plain", b"a", "before plain", b"b"]
        assert not handle.cancel()


def test_an_awaited_enqueue_runs_the_handler(app: Qsync) -> None:
    @app.task(name="send", retention=60)
    async def send(number: int) -> int:
        return number + 1

    @app.task(name="thread")
    def in_thread(number: int) -> None:
        ran.append(current().client.enqueue(send.build(number)).result())

    async def main() -> None:
        with inline(app):
            assert await (await send.enqueue(1)).result() == 2
            handle = await in_thread.enqueue(5)
            with pytest.raises(InvalidTask, match="retention"):
                await handle.result()
            with pytest.raises(TaskNotFound):
                await handle.info()
            async with app.async_client() as client:
                await client.enqueue_many([Task("plain", b"a")])

    asyncio.run(main())
    assert ran == [
        "before send", "before thread", "before send", 6, "before plain", b"a",
    ]  # fmt: skip


def test_errors_are_raised_by_the_enqueue_without_a_retry(app: Qsync) -> None:
    @app.task(name="fail")
    async def fail(how: str) -> None:
        ran.append(how)
        raise Retry if how == "retry" else ValueError(how)

    @app.task(name="returns a coroutine")
    def forgets() -> Any:
        return asyncio.sleep(0)

    with inline(app):
        with pytest.raises(ValueError, match="bad"):
            fail.enqueue_sync("bad")
        with pytest.raises(Retry):
            fail.enqueue_sync("retry")
        assert ran == ["before fail", "bad", "before fail", "retry"]
        with pytest.raises(Exception, match="returned a coroutine, whose body did not run"):
            forgets.enqueue_sync()
        with pytest.raises(InvalidTask):
            fail.enqueue_sync(object())  # type: ignore[arg-type]
        with app.client() as client:
            with pytest.raises(Exception, match="argument 'how'"):
                client.enqueue(Task("fail", {"how": 7}))
            with pytest.raises(ConfigError, match="no handler for type 'strange'"):
                client.enqueue(Task("strange"))


def test_handler_has_its_task_and_the_state_from_outside_the_block(app: Qsync) -> None:
    @app.task(name="look", headers={"from": "test"})
    def look() -> None:
        here = current()
        here.progress(1, 2)
        ran.append((here.task.headers, here.state, here.cancelled))

    with context(state="mail"), inline(app):
        look.enqueue_sync()
    assert ran[1:] == [({"from": "test"}, "mail", False)]


def test_after_the_block_the_app_has_its_store_again(app: Qsync) -> None:
    @app.task(name="send")
    def send() -> None:
        ran.append("sent")

    async def main() -> None:
        with inline(app):
            await send.enqueue()
        await asyncio.sleep(0)

    before = str(app)
    asyncio.run(main())
    assert str(app) == before
    with pytest.raises(ConnectionError):
        send.enqueue_sync()
    app.close()


def test_enqueued_hooks_are_called(app: Qsync) -> None:
    app.on("enqueued")(lambda task: ran.append(f"enqueued {task.type}"))

    @app.task(name="send")
    def send() -> None: ...

    with inline(app):
        send.enqueue_sync()
    assert ran == ["before send", "enqueued send"]


def test_a_batch_handler_gets_each_task_alone(app: Qsync) -> None:
    @app.batch("index", retention=60)
    def index(tasks: list[TaskInfo]) -> list[Any]:
        value = tasks[0].value()
        return [ValueError("seven") if value == 7 else (value, len(current().tasks))]

    with inline(app):
        assert index.enqueue_sync(5).result() == (5, 1)
        with pytest.raises(ValueError, match="seven"):
            index.enqueue_sync(7)


def test_calls_that_need_a_store_raise_without_one(app: Qsync) -> None:
    @app.task(name="send", retention=60)
    def send() -> None: ...

    async def put() -> None:
        async with app.async_client() as client:
            await client.schedules.put("daily", send.build(), every=3600)

    with inline(app):
        with pytest.raises(ConfigError, match="reschedule needs a store, and inside the block"):
            send.enqueue_sync().reschedule(delay=30)
        with pytest.raises(ConfigError, match=r"needs a store.*use the fixture qsync"):
            asyncio.run(put())
    with pytest.raises(ConfigError, match="'shop:app' is not a Qsync"), inline("shop:app"):  # type: ignore[arg-type]
        pass
