"""Measures: what a task costs the store, in time by INFO commandstats and in memory.

For the time, the scripts are run here one after another in full batches, without a server: so it
is told apart by verb, and by how much waits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from qsync.broker import ops
from qsync.broker.call import Call
from qsync.broker.ops import BATCH, Done
from qsync.cli.bench.figure import Figure, Found
from qsync.cli.bench.handlers import LOOP, PAYLOAD
from qsync.cli.bench.rig import Rig, middle, us_per_task
from qsync.server.config import Config
from qsync.task import Task, new_nonce, outgoing

T = TypeVar("T")

SERVER: Final = "bench"

Choose = Callable[[Sequence[float | None]], float | None]

Cost = dict[str, float | None]
"""Microseconds of the store's time a task, by verb; None where it is not told."""


def least(values: Sequence[float | None]) -> float | None:
    """The least of the cycles, for a busy machine: the store's clock runs on while it waits."""
    return min((value for value in values if value is not None), default=None)


async def cost(rig: Rig, cycles: int, *, choose: Choose = middle) -> Cost:
    """Take a batch of tasks at a time through their life, while as many others wait as did before.

    The middle one of the cycles, unless chosen otherwise; the first is not counted.
    """
    policy = Config().policy()
    seen: dict[str, list[float | None]] = {"enqueue": [], "fetch": [], "complete": []}
    for number in itertools.islice(itertools.count(1), cycles + 1):
        tasks = [outgoing(Task(LOOP, PAYLOAD), new_nonce()) for _ in range(BATCH)]
        _, enqueued = await _timed(rig, ops.enqueue(rig.keys, tasks))
        fetched, took = await _timed(
            rig, ops.fetch(rig.keys, server=SERVER, number=number, wanted=BATCH, policy=policy)
        )
        done = [Done(id, f"{SERVER}/{number}") for id in fetched.ids]
        _, completed = await _timed(rig, ops.complete(rig.keys, done))
        if number > 1:
            for verb, us in (("enqueue", enqueued), ("fetch", took), ("complete", completed)):
                seen[verb].append(us)
    return {verb: choose(values) for verb, values in seen.items()}


async def _timed(rig: Rig, call: Call[T]) -> tuple[T, float | None]:
    """The answer to a call about a batch, and the store's microseconds for each of them."""
    before = await rig.spent()
    answer = await rig.broker.run(call)
    return answer, us_per_task(before, await rig.spent(), BATCH)


def total(cost: Cost) -> float | None:
    """All verbs together."""
    known = [us for us in cost.values() if us is not None]
    return sum(known) if len(known) == len(cost) else None


async def measure_store(rig: Rig) -> Found:
    """The store's time for each task, by verb, with 1,000 tasks waiting."""
    await rig.clean()
    await rig.fill(LOOP, 1_000)
    us = await cost(rig, rig.scale.cycles)
    how = f"batches of {BATCH}, 1,000 pending; the middle of {rig.scale.cycles} batches"
    return [
        *[Figure(f"store, {verb}", "us/task", value, how) for verb, value in us.items()],
        Figure("store, all three", "us/task", total(us), how),
    ]


async def measure_bytes(rig: Rig) -> Found:
    """What a pending task takes of the store's memory."""
    await rig.clean()
    count = rig.scale.pending
    before = await _used_bytes(rig)
    await rig.fill(LOOP, count)
    after = await _used_bytes(rig)
    value = None if before is None or after is None else (after - before) / count
    how = f"growth of the store's used_memory by {count:,} tasks with a 32-byte payload"
    return [Figure("memory of a pending task", "bytes", value, how)]


async def _used_bytes(rig: Rig) -> int | None:
    info = await rig.info("memory")
    return None if info is None else int(info["used_memory"])
