"""Simulates a process that may freeze, stall or die, and whose clocks may be wrong."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Coroutine
from typing import Any, Final

from tests.simulation.loop import STRAND, SimLoop, Strand

WALL: Final = 4_000_000_000.0
"""Unix time at the start of a history, by the store's clock. This time is far from the present, so
that reads of a real clock are noticed."""


FATES: Final = ("before", "after", "late", "twice", "refused", "cut")
"""Faults of a call: the call or its reply is lost, or the call is delivered late or twice, answered
with an error, or cut off in the middle of a batch."""


class Link:
    """The faults of the calls of a process: the probability of each fault, and whether the process
    is cut off from the store."""

    def __init__(self) -> None:
        self.fates: tuple[tuple[str, float], ...] = ()
        self.away = False

    def heal(self) -> None:
        """End the faults."""
        self.fates = ()
        self.away = False


class Proc:
    """A simulated process. The coroutines of each process run in the context of that process, so
    that the loop can tell to which process they belong."""

    def __init__(self, loop: SimLoop, name: str, rng: random.Random) -> None:
        self.loop = loop
        self.name = name
        self.alive = True
        self.started_at = loop.now
        self.died_at: float | None = None
        self.types: tuple[str, ...] = ()
        self.poisoned_by: str | None = None
        """Id of the task that killed the process, or None."""
        self.frozen = 0
        self.stalled = 0
        self.link = Link()
        self.offset = rng.uniform(0, 1e6)
        self.drift = rng.choice((0.0, 0.0, rng.uniform(-1e-4, 1e-4)))
        self.wall_offset = rng.choice((0.0, -3600.0, 3600.0, rng.uniform(-300, 300)))
        self.strand = Strand(self, "loop")
        self.threads: list[Strand] = []
        self.context = contextvars.copy_context()
        self.context.run(STRAND.set, self.strand)
        self.tasks: list[asyncio.Task[Any]] = []
        self.troubles: list[tuple[float, float]] = []
        """Start and end times of each freeze and each failed call."""
        self.stalls: list[tuple[float, float]] = []
        self.freezes: list[tuple[float, float]] = []
        self.mishaps: list[float] = []
        """Times of faults that hit a call of this process, but not all calls to the store."""
        self.told_to_stop: float | None = None

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def holds(self, strand: Strand) -> bool:
        return bool(self.frozen or (self.stalled and strand.kind == "loop"))

    def clock(self) -> float:
        """Return the time of the process's monotonic clock, in seconds. The clock starts at a
        random time and drifts a little."""
        return self.offset + self.loop.now * (1 + self.drift)

    def wall(self) -> float:
        """Return the Unix time by the clock of this process's machine, in seconds."""
        return WALL + self.loop.now + self.wall_offset

    def run(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine in this process."""
        task = self.loop.create_task(work, context=self.context.copy())
        self.tasks.append(task)
        return task

    def crash(self) -> None:
        """Kill the process immediately, without cleanup and without sending anything."""
        self.alive = False
        self.died_at = self.loop.now

    def trouble(self, seconds: float = 0.0) -> None:
        """Record a fault by which the process may lose its leases."""
        self.troubles.append((self.loop.now, self.loop.now + seconds))

    def troubled(self, since: float, until: float) -> bool:
        """Return whether the process died, or may have lost its leases, within this period."""
        if self.died_at is not None and self.died_at <= until:
            return True
        return any(begin <= until and end >= since for begin, end in self.troubles)

    def stood_still(self, since: float, until: float) -> bool:
        """Return whether the event loop was blocked, or the process had a fault, within this
        period."""
        stalled = any(begin <= until and end >= since for begin, end in self.stalls)
        return stalled or self.troubled(since, until)

    def stood_still_for(self, since: float, until: float) -> float:
        """Return for how many seconds of this period the process or its event loop was stopped, in
        total."""
        pauses = (*self.stalls, *self.freezes)
        return sum(max(0.0, min(end, until) - max(begin, since)) for begin, end in pauses)

    def freeze(self, seconds: float) -> None:
        """Freeze the process, as SIGSTOP or a paused virtual machine does."""
        self.trouble(seconds)
        self.freezes.append((self.loop.now, self.loop.now + seconds))
        self.frozen += 1
        self.loop.call_later(seconds, self._thaw, context=contextvars.Context())

    def stall(self, seconds: float) -> None:
        """Block the event loop, as a handler may. Threads continue."""
        self.stalled += 1
        self.stalls.append((self.loop.now, self.loop.now + seconds))
        self.loop.call_later(seconds, self._go_on, context=contextvars.Context())

    def _thaw(self) -> None:
        self.frozen -= 1
        self._release()

    def _go_on(self) -> None:
        self.stalled -= 1
        self._release()

    def _release(self) -> None:
        for strand in (self.strand, *self.threads):
            if not self.holds(strand):
                self.loop.release(strand)
