"""Measures: throughput and the store's time, with little and with much waiting."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

from qsync.broker.ops import BATCH
from qsync.cli.bench.cost import cost, total
from qsync.cli.bench.figure import Curve, Figure, Found, median
from qsync.cli.bench.handlers import LOOP, PAYLOAD
from qsync.cli.bench.rig import Rig, middle
from qsync.client import AsyncClient
from qsync.task import Task

MOST: Final = 2_000
"""How many tasks are enqueued at once to keep a backlog up."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one round found at one backlog."""

    us: float | None
    rate: float


async def measure_backlog(rig: Rig) -> Found:
    """For each backlog: the store's time a task, and a drain while as much is enqueued again.

    A round goes through all of them, so that the ratio of a round is that of a machine which has
    not changed its speed much in between; it is measured as often as all else.
    """
    scale = rig.scale
    rounds = [[await _at(rig, backlog) for backlog in scale.backlogs] for _ in range(scale.rounds)]
    found: Found = []
    rates, costs = [], []
    for backlog, seen in zip(scale.backlogs, zip(*rounds, strict=True), strict=True):
        us = middle([one.us for one in seen])
        rate = median([one.rate for one in seen])
        rates.append((float(backlog), rate))
        how = f"batches of {BATCH}: enqueue, fetch and complete together"
        found.append(Figure(f"store at {backlog:,} pending", "us/task", us, how))
        how = f"{scale.backlog_s:g} s of no-op coroutines; a client keeps {backlog:,} waiting"
        found.append(Figure(f"drain at {backlog:,} pending", "tasks/s", rate, how))
        if us is not None:
            costs.append((float(backlog), us))
    how = f"at {scale.backlogs[-1]:,} pending to that at {scale.backlogs[0]:,}, of the same round"
    dearer = middle([_ratio(one[-1].us, one[0].us) for one in rounds])
    slower = median([one[-1].rate / one[0].rate for one in rounds])
    return [
        *found,
        Figure("store, most to least pending", "x", dearer, f"store's time a task, {how}"),
        Figure("drain, most to least pending", "x", slower, f"tasks a second, {how}"),
        Curve("throughput against backlog", "tasks/s", tuple(rates), "see the figures"),
        Curve("store time against backlog", "us/task", tuple(costs), "see the figures"),
    ]


async def _at(rig: Rig, backlog: int) -> _Seen:
    await rig.clean()
    await rig.fill(LOOP, backlog)
    us = total(await cost(rig, rig.scale.cycles))
    return _Seen(us, await _drain_and_fill(rig, backlog, rig.scale.backlog_s))


def _ratio(most: float | None, least: float | None) -> float | None:
    return None if most is None or least is None else most / least


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
