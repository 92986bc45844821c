"""Measures the cost of a task for the store, in time (from INFO commandstats) and in memory. To
measure each verb and each backlog separately, the scripts run one after another in full batches,
without a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from benchmarks.figures import Figure, Results, known_median
from benchmarks.handlers import LOOP, PAYLOAD
from benchmarks.harness import Harness
from qsync.broker import ops
from qsync.broker.call import Call
from qsync.broker.op_values import BATCH_SIZE, Completion
from qsync.new_task import new_nonce, new_task
from qsync.server.config import Config
from qsync.task import Task

T = TypeVar("T")

SERVER: Final = "bench"

Choose = Callable[[Sequence[float | None]], float | None]

VerbCost = dict[str, float | None]
"""The store's time per task in microseconds, by verb; None if the store does not report it."""


def known_minimum(values: Sequence[float | None]) -> float | None:
    """Return the minimum over the batches, since other load on the machine can only make the store
    slower."""
    return min((value for value in values if value is not None), default=None)


async def cost_by_verb(harness: Harness, cycles: int, *, choose: Choose = known_median) -> VerbCost:
    """Enqueue, fetch and complete one batch after another; the backlog stays the same.

    `choose` picks one value from all cycles except the first, which is a warm-up.
    """
    policy = Config().policy()
    costs: dict[str, list[float | None]] = {"enqueue": [], "fetch": [], "complete": []}
    for number in range(1, cycles + 2):
        tasks = [new_task(Task(LOOP, PAYLOAD), new_nonce()) for _ in range(BATCH_SIZE)]
        _, enqueue_us = await _run_timed(harness, ops.enqueue(harness.keys, tasks))
        batch, fetch_us = await _run_timed(
            harness,
            ops.fetch(harness.keys, server=SERVER, number=number, wanted=BATCH_SIZE, policy=policy),
        )
        done = [Completion(id, f"{SERVER}/{number}") for id in batch.ids]
        _, complete_us = await _run_timed(harness, ops.complete(harness.keys, done))
        if number > 1:
            costs["enqueue"].append(enqueue_us)
            costs["fetch"].append(fetch_us)
            costs["complete"].append(complete_us)
    return {verb: choose(values) for verb, values in costs.items()}


async def _run_timed(harness: Harness, call: Call[T]) -> tuple[T, float | None]:
    """Run a call for a batch; return its reply and the store's time per task, in microseconds."""
    before = await harness.script_usage()
    answer = await harness.broker.run(call)
    after = await harness.script_usage()
    return answer, after.since(before).us / BATCH_SIZE if before and after else None


def total_cost(cost: VerbCost) -> float | None:
    """Return the cost of all verbs; None if one is unknown."""
    known = [us for us in cost.values() if us is not None]
    return sum(known) if len(known) == len(cost) else None


async def measure_store(harness: Harness) -> Results:
    """Measure the store's time per task for each verb, at 1,000 pending tasks."""
    await harness.clean()
    await harness.fill(LOOP, 1_000)
    cost = await cost_by_verb(harness, harness.scale.cycles)
    how = f"batches of {BATCH_SIZE}, 1,000 pending; median of {harness.scale.cycles} batches"
    return [
        *[Figure(f"store, {verb}", "us/task", us, how) for verb, us in cost.items()],
        Figure("store, all three", "us/task", total_cost(cost), how),
    ]


async def measure_bytes(harness: Harness) -> Results:
    """Measure the store's memory per pending task."""
    await harness.clean()
    count = harness.scale.pending
    before = await used_bytes(harness)
    await harness.fill(LOOP, count)
    after = await used_bytes(harness)
    value = None if before is None or after is None else (after - before) / count
    how = f"growth of the store's used_memory for {count:,} tasks with a 32-byte payload"
    return [Figure("memory of a pending task", "bytes", value, how)]


async def used_bytes(harness: Harness) -> int | None:
    """Return the memory that the store uses, or None if it does not report it."""
    info = await harness.info("memory")
    return None if info is None else int(info["used_memory"])
