"""Measures: throughput and the store's time, with little and with much waiting."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from qsync.broker.ops import BATCH
from qsync.cli.bench.cost import cost, total
from qsync.cli.bench.figure import Curve, Figure, Found
from qsync.cli.bench.handlers import LOOP, PAYLOAD
from qsync.cli.bench.rig import Rig
from qsync.client import AsyncClient
from qsync.task import Task

MOST: Final = 2_000
"""How many tasks are enqueued at once to keep a backlog up."""


async def measure_backlog(rig: Rig) -> Found:
    """For each backlog: the store's time a task, and a drain while as much is enqueued again."""
    scale = rig.scale
    found: Found = []
    rates, costs = [], []
    for backlog in scale.backlogs:
        await rig.clean()
        await rig.fill(LOOP, backlog)
        us = total(await cost(rig, scale.cycles))
        rate = await _drain_and_fill(rig, backlog, scale.backlog_s)
        rates.append((float(backlog), rate))
        how = f"batches of {BATCH}: enqueue, fetch and complete together"
        found.append(Figure(f"store at {backlog:,} pending", "us/task", us, how))
        how = f"{scale.backlog_s:g} s of no-op coroutines; a client keeps {backlog:,} waiting"
        found.append(Figure(f"drain at {backlog:,} pending", "tasks/s", rate, how))
        if us is not None:
            costs.append((float(backlog), us))
    how = f"at {scale.backlogs[-1]:,} pending to that at {scale.backlogs[0]:,}"
    return [
        *found,
        Figure("store, most to least pending", "x", _ratio(costs), f"store's time a task, {how}"),
        Figure("drain, most to least pending", "x", _ratio(rates), f"tasks a second, {how}"),
        Curve("throughput against backlog", "tasks/s", tuple(rates), "see the figures"),
        Curve("store time against backlog", "us/task", tuple(costs), "see the figures"),
    ]


def _ratio(points: list[tuple[float, float]]) -> float | None:
    return points[-1][1] / points[0][1] if len(points) > 1 else None


async def _drain_and_fill(rig: Rig, backlog: int, seconds: float) -> float:
    """Tasks a second run by a server, while a client makes up for each of them."""
    async with rig.servers(), rig.client() as client:
        filling = asyncio.create_task(_keep(rig, client, backlog))
        try:
            await rig.until_completed(await rig.completed() + MOST)
            began, before = time.monotonic(), await rig.completed()
            await asyncio.wait([filling], timeout=seconds)
            took, after = time.monotonic() - began, await rig.completed()
        finally:
            filling.cancel()
        await asyncio.wait([filling])
        if not filling.cancelled():
            filling.result()
    return (after - before) / took


async def _keep(rig: Rig, client: AsyncClient, backlog: int) -> None:
    """Keep so many tasks waiting, until cancelled."""
    while True:
        missing = backlog - await rig.pending()
        if missing > 0:
            await client.enqueue_many([Task(LOOP, PAYLOAD)] * min(missing, MOST))
        else:
            await asyncio.sleep(0.001)
