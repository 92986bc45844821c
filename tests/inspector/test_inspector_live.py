"""The inspector shows running servers, which react to its requests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from qsync import Mux, Qsync, Retry, Task, TaskInfo, codec
from qsync.broker import ops
from qsync.inspector import Filter, Inspector
from qsync.keys import GlobalKeys, QueueKeys
from qsync.message import HISTORY_LIMIT, decode_failure
from qsync.server.server import Server
from qsync.state import TaskState
from tests.support.server import Bench, bench, until
from tests.support.stores import Cluster, Store, wait_until_async


@contextlib.asynccontextmanager
async def inspecting(url: str, prefix: str) -> AsyncIterator[tuple[Bench, Inspector]]:
    async with (
        bench(url, prefix) as made,
        Inspector(made.broker, prefix=prefix) as inspector,
    ):
        yield made, inspector


def sleeping() -> tuple[Mux, list[str], list[str]]:
    """Return a mux with the handler `long`, which sleeps, and two lists: the ids of tasks that
    began, and of tasks that were stopped."""
    mux, began, stopped = Mux(), list[str](), list[str]()

    @mux.handle("long")
    async def long(task: TaskInfo) -> None:
        began.append(task.id)
        try:
            await asyncio.sleep(60)
        finally:
            stopped.append(task.id)

    return mux, began, stopped


async def test_a_running_task_is_cancelled_at_once(store: Store, prefix: str) -> None:
    mux, began, stopped = sleeping()
    async with inspecting(store.url, prefix) as (made, inspector), made.server(mux, lease=30):
        await made.client.enqueue(Task("long", id="a", retention=60))
        await until(lambda: began == ["a"])
        change = await inspector.cancel("a")
        assert (change.outcome, change.server is not None) == ("told", True)
        await until(lambda: stopped == ["a"], timeout=5)  # a third of the lease is 10 s
        await made.reaches("a", "completed")
        row = (await inspector.tasks("default", "cancelled")).tasks[0]
        assert (row.id, row.cancelled) == ("a", True)
        assert (await inspector.cancel("a")).outcome == "done", "a repeated request reports success"
        assert (await inspector.explain("a")).reason == "cancelled"


async def test_cancel_with_a_lost_order_takes_effect_within_a_third_of_the_lease(
    store: Store, prefix: str
) -> None:
    mux, began, stopped = sleeping()
    async with inspecting(store.url, prefix) as (made, _), made.server(mux, lease=3):
        await made.client.enqueue(Task("long", id="a"))
        await until(lambda: began == ["a"])
        await made.broker.run(ops.cancel(made.keys(), "a", retention_us=None))
        await until(lambda: stopped == ["a"], timeout=2.5)
        await made.gone("a")


async def test_a_dead_task_is_found_by_its_error_read_and_run_again(
    store: Store, prefix: str
) -> None:
    """The traceback is too long to be stored whole; its first line and its end are stored."""

    broken, done = True, list[str]()
    mux = Mux()

    def deep(level: int) -> None:
        if level:
            deep(level - 1)
        elif broken:
            raise ValueError("no such customer: 4711")

    @mux.handle("bill")
    async def bill(task: TaskInfo) -> None:
        deep(200 if task.id != "fine" else 0)
        done.append(task.id)

    async with inspecting(store.url, prefix) as (made, inspector), made.server(mux):
        for id in ("one", "two"):
            await made.client.enqueue(Task("bill", {"id": id}, id=id, retry=1, retry_delay=0))
        for id in ("one", "two"):
            await made.reaches(id, "dead")
        page = await inspector.tasks("default", "dead", filter=Filter(error="customer: 4711"))
        assert sorted(row.id for row in page.tasks) == ["one", "two"]
        whole = await inspector.task("one")
        assert whole is not None
        assert whole.error is not None
        assert whole.error.startswith("ValueError: no such customer: 4711\n")
        assert "deep(level - 1)" in whole.error
        assert len(whole.error.encode()) <= 4096
        assert [one.number for one in whole.history] == [1, 2]
        assert {one.error for one in whole.history} == {"ValueError: no such customer: 4711"}
        [server] = await inspector.servers()
        assert {one.server for one in whole.history} == {server.id}
        what = [event.what for event in whole.events]
        assert what == ["enqueued", "failed", "failed", "died"]
        broken = False
        step = await inspector.run_dead("default", Filter(type="bill"))
        assert (step.done, step.cursor) == (2, None)
        await until(lambda: sorted(done) == ["one", "two"])


async def test_the_last_attempts_are_kept(store: Store, prefix: str) -> None:
    mux = Mux()

    @mux.handle("bad")
    async def bad(task: TaskInfo) -> None:
        raise Retry("x" * 5000 + str(task.attempt), delay=0)

    async with inspecting(store.url, prefix) as (made, inspector), made.server(mux):
        await made.client.enqueue(Task("bad", id="a", retry=14))
        await made.reaches("a", "dead")
        whole = await inspector.task("a")
        assert whole is not None
        assert [one.number for one in whole.history] == list(range(6, 16))
        assert len(whole.history) == HISTORY_LIMIT
        assert all(len(one.error) == 200 for one in whole.history)
    with store.client() as client:
        record = client.hget(QueueKeys(prefix, "default").key("failures"), "a")
    assert len(record) < 4096 + 10 * 300
    assert decode_failure(record).attempts == 15


async def test_servers_are_listed_with_their_running_tasks(store: Store, prefix: str) -> None:
    mux, began, _ = sleeping()
    async with (
        inspecting(store.url, prefix) as (made, inspector),
        made.server(
            mux,
            concurrency=2,
            server_id="one",
            queues={"q1": 3},
            shutdown_timeout=0,
            prefetch=0,
        ),
        made.server(
            mux, concurrency=7, server_id="two", queues={"q2": 1}, shutdown_timeout=0, lease=60
        ),
    ):

        async def shows_running(number: int) -> bool:
            found = await inspector.server("two")
            return found is not None and found.running == number

        await wait_until_async(lambda: shows_running(0))
        for n in range(3):
            await made.client.enqueue(Task("long", id=f"t{n}", queue="q1"))
        await made.client.enqueue(Task("long", id="u", queue="q2"))
        await until(lambda: len(began) == 3)
        one, two = await inspector.servers()
        assert (one.id, one.concurrency, one.queues, one.types) == (
            "one", 2, {"q1": 3}, ["long"],
        )  # fmt: skip
        assert one.pid > 0
        assert one.complete
        assert sorted(task.id for task in one.tasks) == ["t0", "t1"]
        assert [(task.id, task.queue, task.type) for task in two.tasks] == [("u", "q2", "long")]
        alone = await inspector.server("two")
        assert alone is not None
        assert [task.id for task in alone.tasks] == ["u"]
        without = await inspector.servers(tasks=False)
        assert [server.tasks for server in without] == [[], []]
        assert (await inspector.overview()).servers == ["one", "two"]

        await wait_until_async(lambda: shows_running(1))  # before half a lease (30 s) has passed


async def test_servers_are_drained_and_stopped(store: Store, prefix: str) -> None:
    mux = Mux()

    @mux.handle("t")
    async def t(task: TaskInfo) -> None: ...

    async with inspecting(store.url, prefix) as (made, inspector):
        server = made.server(mux, server_id="w", lease=60)
        running = asyncio.create_task(server.run())

        async def live() -> bool:
            return await inspector.server("w") is not None

        await wait_until_async(live)
        assert (await inspector.quiet("w")).outcome == "told"

        async def quiet() -> bool:
            found = await inspector.server("w")
            return found is not None and found.quiet

        await wait_until_async(quiet)
        await made.client.enqueue(Task("t", id="a"))

        async def is_left() -> bool:  # a fetch in flight may lease the task and hand it back
            return (await inspector.explain("a")).reason == "all_quiet"

        await wait_until_async(is_left)
        assert (await inspector.stop("w")).outcome == "told"
        await asyncio.wait_for(running, 10)
        assert (await inspector.stop("w")).outcome == "not_found"
        assert (await inspector.explain("a")).reason == "no_server"


async def test_request_is_carried_out_even_if_sent_as_soon_as_the_server_is_visible(
    valkey: Store, prefix: str
) -> None:
    """At startup, before it becomes visible to operators, a server discards the requests in its
    inbox, since they are for an earlier server."""
    keys, order = GlobalKeys(prefix), codec.encode(["quiet"])

    def send_at_sight(server_id: str) -> None:
        with redis.Redis.from_url(valkey.url) as client:
            while client.zscore(keys.servers, server_id) is None:
                pass
            client.rpush(keys.inbox(server_id), order)

    async with inspecting(valkey.url, prefix) as (made, inspector):
        for id in ("a", "b", "c", "d", "e"):
            sent = asyncio.create_task(asyncio.to_thread(send_at_sight, id))
            async with made.server(Mux(), server_id=id):

                async def quiet(id: str = id) -> bool:
                    server = await inspector.server(id)
                    return server is not None and server.quiet

                await sent
                await wait_until_async(quiet)


# Pause


@pytest.mark.faults(77)
async def test_nothing_starts_after_a_pause(store: Store, prefix: str) -> None:
    """Within a second, tasks that were fetched before the pause start or are handed back. No other
    task starts."""

    mux, began = Mux(), list[str]()

    @mux.handle("t")
    async def t(task: TaskInfo) -> None:
        began.append(task.id)
        await asyncio.sleep(0.01)

    config: dict[str, Any] = {"concurrency": 5, "prefetch": 0}
    async with inspecting(store.url, prefix) as (made, inspector), made.server(mux, **config):
        await made.client.enqueue_many([Task("t") for _ in range(2000)])
        await until(lambda: len(began) > 50)
        assert (await inspector.pause("default", by="test")).ok
        found = await inspector.queue("default")
        assert found is not None
        held = len(began) + found.states[TaskState.ACTIVE]

        async def idle() -> bool:
            queue = await inspector.queue("default")
            return queue is not None and queue.states[TaskState.ACTIVE] == 0

        await wait_until_async(idle)
        seen = len(began)
        assert seen <= held
        await made.client.enqueue_many([Task("t") for _ in range(10)])
        await asyncio.sleep(0.5)  # two sweeps, to see that nothing happens
        assert len(began) == seen
        assert (await inspector.resume("default")).ok
        await until(lambda: len(began) > seen)


async def test_a_pause_outlives_store_and_servers(own_store: Store, prefix: str) -> None:
    mux, began = Mux(), list[str]()

    @mux.handle("t")
    async def t(task: TaskInfo) -> None:
        began.append(task.id)

    async with inspecting(own_store.url, prefix) as (made, inspector):
        await made.client.enqueue(Task("t", id="a"))
        await inspector.pause("default", by="ann", why="deploy")
    own_store.kill()
    own_store.restart()
    async with inspecting(own_store.url, prefix) as (made, inspector), made.server(mux):
        found = await inspector.queue("default")
        assert found is not None
        assert found.paused is not None
        assert (found.paused.by, found.paused.why) == ("ann", "deploy")
        await asyncio.sleep(0.5)  # two sweeps, to see that nothing happens
        assert began == []
        assert (await inspector.explain("a")).reason == "paused"
        await inspector.resume("default")
        await until(lambda: began == ["a"], timeout=3)


# Schedules


def ticking(url: str, prefix: str, ticked: list[str], **options: Any) -> Qsync:
    """Return an app with a schedule that ticks ten times per second and another that rarely
    ticks."""
    app = Qsync(url, prefix=prefix)

    @app.periodic(every=0.1, name="fast", **options)
    def fast(task: TaskInfo) -> None:
        ticked.append(task.id)

    @app.periodic(
        cron="0 3 * * *", tz="Europe/Moscow", missed="once", name="night", queue="other",
        unique=True, headers={"h": "v"},
    )  # fmt: skip
    def night(task: TaskInfo, n: int = 7) -> None:
        ticked.append(f"{task.id} {task.headers['h']} {n}")

    return app


def serve(app: Qsync, **options: Any) -> Server:
    return app.server(queues={"default": 1, "other": 1}, lease=1.0, sweep=0.2, **options)


async def test_published_schedules_are_listed(store: Store, prefix: str) -> None:
    ticked: list[str] = []
    app = ticking(store.url, prefix, ticked)
    async with inspecting(store.url, prefix) as (_, inspector), serve(app):
        await until(lambda: len(ticked) > 1)
        fast, night = await inspector.schedules()
        assert (fast.queue, fast.name, fast.every, fast.cron) == ("default", "fast", 0.1, None)
        assert (fast.schedule, fast.type, fast.missed) == ("every 0.1 s", "fast", "skip")
        assert fast.live
        assert fast.last_tick is not None
        assert (night.queue, night.cron, night.tz) == ("other", "0 3 * * *", "Europe/Moscow")
        assert (night.every, night.missed, night.last_tick) == (None, "once", None)
        assert [at.hour for at in night.next_at] == [0, 0, 0], "03:00 in Moscow"
        assert night.next_at == sorted(night.next_at)
        assert (night.paused, night.problem) == (None, None)
        assert await inspector.schedule("night", queue="other") == night


@pytest.mark.parametrize("missed", ["skip", "all"])
async def test_paused_schedule_skips_its_ticks(store: Store, prefix: str, missed: str) -> None:
    ticked: list[str] = []
    app = ticking(store.url, prefix, ticked, missed=missed)
    async with inspecting(store.url, prefix) as (_, inspector):
        async with serve(app):
            await until(lambda: len(ticked) > 1)
            change = await inspector.pause_schedule("fast", queue="default", by="a", why="b")
            assert change.ok
            await asyncio.sleep(0.3)  # let a task that is already enqueued run
            seen = len(ticked)
            await asyncio.sleep(0.5)  # five ticks
            assert len(ticked) == seen
        ticked.clear()
        async with serve(app):  # the pause also applies to servers that start later
            await asyncio.sleep(0.5)
            assert ticked == []
            [fast, _] = await inspector.schedules()
            assert fast.paused is not None
            assert (fast.paused.by, fast.paused.why) == ("a", "b")
            assert fast.paused.at is not None
            assert (await inspector.resume_schedule("fast", queue="default")).ok
            resumed = (await inspector.overview()).at
            await until(lambda: len(ticked) > 2)
            first = ticked[0].partition("@")[2]
            assert first >= resumed.isoformat()[:19], "no missed tick is run"
            [fast, _] = await inspector.schedules()
            assert fast.paused is None
            again = await inspector.resume_schedule("fast", queue="default")
            assert again.outcome == "not_found"


async def test_trigger_enqueues_the_task_of_a_schedule(store: Store, prefix: str) -> None:
    ticked: list[str] = []
    app = ticking(store.url, prefix, ticked)
    async with inspecting(store.url, prefix) as (made, inspector):
        async with serve(app):
            await until(lambda: bool(ticked))
            done = await inspector.trigger("night", queue="other")
            assert done.outcome == "done"
            await until(lambda: f"{done.holder} v 7" in ticked)
        first = await inspector.trigger("night", queue="other")
        second = await inspector.trigger("night", queue="other")
        assert (first.outcome, second.outcome) == ("done", "duplicate")
        assert first.holder == second.holder
        assert first.holder is not None
        assert await made.state(first.holder, "other") == "pending"
        [_, night] = await inspector.schedules()
        assert night.last_tick is None, "the ticks continue as before"


async def test_each_trigger_within_a_millisecond_enqueues_a_task(store: Store, prefix: str) -> None:
    app = ticking(store.url, prefix, [])
    async with inspecting(store.url, prefix) as (_, inspector):
        async with serve(app):

            async def published() -> bool:
                return await inspector.schedule("fast", queue="default") is not None

            await wait_until_async(published)
        triggers = [inspector.trigger("fast", queue="default") for _ in range(50)]
        changes = await asyncio.gather(*triggers)
        assert {change.outcome for change in changes} == {"done"}
        assert len({change.holder for change in changes}) == 50


async def test_schedule_that_no_server_publishes_is_forgotten(store: Store, prefix: str) -> None:
    app = ticking(store.url, prefix, [])
    keys = QueueKeys(prefix, "other")
    async with inspecting(store.url, prefix) as (_, inspector):
        async with serve(app):

            async def there() -> bool:
                return await inspector.schedule("night", queue="other") is not None

            await wait_until_async(there)
            refused = await inspector.forget_schedule("night", queue="other")
            assert (refused.outcome, refused.why) == (
                "refused", "a server published this schedule less than 3 min ago",
            )  # fmt: skip
        with store.client() as client:
            client.hset(keys.key("schedules"), "@night", 5)
            night = await inspector.schedule("night", queue="other")
            assert night is not None
            assert not night.live
            assert (await inspector.forget_schedule("night", queue="other")).ok
            assert client.hkeys(keys.key("schedules")) == [b"#"]  # when servers published
            assert client.hexists(keys.key("ticks"), "night") is False


async def test_schedule_with_an_invalid_task_is_not_triggered(store: Store, prefix: str) -> None:
    app = ticking(store.url, prefix, [])
    async with inspecting(store.url, prefix) as (_, inspector), serve(app):

        async def there() -> bool:
            return await inspector.schedule("night", queue="other") is not None

        await wait_until_async(there)
        with store.client() as client:
            key = QueueKeys(prefix, "other").key("schedules")
            client.hset(key, ">night", b"\x93garbage")
            client.hset(key, "=night", b"\x93garbage")
        refused = await inspector.trigger("night", queue="other")
        assert refused.outcome == "refused"
        [_, night] = await inspector.schedules()
        assert (night.schedule, night.problem is not None) == ("", True)


async def test_live_servers_work_in_a_cluster(cluster: Cluster, prefix: str) -> None:
    ticked: list[str] = []
    app = ticking(cluster.url, prefix, ticked)
    mux, began, stopped = sleeping()
    async with (
        inspecting(cluster.url, prefix) as (made, inspector),
        app.server(mux, queues={"default": 1, "other": 1}, lease=2.0, server_id="w"),
    ):
        await until(lambda: bool(ticked))
        assert (await inspector.pause_schedule("fast", queue="default")).ok
        assert (await inspector.trigger("night", queue="other")).ok
        await until(lambda: any(id.endswith(" v 7") for id in ticked))
        await made.client.enqueue(Task("long", id="a", queue="other"))
        await until(lambda: began == ["a"])

        async def listed() -> bool:
            return bool(await inspector.servers())

        await wait_until_async(listed)
        [server] = await inspector.servers()
        assert "a" in [task.id for task in server.tasks]
        assert (await inspector.explain("a", queue="other")).reason == "active"
        assert (await inspector.cancel("a", queue="other")).server == "w"
        await until(lambda: stopped == ["a"])
        await made.gone("a", "other")
        assert (await inspector.pause("other", by="x")).ok
        await made.client.enqueue(Task("long", id="b", queue="other"))
        assert (await inspector.explain("b", queue="other")).reason == "paused"
        assert (await inspector.resume("other")).ok
        await until(lambda: began == ["a", "b"])
        assert (await inspector.cancel("b", queue="other")).ok
        await until(lambda: stopped == ["a", "b"])
        assert (await inspector.quiet("w")).ok
