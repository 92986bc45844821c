"""Ticks of program schedules: which ticks were enqueued, and whether each was due."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from tests.simulation.entries import US

MOVED: Final = "moved"
"""A schedule whose period the deploy changes from ten minutes to one second, and which runs all
missed ticks."""

EARLY_US: Final = 10_000
"""How early a tick may be, in microseconds. The clock rates of two machines differ by up to 1e-4,
and servers read the store's clock once a minute."""


class TickBook:
    """The ticks that the store has accepted."""

    def __init__(self, find: Callable[[str], None]) -> None:
        self._find = find
        self.times: dict[tuple[str, str], list[int]] = {}
        """Times of ticks, by queue and schedule."""
        self.lost: set[tuple[str, str, int]] = set()
        """Queue, schedule and time of each tick that the store lost."""
        self.changed_us: int | None = None
        """Time at which the first server with the new expression of the schedule started."""

    def see(self, queue: str, schedule: str, tick_us: int, id: str, now: int, back_us: int) -> None:
        """Record an accepted tick. Ticks may be early by as much as the store's clock has been set
        back."""
        if tick_us > now + EARLY_US + back_us:
            self._find(f"tick {id} was enqueued {(tick_us - now) / US} s early")
        if schedule == MOVED and tick_us % (600 * US):
            before_us = (self.changed_us or 0) - tick_us - back_us
            if before_us > 0:
                self._find(f"tick {id} precedes a change of its schedule by {before_us / US} s")
        self.times.setdefault((queue, schedule), []).append(tick_us)

    def lose(self, kept: Mapping[tuple[str, str], list[int]]) -> None:
        """Record that the store has lost all ticks except those in `kept`."""
        for name, times in self.times.items():
            left = kept.get(name, [])
            self.lost |= {(*name, time) for time in times if time not in left}
        self.times = dict(kept)
