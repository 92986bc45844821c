"""All measures by name, in the order in which they are taken."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from qsync.cli.bench import backlog, cost, delay, drain, enqueue, quiet
from qsync.cli.bench.figure import Found
from qsync.cli.bench.rig import Rig

Measure = Callable[[Rig], Awaitable[Found]]

MEASURES: Final[dict[str, Measure]] = {
    "enqueue": enqueue.measure_one_by_one,
    "callers": enqueue.measure_callers,
    "bulk": enqueue.measure_bulk,
    "drain": drain.measure_drain,
    "executors": drain.measure_executors,
    "waiting": drain.measure_waiting,
    "latency": delay.measure_idle,
    "load": delay.measure_half_load,
    "scheduled": delay.measure_scheduled,
    "store": cost.measure_store,
    "bytes": cost.measure_bytes,
    "idle": quiet.measure_idle_server,
    "memory": quiet.measure_memory,
    "backlog": backlog.measure_backlog,
}
