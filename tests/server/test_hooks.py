"""Hooks of `app.on`: their calls, arguments, threads and errors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from qsync import ConfigError, Qsync, Retry, SkipRetry, Task, TaskCancelled, TaskFailed, TaskInfo
from qsync.broker import op_values, ops, redis_clients
from qsync.broker.blocking import Broker
from qsync.keys import QueueKeys
from tests.support.stores import Store, wait_until_async

ChannelEvent = list[tuple[str, Any, Any]]


@pytest.fixture
def app(valkey: Store, prefix: str) -> Qsync:
    return Qsync(valkey.url, prefix=prefix, retry_delay=0.02, sweep=0.05)


def hear(app: Qsync) -> ChannelEvent:
    """Register a hook for each event; return a list to which the hooks append event, task and
    error."""
    heard: ChannelEvent = []
    for event in ("enqueued", "started", "completed"):
        app.on(event)(lambda task, event=event: heard.append((event, task, None)))
    for event in ("failed", "dead"):
        app.on(event)(lambda task, error, event=event: heard.append((event, task, error)))
    return heard


def events(heard: ChannelEvent) -> list[str]:
    return [event for event, _, _ in heard]


def test_a_task_that_completes_is_enqueued_started_completed(app: Qsync) -> None:
    heard = hear(app)

    @app.task(name="add", headers={"from": "test"})
    async def add(a: int) -> int:
        return a

    async def main() -> None:
        async with app.server():
            handle = await add.enqueue(7)
            await wait_until_async(lambda: len(heard) == 3)
        assert events(heard) == ["enqueued", "started", "completed"]
        for _, task, _ in heard:
            assert isinstance(task, TaskInfo)
            assert (task.id, task.type, task.queue, task.attempt) == (
                handle.id, "add", "default", 1,
            )  # fmt: skip
            assert task.value() == {"a": 7}
            assert task.headers == {"from": "test"}
            assert abs(task.enqueued_at - datetime.now(UTC)) < timedelta(seconds=30)

    asyncio.run(main())


def test_failed_hook_runs_for_each_attempt_and_dead_hook_at_the_end(app: Qsync) -> None:
    heard = hear(app)

    @app.task(name="break", retry=1)
    async def fail() -> None:
        raise ValueError("no")

    async def main() -> None:
        async with app.server():
            await fail.enqueue()
            await wait_until_async(lambda: "dead" in events(heard))

    asyncio.run(main())
    # The server may start the task before the client has read the reply to the enqueue.
    told = [(event, task.attempt, task.final) for event, task, _ in heard if event != "enqueued"]
    assert told == [
        ("started", 1, False), ("failed", 1, False), ("started", 2, False), ("failed", 2, True),
        ("dead", 2, True),
    ]  # fmt: skip
    assert all(isinstance(error, ValueError) for event, _, error in heard if event == "failed")
    assert isinstance(heard[-1][2], ValueError)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Retry(delay=0), ["started", "started", "failed", "dead"]),
        (SkipRetry("never"), ["started", "dead"]),
    ],
)
def test_requested_outcome_is_not_a_failure(
    app: Qsync, error: Exception, expected: list[str]
) -> None:
    heard = hear(app)

    @app.task(name="ask", retry=1)
    async def ask() -> None:
        raise error

    async def main() -> None:
        async with app.server():
            await ask.enqueue()
            await wait_until_async(lambda: "dead" in events(heard))

    asyncio.run(main())
    assert [event for event in events(heard) if event != "enqueued"] == expected


def test_a_task_that_cannot_start_in_time_is_dead_without_a_failure(app: Qsync) -> None:
    heard = hear(app)

    @app.task(name="late")
    async def late() -> None: ...

    async def main() -> None:
        soon = datetime.now(UTC) + timedelta(seconds=0.05)
        await late.options(deadline=soon).enqueue()
        await wait_until_async(lambda: datetime.now(UTC) > soon)
        async with app.server():
            await wait_until_async(lambda: "dead" in events(heard))

    asyncio.run(main())
    assert events(heard) == ["enqueued", "dead"]
    assert isinstance(heard[1][2], TaskFailed)
    assert "deadline" in str(heard[1][2])


def test_a_task_that_killed_its_servers_is_dead(app: Qsync, valkey: Store, prefix: str) -> None:
    heard = hear(app)

    @app.task(name="poison")
    async def poison(text: str) -> None: ...

    async def main() -> None:
        await poison.enqueue("x" * 10_000)
        keys = QueueKeys(prefix, "default")
        with contextlib.closing(Broker(redis_clients.parse(valkey.url))) as broker:
            for number in range(1, 4):
                crash(broker, keys, f"dead-{number}")
        async with app.server(max_crashes=3):
            await wait_until_async(lambda: "dead" in events(heard))

    asyncio.run(main())
    event, task, error = heard[-1]
    assert (event, task.type, task.crashes, task.final) == ("dead", "poison", 3, True)
    assert len(task.payload) > 10_000
    assert "crashed 3 times" in str(error)


def crash(broker: Broker, keys: QueueKeys, server: str) -> None:
    """Let a server fetch the task, start it and die."""
    policy = op_values.FetchPolicy(
        lease_us=30_000_000, max_crashes=3, dead_limit=100, dead_age_us=10**12
    )
    fetched = broker.run(ops.fetch(keys, server=server, number=1, wanted=1, policy=policy))
    assert len(fetched.ids) == 1
    broker.run(ops.mark_started(keys, [op_values.LeaseRef(fetched.ids[0], f"{server}/1")]))
    cursor, _ = broker.run(ops.abandon(keys, server))
    assert cursor == "0"


def test_an_error_of_a_hook_is_logged_and_changes_nothing(
    app: Qsync, caplog: pytest.LogCaptureFixture
) -> None:
    @app.on("enqueued")
    @app.on("started")
    @app.on("completed")
    async def broken(task: TaskInfo) -> None:
        raise RuntimeError(f"secret of {task.id}")

    heard: list[str] = []
    app.on("completed")(lambda task: heard.append(task.id))

    @app.task(name="fine", retention=60)
    async def fine() -> int:
        return 7

    async def main() -> None:
        async with app.server():
            handle = await fine.enqueue()
            assert await handle.result(10) == 7
            await wait_until_async(lambda: heard == [handle.id])

    with caplog.at_level(logging.ERROR, "qsync.hooks"):
        asyncio.run(main())
    texts = [record.getMessage() for record in caplog.records if record.name == "qsync.hooks"]
    for text, event in zip(texts, ("enqueued", "started", "completed"), strict=True):
        assert f"of event '{event}' raised RuntimeError" in text
        assert "secret" not in text


@pytest.mark.parametrize("threaded", [False, True], ids=["loop", "thread"])
@pytest.mark.parametrize(
    "error", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError]
)
def test_any_error_of_a_server_hook_is_logged_and_changes_nothing(
    app: Qsync, caplog: pytest.LogCaptureFixture, error: type[BaseException], threaded: bool
) -> None:
    heard: list[str] = []

    def broken(task: TaskInfo, why: BaseException | None = None) -> None:
        raise error

    for event in ("started", "completed", "failed", "dead"):
        app.on(event)(broken)
    app.on("completed")(lambda task: heard.append(task.type))
    app.on("dead")(lambda task, why: heard.append(task.type))

    def fine() -> int:
        return 7

    async def fine_on_loop() -> int:
        return 7

    def bad() -> None:
        raise ValueError("no")

    works = app.task(name="fine", retention=60)(fine if threaded else fine_on_loop)
    fails = app.task(name="bad", retry=0)(bad)

    async def main() -> None:
        async with app.server():
            assert await (await works.enqueue()).result(10) == 7
            await wait_until_async(lambda: heard == ["fine"])
            await fails.enqueue()
            await wait_until_async(lambda: heard == ["fine", "bad"])

    with caplog.at_level(logging.ERROR, "qsync.hooks"):
        asyncio.run(main())
    texts = [record.getMessage() for record in caplog.records if record.name == "qsync.hooks"]
    for text, event in zip(
        texts, ("started", "completed", "started", "failed", "dead"), strict=True
    ):
        assert f"of event '{event}' raised {error.__name__}" in text


@pytest.mark.parametrize("error", [SystemExit, GeneratorExit, asyncio.CancelledError])
def test_any_error_of_an_enqueued_hook_is_logged_and_the_handle_returned(
    app: Qsync, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    ended: list[str] = []

    @app.on("enqueued")
    def broken(task: TaskInfo) -> None:
        raise error

    @app.on("enqueued")
    async def broken_coroutine(task: TaskInfo) -> None:
        ended.append(task.id)
        raise error

    @app.task(name="fine")
    async def fine() -> None: ...

    async def main() -> None:
        async with app:
            assert (await fine.enqueue()).created
            with app.client() as client:  # in a running loop, a coroutine hook runs in a task
                assert client.enqueue(Task("fine")).created
            await wait_until_async(lambda: len(ended) == 2)

    with caplog.at_level(logging.ERROR, "qsync.hooks"):
        asyncio.run(main())
        with app:
            assert fine.enqueue_sync().created
    texts = [record.getMessage() for record in caplog.records if record.name == "qsync.hooks"]
    assert len(texts) == 6
    assert all(f"of event 'enqueued' raised {error.__name__}" in text for text in texts)


def test_cancelling_a_caller_whose_hook_waits_cancels_the_caller(app: Qsync) -> None:
    waits = asyncio.Event()

    @app.on("enqueued")
    async def slow(task: TaskInfo) -> None:
        waits.set()
        await asyncio.Event().wait()

    @app.task(name="fine")
    async def fine() -> None: ...

    async def main() -> None:
        async with app:
            caller = asyncio.create_task(fine.enqueue())
            await waits.wait()
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller

    asyncio.run(main())


def test_ctrl_c_during_an_enqueued_hook_reaches_the_program(app: Qsync) -> None:
    @app.on("enqueued")
    def interrupted(task: TaskInfo) -> None:
        raise KeyboardInterrupt

    @app.task(name="fine")
    async def fine() -> None: ...

    with app, pytest.raises(KeyboardInterrupt):
        fine.enqueue_sync()


def test_timeout_and_cancellation_stop_a_started_hook_that_waits(app: Qsync) -> None:
    waits: list[str] = []

    @app.on("started")
    async def slow(task: TaskInfo) -> None:
        waits.append(task.id)
        await asyncio.Event().wait()

    @app.task(name="fine", retention=60, retry=0)
    async def fine() -> None: ...

    async def main() -> None:
        async with app.server():
            late = await fine.options(timeout=0.05).enqueue()
            with pytest.raises(TaskFailed, match=r"timed out after 0\.05 s"):
                await late.result(10)
            cancelled = await fine.enqueue()
            await wait_until_async(lambda: len(waits) == 2)
            await cancelled.cancel()
            with pytest.raises(TaskCancelled):
                await cancelled.result(10)

    asyncio.run(main())


def test_hooks_run_in_the_documented_threads(app: Qsync) -> None:
    where: dict[str, str] = {}

    @app.on("started")
    def plain(task: TaskInfo) -> None:
        where[f"plain {task.type}"] = threading.current_thread().name

    @app.on("completed")
    async def coroutine(task: TaskInfo) -> None:
        where[f"async {task.type}"] = threading.current_thread().name

    @app.task(name="loop")
    async def on_loop() -> None: ...

    @app.task(name="thread")
    def in_thread() -> None: ...

    async def main() -> None:
        async with app.server():
            await on_loop.enqueue()
            await in_thread.enqueue()
            await wait_until_async(lambda: len(where) == 4)

    asyncio.run(main())
    here = threading.current_thread().name
    assert where["plain thread"].startswith("qsync-")
    assert {where[name] for name in where if name != "plain thread"} == {here}


def test_enqueued_hook_runs_once_per_new_task_of_every_client(app: Qsync) -> None:
    heard: list[str] = []

    @app.on("enqueued")
    def plain(task: TaskInfo) -> None:
        heard.append(f"plain {task.id}")

    @app.on("enqueued")
    async def coroutine(task: TaskInfo) -> None:
        await asyncio.sleep(0)
        heard.append(f"async {task.id}")

    @app.task(name="t")
    async def t() -> None: ...

    async def main() -> None:
        await t.options(id="b").enqueue()
        async with app.async_client() as client:
            handles = await client.enqueue_many([Task("t", id="b"), Task("t", id="c")])
            assert [handle.created for handle in handles] == [False, True]

    with app:
        t.options(id="a").enqueue_sync()
        with app.client() as client:
            client.enqueue_many([Task("t", id="a"), Task("t", id="d")])
        asyncio.run(main())
    assert heard == [f"{kind} {id}" for id in "adbc" for kind in ("plain", "async")]


def test_enqueued_hook_runs_for_enqueues_of_handlers(app: Qsync) -> None:
    heard: list[str] = []
    app.on("enqueued")(lambda task: heard.append(task.type))

    @app.task(name="inner")
    async def inner() -> None: ...

    @app.task(name="outer")
    async def outer() -> None:
        await inner.enqueue()

    async def main() -> None:
        async with app.server():
            await outer.enqueue()
            await wait_until_async(lambda: heard == ["outer", "inner"])

    asyncio.run(main())


def test_enqueued_hook_runs_for_ticks(app: Qsync) -> None:
    heard: list[tuple[str, str]] = []

    @app.on("enqueued")
    def hear(task: TaskInfo) -> None:
        heard.append((task.id.partition("@")[0], task.type))

    @app.periodic(every=0.1, name="often", queue="other")
    async def often() -> None: ...

    async def main() -> None:
        async with app.async_client() as client, app.server(queues=["default"]):
            await client.schedules.put("plain", Task("of.others"), every=0.1)
            await client.schedules.put("lone", Task("lone", unique=True), every=0.1)
            ticks = {("often", "often"), ("plain", "of.others"), ("lone", "lone")}
            await wait_until_async(lambda: ticks <= set(heard))
            count = heard.count(("plain", "of.others"))
            await wait_until_async(lambda: heard.count(("plain", "of.others")) > count + 2)
        assert heard.count(("lone", "lone")) == 1, "the first task holds the unique lock"

    asyncio.run(main())
    assert set(heard) == {("often", "often"), ("plain", "of.others"), ("lone", "lone")}


def test_wrong_hooks_are_refused(app: Qsync) -> None:
    with pytest.raises(ConfigError, match="no event 'ended'; use one of enqueued, started, comp"):
        app.on("ended")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"on 'failed': .* is not a function \(task, error\)"):
        app.on("failed")(lambda task: None)
    with pytest.raises(ConfigError, match=r"on 'started': 7 is not a function \(task\)"):
        app.on("started")(7)  # type: ignore[type-var]

    @app.task(name="used")
    async def used() -> None: ...

    with app:
        used.enqueue_sync()
        with pytest.raises(ConfigError, match="has already enqueued"):
            app.on("enqueued")
        app.on("started")(lambda task: None)
