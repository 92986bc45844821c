"""Measures: how long from enqueue to the handler's start, and how late scheduled tasks start."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from qsync.cli.bench.figure import Curve, Figure, Found, percentiles
from qsync.cli.bench.handlers import DUE, LOOP, PAYLOAD, STAMPED
from qsync.cli.bench.rig import Rig
from qsync.client import AsyncClient
from qsync.task import Task

GAP_S: Final = 0.01
"""Between tasks that are sent to an idle server."""

CALLERS: Final = 100
"""How many enqueue at the same time to find out how much is half of the load."""

TICK_S: Final = 0.002
"""How often a client under load sends what is due, all at once."""


async def measure_idle(rig: Rig) -> Found:
    """One task after another to a server that has nothing else to do."""
    await rig.clean()
    count = rig.scale.singles
    async with rig.servers() as [server], rig.client() as client:
        await _stamp(client)
        await rig.until_completed(1)
        await server.ask("delays")
        for _ in range(count):
            await _stamp(client)
            await asyncio.sleep(GAP_S)
        await rig.until_completed(1 + count)
        delays = _seconds(await server.ask("delays"))
    how = f"{count:,} tasks, one every {1000 * GAP_S:.0f} ms, to a server without other work"
    return [
        *percentiles("latency, idle", delays, how),
        Curve("latency, idle", "ms", histogram(delays), how),
    ]


async def measure_half_load(rig: Rig) -> Found:
    """So many tasks a second as are half of what callers and a server get through together."""
    seconds = rig.scale.load_s
    rate = await _most(rig, seconds) / 2
    await rig.clean()
    async with rig.servers() as [server], rig.client() as client:
        sent, took = await _send(client, rate, seconds)
        await rig.until_completed(sent)
        delays = _seconds(await server.ask("delays"))
    late = delays[len(delays) // 5 :]  # the server has by then learnt how fast it is
    how = (
        f"{sent / took:,.0f} tasks/s for {seconds:g} s by concurrent callers, where {CALLERS} that "
        f"never rest and a server make {2 * rate:,.0f}; without the first fifth"
    )
    return [
        *percentiles("latency, half load", late, how),
        Curve("latency, half load", "ms", histogram(late), how),
    ]


async def _most(rig: Rig, seconds: float) -> float:
    """Tasks a second from callers that enqueue as fast as they can while a server runs them."""
    await rig.clean()
    async with rig.servers(), rig.client() as client:
        began = time.perf_counter()

        async def call() -> int:
            sent = 0
            while time.perf_counter() - began < seconds:
                await client.enqueue(Task(LOOP, PAYLOAD))
                sent += 1
            return sent

        sent = sum(await asyncio.gather(*[call() for _ in range(CALLERS)]))
        await rig.until_completed(sent)
        return sent / (time.perf_counter() - began)


async def _send(client: AsyncClient, rate: float, seconds: float) -> tuple[int, float]:
    """Send at a rate, whatever becomes of it; returns how many there were, and the seconds."""
    under_way: set[asyncio.Task[Any]] = set()
    began, sent = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds:
        for _ in range(int(passed * rate) - sent):
            task = asyncio.create_task(_stamp(client))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            sent += 1
        await asyncio.sleep(TICK_S)
    took = time.perf_counter() - began
    await asyncio.gather(*under_way)
    return sent, took


async def _stamp(client: AsyncClient) -> None:
    await client.enqueue(Task(STAMPED, time.monotonic_ns().to_bytes(8)))


async def measure_scheduled(rig: Rig) -> Found:
    """Tasks for times that are spread over some seconds, to a server without other work."""
    await rig.clean()
    count, seconds = rig.scale.scheduled, rig.scale.scheduled_s
    async with rig.servers() as [server], rig.client() as client:
        first = datetime.now(UTC) + timedelta(seconds=max(0.3, count / 20_000))
        step = timedelta(seconds=seconds / count)
        await client.enqueue_many(_for(first + at * step) for at in range(count))
        await rig.until_completed(count)
        delays = _seconds(await server.ask("delays"))
    early = sum(delay < 0 for delay in delays)
    how = f"{count:,} tasks for times over {seconds:g} s; both clocks are this machine's"
    return [
        *percentiles("lateness of scheduled", delays, how),
        Figure("scheduled tasks started early", "tasks", early, how),
        Curve("lateness of scheduled", "ms", histogram(delays), how),
    ]


def _for(time: datetime) -> Task:
    ns = (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
    return Task(DUE, ns.to_bytes(8), process_at=time)


def _seconds(delays_ns: Sequence[int]) -> list[float]:
    return [delay / 1e9 for delay in delays_ns]


def histogram(seconds: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """The share of the times in each bin: (upper end in ms, percent); bins are 1.25 times wide."""
    step = math.log(1.25)
    bins = [math.floor(math.log(max(1e-6, one)) / step) for one in seconds]
    counts = dict.fromkeys(range(min(bins), max(bins) + 1), 0)
    for at in bins:
        counts[at] += 1
    return tuple(
        (1000 * math.exp((at + 1) * step), 100 * count / len(seconds))
        for at, count in counts.items()
    )
