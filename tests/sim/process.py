"""A simulated process: it freezes, its event loop stalls, it dies, and its clocks are wrong."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final

from tests.sim.loop import STRAND, SimLoop, Strand

WALL: Final = 4_000_000_000.0
"""Unix time at the start of a history, by the store: far from now, so that a real clock shows."""


@dataclass(slots=True)
class Link:
    """How calls of a process fare: probabilities of each fate, and whether any gets through."""

    before: float = 0.0
    after: float = 0.0
    late: float = 0.0
    twice: float = 0.0
    refused: float = 0.0
    cut: float = 0.0
    away: bool = False

    def heal(self) -> None:
        """From now on all is well."""
        self.before = self.after = self.late = self.twice = self.refused = self.cut = 0.0
        self.away = False


class Proc:
    """A process. Its coroutines run in its context, by which the loop knows whose they are."""

    def __init__(self, loop: SimLoop, name: str, rng: random.Random) -> None:
        self.loop = loop
        self.name = name
        self.alive = True
        self.died_at: float | None = None
        self.types: tuple[str, ...] = ()
        self.poisoned_by: str | None = None
        """The task of which it died."""
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
        """When it froze, or a call of its did not go as it should: begin and end."""
        self.held: tuple[float, float] = (-1.0, -1.0)
        """When its event loop last stood still, for whatever reason: begin and end."""
        self.overtaken: list[asyncio.Handle] = []
        """What was about to be run when it began to stand still."""
        self.stalls: list[tuple[float, float]] = []
        self.told_to_stop: float | None = None

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def holds(self, strand: Strand) -> bool:
        return bool(self.frozen or (self.stalled and strand.kind == "loop"))

    def clock(self) -> float:
        """Seconds on its own clock, which begins anywhere and goes a little wrong."""
        return self.offset + self.loop.now * (1 + self.drift)

    def wall(self) -> float:
        """Unix time as this machine has it."""
        return WALL + self.loop.now + self.wall_offset

    def run(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine in this process."""
        task = self.loop.create_task(work, context=self.context.copy())
        self.tasks.append(task)
        return task

    def crash(self) -> None:
        """It is gone at once; nothing is cleaned up and nothing is sent."""
        self.alive = False
        self.died_at = self.loop.now

    def trouble(self, seconds: float = 0.0) -> None:
        """Something befell it that may cost it its leases."""
        self.troubles.append((self.loop.now, self.loop.now + seconds))

    def troubled(self, since: float, until: float) -> bool:
        """Whether something did within that time."""
        if self.died_at is not None and self.died_at <= until:
            return True
        return any(begin <= until and end >= since for begin, end in self.troubles)

    def stood_still(self, since: float, until: float) -> bool:
        """Whether its event loop did within that time, or it was troubled."""
        stalled = any(begin <= until and end >= since for begin, end in self.stalls)
        return stalled or self.troubled(since, until)

    def freeze(self, seconds: float) -> None:
        """All of it stands still, as by SIGSTOP, or with its virtual machine."""
        self.trouble(seconds)
        self.frozen += 1
        self._hold(seconds)
        self.loop.call_later(seconds, self._thaw, context=contextvars.Context())

    def stall(self, seconds: float) -> None:
        """A handler blocks the event loop; threads go on."""
        self.stalled += 1
        self.stalls.append((self.loop.now, self.loop.now + seconds))
        self._hold(seconds)
        self.loop.call_later(seconds, self._go_on, context=contextvars.Context())

    def _hold(self, seconds: float) -> None:
        begin, end = self.held
        now = self.loop.now
        before = self.overtaken if end >= now else []
        self.overtaken = [*before, *self.loop.lined_up(self.strand)]
        self.held = (begin if end >= now else now, max(end, now + seconds))

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
