"""What mypy --strict must accept, with the types that it must see."""

from __future__ import annotations

from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, assert_type

from qsync import AsyncHandle, CallNext, Handle, Middleware, Qsync, Task, TaskInfo
from qsync.typed import TaskFunction

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
    assert_type(double.build("a"), Task)

    assert_type(await first.enqueue("path", 1, 2), AsyncHandle[dict[str, int]])
    assert_type(last.enqueue_sync(much=True), Handle[None])
    assert_type(await report.enqueue(), AsyncHandle[None])
    assert_type(await tick.enqueue(step=1.5), AsyncHandle[float])
    assert_type(tick(1.5), float)


async def call_in_place(info: TaskInfo) -> None:
    assert_type(await first(info, "path", 1), dict[str, int])
    last(info, much=False)
    await report(info)


def takes_any_task(task: TaskFunction[..., Any, ..., Any]) -> str:
    return task.name


takes_any_task(add)
takes_any_task(last)
