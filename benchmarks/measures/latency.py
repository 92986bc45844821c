"""Measures: from enqueue to the start of the handler, and how late scheduled tasks start."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from benchmarks.figures import Curve, Figure, Results, percentiles
from benchmarks.handlers import DUE, LOOP, PAYLOAD, STAMPED
from benchmarks.harness import Harness
from qsync.client import AsyncClient
from qsync.task import Task

GAP_S: Final = 0.01
"""Time between tasks that are sent to an idle server."""

CALLERS: Final = 100
"""Number of concurrent callers for the full load."""

TICK_S: Final = 0.002
"""Interval in which a client under load sends all that is due."""

BIN_WIDTH: Final = 1.25
"""Ratio of the upper to the lower end of a bin of a histogram."""


async def measure_idle(harness: Harness) -> Results:
    """Send one task after another to a server without other work."""
    await harness.clean()
    count = harness.scale.singles
    async with harness.servers() as [server], harness.client() as client:
        await _enqueue_stamped(client)
        await harness.until_completed(1)
        await server.ask("delays")
        for _ in range(count):
            await _enqueue_stamped(client)
            await asyncio.sleep(GAP_S)
        await harness.until_completed(1 + count)
        delays = _seconds(await server.ask("delays"))
    how = f"{count:,} tasks, one every {1000 * GAP_S:.0f} ms, to a server without other work"
    return [
        *percentiles("latency, idle", delays, how),
        Curve("latency, idle", "ms", histogram(delays), how),
    ]


async def measure_half_load(harness: Harness) -> Results:
    """Send half as many tasks a second as concurrent callers and a server reach together."""
    seconds = harness.scale.load_s
    full = await _full_load(harness, seconds)
    await harness.clean()
    async with harness.servers() as [server], harness.client() as client:
        sent, took = await _send_at_rate(client, full / 2, seconds)
        await harness.until_completed(sent)
        delays = _seconds(await server.ask("delays"))
    delays = delays[len(delays) // 5 :]  # by then the server has adapted to its speed
    how = (
        f"{sent / took:,.0f} tasks/s for {seconds:g} s by concurrent callers; {CALLERS} callers "
        f"without pauses and a server reach {full:,.0f}; without the first fifth"
    )
    return [
        *percentiles("latency, half load", delays, how),
        Curve("latency, half load", "ms", histogram(delays), how),
    ]


async def _full_load(harness: Harness, seconds: float) -> float:
    """Return the tasks a second of callers without pauses while a server runs their tasks."""
    await harness.clean()
    async with harness.servers(), harness.client() as client:
        began = time.perf_counter()

        async def call() -> int:
            sent = 0
            while time.perf_counter() - began < seconds:
                await client.enqueue(Task(LOOP, PAYLOAD))
                sent += 1
            return sent

        sent = sum(await asyncio.gather(*[call() for _ in range(CALLERS)]))
        await harness.until_completed(sent)
        return sent / (time.perf_counter() - began)


async def _send_at_rate(client: AsyncClient, rate: float, seconds: float) -> tuple[int, float]:
    """Send tasks at a rate, without waiting for replies; return their number and the seconds."""
    in_flight: set[asyncio.Task[Any]] = set()
    began, sent = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds:
        for _ in range(int(passed * rate) - sent):
            task = asyncio.create_task(_enqueue_stamped(client))
            in_flight.add(task)
            task.add_done_callback(in_flight.discard)
            sent += 1
        await asyncio.sleep(TICK_S)
    took = time.perf_counter() - began
    await asyncio.gather(*in_flight)
    return sent, took


async def _enqueue_stamped(client: AsyncClient) -> None:
    await client.enqueue(Task(STAMPED, time.monotonic_ns().to_bytes(8)))


async def measure_scheduled(harness: Harness) -> Results:
    """Schedule tasks for times that are spread over some seconds."""
    await harness.clean()
    count, seconds = harness.scale.scheduled, harness.scale.scheduled_s
    async with harness.servers() as [server], harness.client() as client:
        first = datetime.now(UTC) + timedelta(seconds=max(0.3, count / 20_000))
        step = timedelta(seconds=seconds / count)
        await client.enqueue_many(_task_due_at(first + i * step) for i in range(count))
        await harness.until_completed(count)
        delays = _seconds(await server.ask("delays"))
    early = sum(delay < 0 for delay in delays)
    how = f"{count:,} tasks for times over {seconds:g} s; both clocks are this machine's"
    return [
        *percentiles("lateness of scheduled", delays, how),
        Figure("scheduled tasks started early", "tasks", early, how),
        Curve("lateness of scheduled", "ms", histogram(delays), how),
    ]


def _task_due_at(time: datetime) -> Task:
    ns = (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
    return Task(DUE, ns.to_bytes(8), process_at=time)


def _seconds(delays_ns: Sequence[int]) -> list[float]:
    return [delay / 1e9 for delay in delays_ns]


def histogram(seconds: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Return the share of the times in each bin, as (upper end in ms, percent)."""
    step = math.log(BIN_WIDTH)
    bins = [math.floor(math.log(max(1e-6, value)) / step) for value in seconds]
    counts = dict.fromkeys(range(min(bins), max(bins) + 1), 0)
    for bin in bins:
        counts[bin] += 1
    return tuple(
        (1000 * math.exp((bin + 1) * step), 100 * count / len(seconds))
        for bin, count in counts.items()
    )
