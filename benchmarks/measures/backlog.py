"""Measures throughput and the store's time per task at small and large backlogs."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

from benchmarks.figures import Curve, Figure, Results, known_median, median
from benchmarks.handlers import LOOP, PAYLOAD
from benchmarks.harness import Harness
from benchmarks.measures.store_cost import cost_by_verb, total_cost
from qsync.broker.op_values import BATCH_SIZE
from qsync.client import AsyncClient
from qsync.task import Task

REFILL_BATCH: Final = 2_000
"""Maximum number of tasks that one call adds to refill the backlog."""


@dataclass(frozen=True, slots=True)
class _Round:
    """Result of one round at one backlog size."""

    us: float | None
    rate: float


async def measure_backlog(harness: Harness) -> Results:
    """Measure the store's time per task and the drain rate at each backlog.

    Each round goes through all backlogs, so that ratios compare values from the same round. The
    speed of a machine may change from minute to minute.
    """
    scale = harness.scale
    rounds = [
        [await _measure_at(harness, backlog) for backlog in scale.backlogs]
        for _ in range(scale.rounds)
    ]
    results: Results = []
    rates, costs = [], []
    for backlog, values in zip(scale.backlogs, zip(*rounds, strict=True), strict=True):
        us = known_median([value.us for value in values])
        rate = median([value.rate for value in values])
        rates.append((float(backlog), rate))
        how = f"total for enqueue, fetch and completion, in batches of {BATCH_SIZE}"
        results.append(Figure(f"store at {backlog:,} pending", "us/task", us, how))
        how = f"{scale.backlog_s:g} s of no-op coroutines; a client keeps {backlog:,} pending"
        results.append(Figure(f"drain at {backlog:,} pending", "tasks/s", rate, how))
        if us is not None:
            costs.append((float(backlog), us))
    how = f"at {scale.backlogs[-1]:,} pending divided by that at {scale.backlogs[0]:,}, per round"
    cost_ratio = known_median([_ratio(row[-1].us, row[0].us) for row in rounds])
    rate_ratio = median([row[-1].rate / row[0].rate for row in rounds])
    return [
        *results,
        Figure("store, largest / smallest backlog", "x", cost_ratio, f"store time per task {how}"),
        Figure("drain, largest / smallest backlog", "x", rate_ratio, f"tasks per second {how}"),
        Curve("throughput against backlog", "tasks/s", tuple(rates), "see the figures"),
        Curve("store time against backlog", "us/task", tuple(costs), "see the figures"),
    ]


async def _measure_at(harness: Harness, backlog: int) -> _Round:
    await harness.clean()
    await harness.fill(LOOP, backlog)
    us = total_cost(await cost_by_verb(harness, harness.scale.cycles))
    return _Round(us, await _drain_and_refill(harness, backlog, harness.scale.backlog_s))


def _ratio(largest: float | None, smallest: float | None) -> float | None:
    return None if largest is None or smallest is None else largest / smallest


async def _drain_and_refill(harness: Harness, backlog: int, seconds: float) -> float:
    """Return the tasks per second that a server runs while a client replaces each completed
    task."""
    async with harness.servers(), harness.client() as client:
        refill = asyncio.create_task(_keep_pending(harness, client, backlog))
        try:
            await harness.until_completed(await harness.completed() + REFILL_BATCH)
            began, before = time.monotonic(), await harness.completed()
            await asyncio.wait([refill], timeout=seconds)
            took, after = time.monotonic() - began, await harness.completed()
        finally:
            refill.cancel()
        await asyncio.wait([refill])
        if not refill.cancelled():
            refill.result()
    return (after - before) / took


async def _keep_pending(harness: Harness, client: AsyncClient, backlog: int) -> None:
    """Keep this many tasks pending until cancelled."""
    while True:
        missing = backlog - await harness.pending()
        if missing > 0:
            await client.enqueue_many([Task(LOOP, PAYLOAD)] * min(missing, REFILL_BATCH))
        else:
            await asyncio.sleep(0.001)
