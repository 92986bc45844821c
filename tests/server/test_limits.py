"""Limits of an app on its servers: when tasks start, and which enqueues carry limits."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from qsync import InvalidTask, Mux, Qsync, RateLimited, Task, TaskInfo, TaskState, current
from qsync.bounds import Bounds
from qsync.contrib.outbox.rows import make_row, new_task_of
from qsync.instrumentation import Extension
from qsync.keys import QueueKeys
from qsync.limit import LimitRule
from qsync.server.config import config_of
from qsync.server.fetch_timing import FetchTiming
from qsync.server.queue_state import QueueState
from tests.support import handlers
from tests.support.server import until
from tests.support.stores import Store, wait_until_async

STEP_S = 0.02


@pytest.fixture
def app(valkey: Store, prefix: str) -> Qsync:
    return Qsync(valkey.url, prefix=prefix, retry_delay=0.01, sweep=0.5, lease=5)


class Runs:
    """Records the largest number of concurrent runs by key, and the start time of each run."""

    def __init__(self) -> None:
        self.now: Counter[Any] = Counter()
        self.most: Counter[Any] = Counter()
        self.starts: list[float] = []
        self.done = 0

    async def run(self, key: Any, seconds: float = STEP_S) -> None:
        self.starts.append(asyncio.get_running_loop().time())
        self.now[key] += 1
        self.most[key] = max(self.most[key], self.now[key])
        await asyncio.sleep(seconds)
        self.now[key] -= 1
        self.done += 1


async def test_no_more_tasks_of_a_limit_run_than_its_rule_allows(app: Qsync) -> None:
    runs = Runs()
    app.limit("customer", concurrency=2)

    @app.task(name="export", limits=["customer:{customer_id}"])
    async def export(customer_id: int, table: str = "t") -> None:
        await runs.run(customer_id)

    @app.task(name="free")
    async def free() -> None:
        await runs.run("free")

    async with app, app.server(concurrency=10), app.server(concurrency=10):
        async with app.async_client() as client:
            await client.enqueue_many(
                [export.build(number % 3) for number in range(30)]
                + [free.build() for _ in range(10)]
            )
        await until(lambda: runs.done == 40, timeout=20)
    assert [runs.most[customer] for customer in range(3)] == [2, 2, 2]
    assert runs.most["free"] > 2


async def test_tasks_of_a_limit_start_in_order_and_take_no_slot_while_they_wait(app: Qsync) -> None:
    order: list[int] = []
    gate = asyncio.Event()
    app.limit("one", concurrency=1)

    @app.task(name="step", limits=["one"])
    async def step(number: int) -> None:
        order.append(number)
        await gate.wait()

    async with app, app.server(concurrency=3) as server, app.inspector() as inspector:
        for number in range(6):
            await step.enqueue(number)
        await until(lambda: order == [0])
        info = await inspector.queue("default")
        assert info is not None
        assert info.states[TaskState.LIMITED] == 5
        assert len(server._queues[0].held) == 1
        gate.set()
        await until(lambda: len(order) == 6)
    assert order == list(range(6))


async def test_starts_keep_to_the_rate(app: Qsync) -> None:
    runs = Runs()
    app.limit("api", rate=20, per=1, burst=2)

    @app.task(name="call", limits=["api"])
    async def call() -> None:
        await runs.run("api", 0)

    async with app, app.server():
        async with app.async_client() as client:
            await client.enqueue_many([call.build() for _ in range(14)])
        await until(lambda: runs.done == 14)
    starts = sorted(runs.starts)
    assert starts[-1] - starts[0] >= 12 * 0.05 - 0.03
    for first, later in zip(starts, starts[5:], strict=False):  # two together, then one every 50 ms
        assert later - first >= 4 * 0.05 - 0.03


@pytest.mark.parametrize("limits", [["both"], ["one", "api"], ["api", "one"]])
@pytest.mark.parametrize("servers", [1, 2])
async def test_rate_is_used_in_full_by_tasks_that_also_need_a_slot(
    valkey: Store, prefix: str, limits: list[str], servers: int
) -> None:
    """The slot becomes free before the rate allows the next start, when the server is idle."""
    app, runs = Qsync(valkey.url, prefix=prefix, sweep=60), Runs()
    app.limit("both", rate=20, per=1, burst=2, concurrency=1)
    app.limit("api", rate=20, per=1, burst=2)
    app.limit("one", concurrency=1)

    @app.task(name="call", limits=limits)
    async def call() -> None:
        await runs.run("call", 0.001)

    async with app, contextlib.AsyncExitStack() as stack:
        for _ in range(servers):
            await stack.enter_async_context(app.server())
        async with app.async_client() as client:
            await client.enqueue_many([call.build() for _ in range(12)])
            await until(lambda: runs.done == 12)
            await asyncio.gather(*[client.enqueue(call.build()) for _ in range(4)])
            await until(lambda: runs.done == 16)
    assert runs.most["call"] == 1
    assert runs.starts[-1] - runs.starts[0] < 3


@pytest.mark.parametrize("executor", [None, "process"])
async def test_starts_keep_to_the_rate_while_no_thread_or_process_is_free(
    valkey: Store, prefix: str, tmp_path: Path, executor: Any
) -> None:
    """A task whose rate lets it start is not leased before a thread or process can begin it."""
    mux, folder = Mux(), str(tmp_path).encode()
    app = Qsync(valkey.url, prefix=prefix, mux=mux, threads=2, processes=1, sweep=0.5)
    app.limit("api", rate=50, per=1, burst=2)
    mux.handle("stamp", executor=executor)(handlers.stamp)
    mux.handle("hold", executor=executor)(handlers.hold)
    numbers = [str(number) for number in range(41)]
    stamps = [Task("stamp", folder, id=number, limits=["api"]) for number in numbers]
    held = [Task("hold", folder, id=f"held{n}") for n in range(1 if executor else 2)]
    async with app, app.server(), app.async_client() as client:
        await client.enqueue(stamps[0])
        await until(lambda: (tmp_path / "0").exists(), timeout=30)
        await client.enqueue_many(held)
        await until(lambda: all((tmp_path / task.id).exists() for task in held), timeout=30)
        await client.enqueue_many(stamps[1:])
        await asyncio.sleep(0.5)  # the rate alone would allow half of the starts in this time
        (tmp_path / "go").touch()
        await until(lambda: all((tmp_path / number).exists() for number in numbers), timeout=30)
    starts = sorted(float((tmp_path / number).read_text()) for number in numbers[1:])
    for start, later in zip(starts, starts[12:], strict=False):
        assert later - start > 0.1, "over 12 starts in a tenth of a second"


@pytest.mark.parametrize("named", [None, "api", "api:1"])
async def test_rate_limited_closes_the_limit_without_charging_an_attempt(
    app: Qsync, named: str | None
) -> None:
    app.limit("api", concurrency=100)
    loop = asyncio.get_running_loop()
    starts: list[tuple[int, int, float]] = []
    refused: list[float] = []

    @app.task(name="call", limits=["api:1", "other"], retry=0)
    async def call(number: int) -> None:
        starts.append((number, current().task.attempt, loop.time()))
        if not refused:
            refused.append(loop.time())
            raise RateLimited(retry_after=0.4, limit=named, message="429")

    app.limit("other", concurrency=100)
    async with app, app.server(concurrency=1, prefetch=0), app.async_client() as client:
        await client.enqueue_many([call.build(number) for number in range(5)])
        await until(lambda: len(starts) == 6)
    assert {number for number, _, _ in starts} == set(range(5))
    assert {attempt for _, attempt, _ in starts} == {1}
    assert all(at - refused[0] >= 0.38 for _, _, at in starts[1:])
    assert [number for number, _, _ in starts] == [0, 0, 1, 2, 3, 4]


async def test_rate_limited_for_a_limit_of_another_task_is_a_failed_attempt(app: Qsync) -> None:
    app.limit("api", concurrency=1)

    @app.task(name="call", limits=["api"], retry=0)
    async def call() -> None:
        raise RateLimited(retry_after=1, limit="stripe")

    async with app, app.server():
        handle = await call.enqueue()

        async def dead() -> bool:
            return (await handle.info()).state == "dead"

        await wait_until_async(dead)
        error = (await handle.info()).last_error or ""
    assert "RateLimited: limit: the task has no limit 'stripe', only api; name one of" in error


@pytest.mark.parametrize("name", ["stripe", "unknown"])
async def test_rate_limited_for_a_limit_of_a_task_without_limits_is_a_failed_attempt(
    app: Qsync, name: str
) -> None:
    app.limit("stripe", concurrency=1)

    @app.task(name="call", retry=0)
    async def call() -> None:
        raise RateLimited(retry_after=1, limit=name)

    async with app, app.server():
        handle = await call.enqueue()

        async def dead() -> bool:
            return (await handle.info()).state == "dead"

        await wait_until_async(dead)
        error = (await handle.info()).last_error or ""
    assert f"RateLimited: limit: the task has no limit '{name}', nor any other limit" in error


def thread(mux: Mux) -> None:
    @mux.handle("t")
    def call(task: TaskInfo) -> None:
        raise RateLimited(timedelta(hours=1))


def process(mux: Mux) -> None:
    mux.handle("t", executor="process")(handlers.be_rate_limited)


@pytest.mark.parametrize("place", [thread, process])
@pytest.mark.parametrize("limits", [None, ["api"]])
async def test_rate_limited_works_in_threads_and_processes(
    app: Qsync, place: Any, limits: list[str] | None
) -> None:
    mux = Mux()
    place(mux)
    state = "limited" if limits else "scheduled"
    async with app, app.server(mux), app.async_client() as client:
        handle = await client.enqueue(Task("t", b"", limits=limits))

        async def waits() -> bool:
            return (await handle.info()).state == state

        await wait_until_async(waits)
        assert (await handle.info()).attempt == 1


async def test_rules_are_stored_before_the_first_task_starts_and_after_a_loss_of_data(
    app: Qsync, valkey: Store
) -> None:
    app.limit("customer", concurrency=2)
    app.limit("stripe", rate=5, per=1)

    @app.task(name="t", limits=["stripe"])
    async def task() -> None: ...

    async def rules(queue: str) -> dict[str, LimitRule | None]:
        async with app.inspector() as inspector:
            return {info.limit: info.rule for info in (await inspector.limits(queue)).limits}

    expected = {
        "customer": LimitRule(concurrency=2),
        "stripe": LimitRule(rate=5, per_us=1_000_000, burst=1),
    }
    async with app, app.server(queues=["default", "mail"], sweep=0.1):
        assert await rules("default") == expected
        assert await rules("mail") == expected
        with valkey.client() as client:
            for key in client.scan_iter(f"{{{app.prefix}:*"):
                client.delete(key)

        async def again() -> bool:
            return await rules("mail") == expected

        await wait_until_async(again)


async def test_limits_hold_for_the_first_tasks_after_a_loss_of_data(
    app: Qsync, valkey: Store
) -> None:
    """The store loses all data while servers wait for tasks; then tasks with limits are
    enqueued."""
    runs = Runs()
    app.limit("customer", concurrency=2)

    @app.task(name="export", limits=["customer:{customer_id}"])
    async def export(customer_id: int) -> None:
        await runs.run(customer_id)

    @app.task(name="free")
    async def free() -> None:
        await runs.run("free")

    async with (
        app, app.async_client() as client,
        app.server(concurrency=10, sweep=60), app.server(concurrency=10, sweep=60),
    ):  # fmt: skip
        await client.enqueue_many([free.build() for _ in range(20)])
        await until(lambda: runs.done == 20)
        for expected in (28, 36, 44):
            with valkey.client() as raw:
                raw.delete(*raw.keys(f"*{app.prefix}:*"))
            await client.enqueue_many([export.build(7) for _ in range(8)])
            await until(lambda expected=expected: runs.done == expected, timeout=20)
    assert runs.most[7] == 2


# A task keeps its limits however it is enqueued.


@asynccontextmanager
async def stored(app: Qsync) -> AsyncIterator[Any]:
    """Yield a function that waits for `count` tasks in the queue and returns their limits."""
    async with app, app.inspector() as inspector:

        async def limits(count: int) -> list[list[str]]:
            async def there() -> bool:
                info = await inspector.queue("default")
                return info is not None and info.total >= count

            await wait_until_async(there)
            found = []
            for state in ("pending", "limited", "scheduled"):
                for row in (await inspector.tasks("default", state)).tasks:
                    detail = await inspector.task(row.id)
                    assert detail is not None
                    found.append(detail.limits)
            return found

        yield limits


async def test_every_enqueue_carries_limits(app: Qsync) -> None:
    app.limit("customer", concurrency=1)
    wrapped: list[str] = []

    @app.task(name="t", limits=["customer:{customer_id}"])
    async def task(customer_id: int = 7) -> None: ...

    @app.on("enqueued")
    def note(task: TaskInfo) -> None:
        wrapped.append(task.id)

    async with stored(app) as limits, app.async_client() as client:
        await task.enqueue()
        await client.enqueue_many([task.build(), task.options(delay=60).build()])
        await client.enqueue(Task("x", limits=["customer:7"]))
        assert await limits(4) == [["customer:7"]] * 4
        info = [state async for state in states(app)]
        assert info == [("pending", 3), ("scheduled", 1)], "no server has published the rule"
    assert len(wrapped) == 4


async def states(app: Qsync) -> AsyncIterator[tuple[str, int]]:
    async with app.inspector() as inspector:
        info = await inspector.queue("default")
        assert info is not None
        for state, count in sorted(info.states.items()):
            if count:
                yield str(state), count


async def test_row_of_an_outbox_carries_limits(app: Qsync) -> None:
    row = make_row(Task("t", id="a", limits=["customer:7", "x"]), app._connections)
    flow = new_task_of(row).flow
    assert flow is not None
    assert flow.limits == ("customer:7", "x")
    plain = make_row(Task("t", id="a"), app._connections)
    assert new_task_of(plain).flow is None


async def test_ticks_of_programs_and_of_stored_schedules_carry_limits(app: Qsync) -> None:
    app.limit("customer", concurrency=1)
    seen: list[str] = []
    gate = asyncio.Event()

    @app.periodic(every=0.2, name="tick", limits=["customer:{customer_id}"])
    async def tick(customer_id: int = 7) -> None:
        seen.append(current().task.id.partition("@")[0])
        await gate.wait()

    async with app, app.async_client() as client, app.inspector() as inspector:
        await client.schedules.put("stored", tick.build(7), every=0.2)
        async with app.server():

            async def both_wait() -> bool:
                rows = (await inspector.tasks("default", "limited")).tasks
                return {row.id.partition("@")[0] for row in rows} == {"tick", "stored"}

            await wait_until_async(both_wait)
            assert len(seen) == 1
            change = await inspector.trigger("tick", queue="default")
            assert change.ok
            gate.set()


async def test_handler_enqueues_with_limits_through_its_own_client(app: Qsync) -> None:
    app.limit("customer", concurrency=1)
    runs = Runs()

    @app.task(name="child", limits=["customer:{customer_id}"])
    async def child(customer_id: int) -> None:
        await runs.run(customer_id)

    @app.task(name="parent")
    async def parent() -> None:
        client = current().client
        await client.enqueue_many([child.build(1) for _ in range(3)])

    app.extend(Extension())
    async with app, app.server():
        await parent.enqueue()
        await until(lambda: runs.done == 3)
    assert runs.most[1] == 1


def test_free_slots_of_a_round_are_granted_once() -> None:
    """Two queues must not fill the same slots twice with tasks that have limits."""
    queues = {name: QueueState(QueueKeys("p", name)) for name in ("a", "b")}
    in_flight: dict[str, Any] = {}
    config = config_of({"queues": ["a", "b"]})
    timing = FetchTiming(config, queues, in_flight, None, lambda: 5)  # type: ignore[arg-type]
    assert timing.open_slots() == 5
    timing.free["a"], in_flight["a"] = 3, None
    assert timing.open_slots() == 2
    timing.free["b"], in_flight["b"] = 2, None
    assert timing.open_slots() == 0


@pytest.mark.parametrize("first", ["this server", "another server"])
async def test_rules_that_the_store_lost_are_published_again(
    app: Qsync, valkey: Store, prefix: str, first: str
) -> None:
    """The loss may also happen after this server or another server has started but before its first
    fetch."""
    app.limit("customer", concurrency=2)
    app.queue("default", max_tasks=9)
    app.queue("unserved", max_tasks=3)
    meta = QueueKeys(prefix, "default").key("meta")

    with valkey.client() as raw:

        def lose() -> None:
            raw.delete(*raw.keys(f"*{prefix}:*"))

        @asynccontextmanager
        async def lifespan() -> AsyncIterator[None]:
            assert await published()
            lose()
            if first == "another server":
                async with Qsync(valkey.url, prefix=prefix) as other, other.server():
                    await until(lambda: raw.hexists(meta, "generation"))
            yield

        async with app, app.inspector() as inspector:

            async def published() -> bool:
                full = [(await inspector.bounds(name)).program for name in ("default", "unserved")]
                rules = raw.hgetall(QueueKeys(prefix, "default").key("limit_rules"))
                return full == [Bounds(max_tasks=9), Bounds(max_tasks=3)] and b"customer" in rules

            async with app.server(lifespan=lifespan):
                await wait_until_async(published)
                await until(lambda: raw.hexists(meta, "generation"))
                lose()
                await wait_until_async(published)


async def test_limit_of_one_queue_is_refused_in_another_by_schedules_and_copies(
    app: Qsync, valkey: Store, prefix: str
) -> None:
    app.limit("stripe", concurrency=1)
    app.limit("customer", concurrency=1)
    app.limit("each", concurrency=1, per_queue=True)

    @app.task(name="pay", limits=["stripe"])
    def pay() -> None: ...

    def refused() -> pytest.RaisesExc[InvalidTask]:
        message = "queue 'default' and task '[xy]' of queue 'money'"
        return pytest.raises(InvalidTask, match=message)

    task = Task("x", queue="money", limits=["stripe:a"])
    async with app.async_client() as client, app.inspector() as inspector:
        with refused():
            await client.schedules.put("s", task, every=60)
        with refused():
            await inspector.put_schedule("s", task, every=60)
        with app.client() as blocking, refused():
            await asyncio.to_thread(blocking.schedules.put, "s", task, every=60)
        with refused():
            app._connections.check(task)
        assert await client.schedules.list() == []
        await client.schedules.put("s", Task("x", queue="money", limits=["each"]), every=60)
        for limits in (["stripe"], ["each", "customer:7"]):
            async with Qsync(valkey.url, prefix=prefix).async_client() as plain:
                id = (await plain.enqueue(Task("y", limits=limits))).id
            for dry_run in (True, False):
                with refused():
                    await inspector.copy_task(id, into="money", dry_run=dry_run)
            assert (await inspector.copy_task(id)).ok
        assert await inspector.queue_names() == ["default", "money"]
        money = await inspector.queue("money")
        assert money is not None
        assert money.states[TaskState.PENDING] == 0
        id = (await client.enqueue(Task("y", limits=["each"]))).id
        assert (await inspector.copy_task(id, into="money")).ok
