"""Tasks that were there when a server died twice: one of them may be what kills.

They run alone, one at a time, so that a third crash is surely the fault of the one that ran. To be
alone they hold up all others; so that these get their half of the time, a suspect is followed by a
rest as long as it held them up.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from qsync.server.lane import Leased

PATIENCE_S: Final = 5.0
"""How long what runs is waited for; then a suspect runs beside it, but nothing new is started."""

LOOK_S: Final = 0.5
"""How often is looked whether a suspect may start. A longer gap says that a handler blocked the
event loop: in that time nothing could end, so it is no part of the patience."""

SHORT_REST_S: Final = 0.25
"""Rest enough when nobody has come to use it."""


class Suspects:
    """Decides when the next suspect may run. Times are of a monotonic clock, seconds."""

    def __init__(self) -> None:
        self.waiting: deque[Leased] = deque()
        self.alone: Leased | None = None
        """The one that runs."""
        self._since: float | None = None
        self._looked = self._ended = self._rested = 0.0

    def hold_up_others(self, now: float) -> bool:
        """Whether nothing else may start now."""
        if self.alone is not None:
            return True
        if not self.waiting or now < self._rested:
            return False
        self._wait_since(now)
        return True

    def delay(self, now: float, *, running: int, ready: int) -> float:
        """Seconds until the next look at the first that waits, unless what runs ends before: with 0
        it may start."""
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
        return self._since

    def end(self, now: float) -> None:
        """The one that ran has ended: now the others have as much time as it took them."""
        self.alone = None
        self._ended = now
        self._rested = now + (now - self._since if self._since is not None else 0.0)
        self._since = None
