"""Servers on real stores: every outcome, option and hook."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import re
import sys
import threading
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import qsync
import qsync.server.current
from qsync.errors import ConfigError, Retry, SkipRetry, TaskCancelled, TaskFailed
from qsync.mux import CallNext, Mux
from qsync.server.current import current
from qsync.server.server import Server
from qsync.task import Task, TaskInfo
from tests.support import handlers as process_handlers
from tests.support.acl import LIMITED
from tests.support.mutation import planted
from tests.support.server import bench, left_over, until
from tests.support.stores import Store, wait_until_async


def test_a_task_runs_once_and_leaves_nothing(store: Store, prefix: str) -> None:
    async def main() -> None:
        mux, seen = Mux(), list[TaskInfo]()

        @mux.handle("greet")
        async def greet(task: TaskInfo) -> None:
            seen.append(task)

        async with bench(store.url, prefix) as b, b.server(mux):
            handle = await b.client.enqueue(Task("greet", {"name": "Ada"}, headers={"a": "b"}))
            await b.gone(handle.id)
            [task] = seen
            assert (task.id, task.type, task.queue) == (handle.id, "greet", "default")
            assert task.value() == {"name": "Ada"}
            assert (task.attempt, task.crashes, task.retry) == (1, 0, 3)
            assert dict(task.headers) == {"a": "b"}
            assert abs(task.enqueued_at - datetime.now(UTC)) < timedelta(minutes=1)

    asyncio.run(main())
    assert left_over(store.client(), prefix) == {}


def test_a_failed_task_is_retried_with_its_delay_and_then_succeeds(
    store: Store, prefix: str
) -> None:
    async def main() -> None:
        mux, attempts = Mux(), list[int]()

        @mux.handle("flaky")
        async def flaky(task: TaskInfo) -> None:
            attempts.append(task.attempt)
            if task.attempt < 3:
                raise ValueError("not yet")

        async with bench(store.url, prefix) as b, b.server(mux):
            began = time.monotonic()
            handle = await b.client.enqueue(Task("flaky", retry=2, retry_delay=0.05))
            await b.gone(handle.id)
            assert attempts == [1, 2, 3]
            assert time.monotonic() - began >= 0.1

    asyncio.run(main())
    assert left_over(store.client(), prefix) == {}


async def test_a_task_without_attempts_left_is_dead_and_kept(store: Store, prefix: str) -> None:
    mux = Mux()

    @mux.handle("bad")
    async def bad(task: TaskInfo) -> None:
        raise ValueError("no good")

    async with bench(store.url, prefix) as b, b.server(mux):
        handle = await b.client.enqueue(Task("bad", retry=1, retry_delay=0, retention=60))
        with pytest.raises(TaskFailed, match="ValueError: no good"):
            await handle.result(timeout=5)
        info = await handle.info()
        assert (info.state, info.attempt) == ("dead", 2)
        assert info.last_error is not None
        assert "test_server.py" in info.last_error  # the traceback


async def test_handler_body_that_did_not_run_is_not_a_success(store: Store, prefix: str) -> None:
    """A decorator hides that the handler is async, or a middleware does not await the handler."""

    async def forgets(task: TaskInfo, call_next: CallNext) -> Any:
        return call_next()

    mux = Mux()

    def hidden(function: Any) -> Any:
        return lambda task: function(task)

    async def body(task: TaskInfo) -> None: ...
    async def stream(task: TaskInfo) -> AsyncIterator[int]:
        yield 1

    mux.handle("coroutine")(hidden(body))
    mux.handle("generator")(hidden(lambda task: (n for n in [task])))
    mux.handle("async generator")(hidden(stream))
    mux.handle("forgotten", middleware=[forgets])(body)
    async with bench(store.url, prefix) as b, b.server(mux):
        for type in mux.types:
            handle = await b.client.enqueue(Task(type))
            await b.reaches(handle.id, "dead")
            info = await handle.info()
            assert info.attempt == 1  # another attempt would fail as well
            what = "coroutine" if type == "forgotten" else type
            assert re.fullmatch(
                f"NeverRun: the handler returned an? {what}, .* did not run: .*",
                str(info.last_error),
            )


async def test_an_error_is_kept_with_its_causes_and_the_users_lines_alone(
    store: Store, prefix: str
) -> None:
    """Only 4 KiB of an error are stored. The frames that call the handler are left out, because
    they are always the same."""

    async def around(task: TaskInfo, call_next: CallNext) -> Any:
        return await call_next()

    mux = Mux()

    def parse(text: str) -> int:
        return int(text)

    @mux.handle("from", middleware=[around, around])
    def raised_from(task: TaskInfo) -> None:
        try:
            parse("x")
        except ValueError as error:
            raise LookupError("no such order") from error

    @mux.handle("while")
    async def raised_while(task: TaskInfo) -> None:
        try:
            parse("x")
        except ValueError:
            raise LookupError("no such order")  # noqa: B904 - the point of this test

    @mux.handle("group")
    async def group(task: TaskInfo) -> None:
        async def one() -> None:
            parse("x")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(one())

    @mux.handle("alone")
    async def alone(task: TaskInfo) -> None:
        try:
            parse("x")
        except ValueError:
            raise LookupError("no such order") from None

    async with bench(store.url, prefix) as b, b.server(mux):
        errors = {}
        for type in mux.types:
            handle = await b.client.enqueue(Task(type, retry=0))
            await b.reaches(handle.id, "dead")
            errors[type] = str((await handle.info()).last_error)
    said = "ValueError: invalid literal for int() with base 10: 'x'"
    assert f"\n\nraised from {said}\n" in errors["from"]
    assert f"\n\nraised while handling {said}\n" in errors["while"]
    assert said not in errors["alone"]
    assert f"\n\nin it {said}\n" in errors["group"]
    assert errors.pop("group").count("return int(text)") == 1
    for text in errors.values():
        assert text.startswith("LookupError: no such order\n\n")
        assert text.count("return int(text)") == (text != errors["alone"])
        assert "qsync/server" not in text
    assert errors["from"].count("return await call_next()") == 2


async def test_skip_retry_is_final_and_retry_uses_its_delay(store: Store, prefix: str) -> None:
    mux, times = Mux(), list[float]()

    @mux.handle("skip")
    async def skip(task: TaskInfo) -> None:
        raise SkipRetry("hopeless")

    @mux.handle("again")
    async def again(task: TaskInfo) -> None:
        times.append(time.monotonic())
        if task.attempt == 1:
            raise Retry(delay=0.2)

    async with bench(store.url, prefix) as b, b.server(mux):
        skipped = await b.client.enqueue(Task("skip", retry=10))
        again_ = await b.client.enqueue(Task("again", retry=1, retry_delay=3600))
        await b.reaches(skipped.id, "dead")
        assert (await skipped.info()).attempt == 1
        await b.gone(again_.id)
        assert 0.19 < times[1] - times[0] < 1.5


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), "soon", timedelta(days=-1)])
@pytest.mark.parametrize("place", ["loop", "thread", "process"])
async def test_retry_with_invalid_delay_fails_the_attempt_with_an_error_that_names_it(
    store: Store, prefix: str, place: str, delay: Any
) -> None:

    mux = Mux()

    def again(task: TaskInfo) -> None:
        raise Retry(delay=delay)

    async def again_on_loop(task: TaskInfo) -> None:
        again(task)

    if place == "process":
        mux.handle("again", executor="process")(process_handlers.retry_after_nonsense)
    else:
        mux.handle("again")(again if place == "thread" else again_on_loop)
    async with bench(store.url, prefix) as b, b.server(mux):
        handle = await b.client.enqueue(Task("again", repr(delay)))
        await b.reaches(handle.id, "retry")
        info = await handle.info()
        assert info.due_at is not None
        assert timedelta(0) < info.due_at - datetime.now(UTC) < timedelta(seconds=100)
        assert "ConfigError: Retry: delay: " in (info.last_error or "")


@pytest.mark.faults(14, 15)
@pytest.mark.parametrize(
    "kind", [SystemExit, KeyboardInterrupt, GeneratorExit, BaseException, MemoryError]
)
@pytest.mark.parametrize("colour", ["async", "thread"])
async def test_every_exception_of_a_handler_fails_only_its_task(
    store: Store, prefix: str, kind: type[BaseException], colour: str
) -> None:
    mux = Mux()

    def explode(task: TaskInfo) -> None:
        raise kind("boom")

    async def explode_async(task: TaskInfo) -> None:
        raise kind("boom")

    mux.handle("explode")(explode_async if colour == "async" else explode)

    @mux.handle("fine")
    async def fine(task: TaskInfo) -> str:
        return "fine"

    async with bench(store.url, prefix) as b, b.server(mux):
        bad = await b.client.enqueue(Task("explode", retry=0))
        await b.reaches(bad.id, "dead")
        assert kind.__name__ in ((await bad.info()).last_error or "")
        good = await b.client.enqueue(Task("fine", retention=60))
        assert await good.result(timeout=5) == "fine"


@pytest.mark.faults(6)
@pytest.mark.parametrize("colour", ["async", "thread"])
async def test_a_timeout_stops_the_attempt_and_counts_as_a_failure(
    store: Store, prefix: str, colour: str
) -> None:
    mux, release = Mux(), threading.Event()

    async def hang(task: TaskInfo) -> None:
        await asyncio.Event().wait()

    def hang_in_thread(task: TaskInfo) -> None:
        release.wait(20)

    mux.handle("hang")(hang if colour == "async" else hang_in_thread)
    async with bench(store.url, prefix) as b, b.server(mux, threads=1, concurrency=1):
        handle = await b.client.enqueue(Task("hang", timeout=0.1, retry=0))
        await b.reaches(handle.id, "dead")
        assert "timed out after 0.1 s" in ((await handle.info()).last_error or "")
        # The only slot and the only thread can be used again.
        other = await b.client.enqueue(Task("hang", timeout=0.1, retry=0))
        await b.reaches(other.id, "dead")
        release.set()


@pytest.mark.faults(75)
@pytest.mark.guarantee(5)
async def test_a_task_past_its_deadline_never_starts(store: Store, prefix: str) -> None:
    mux, ran = Mux(), list[str]()

    @mux.handle("late")
    async def late(task: TaskInfo) -> None:
        ran.append(task.id)

    async with bench(store.url, prefix) as b:
        soon = datetime.now(UTC) + timedelta(seconds=0.3)
        handle = await b.client.enqueue(Task("late", deadline=soon, retention=60))
        await until(lambda: datetime.now(UTC) > soon)
        async with b.server(mux):
            with pytest.raises(TaskFailed, match="deadline"):
                await handle.result(timeout=5)
    assert ran == []


@pytest.mark.faults(75)
@pytest.mark.guarantee(5)
async def test_retry_after_the_deadline_is_not_scheduled(store: Store, prefix: str) -> None:
    mux = Mux()

    @mux.handle("bad")
    async def bad(task: TaskInfo) -> None:
        raise ValueError("boom")

    async with bench(store.url, prefix) as b, b.server(mux):
        soon = datetime.now(UTC) + timedelta(seconds=30)
        handle = await b.client.enqueue(Task("bad", deadline=soon, retry=5, retry_delay=60))
        await b.reaches(handle.id, "dead")
        error = (await handle.info()).last_error or ""
        assert "deadline" in error
        assert "boom" in error


@pytest.mark.faults(56)
def test_unknown_type_is_handed_back_uncharged_to_a_server_with_a_handler(
    store: Store, prefix: str
) -> None:
    async def main() -> None:
        old, new = Mux(), Mux()

        @new.handle("new")
        async def handler(task: TaskInfo) -> int:
            return task.attempt

        async with bench(store.url, prefix) as b:
            handle = await b.client.enqueue(Task("new", retry=0, retention=60))
            async with b.server(old):
                await b.reaches(handle.id, "scheduled")
            async with b.server(new):
                assert await handle.result(timeout=5) == 1

    asyncio.run(main())
    counters = store.client().hgetall(f"{{{prefix}:default}}:stats")
    assert b"failed" not in counters
    assert b"dead" not in counters


async def test_results_come_back_as_they_were_returned(store: Store, prefix: str) -> None:
    mux = Mux()
    values: list[Any] = [None, 7, "text", b"bytes", [1, {"a": None}], 1.5]

    @mux.handle("pick")
    async def pick(task: TaskInfo) -> Any:
        return values[task.value(int)]

    @mux.handle("pick-in-thread")
    def pick_in_thread(task: TaskInfo) -> Any:
        return values[task.value(int)]

    @mux.handle("odd")
    async def odd(task: TaskInfo) -> object:
        return object()

    async with bench(store.url, prefix) as b, b.server(mux):
        for at, value in enumerate(values):
            for type in ("pick", "pick-in-thread"):
                handle = await b.client.enqueue(Task(type, at, retention=60))
                assert await handle.result(timeout=5) == value
        handle = await b.client.enqueue(Task("odd", retention=60))
        await b.reaches(handle.id, "dead")  # no retry, since the result would be the same


async def test_middleware_wraps_in_order_and_may_change_task_and_value(
    store: Store, prefix: str
) -> None:
    mux, calls = Mux(), list[str]()

    def named(name: str) -> Any:
        async def middleware(task: TaskInfo, call_next: Any) -> Any:
            calls.append(f"{name} in")
            value = await call_next()
            calls.append(f"{name} out")
            return value

        return middleware

    async def doubles(task: TaskInfo, call_next: Any) -> Any:
        return 2 * await call_next(task)

    @mux.handle("three", middleware=[named("inner"), doubles])
    def three(task: TaskInfo) -> int:
        calls.append("handler")
        return 3

    async with bench(store.url, prefix) as b, b.server(mux, middleware=(named("outer"),)):
        handle = await b.client.enqueue(Task("three", retention=60))
        assert await handle.result(timeout=5) == 6
    assert calls == ["outer in", "inner in", "handler", "inner out", "outer out"]


async def test_on_error_is_called_for_each_failure_and_may_fail(store: Store, prefix: str) -> None:
    mux, told = Mux(), list[tuple[str, int]]()

    @mux.handle("bad")
    async def bad(task: TaskInfo) -> None:
        raise ValueError("boom")

    async def on_error(error: BaseException, task: TaskInfo) -> None:
        told.append((str(error), task.attempt))
        raise RuntimeError("and this one")

    async with bench(store.url, prefix) as b, b.server(mux, on_error=on_error):
        handle = await b.client.enqueue(Task("bad", retry=1, retry_delay=0))
        await b.reaches(handle.id, "dead")
        await until(lambda: len(told) == 2)
    assert told == [("boom", 1), ("boom", 2)]


async def test_current_gives_state_client_and_progress(store: Store, prefix: str) -> None:
    mux, release = Mux(), asyncio.Event()

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[dict[str, int]]:
        yield {"answer": 42}

    @mux.handle("parent")
    async def parent(task: TaskInfo) -> str:
        current().progress(1, 4)
        child = await current().client.enqueue(Task("child", retention=60))
        await release.wait()
        return str(child.id)

    @mux.handle("child")
    def child(task: TaskInfo) -> int:
        assert current().task is task
        grandchild = current().client.enqueue(Task("grandchild", retention=60))
        assert grandchild.created
        return int(current().state["answer"])

    @mux.handle("grandchild")
    async def grandchild(task: TaskInfo) -> None:
        return None

    async with bench(store.url, prefix) as b, b.server(mux, lifespan=lifespan):
        handle = await b.client.enqueue(Task("parent", retention=60))

        async def told() -> bool:
            return (await handle.info()).progress == (1, 4)

        await wait_until_async(told)
        release.set()
        child_id = await handle.result(timeout=5)
        assert await b.client.handle(child_id).result(timeout=5) == 42


async def test_close_of_the_client_by_a_handler_has_no_effect(store: Store, prefix: str) -> None:
    """`with current().client as client` looks right, but the client belongs to the server."""

    mux = Mux()

    @mux.handle("loop")
    async def on_loop(task: TaskInfo) -> str:
        async with current().client as client:
            handle = await client.enqueue(Task("other"))
        await client.aclose()
        return str(handle.id)

    @mux.handle("thread")
    def in_thread(task: TaskInfo) -> str:
        with current().client as client:
            handle = client.enqueue(Task("other"))
        client.close()
        return str(handle.id)

    async with bench(store.url, prefix) as b, b.server(mux):
        for type in ("loop", "thread") * 2:
            handle = await b.client.enqueue(Task(type, retention=60, retry=0))
            assert len(await handle.result(timeout=5)) == 22


@pytest.mark.parametrize("times", [1, 3])
async def test_run_ends_after_stop(
    store: Store, prefix: str, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    """`run` and every call of `stop` return once the server has stopped completely and has handed
    back its running tasks."""

    mux, started = Mux(), asyncio.Event()

    @mux.handle("long")
    async def long(task: TaskInfo) -> None:
        started.set()
        await asyncio.sleep(60)

    async with bench(store.url, prefix) as b:
        server = b.server(mux, shutdown_timeout=0.2)
        running = asyncio.create_task(server.run())
        handle = await b.client.enqueue(Task("long"))
        async with asyncio.timeout(5):
            await started.wait()
        await asyncio.gather(*(server.stop() for _ in range(times)))
        assert (await handle.info()).state == "pending"
        async with asyncio.timeout(5):
            await running
        await server.stop()
    [told] = [text for text in caplog.messages if text.startswith("shutdown_timeout is over")]
    assert told.endswith(f"handed back to run again: {handle.id} (long)")


async def test_task_whose_handler_awaits_the_stop_is_handed_back_with_the_others(
    store: Store, prefix: str
) -> None:
    mux, started = Mux(), asyncio.Event()

    @mux.handle("long")
    async def long(task: TaskInfo) -> None:
        started.set()
        await asyncio.sleep(60)

    @mux.handle("stop")
    async def stop(task: TaskInfo) -> None:
        await started.wait()
        await server.stop()

    async with bench(store.url, prefix) as b:
        server = b.server(mux, shutdown_timeout=0.2)
        running = asyncio.create_task(server.run())
        handles = await b.client.enqueue_many([Task("long", retry=0), Task("stop", retry=0)])
        async with asyncio.timeout(5):
            await running
        infos = [await handle.info() for handle in handles]
        assert [(info.state, info.crashes) for info in infos] == [("pending", 0)] * 2


def test_exit_in_a_task_of_a_handler_fails_no_other_task(
    valkey: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """After an exit in an asyncio task, asyncio cancels all other tasks of the event loop."""
    mux, started = Mux(), asyncio.Event()

    @mux.handle("long")
    async def long(task: TaskInfo) -> None:
        started.set()
        await asyncio.sleep(60)

    @mux.handle("exit")
    async def exit_(task: TaskInfo) -> None:
        await started.wait()
        await asyncio.wait_for(leave(), 5)

    async def leave() -> None:
        sys.exit(3)

    async def main() -> None:
        async with bench(valkey.url, prefix) as b, b.server(mux, shutdown_timeout=0.2):
            await b.client.enqueue_many([Task(name, id=name, retry=0) for name in ("long", "exit")])
            await asyncio.sleep(60)

    with pytest.raises(SystemExit):
        asyncio.run(main())
    with qsync.Qsync(valkey.url, prefix=prefix).client() as client:
        assert client.handle("long").info().state == "pending"
    assert not [text for text in caplog.messages if text.startswith("task long") and "dead" in text]


def test_a_server_runs_in_another_thread_without_signals(store: Store, prefix: str) -> None:
    async def main() -> None:
        mux = Mux()

        @mux.handle("stop")
        async def stop(task: TaskInfo) -> None:
            stopping.append(asyncio.create_task(server.stop()))

        stopping = list[asyncio.Task[None]]()
        async with bench(store.url, prefix) as b:
            server = b.server(mux)
            await b.client.enqueue(Task("stop"))
            async with asyncio.timeout(10):
                await server.run()

    thread = threading.Thread(target=asyncio.run, args=[main()])
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


def test_current_outside_of_a_handler_raises_an_error() -> None:
    with pytest.raises(qsync.errors.QsyncError, match="only inside a handler"):
        current()


async def test_context_variables_do_not_leak_from_task_to_task(store: Store, prefix: str) -> None:
    mux = Mux()
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("v", default="clean")

    @mux.handle("set")
    async def set_it(task: TaskInfo) -> str:
        before = variable.get()
        variable.set("dirty")
        return before

    async with bench(store.url, prefix) as b, b.server(mux, concurrency=1):
        for _ in range(3):
            handle = await b.client.enqueue(Task("set", retention=60))
            assert await handle.result(timeout=5) == "clean"


@pytest.mark.parametrize("colour", ["async", "thread"])
async def test_a_running_task_is_cancelled_at_once(store: Store, prefix: str, colour: str) -> None:
    mux, started, noticed = Mux(), threading.Event(), threading.Event()

    async def hang(task: TaskInfo) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            noticed.set()

    def hang_in_thread(task: TaskInfo) -> None:
        started.set()
        while not current().cancelled:
            noticed.wait(0.01)
        noticed.set()

    mux.handle("hang")(hang if colour == "async" else hang_in_thread)
    # With such a long lease, only a message in the inbox can be this fast.
    async with bench(store.url, prefix) as b, b.server(mux, lease=30):
        handle = await b.client.enqueue(Task("hang", retention=60))
        await until(started.is_set)
        assert await handle.cancel()
        with pytest.raises(TaskCancelled):
            await handle.result(timeout=3)
        await until(noticed.is_set)
        assert await handle.cancel()  # a second request does no harm


async def test_a_paused_queue_starts_nothing_until_it_is_resumed(store: Store, prefix: str) -> None:
    from qsync.broker import operator_ops

    mux = Mux()

    @mux.handle("x")
    async def x(task: TaskInfo) -> None:
        return None

    async with bench(store.url, prefix) as b, b.server(mux):
        await b.broker.run(operator_ops.pause(b.keys(), b"by a test"))
        handle = await b.client.enqueue(Task("x"))
        other = await b.client.enqueue(Task("x"), queue="other")
        async with b.server(mux, queues=["other"]):
            await b.gone(other.id, "other")
        assert await b.state(handle.id) == "pending"
        await b.broker.run(operator_ops.resume(b.keys()))
        await b.gone(handle.id)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"concurrency": 0}, "concurrency: 0"),
        ({"queues": {}}, "queues"),
        ({"queues": {"a b": 1}}, "a b"),
        ({"queues": {"a": 0}}, "weight of 'a': 0"),
        ({"queues": "default"}, "queues"),
        ({"lease": -1}, "lease: -1"),
        ({"lease": float("nan")}, "lease"),
        ({"prefetch": -1}, "prefetch: -1"),
        ({"max_hung": -1}, "max_hung: -1"),
        ({"timeout": "1"}, "timeout: '1'"),
        ({"concurency": 5}, "concurency: unknown option"),
        ({"middleware": (len,)}, "middleware"),
        ({"on_error": 5}, "on_error: 5"),
        ({"server_id": "a/b"}, "server_id"),
        ({"strict": "yes"}, "strict: 'yes' is neither True nor False"),
        ({"allow_eviction": "no"}, "allow_eviction: 'no'"),
    ],
)
def test_a_wrong_option_is_named(config: dict[str, Any], said: str) -> None:
    from qsync.broker import redis_clients

    with pytest.raises(ConfigError, match=said):
        Server(redis_clients.parse("redis://127.0.0.1:1"), mux=Mux(), **config)


@pytest.mark.faults(27)
@pytest.mark.skipif(LIMITED, reason="a server that may not read the eviction policy starts anyway")
async def test_evicting_store_is_refused_by_default(store: Store, prefix: str) -> None:
    client = store.client()
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        async with bench(store.url, prefix) as b:
            with pytest.raises(ConfigError, match="allkeys-lru"):
                await b.server(Mux()).start()
            async with b.server(Mux(), allow_eviction=True):
                pass
    finally:
        client.config_set("maxmemory-policy", "noeviction")


async def test_two_servers_share_the_work_and_a_strict_server_drains_by_weight(
    store: Store, prefix: str
) -> None:
    mux, order = Mux(), list[str]()

    @mux.handle("x")
    async def x(task: TaskInfo) -> None:
        order.append(task.queue)

    async with bench(store.url, prefix) as b:
        for queue in ("low", "high"):
            await b.client.enqueue_many([Task("x", queue=queue) for _ in range(50)])
        async with b.server(
            mux, queues={"low": 1, "high": 5}, strict=True, concurrency=5, prefetch=0
        ):
            await until(lambda: len(order) == 100)
    assert order == ["high"] * 50 + ["low"] * 50


@pytest.mark.faults(55)
async def test_an_undecodable_message_is_dead_and_the_others_run(store: Store, prefix: str) -> None:
    mux, ran = Mux(), list[str]()

    @mux.handle("x")
    async def x(task: TaskInfo) -> None:
        ran.append(task.id)

    async with bench(store.url, prefix) as b:
        handles = await b.client.enqueue_many([Task("x") for _ in range(20)])
        key = b.keys().key("tasks")
        for at, garbage in enumerate([b"", b"\xc1", b"\x98\x07", b"not msgpack at all"]):
            store.client().hset(key, handles[at].id, garbage)
        async with b.server(mux):
            for handle in handles[:4]:
                await b.reaches(handle.id, "dead")
            for handle in handles[4:]:
                await b.gone(handle.id)
        assert sorted(ran) == sorted(handle.id for handle in handles[4:])
        assert store.client().hget(key, handles[3].id) == b"not msgpack at all"


async def test_process_handlers_return_fail_time_out_and_die_alone(
    store: Store, prefix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Add the parent folder of the tests to the path, so that a spawned process can import the
    # handlers.
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[2]), *sys.path])

    mux = Mux()
    for name in ("look", "fail", "wait_for", "exit_hard"):
        mux.handle(name, executor="process")(getattr(process_handlers, name))
    async with bench(store.url, prefix) as b, b.server(mux, processes=2):
        look = await b.client.enqueue(Task("look", b"payload", retention=60, retry=0))
        assert (await look.result(timeout=30))["info"][1] == "payload"
        bad = [
            await b.client.enqueue(Task("fail", retry=0)),
            await b.client.enqueue(Task("wait_for", str(tmp_path).encode(), retry=0, timeout=0.2)),
            await b.client.enqueue(Task("exit_hard", retry=0)),
        ]
        for handle in bad:
            await b.reaches(handle.id, "dead")
        errors = [str((await handle.info()).last_error) for handle in bad]
        assert "OddError: it broke" in errors[0]
        assert "handlers.py" in errors[0]  # the traceback of the other process
        assert "timed out after 0.2 s" in errors[1]
        assert "the process died" in errors[2]
        again = await b.client.enqueue(Task("look", b"again", retention=60, retry=0))
        assert (await again.result(timeout=30))["info"][1] == "again"


@pytest.mark.faults(24)
@pytest.mark.guarantee(7)
async def test_a_refusal_of_the_store_before_the_start_charges_no_task(
    store: Store, prefix: str
) -> None:
    mux, ran = Mux(), list[int]()

    @mux.handle("x")
    async def x(task: TaskInfo) -> None:
        ran.append(task.attempt)

    async with bench(store.url, prefix) as b:
        handle = await b.client.enqueue(Task("x", retry=0))
        store.client().hset(b.keys().key("crashes"), handle.id, 1)
        whole = "local _, held_ids, replies = check_leases({ unpack(ARGV, 1, last) }, 1, 2)"
        with planted("mark_started.lua", whole, f"{whole} error('refused')"):
            async with b.server(mux):
                await b.reaches(handle.id, "scheduled")
        assert ran == []
        store.client().zadd(b.keys().key("scheduled"), {handle.id: 1})
        async with b.server(mux):
            await b.gone(handle.id)
        assert ran == [1]
