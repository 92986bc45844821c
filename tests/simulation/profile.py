"""The difficulty of a history: its possible faults and their rates, drawn from the seed."""

from __future__ import annotations

import random
from typing import Final

from tests.simulation.network import FAR, NEAR
from tests.simulation.process import FATES

FAULTS: Final = (
    "crash", "freeze", "stall", "stop", "stop_twice", "clock_jump", "partition", "away",
    "flush_scripts", "restart", "pause", "quiet",
)  # fmt: skip
LOSSES: Final = ("roll_back", "flush", "store_jump")
"""Faults after which the verdict is more lenient. Each of these faults occurs in only a few
histories."""

OPERATORS: Final = ("pause_type",)
"""Actions of operators, other than pausing queues, that occur in only some histories."""

OUTAGES: Final = ("outage",)
"""Faults that make a history longer, so each occurs in only a few histories, and only once."""


class Profile:
    """The difficulty of a seed: its possible faults and their rates."""

    def __init__(self, rng: random.Random) -> None:
        hard = rng.choice((0.0, 0.5, 1.0, 1.0, 2.0))
        self.servers = rng.randint(1, 3)
        self.seconds = rng.uniform(4.0, 8.0)
        self.tasks = rng.randint(10, 45)
        self.faults = {kind: rng.choice((0.0, 1.0)) * hard for kind in FAULTS}
        self.faults |= {kind: rng.choice((0.0,) * 7 + (1.0,)) * hard for kind in LOSSES}
        noise = rng.choice((0.0, 0.01, 0.03, 0.08)) * hard
        self.link = {fate: rng.choice((0.0, 1.0)) * noise for fate in FATES}
        self.pause_s = rng.choice((0.3, 0.6, 1.0))
        self.poison = rng.choice((0, 0, 1, 2))
        self.supervised = rng.random() < 0.4
        self.blocking = rng.random() < 0.5
        self.periodic = rng.random() < 0.6
        self.concurrency = rng.choice((1, 3, 3, 10))
        self.strict = rng.random() < 0.2
        self.latencies = rng.choice((NEAR, NEAR, FAR))
        self.unique = 0.15
        self.prefetch = rng.choice((None, None, 0, 20))
        in_threads = rng.random() < 0.5
        self.types = ("work", "work-thread", "new") if in_threads else ("work", "work", "new")
        self.threads = rng.choice((None, None, 1, 2))
        """Number of threads. The number may be smaller than the number of running tasks, so that
        some tasks wait for a thread."""
        self.faults |= {kind: rng.choice((0.0,) * 4 + (1.0,)) * hard for kind in OUTAGES}
        self.stored = rng.random() < 0.5
        """True if a client stores schedules."""
        self.flow = rng.random() < 0.3
        """True if tasks have priorities and the tasks of an editor replace one another."""
        self.pauses_types = self.tasks % 4 == 3
        """True if an operator constantly pauses and resumes types."""
        self.limits = 0.6 if self.tasks % 3 == 0 else 0.0
        """Share of tasks with limits. This share and the pauses of types use no random draws, so
        that the other draws of a seed stay the same."""
