"""How hard a history is: what may happen in it, and how often. Drawn by the seed."""

from __future__ import annotations

import random
from typing import Final

from tests.sim.network import FAR, NEAR

FAULTS: Final = (
    "crash", "freeze", "stall", "stop", "stop_twice", "partition", "away", "flush_scripts",
    "pause", "quiet",
)  # fmt: skip


class Profile:
    """How hard a seed is: what may happen, and how often."""

    def __init__(self, rng: random.Random) -> None:
        hard = rng.choice((0.0, 0.5, 1.0, 1.0, 2.0))
        self.servers = rng.randint(1, 3)
        self.seconds = rng.uniform(6.0, 14.0)
        self.tasks = rng.randint(10, 45)
        self.faults = {kind: rng.choice((0.0, 1.0)) * hard for kind in FAULTS}
        noise = rng.choice((0.0, 0.01, 0.03, 0.08)) * hard
        self.link = {
            fate: rng.choice((0.0, 1.0)) * noise
            for fate in ("before", "after", "late", "twice", "refused", "cut")
        }
        self.pause_s = rng.choice((0.5, 1.5, 4.0))
        self.poison = rng.choice((0, 0, 1, 2))
        self.supervised = rng.random() < 0.4
        self.blocking = rng.random() < 0.5
        self.periodic = rng.random() < 0.6
        self.concurrency = rng.choice((1, 3, 10))
        self.strict = rng.random() < 0.2
        self.latencies = rng.choice((NEAR, NEAR, FAR))
        self.prefetch = rng.choice((None, None, 0, 20))
