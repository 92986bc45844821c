"""How much of each is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Scale:
    """Numbers of tasks, but for what says seconds."""

    rounds: int
    """Of these the middle one counts."""
    one_by_one: int
    callers: int
    """What each of so many concurrent callers share."""
    bulk: int
    drain: int
    drain_threads: int
    drain_processes: int
    drain_waiting: int
    two_servers: bool
    """For handlers in threads and processes, which take long to start, too."""
    singles: int
    """Tasks sent to an idle server, one after another."""
    load_s: float
    scheduled: int
    scheduled_s: float
    pending: int
    """For the memory of a pending task."""
    cycles: int
    """Batches by which the store's time is taken."""
    idle_s: float
    backlogs: tuple[int, ...]
    backlog_s: float


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
    scheduled=2_000,
    scheduled_s=4.0,
    pending=100_000,
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
    scheduled=100,
    scheduled_s=0.5,
    pending=10_000,
    cycles=6,
    idle_s=1.0,
    backlogs=(1_000, 10_000),
    backlog_s=0.4,
)
