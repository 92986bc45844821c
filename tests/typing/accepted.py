"""Code that mypy --strict must accept, with the types that it must infer."""

from __future__ import annotations

from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, assert_type

from qsync import (
    AsyncClient,
    AsyncHandle,
    CallNext,
    Client,
    Handle,
    Middleware,
    Qsync,
    Task,
    TaskInfo,
    current,
)
from qsync.batch_function import BatchFunction
from qsync.mux import CallNextInThread
from qsync.server.current import Current
from qsync.task_function import TaskFunction

app = Qsync("redis://localhost")


@app.task
async def add(a: int, b: int = 2) -> int:
    return a + b


@app.task(retry=5, queue="critical", retention=timedelta(hours=1))
def double(text: str, *, times: int = 2) -> str:
    return text * times


@app.task("named")
async def first(task: TaskInfo, path: str, *more: int) -> dict[str, int]:
    return {path: task.attempt + sum(more)}


@app.task(executor="process")
def last(task: TaskInfo, /, **extra: bool) -> None:
    assert task.id, extra


@app.batch("index", max_size=10, max_wait=timedelta(seconds=1), retry=5, middleware=[])
async def index(tasks: list[TaskInfo]) -> list[int]:
    return [task.value(int) for task in tasks]


@app.batch(max_wait=0)
def index_in_thread(tasks: list[TaskInfo]) -> None: ...


assert_type(index, BatchFunction[Coroutine[Any, Any, list[int]]])
assert_type(index_in_thread, BatchFunction[None])
assert_type(index_in_thread.enqueue_sync({"id": 7}), Handle[Any])


async def log(task: TaskInfo, call_next: CallNext) -> Any:
    return await call_next(task)


around: Middleware = log


@app.periodic(cron="*/5 * * * *", tz="Europe/Moscow", missed="once", middleware=[around])
async def report(task: TaskInfo) -> None:
    assert task.id


@app.periodic(every=30, name="often", queue="lower")
@app.task
def tick(step: float = 0.5) -> float:
    return step


async def use() -> None:
    handle = await add.enqueue(1, b=2)
    assert_type(handle, AsyncHandle[int])
    assert_type(await handle.result(timeout=3), int)
    coroutine = assert_type(add(1), Coroutine[Any, Any, int])
    assert_type(await coroutine, int)
    assert_type(await add.options(delay=60, queue="lower").enqueue(3), AsyncHandle[int])

    assert_type(double.enqueue_sync("a", times=3), Handle[str])
    assert_type(double.enqueue_sync("a").result(), str)
    assert_type(double("a", times=3), str)
    assert_type(double.build("a"), Task[str])

    assert_type(await first.enqueue("path", 1, 2), AsyncHandle[dict[str, int]])
    assert_type(last.enqueue_sync(much=True), Handle[None])
    assert_type(await report.enqueue(), AsyncHandle[None])
    assert_type(await tick.enqueue(step=1.5), AsyncHandle[float])
    assert_type(tick(1.5), float)
    assert_type(await clean.enqueue("us", full=True), AsyncHandle[None])
    assert_type(await doubled.enqueue("a"), AsyncHandle[str])


async def use_clients(client: AsyncClient, blocking: Client) -> None:
    assert_type(await client.enqueue(add.build(1)), AsyncHandle[int])
    assert_type(await client.enqueue_many([add.build(1), add.build(2)]), list[AsyncHandle[int]])
    assert_type(blocking.enqueue_many(double.build(text) for text in "ab"), list[Handle[str]])
    plain: Task = Task("t", b"payload")
    assert_type(blocking.enqueue(plain), Handle[Any])
    assert_type(await client.enqueue(Task("t")), AsyncHandle[Any])
    mixed = await client.enqueue_many([add.build(1), double.build("a")])
    assert_type(mixed[0].id, str)

    assert_type(client.handle("id"), AsyncHandle[Any])
    assert_type(client.handle("id", queue="lower", type=int), AsyncHandle[int])
    assert_type(blocking.handle("id", type=list[int]).result(), list[int])
    assert_type(await client.find("id", type=str), AsyncHandle[str])
    assert_type(blocking.find("id"), Handle[Any])


@app.periodic(every=60, arguments={"region": "eu"})
async def clean(region: str, *, full: bool = False) -> None: ...


@app.periodic(every=60, arguments={"text": "a"}, name="doubles")
@app.task("doubled")
def doubled(text: str) -> str:
    return text * 2


class State:
    mail: str = ""


def connected(task: TaskInfo, call_next: CallNextInThread) -> Any:
    return call_next()


@app.task(
    "threaded", middleware=[connected, log], retry_for=(OSError,), retry_delay=lambda n, error: n
)
def threaded() -> None:
    assert_type(current(State).state.mail, str)
    assert_type(current(), Current)
    current().progress(1, 2)


async def call_in_place(info: TaskInfo) -> None:
    assert_type(await first(info, "path", 1), dict[str, int])
    last(info, much=False)
    await report(info)


def takes_any_task(task: TaskFunction[..., Any, ..., Any]) -> str:
    return task.name


takes_any_task(add)
takes_any_task(last)
