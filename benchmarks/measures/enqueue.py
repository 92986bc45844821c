"""Measures single enqueues (compared with a bare EVALSHA), enqueues from many concurrent callers,
and bulk enqueues."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from benchmarks.figures import Figure, Results, median
from benchmarks.handlers import LOOP, PAYLOAD
from benchmarks.harness import Harness
from qsync.broker import ops
from qsync.broker.blocking import Broker
from qsync.broker.call import Call
from qsync.new_task import new_nonce, new_task
from qsync.task import Task

EnqueueAll = Callable[[Harness, Sequence[Task]], Awaitable[float]]
"""Enqueues tasks one after another and returns the seconds taken."""

BareCalls = Callable[[Harness, int], Awaitable[float]]
"""Makes a number of calls with redis-py alone and returns the seconds taken."""


async def measure_one_by_one(harness: Harness) -> Results:
    """Enqueue each task with a separate call, with the blocking client and with the async
    client."""
    count = harness.scale.one_by_one
    results: Results = []
    for client, enqueue_all, bare_calls in CLIENTS:
        rounds = []
        for _ in range(harness.scale.rounds):
            await harness.clean()
            bare_s = await bare_calls(harness, count)
            rounds.append((bare_s, await enqueue_all(harness, [Task(LOOP, PAYLOAD)] * count)))
        results += [
            Figure(
                f"enqueue, {client}", "tasks/s", median([count / own_s for _, own_s in rounds]),
                f"{count:,} tasks one after another, 32-byte payloads",
            ),
            Figure(
                f"bare EVALSHA, {client}", "tasks/s",
                median([count / bare_s for bare_s, _ in rounds]),
                "redis-py alone: the same script with prepared arguments, on one connection",
            ),
            Figure(
                f"enqueue / bare EVALSHA, {client}", "x",
                median([own_s / bare_s for bare_s, own_s in rounds]),
                "time of an enqueue divided by that of the bare call, per round",
            ),
        ]  # fmt: skip
    return results


def _enqueue_calls(harness: Harness, count: int) -> list[Call[Any]]:
    """Return the calls that `enqueue` sends."""
    return [
        ops.enqueue(harness.keys, [new_task(Task(LOOP, PAYLOAD), new_nonce())])
        for _ in range(count)
    ]


async def _bare_blocking(harness: Harness, count: int) -> float:
    calls = _enqueue_calls(harness, count)
    await harness.broker.run(_enqueue_calls(harness, 1)[0])  # loads the script
    return await asyncio.to_thread(_time_bare_calls, harness, calls)


def _time_bare_calls(harness: Harness, calls: Sequence[Call[Any]]) -> float:
    """Make the calls in a thread without an event loop, like users of the blocking client."""
    broker = Broker(harness.address)
    client = broker.client_at(broker.locate(harness.keys.base))
    try:
        client.ping()
        began = time.perf_counter()
        for call in calls:
            client.evalsha(call.script.sha, len(call.keys), *call.keys, *call.args)
        return time.perf_counter() - began
    finally:
        client.close()
        client.connection_pool.disconnect()
        broker.close()


async def _bare_async(harness: Harness, count: int) -> float:
    calls = _enqueue_calls(harness, count)
    await harness.broker.run(_enqueue_calls(harness, 1)[0])
    client: Any = await harness.broker.client_for(harness.keys.base)
    try:
        await client.ping()
        began = time.perf_counter()
        for call in calls:
            await client.evalsha(call.script.sha, len(call.keys), *call.keys, *call.args)
        return time.perf_counter() - began
    finally:
        await client.aclose()
        await client.connection_pool.disconnect()


async def _enqueue_blocking(harness: Harness, tasks: Sequence[Task]) -> float:
    return await asyncio.to_thread(_time_enqueues, harness, tasks)


def _time_enqueues(harness: Harness, tasks: Sequence[Task]) -> float:
    with harness.blocking_client() as client:
        client.enqueue(tasks[0])  # connects
        began = time.perf_counter()
        for task in tasks:
            client.enqueue(task)
        return time.perf_counter() - began


async def _enqueue_async(harness: Harness, tasks: Sequence[Task]) -> float:
    async with harness.client() as client:
        await client.enqueue(tasks[0])
        began = time.perf_counter()
        for task in tasks:
            await client.enqueue(task)
        return time.perf_counter() - began


CLIENTS: Final[tuple[tuple[str, EnqueueAll, BareCalls], ...]] = (
    ("blocking", _enqueue_blocking, _bare_blocking),
    ("async", _enqueue_async, _bare_async),
)


async def measure_callers(harness: Harness) -> Results:
    """Enqueue from many callers of one AsyncClient. Each caller awaits one call after another."""
    results: Results = []
    for callers in (500, 1_000):
        each = max(1, harness.scale.callers // callers)
        rates = [
            callers * each / await _enqueue_by_callers(harness, callers, each)
            for _ in range(harness.scale.rounds)
        ]
        how = f"one AsyncClient; each caller makes {each:,} `enqueue` calls, one after another"
        results.append(Figure(f"enqueue, {callers:,} callers", "tasks/s", median(rates), how))
    return results


async def _enqueue_by_callers(harness: Harness, callers: int, each: int) -> float:
    await harness.clean()
    async with harness.client() as client:

        async def call() -> None:
            for _ in range(each):
                await client.enqueue(Task(LOOP, PAYLOAD))

        await client.enqueue(Task(LOOP, PAYLOAD))
        began = time.perf_counter()
        await asyncio.gather(*[call() for _ in range(callers)])
        return time.perf_counter() - began


async def measure_bulk(harness: Harness) -> Results:
    """Enqueue all tasks with one call of `enqueue_many`."""
    count = harness.scale.bulk
    rates = [count / await _enqueue_in_bulk(harness, count) for _ in range(harness.scale.rounds)]
    how = f"{count:,} tasks in one call, including the time to create them, 32-byte payloads"
    return [Figure("enqueue_many", "tasks/s", median(rates), how)]


async def _enqueue_in_bulk(harness: Harness, count: int) -> float:
    await harness.clean()
    async with harness.client() as client:
        await client.enqueue(Task(LOOP, PAYLOAD))
        began = time.perf_counter()
        await client.enqueue_many([Task(LOOP, PAYLOAD) for _ in range(count)])
        return time.perf_counter() - began
