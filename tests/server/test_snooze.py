"""If a handler asks to run later with Snooze, the attempt does not count, whatever the executor."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from qsync import (
    ConfigError,
    Mux,
    Qsync,
    RateLimited,
    Snooze,
    Task,
    TaskCancelled,
    TaskInfo,
    TaskNotFound,
    TaskStatus,
    current,
)
from qsync.contrib.prometheus import render, server_metrics
from qsync.handle import AsyncHandle
from qsync.inspector import Explanation, TaskDetail
from qsync.server.metrics import OUTCOMES
from qsync.server.outcome import SNOOZED_TOO_LONG
from qsync.server.run_metrics import RunMetrics
from qsync.server.server import Server
from tests.support import handlers
from tests.support.server import bench, until
from tests.support.stores import Store, wait_until_async


@pytest.fixture
def app(valkey: Store, prefix: str) -> Qsync:
    return Qsync(valkey.url, prefix=prefix, retry_delay=0.01, sweep=0.05, lease=2)


@pytest.mark.parametrize(
    ("delay", "message"),
    [
        (-1, "Snooze: delay: -1 is not between 0 and 315360000 seconds"),
        (float("nan"), "Snooze: delay: nan is not between"),
        (float("inf"), "Snooze: delay: inf is not between"),
        (timedelta(days=-1), "is not between 0"),
        (timedelta(days=4000), "is not between 0"),
        ("60", "Snooze: delay: '60' is neither a number of seconds nor a timedelta"),
        (True, "Snooze: delay: True is neither"),
        (None, "Snooze: delay: None is neither"),
    ],
)
def test_invalid_delay_is_refused_at_once(delay: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Snooze(delay)


def test_delay_may_be_seconds_or_a_timedelta() -> None:
    assert Snooze(0).delay_us == 0
    assert Snooze(1.5).delay_us == 1_500_000
    assert Snooze(timedelta(minutes=1), "closed").delay_us == 60_000_000
    assert str(Snooze(1, "closed")) == "closed"


@contextlib.asynccontextmanager
async def served(app: Qsync, mux: Mux, **config: Any) -> AsyncIterator[Server]:
    async with app, app.server(mux, **config) as server:
        yield server


async def snoozed(handle: AsyncHandle[Any]) -> TaskStatus:
    """Wait until a task is scheduled."""

    async def check() -> bool:
        return (await handle.info()).state == "scheduled"

    await wait_until_async(check)
    return await handle.info()


def on_loop(mux: Mux) -> None:
    @mux.handle("t")
    async def snooze(task: TaskInfo) -> None:
        raise Snooze(3600)


def in_thread(mux: Mux) -> None:
    @mux.handle("t")
    def snooze(task: TaskInfo) -> None:
        raise Snooze(3600)


def in_process(mux: Mux) -> None:
    mux.handle("t", executor="process")(handlers.snooze)


@pytest.mark.parametrize("place", [on_loop, in_thread, in_process])
async def test_snoozed_task_is_handed_back_uncharged_for_that_time(
    app: Qsync, place: Callable[[Mux], None], caplog: pytest.LogCaptureFixture
) -> None:
    mux, told = Mux(), list[tuple[str, str]]()
    place(mux)
    app.on("snoozed")(lambda task, error: told.append((task.id, type(error).__name__)))
    for event in ("failed", "dead"):
        app.on(event)(lambda task, error, event=event: told.append((task.id, event)))
    app.on("completed")(lambda task: told.append((task.id, "completed")))
    caplog.set_level(logging.INFO, logger="qsync.server")
    async with served(app, mux, on_error=lambda error, task: told.append((task.id, "on_error"))):
        client = app.async_client()
        async with client, app.inspector() as inspector:
            handle = await client.enqueue(Task("t", b"", retry=0))
            status = await snoozed(handle)
            assert status.due_at is not None
            assert 3590 < (status.due_at - datetime.now(UTC)).total_seconds() < 3601
            assert (status.attempt, status.last_error, status.crashes) == (1, None, 0)
            await until(lambda: len(told) == 1)
            detail: TaskDetail | None = await inspector.task(handle.id)
            why = await inspector.explain(handle.id)
    assert told == [(handle.id, "Snooze")]
    assert detail is not None
    assert (detail.snoozes, detail.attempt, detail.history, detail.error) == (1, 1, [], None)
    assert [event.what for event in detail.events] == ["enqueued", "snoozed", "due"]
    assert detail.events[-1].detail == "after its snooze"
    assert why.reason == "snoozed"
    assert why.sentence.startswith("Snoozed by its handler until 2")
    [record] = [one for one in caplog.records if getattr(one, "task_id", None) == handle.id]
    assert (record.levelname, vars(record)["snoozed_for_s"]) == ("INFO", 3600)
    assert record.getMessage().endswith("is snoozed for 3600 s: Snooze")


async def test_snooze_keeps_attempts_and_crashes_and_is_counted(app: Qsync) -> None:
    seen: list[tuple[int, int]] = []

    @app.task(name="t", retry=1)
    async def task() -> None:
        seen.append((current().task.attempt, current().task.crashes))
        if len(seen) == 2:
            raise ValueError("once")
        if len(seen) < 5:
            raise Snooze(0)
        raise Snooze(3600)

    async with app, app.server(), app.inspector() as inspector:
        handle = await task.enqueue()
        await until(lambda: len(seen) == 5)
        await snoozed(handle)
        detail = await inspector.task(handle.id)
        why: Explanation = await inspector.explain(handle.id)
    assert seen == [(1, 0), (1, 0), (2, 0), (2, 0), (2, 0)]
    assert detail is not None
    assert (detail.snoozes, [one.number for one in detail.history]) == (4, [1])
    assert why.sentence.startswith("Snoozed by its handler for the 4th time until 2")


async def test_snooze_beyond_the_deadline_is_dead_at_once(app: Qsync) -> None:
    told: list[tuple[str, str]] = []
    for event in ("snoozed", "failed", "dead"):
        app.on(event)(lambda task, error, event=event: told.append((event, str(error))))

    @app.task(name="t")
    async def task() -> None:
        raise Snooze(60)

    async with app, app.server(), app.inspector() as inspector:
        soon = datetime.now(UTC) + timedelta(seconds=30)
        handle = await task.options(deadline=soon).enqueue()
        await until(lambda: len(told) == 1)
        status = await handle.info()
        detail = await inspector.task(handle.id)
    assert told == [("dead", SNOOZED_TOO_LONG)]
    assert (status.state, status.last_error) == ("dead", SNOOZED_TOO_LONG)
    assert detail is not None
    assert detail.history == [], "no attempt failed"


async def test_snooze_within_the_deadline_waits(app: Qsync) -> None:
    @app.task(name="t")
    async def task() -> None:
        raise Snooze(10)

    async with app, app.server():
        soon = datetime.now(UTC) + timedelta(seconds=30)
        handle = await task.options(deadline=soon).enqueue()
        await snoozed(handle)


async def test_cancel_request_ends_a_task_that_snoozes(app: Qsync) -> None:
    told: list[str] = []
    started, asked = asyncio.Event(), asyncio.Event()
    app.on("completed")(lambda task: told.append("completed"))

    @app.task(name="t", retention=60)
    async def task() -> None:
        started.set()
        try:
            await asked.wait()
        except asyncio.CancelledError:
            raise Snooze(60) from None

    async with app, app.server():
        handle = await task.enqueue()
        await started.wait()
        assert await handle.cancel()
        with pytest.raises(TaskCancelled):
            await handle.result(10)
        assert (await handle.info()).state == "cancelled"
    assert told == []


async def test_handler_decides_after_its_timeout(app: Qsync) -> None:
    """As with Retry, the stopped handler's own exception decides the result, not the timeout."""

    @app.task(name="t", timeout=0.05, retry=0)
    async def task() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise Snooze(60) from None

    async with app, app.server():
        status = await snoozed(await task.enqueue())
    assert (status.attempt, status.last_error) == (1, None)


async def test_snooze_at_shutdown_keeps_its_delay(app: Qsync) -> None:
    started = asyncio.Event()

    @app.task(name="t")
    async def task() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise Snooze(60) from None

    async with app:
        async with app.server(shutdown_timeout=0):
            handle = await task.enqueue()
            await started.wait()
        status = await handle.info()
    assert (status.state, status.attempt) == ("scheduled", 1)


async def test_rules_for_retries_do_not_apply_to_a_snooze(app: Qsync) -> None:
    @app.task(name="t", dont_retry_for=Exception)
    async def task() -> None:
        raise Snooze(60)

    async with app, app.server():
        await snoozed(await task.enqueue())


async def test_middleware_sees_a_snooze_and_may_raise_one(app: Qsync) -> None:
    seen: list[type[BaseException]] = []

    async def closed_at_night(task: TaskInfo, call_next: Any) -> Any:
        try:
            return await call_next()
        except Snooze as error:
            seen.append(type(error))
            raise

    async def busy(task: TaskInfo, call_next: Any) -> Any:
        raise Snooze(3600)

    @app.task(name="t", middleware=[closed_at_night, busy])
    async def task() -> None: ...

    async with app, app.server():
        await snoozed(await task.enqueue())
    assert seen == [Snooze]


def test_snooze_has_a_separate_metric(valkey: Store, prefix: str) -> None:
    mux = Mux()
    on_loop(mux)

    async def main() -> str:
        async with bench(valkey.url, prefix) as b:
            server = b.server(mux)
            server.run_metrics = run_metrics = RunMetrics(["t"])
            async with server:
                handle = await b.client.enqueue(Task("t", b""))
                await b.reaches(handle.id, "scheduled")
                await until(lambda: run_metrics.rows()[0].outcomes[OUTCOMES.index("snoozed")] == 1)
                return render(server_metrics(run_metrics.rows(), [])).decode()

    text = asyncio.run(main())
    assert 'outcome="snoozed",queue="default",type="t"} 1' in text
    assert 'outcome="handed_back",queue="default",type="t"} 0' in text


async def test_batch_may_snooze_some_of_its_tasks(app: Qsync) -> None:
    told: list[str] = []
    app.on("snoozed")(lambda task, error: told.append(task.id))

    @app.batch("index", max_size=3, max_wait=0.2, limits=["api"])
    async def index(tasks: list[TaskInfo]) -> list[object]:
        outcomes: dict[bytes, object] = {b"now": None, b"later": Snooze(3600)}
        return [outcomes.get(task.payload, RateLimited(3600)) for task in tasks]

    app.limit("api", rate=1_000_000, per=1, burst=1000)
    async with app, app.server(), app.async_client() as client:
        kinds = (b"now", b"later", b"closed")
        done, later, closed = await client.enqueue_many([index.build(kind) for kind in kinds])
        status = await snoozed(later)
        assert status.attempt == 1

        async def limited() -> bool:
            return (await closed.info()).state == "limited"

        await wait_until_async(limited)
        await until(lambda: len(told) == 2)
        assert sorted(told) == sorted([later.id, closed.id])
        with pytest.raises(TaskNotFound):
            await done.info()
