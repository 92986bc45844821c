"""Tasks that were there when a server died twice: one of them may be what kills.

A suspect runs alone at first, so that a third crash is surely its own fault. To be alone it holds
up all others; so that these get their half of the time, a rest follows that is as long.

Isolation is bounded. Others join a suspect that still runs after ALONE_S. A crash from then on does
not count for it, since any of them may be the cause: it is noted as spared, and next time the
suspect runs alone GROWTH times as long. After three such crashes each one counts again.

Suspects run one after another. Those that were never spared run together once this has taken
TOTAL_S, or will, since one of them runs for long and many wait. Spared ones always begin alone.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from qsync.server.queue_state import GONE, LeasedTask

PATIENCE_S: Final = 2.0
"""How long what runs is waited for; then a suspect runs beside it, but nothing new is started."""

LOOK_S: Final = 0.5
"""How often is looked whether a suspect may start. A longer gap says that a handler blocked the
event loop: in that time nothing could end, so it is no part of the patience."""

SHORT_REST_S: Final = 0.25
"""Rest enough when nobody has come to use it."""

ALONE_S: Final = 1.0
"""How long a suspect that was never spared runs alone at most."""

GROWTH: Final = 8
"""Each crash that it was spared multiplies the time that a suspect runs alone by this."""

TOTAL_S: Final = 10.0
"""How long suspects run one after another; then those that were never spared run together."""

COMPANY_S: Final = 60.0
"""How long a spared suspect waits for suspects that others have joined to end."""


class CrashIsolation:
    """Decides when the next suspect may run. Times are of a monotonic clock, seconds."""

    def __init__(self) -> None:
        self.waiting: deque[LeasedTask] = deque()
        self.alone: LeasedTask | None = None
        """The one that runs alone."""
        self.together: set[LeasedTask] = set()
        """Those that others have joined, or that were started together."""
        self._began: float | None = None
        """Since when there is one of these."""
        self._met = self._spent = 0.0
        self._since: float | None = None
        self._looked = self._ended = self._rested = 0.0

    def hold_up_others(self, now: float) -> bool:
        """Whether nothing else may start now."""
        if self.alone is not None:
            return True
        if not self.waiting or now < self._rested or self._wait_for_company(now):
            return False
        self._wait_since(now)
        return True

    def begin_alone(self, leased: LeasedTask, now: float) -> None:
        """This one runs now, and nothing else starts."""
        self.alone = leased
        if self._began is None:
            self._began = now

    def alone_s(self, leased: LeasedTask) -> float:
        """How long a suspect runs alone at most, seconds."""
        return float(ALONE_S * GROWTH ** min(leased.spared, 3))

    def take_together(self, now: float, *, free: int) -> list[LeasedTask]:
        """Take up to so many of those that wait and may run together; they do from now on."""
        if self.alone is not None or not self._gathers(now):
            return []
        taken = [one for one in self.waiting if not one.spared][: max(0, free)]
        for one in taken:
            self.waiting.remove(one)
            self._meet(one, now)
        return taken

    def next_alone(self, now: float) -> LeasedTask | None:
        """The first of those that wait and are to run alone."""
        if self._gathers(now):
            return next((one for one in self.waiting if one.spared), None)
        return self.waiting[0] if self.waiting else None

    def join(self, now: float) -> None:
        """Others run beside the one that was alone."""
        if self.alone is not None:
            self._meet(self.alone, now)
            self.end(now)

    def drop_ended(self, now: float) -> bool:
        """Forget those that others had joined and that have ended; whether there were any."""
        left = {one for one in self.together if one.phase != GONE}
        ended = len(left) < len(self.together)
        self.together = left
        self._add_up(now)
        return ended

    def _meet(self, leased: LeasedTask, now: float) -> None:
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
        """Whether those that were never spared start together now."""
        total = self._spent + (0.0 if self._began is None else now - self._began)
        if self.together:
            total += len(self.waiting) * ALONE_S
        return total >= TOTAL_S and any(not one.spared for one in self.waiting)

    def _wait_for_company(self, now: float) -> bool:
        """Whether the ones that wait do so for a slot, or for suspects that others have joined."""
        if self.together and now - self._met < COMPANY_S:
            return True
        return self._gathers(now)

    def delay(self, now: float, *, running: int, ready: int) -> float:
        """Seconds until the next look at the first that waits, unless what runs ends before: with 0
        it may start."""
        if self._wait_for_company(now):
            return LOOK_S
        if now < self._rested:
            soon = (
                self._rested if running or ready else min(self._rested, self._ended + SHORT_REST_S)
            )
            if now < soon:
                return soon - now
        since = self._wait_since(now)
        since = self._since = since + max(0.0, now - self._looked - LOOK_S)
        self._looked = now
        return min(LOOK_S, max(0.0, since + PATIENCE_S - now)) if running else 0.0

    def _wait_since(self, now: float) -> float:
        """Since when one waits for what runs to end: since now if that is news."""
        if self._since is None:
            self._since = self._looked = now
            if now - self._rested > TOTAL_S:  # they are others than those before
                self._spent = 0.0
        return self._since

    def end(self, now: float) -> None:
        """The one that ran has ended: now the others have as much time as it took them."""
        self.alone = None
        self._ended = now
        self._add_up(now)
        self._rested = now + (now - self._since if self._since is not None else 0.0)
        self._since = None
