"""Isolates suspects: tasks that ran during two server crashes, and may have caused them.

A suspect first runs alone, so that another crash is certainly its own fault. While it runs alone,
no other task starts. Afterwards, no suspect starts for the same length of time, so that other tasks
get half of the time.

Isolation is bounded. If a suspect is still running after ALONE_S, other tasks start alongside it.
From then on, a crash does not count against the suspect, since any of the tasks may be the cause.
If a crash does not count, the suspect is spared, which means that it runs alone GROWTH times as
long the next time. After it has been spared three times, each crash counts again.

Suspects run one after another, for at most TOTAL_S in total. After that, suspects that were never
spared run together. Suspects run together earlier if one of them runs for long and running all
waiting suspects one after another would exceed TOTAL_S. Spared suspects always begin alone.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from qsync.server.queue_state import RELEASED, LeasedTask

MAX_WAIT_TO_START_S: Final = 2.0
"""How long a suspect waits for running tasks to end, in seconds. After that, the suspect starts
while they still run, but no other task starts."""

START_CHECK_S: Final = 0.5
"""Interval between two checks of whether a suspect may start, in seconds. If a check is late, a
handler has blocked the event loop. No task could end during the delay, so the delay does not count
as waiting."""

SHORT_REST_S: Final = 0.25
"""Length of the pause between two suspects while there are no other tasks to run, in seconds."""

ALONE_S: Final = 1.0
"""How long a suspect that was never spared may run alone, in seconds."""

GROWTH: Final = 8
"""Factor by which a suspect's time alone grows after each crash that does not count against it."""

TOTAL_S: Final = 10.0
"""How long suspects run one after another, in seconds; after that, suspects that were never spared
run together."""

COMPANY_S: Final = 60.0
"""How long a spared suspect waits for suspects that other tasks run alongside, in seconds."""


class CrashIsolation:
    """Decides when the next suspect may run. Times are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self.waiting: deque[LeasedTask] = deque()
        self.alone: LeasedTask | None = None
        """Suspect that is running alone, or None."""
        self.together: set[LeasedTask] = set()
        """Running suspects that other tasks run alongside, or that were started together."""
        self._began: float | None = None
        """Start of the period in which at least one suspect has been running; None if none runs."""
        self._met = self._spent = 0.0
        self._since: float | None = None
        self._looked = self._ended = self._rested = 0.0

    def blocks_others(self, now: float) -> bool:
        """Return whether a suspect currently keeps all other tasks from starting."""
        if self.alone is not None:
            return True
        if not self.waiting or now < self._rested or self._wait_for_company(now):
            return False
        self._wait_since(now)
        return True

    def begin_alone(self, leased: LeasedTask, now: float) -> None:
        """Record that this suspect starts alone now."""
        self.alone = leased
        if self._began is None:
            self._began = now

    def alone_s(self, leased: LeasedTask) -> float:
        """Return the maximum time for which a suspect runs alone, in seconds."""
        return float(ALONE_S * GROWTH ** min(leased.spared, 3))

    def take_together(self, now: float, *, free: int) -> list[LeasedTask]:
        """Remove from `waiting` up to `free` suspects that may run together, and return them."""
        if self.alone is not None or not self._gathers(now):
            return []
        taken = [suspect for suspect in self.waiting if not suspect.spared][: max(0, free)]
        for suspect in taken:
            self.waiting.remove(suspect)
            self._join_together(suspect, now)
        return taken

    def next_alone(self, now: float) -> LeasedTask | None:
        """Return the waiting suspect that should run alone next, or None."""
        if self._gathers(now):
            return next((suspect for suspect in self.waiting if suspect.spared), None)
        return self.waiting[0] if self.waiting else None

    def join(self, now: float) -> None:
        """Record that other tasks now run alongside the suspect that was alone."""
        if self.alone is not None:
            self._join_together(self.alone, now)
            self.end(now)

    def drop_ended(self, now: float) -> bool:
        """Remove the suspects that have ended from `together`; return whether there were any."""
        remaining = {suspect for suspect in self.together if suspect.phase is not RELEASED}
        ended = len(remaining) < len(self.together)
        self.together = remaining
        self._add_up(now)
        return ended

    def _join_together(self, leased: LeasedTask, now: float) -> None:
        if not self.together:
            self._met = now
        self.together.add(leased)
        if self._began is None:
            self._began = now

    def _add_up(self, now: float) -> None:
        if self._began is not None and self.alone is None and not self.together:
            self._spent += now - self._began
            self._began = None

    def _gathers(self, now: float) -> bool:
        """Return whether the suspects that were never spared start together now."""
        total = self._spent + (0.0 if self._began is None else now - self._began)
        if self.together:
            total += len(self.waiting) * ALONE_S
        return total >= TOTAL_S and any(not suspect.spared for suspect in self.waiting)

    def _wait_for_company(self, now: float) -> bool:
        """Return whether suspects wait for those in `together` to end, or wait to start
        together."""
        if self.together and now - self._met < COMPANY_S:
            return True
        return self._gathers(now)

    def delay(self, now: float, *, running: int, ready: int) -> float:
        """Return the time until the first waiting suspect is checked again; 0 if it may start.

        The caller also checks when a running task ends.
        """
        if self._wait_for_company(now):
            return START_CHECK_S
        if now < self._rested:
            soon = (
                self._rested if running or ready else min(self._rested, self._ended + SHORT_REST_S)
            )
            if now < soon:
                return soon - now
        since = self._wait_since(now)
        since = self._since = since + max(0.0, now - self._looked - START_CHECK_S)
        self._looked = now
        return min(START_CHECK_S, max(0.0, since + MAX_WAIT_TO_START_S - now)) if running else 0.0

    def _wait_since(self, now: float) -> float:
        """Return when the current wait for running tasks to end began; if there is no such wait,
        begin one."""
        if self._since is None:
            self._since = self._looked = now
            if now - self._rested > TOTAL_S:  # a new series of suspects begins
                self._spent = 0.0
        return self._since

    def end(self, now: float) -> None:
        """End the isolation. The pause that follows is as long as other tasks had to wait."""
        self.alone = None
        self._ended = now
        self._add_up(now)
        self._rested = now + (now - self._since if self._since is not None else 0.0)
        self._since = None
