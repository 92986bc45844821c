"""Measures: enqueue one by one beside a bare EVALSHA, by many callers at once, and in bulk."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from qsync.broker import ops
from qsync.broker.call import Call
from qsync.broker.shell import Broker
from qsync.cli.bench.figure import Figure, Found, median
from qsync.cli.bench.handlers import LOOP, PAYLOAD
from qsync.cli.bench.rig import Rig
from qsync.task import Task, new_nonce, outgoing

Ours = Callable[[Rig, Sequence[Task]], Awaitable[float]]
"""The seconds that it takes to enqueue tasks one after another."""

Bare = Callable[[Rig, int], Awaitable[float]]
"""The seconds that redis-py alone takes for so many calls."""


async def measure_one_by_one(rig: Rig) -> Found:
    """Each task by a call of its own, the next after the answer; in both colours."""
    count = rig.scale.one_by_one
    found: Found = []
    for colour, ours, bare in COLOURS:
        rounds = []
        for _ in range(rig.scale.rounds):
            await rig.clean()
            floor_s = await bare(rig, count)
            rounds.append((floor_s, await ours(rig, [Task(LOOP, PAYLOAD)] * count)))
        rates = [count / ours_s for _, ours_s in rounds]
        ratios = [ours_s / floor_s for floor_s, ours_s in rounds]
        found += [
            Figure(
                f"enqueue, {colour}", "tasks/s", median(rates),
                f"{count:,} tasks one after another, 32-byte payloads",
            ),
            Figure(
                f"bare EVALSHA, {colour}", "tasks/s",
                median([count / floor_s for floor_s, _ in rounds]),
                "redis-py alone: the same script, with arguments made beforehand, one connection",
            ),
            Figure(
                f"enqueue / bare EVALSHA, {colour}", "x", median(ratios),
                "time of ours to time of the bare call, of the same round",
            ),
        ]  # fmt: skip
    return found


def _calls(rig: Rig, count: int) -> list[Call[Any]]:
    """What `enqueue` sends, made ready."""
    return [
        ops.enqueue(rig.keys, [outgoing(Task(LOOP, PAYLOAD), new_nonce())]) for _ in range(count)
    ]


async def _bare_blocking(rig: Rig, count: int) -> float:
    calls = _calls(rig, count)
    await rig.broker.run(_calls(rig, 1)[0])  # the store has the script
    broker = Broker(rig.address)
    client = broker.client_at(broker.locate(rig.keys.base))
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


async def _bare_asynchronous(rig: Rig, count: int) -> float:
    calls = _calls(rig, count)
    await rig.broker.run(_calls(rig, 1)[0])
    client: Any = await rig.broker.client_for(rig.keys.base)
    try:
        await client.ping()
        began = time.perf_counter()
        for call in calls:
            await client.evalsha(call.script.sha, len(call.keys), *call.keys, *call.args)
        return time.perf_counter() - began
    finally:
        await client.aclose()
        await client.connection_pool.disconnect()


async def _blocking(rig: Rig, tasks: Sequence[Task]) -> float:
    with rig.blocking_client() as client:
        client.enqueue(tasks[0])  # connects
        began = time.perf_counter()
        for task in tasks:
            client.enqueue(task)
        return time.perf_counter() - began


async def _asynchronous(rig: Rig, tasks: Sequence[Task]) -> float:
    async with rig.client() as client:
        await client.enqueue(tasks[0])
        began = time.perf_counter()
        for task in tasks:
            await client.enqueue(task)
        return time.perf_counter() - began


COLOURS: Final[tuple[tuple[str, Ours, Bare], ...]] = (
    ("blocking", _blocking, _bare_blocking),
    ("async", _asynchronous, _bare_asynchronous),
)


async def measure_callers(rig: Rig) -> Found:
    """Many callers of one AsyncClient, each awaiting its own enqueue."""
    found: Found = []
    for callers in (500, 1_000):
        each = max(1, rig.scale.callers // callers)
        rates = [callers * each / await _by_callers(rig, callers, each) for _ in _rounds(rig)]
        found.append(
            Figure(
                f"enqueue, {callers:,} callers", "tasks/s", median(rates),
                f"one AsyncClient, {each:,} calls of `enqueue` by each, one after another",
            )
        )  # fmt: skip
    return found


async def _by_callers(rig: Rig, callers: int, each: int) -> float:
    await rig.clean()
    async with rig.client() as client:

        async def call() -> None:
            for _ in range(each):
                await client.enqueue(Task(LOOP, PAYLOAD))

        await client.enqueue(Task(LOOP, PAYLOAD))
        began = time.perf_counter()
        await asyncio.gather(*[call() for _ in range(callers)])
        return time.perf_counter() - began


async def measure_bulk(rig: Rig) -> Found:
    """`enqueue_many` of all tasks in one call."""
    count = rig.scale.bulk
    rates = [count / await _in_bulk(rig, count) for _ in _rounds(rig)]
    how = f"{count:,} tasks by one call, their making included, 32-byte payloads"
    return [Figure("enqueue_many", "tasks/s", median(rates), how)]


async def _in_bulk(rig: Rig, count: int) -> float:
    await rig.clean()
    async with rig.client() as client:
        await client.enqueue(Task(LOOP, PAYLOAD))
        began = time.perf_counter()
        await client.enqueue_many([Task(LOOP, PAYLOAD) for _ in range(count)])
        return time.perf_counter() - began


def _rounds(rig: Rig) -> range:
    return range(rig.scale.rounds)
