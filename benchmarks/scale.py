"""Defines how much work each measure does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

TASK_COUNTS: Final = (
    "one_by_one", "callers", "bulk", "drain", "drain_threads", "drain_processes", "drain_waiting",
    "singles", "scheduled", "pending", "waiting",
)  # fmt: skip
"""Fields that `Scale.times` scales."""

MIN_TASKS: Final = 50


@dataclass(frozen=True, slots=True)
class Scale:
    """Fields without a docstring are numbers of tasks, or seconds if their name ends in `_s`."""

    rounds: int
    """Number of rounds, whose median is reported."""
    one_by_one: int
    callers: int
    """Number of tasks that the concurrent callers enqueue in total."""
    bulk: int
    drain: int
    drain_threads: int
    drain_processes: int
    drain_waiting: int
    two_servers: bool
    """True to also measure two servers with thread and process handlers, which are slow to
    start."""
    singles: int
    """Number of tasks that are sent one after another to an idle server."""
    load_s: float
    load_rates: tuple[int, ...]
    """Rates of the steady loads, in tasks per second."""
    load_rates_uvloop: tuple[int, ...]
    scheduled: int
    scheduled_s: float
    pending: int
    """Number of pending tasks for which memory is measured."""
    waiting: int
    """Number of tasks that wait for one limit."""
    limit_s: float
    """How long to start tasks under the rate limit, in seconds."""
    cycles: int
    """Number of batches for which the store's time is measured."""
    idle_s: float
    backlogs: tuple[int, ...]
    backlog_s: float

    def times(self, share: float) -> Scale:
        """Return a copy of this scale with a share of its tasks. Times, batches and backlogs stay
        the same."""
        counts = {name: max(MIN_TASKS, round(getattr(self, name) * share)) for name in TASK_COUNTS}
        return replace(self, **counts)


FULL: Final = Scale(
    rounds=3,
    one_by_one=5_000,
    callers=50_000,
    bulk=100_000,
    drain=100_000,
    drain_threads=50_000,
    drain_processes=10_000,
    drain_waiting=20_000,
    two_servers=True,
    singles=500,
    load_s=5.0,
    load_rates=(12_000,),
    load_rates_uvloop=(20_000,),
    scheduled=2_000,
    scheduled_s=4.0,
    pending=100_000,
    waiting=1_000_000,
    limit_s=20.0,
    cycles=60,
    idle_s=20.0,
    backlogs=(1_000, 100_000, 1_000_000),
    backlog_s=3.0,
)

QUICK: Final = Scale(
    rounds=1,
    one_by_one=500,
    callers=5_000,
    bulk=10_000,
    drain=10_000,
    drain_threads=3_000,
    drain_processes=500,
    drain_waiting=1_000,
    two_servers=False,
    singles=50,
    load_s=0.5,
    load_rates=(500,),
    load_rates_uvloop=(1_000,),
    scheduled=100,
    scheduled_s=0.5,
    pending=10_000,
    waiting=10_000,
    limit_s=0.5,
    cycles=6,
    idle_s=1.0,
    backlogs=(1_000, 10_000),
    backlog_s=0.4,
)
