"""Measures the overhead of limits, and whether task starts keep to them."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from benchmarks.figures import Figure, Results, known_median, median, percentiles, quantile
from benchmarks.handlers import LOOP, SLOT, STAMPED
from benchmarks.harness import Harness
from benchmarks.measures.latency import GAP_S
from benchmarks.measures.store_cost import used_bytes
from benchmarks.measures.throughput import drain
from qsync.limit import LimitRule
from qsync.task import Task

TASKS_OF_A_KEY: Final = 10

ONE_AT_A_TIME: Final = LimitRule(concurrency=1)

STARTS_A_SECOND: Final = 20

PACED: Final = LimitRule(rate=STARTS_A_SECOND, per_us=1_000_000, burst=1)

SELDOM: Final = LimitRule(rate=1, per_us=86_400_000_000, burst=1)
"""Rule that starts one task and makes the other tasks wait for a day."""


async def measure_limits(harness: Harness) -> Results:
    """Measure tasks with limits, compared with tasks that have no limits."""
    return [
        *await _measure_keys(harness),
        *await _measure_waiter_bytes(harness),
        *await _measure_slot(harness),
        *await _measure_pace(harness),
        *await _measure_crowd(harness),
    ]


async def _measure_keys(harness: Harness) -> Results:
    """Alternately drain tasks without limits and tasks that share many keys of a limit with
    concurrency 1."""
    tasks = harness.scale.drain
    keys = tasks // TASKS_OF_A_KEY
    pairs = [
        (
            await drain(harness, LOOP, tasks),
            await drain(harness, LOOP, tasks, rule=ONE_AT_A_TIME, keys=keys),
        )
        for _ in range(harness.scale.rounds)
    ]
    how = f"{tasks:,} no-op coroutines with {keys:,} keys of concurrency 1"
    return [
        Figure(
            "drain, no limits", "tasks/s", median([plain.rate for plain, _ in pairs]),
            "the same tasks without limits, in the same rounds",
        ),
        Figure("drain, limits", "tasks/s", median([limited.rate for _, limited in pairs]), how),
        Figure(
            "drain, limits / no limits", "%",
            median([100 * limited.rate / plain.rate for plain, limited in pairs]),
            "ratio of the rates in the same round",
        ),
        Figure(
            "store per task, limits", "us",
            known_median([limited.store_us for _, limited in pairs]),
            "store's time for fetch and completion, from INFO commandstats",
        ),
    ]  # fmt: skip


async def _measure_waiter_bytes(harness: Harness) -> Results:
    """Measure how much more memory a task takes in the store while it waits for a limit than while
    it is pending."""
    count = harness.scale.pending
    sizes: list[float | None] = []
    for rule in (None, ONE_AT_A_TIME):
        await harness.clean()
        before = await used_bytes(harness)
        await harness.put_rule("customer", rule)
        await harness.fill(LOOP, count, keys=1 if rule else None)
        after = await used_bytes(harness)
        sizes.append(None if before is None or after is None else (after - before) / count)
    plain, waiter = sizes
    extra = None if plain is None or waiter is None else waiter - plain
    how = f"{count:,} tasks that wait for `customer:0`, compared with as many pending tasks"
    return [Figure("memory of a waiter", "bytes", extra, how)]


async def _measure_slot(harness: Harness) -> Results:
    """Measure the time from the end of a task to the start of the task that waits for its slot."""
    await harness.clean()
    count = harness.scale.singles
    async with harness.servers() as [server]:
        await harness.put_rule("customer", ONE_AT_A_TIME)
        await harness.fill(SLOT, 1 + count, keys=1)
        await harness.until_completed(1 + count)
        delays = [delay / 1e9 for delay in await server.ask("delays")]
    how = (
        f"time from a handler's end to the next start; {count:,} tasks of a key with concurrency 1"
    )
    return [*percentiles("slot to next start", delays, how)]


async def _measure_pace(harness: Harness) -> Results:
    """Measure the share of a rate that is used and the largest number of starts in any second."""
    await harness.clean()
    count = max(3, round(STARTS_A_SECOND * harness.scale.limit_s))
    async with harness.servers() as [server]:
        await harness.put_rule("customer", PACED)
        await harness.fill(SLOT, count, keys=1)
        await harness.until_completed(count)
        starts = sorted(time / 1e9 for time in await server.ask("starts"))[-count:]
    used = (count - 1) / (starts[-1] - starts[0]) / STARTS_A_SECOND
    most = max(sum(1 for start in starts if 0 <= start - first < 1) for first in starts)
    how = f"{count:,} tasks, {STARTS_A_SECOND} starts per second, burst 1"
    return [
        Figure("rate used", "%", 100 * used, how),
        Figure("most starts in a second", "tasks", most, f"{how}; 21 starts are allowed"),
    ]


async def _measure_crowd(harness: Harness) -> Results:
    """Measure the latency of tasks with other keys, both with and without many tasks that wait for
    one key."""
    count = harness.scale.waiting
    alone = await _latency_of_others(harness, 0)
    beside = await _latency_of_others(harness, count)
    how = f"{harness.scale.singles:,} tasks of other keys, one every {1000 * GAP_S:.0f} ms"
    name = f"latency beside {count:,} waiting"
    return [
        *percentiles("latency beside none waiting", alone, how),
        *percentiles(name, beside, how),
        Figure(
            f"{name}, p99 / none waiting", "%",
            100 * quantile(sorted(beside), 0.99) / quantile(sorted(alone), 0.99), how,
        ),
    ]  # fmt: skip


async def _latency_of_others(harness: Harness, waiting: int) -> list[float]:
    await harness.clean()
    await harness.put_rule("crowd", SELDOM)
    await harness.put_rule("customer", ONE_AT_A_TIME)
    if waiting:
        await harness.fill(LOOP, 1 + waiting, keys=1, name="crowd")
    warm_up = 50
    async with harness.servers() as [server], harness.client() as client:
        for number in range(warm_up + harness.scale.singles):
            payload = time.monotonic_ns().to_bytes(8)
            await client.enqueue(Task(STAMPED, payload, limits=[f"customer:{number}"]))
            await asyncio.sleep(GAP_S)
        await harness.until_completed(bool(waiting) + warm_up + harness.scale.singles)
        delays = await server.ask("delays")
    return [delay / 1e9 for delay in delays[warm_up:]]
