"""Runs that share an asyncio task do not affect each other, and handlers cannot tell that they
share one."""

from __future__ import annotations

import asyncio
import contextvars
import time
from typing import Any

from qsync.keys import QueueKeys
from qsync.message import NO_FAILURE, Message
from qsync.mux import Mux
from qsync.server.queue_state import (
    QUEUED,
    RELEASED,
    RUNNING,
    LeasedTask,
    Phase,
    QueueState,
)
from qsync.server.timeouts import SPARE, Timeouts
from qsync.task import Task, TaskInfo
from tests.support.server import Bench, bench, left_over, until
from tests.support.stores import Store

marked: contextvars.ContextVar[str] = contextvars.ContextVar("marked")


async def drained(b: Bench, store: Store) -> None:
    with store.client() as client:
        await until(lambda: left_over(client, b.prefix) == {})


def test_handlers_that_wait_for_nothing_share_a_task_and_no_context(
    valkey: Store, prefix: str
) -> None:
    tasks, seen = set[Any](), list[str]()
    mux = Mux()

    @mux.handle("quick")
    async def quick(task: TaskInfo) -> None:
        seen.append(marked.get("nothing"))
        marked.set(task.id)
        tasks.add(id(asyncio.current_task()))

    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            await b.client.enqueue_many([Task("quick")] * 300)
            async with b.server(mux):
                await drained(b, valkey)

    asyncio.run(main())
    assert seen == ["nothing"] * 300
    assert len(tasks) < 100


def test_handler_that_keeps_its_asyncio_task_shares_it_with_no_other(
    valkey: Store, prefix: str
) -> None:
    """If a handler cancels its asyncio task, immediately or later, no other handler is affected."""
    mux, ended, kept = Mux(), list[str](), list[asyncio.Task[Any]]()

    @mux.handle("keeps")
    async def keeps(task: TaskInfo) -> None:
        own = asyncio.current_task()
        assert own is not None
        kept.append(own)
        ended.append("keeps")

    @mux.handle("cancels itself")
    async def cancels_itself(task: TaskInfo) -> None:
        own = asyncio.current_task()
        assert own is not None
        own.cancel()
        ended.append("cancels itself")

    @mux.handle("waits")
    async def waits(task: TaskInfo) -> None:
        for one in kept:
            one.cancel()
        await asyncio.sleep(0.01)
        ended.append("waits")

    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            kinds = ["keeps", "cancels itself", "waits"] * 20
            await b.client.enqueue_many([Task(kind, retry=0) for kind in kinds])
            async with b.server(mux):
                await drained(b, valkey)

    asyncio.run(main())
    assert sorted(ended) == ["cancels itself"] * 20 + ["keeps"] * 20 + ["waits"] * 20


def test_a_handler_that_waits_after_quick_ones_is_stopped_at_its_limit(
    valkey: Store, prefix: str
) -> None:
    mux, how = Mux(), list[str]()

    @mux.handle("mixed")
    async def mixed(task: TaskInfo) -> None:
        if task.payload == b"long":
            own = asyncio.current_task()
            assert own is not None
            assert own.get_name() == task.id
            try:
                async with asyncio.timeout(0.05):
                    await asyncio.sleep(10)
            except TimeoutError:
                how.append("its own")
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                how.append("the task's")
                raise

    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            payloads = [b"quick"] * 50 + [b"long"] * 3 + [b"quick"] * 50
            one_by_one = [Task("mixed", payload, retry=0, timeout=0.2) for payload in payloads]
            await b.client.enqueue_many(one_by_one)
            async with b.server(mux):
                with valkey.client() as client:
                    await until(
                        lambda: (
                            left_over(client, prefix).keys()
                            <= {"calls"} | {"tasks", "dead", "failures"}
                        )
                    )
                    assert left_over(client, prefix)["dead"] == 3

    asyncio.run(main())
    assert sorted(how) == ["its own"] * 3 + ["the task's"] * 3


def test_task_behind_a_running_handler_has_not_started(valkey: Store, prefix: str) -> None:
    """If the handler blocks the loop, the heartbeat can hand back the next task."""
    phases, mux, servers = list[list[Phase]](), Mux(), list[Any]()

    @mux.handle("quick")
    async def quick(task: TaskInfo) -> None:
        [queue] = servers[0]._queues
        phases.append([leased.phase for leased in queue.held.values()])

    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            await b.client.enqueue_many([Task("quick")] * 50)
            servers.append(b.server(mux))
            async with servers[0]:
                await drained(b, valkey)

    asyncio.run(main())
    assert len(phases) == 50
    assert {held.count(RUNNING) for held in phases} == {1}
    assert max(held.count(QUEUED) for held in phases) >= 40


def test_quick_handlers_do_not_starve_the_loop(valkey: Store, prefix: str) -> None:
    mux, turns, at_end = Mux(), 0, 0

    @mux.handle("busy")
    async def busy(task: TaskInfo) -> None:
        nonlocal at_end
        ends = time.perf_counter() + 0.0005
        while time.perf_counter() < ends:
            pass
        at_end = turns

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            await b.client.enqueue_many([Task("busy")] * 200)
            async with b.server(mux):
                counting = asyncio.create_task(count())
                await drained(b, valkey)
                counting.cancel()

    asyncio.run(main())
    assert at_end >= 50


def leased(queue: QueueState, number: int) -> LeasedTask:
    message = Message(1, 0, b"", "x", b"", False, 0)
    one = LeasedTask(queue, f"t{number}", "s/1", message, NO_FAILURE, 0, 0.0, 0.0)
    one.phase = RUNNING
    return one


async def test_handlers_that_wait_begin_in_their_order(valkey: Store, prefix: str) -> None:
    mux, begun = Mux(), list[str]()

    @mux.handle("waits")
    async def waits(task: TaskInfo) -> None:
        begun.append(task.id)
        await asyncio.sleep(0)

    async with bench(valkey.url, prefix) as b:
        ids = [f"{number:04}" for number in range(3000)]
        await b.client.enqueue_many([Task("waits", id=id) for id in ids])
        async with b.server(mux):
            await until(lambda: len(begun) == len(ids))
    overtaken = max(abs(at - int(id)) for at, id in enumerate(begun))
    assert overtaken <= 100  # the default concurrency


async def test_timeouts_drop_ended_runs_and_report_the_others() -> None:
    over: list[str] = []
    limits = Timeouts(lambda one: over.append(one.id))
    queue = QueueState(QueueKeys("p", "q"))
    long = leased(queue, -1)
    limits.add(long, 3600.0)
    for number in range(20 * SPARE):
        quick = leased(queue, number)
        limits.add(quick, 3600.0)
        quick.phase = RELEASED
        assert limits.size <= 2 * SPARE + 2
    stuck, ended, soon = (leased(queue, number) for number in (1, 2, 3))
    limits.add(stuck, 0.02)
    limits.add(ended, 0.02)
    limits.add(soon, 0.01)
    ended.phase = RELEASED
    await until(lambda: len(over) == 2)
    assert over == ["t3", "t1"]
    limits.close()
