"""Measures the time from the enqueue to the start of the handler, and how late scheduled tasks
start."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from benchmarks.arrivals import run_arrivals
from benchmarks.figures import Curve, Figure, Results, percentiles
from benchmarks.handlers import DUE, STAMPED
from benchmarks.harness import Harness
from qsync.client import AsyncClient
from qsync.task import Task

GAP_S: Final = 0.01
"""Interval at which tasks are sent to an idle server, in seconds."""

BIN_WIDTH: Final = 1.25
"""Ratio of the upper to the lower end of a histogram bin."""


async def measure_idle(harness: Harness) -> Results:
    """Send one task after another to a server that has no other work."""
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


async def measure_steady_load(harness: Harness) -> Results:
    """Enqueue at random times from a separate process, at fixed average rates."""
    results: Results = []
    loads = [(rate, False) for rate in harness.scale.load_rates]
    loads += [(rate, True) for rate in harness.scale.load_rates_uvloop]
    for rate, uvloop in loads:
        results += await _steady_load(harness, rate, uvloop=uvloop)
    return results


async def _steady_load(harness: Harness, rate: int, *, uvloop: bool) -> Results:
    name = f"latency at {rate:,}/s" + (", uvloop" if uvloop else "")
    await harness.clean()
    async with harness.servers(uvloop=uvloop) as [server]:
        sent, took = await run_arrivals(
            harness.url, harness.prefix, rate=rate, seconds=harness.scale.load_s, uvloop=uvloop
        )
        await harness.until_completed(sent)
        delays = _seconds(await server.ask("delays"))
    delays = delays[len(delays) // 5 :]  # skip the period in which the server adapts to the rate
    how = (
        f"{sent / took:,.0f} tasks/s for {took:.1f} s at random times (Poisson) from a separate "
        "process; time from the arrival to the start, without the first fifth of the tasks"
    )
    return [*percentiles(name, delays, how), Curve(name, "ms", histogram(delays), how)]


async def _enqueue_stamped(client: AsyncClient) -> None:
    await client.enqueue(Task(STAMPED, time.monotonic_ns().to_bytes(8)))


async def measure_scheduled(harness: Harness) -> Results:
    """Schedule tasks at times that are spread over several seconds."""
    await harness.clean()
    count, seconds = harness.scale.scheduled, harness.scale.scheduled_s
    async with harness.servers() as [server], harness.client() as client:
        first = datetime.now(UTC) + timedelta(seconds=max(0.3, count / 20_000))
        step = timedelta(seconds=seconds / count)
        await client.enqueue_many(_task_due_at(first + i * step) for i in range(count))
        await harness.until_completed(count)
        delays = _seconds(await server.ask("delays"))
    early = sum(delay < 0 for delay in delays)
    how = f"{count:,} tasks scheduled over {seconds:g} s; client and server share a clock"
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
    """Return each bin as (upper end in ms, percentage of the times that it holds)."""
    step = math.log(BIN_WIDTH)
    bins = [math.floor(math.log(max(1e-6, value)) / step) for value in seconds]
    counts = dict.fromkeys(range(min(bins), max(bins) + 1), 0)
    for bin in bins:
        counts[bin] += 1
    return tuple(
        (1000 * math.exp((bin + 1) * step), 100 * count / len(seconds))
        for bin, count in counts.items()
    )
