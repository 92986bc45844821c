"""All measurements by name, in the order in which they are taken."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from benchmarks.figures import Results
from benchmarks.harness import Harness
from benchmarks.measures import backlog, enqueue, idle, latency, limits, store_cost, throughput

Measure = Callable[[Harness], Awaitable[Results]]

MEASURES: Final[dict[str, Measure]] = {
    "enqueue": enqueue.measure_one_by_one,
    "callers": enqueue.measure_callers,
    "bulk": enqueue.measure_bulk,
    "drain": throughput.measure_drain,
    "batches": throughput.measure_batches,
    "executors": throughput.measure_executors,
    "waiting": throughput.measure_waiting,
    "latency": latency.measure_idle,
    "load": latency.measure_steady_load,
    "scheduled": latency.measure_scheduled,
    "limits": limits.measure_limits,
    "store": store_cost.measure_store,
    "bytes": store_cost.measure_bytes,
    "idle": idle.measure_idle_server,
    "memory": idle.measure_memory,
    "backlog": backlog.measure_backlog,
}
