"""Detects a stalled event loop, logs the cause, and hands back tasks that cannot start.

A heartbeat thread calls `check`, and the loop responds by calling `_beat`.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from qsync.server.clock import boot_s
from qsync.server.leases import ThreadLeaseKeeper
from qsync.server.queue_state import QUEUED, LeasedTask, QueueState

log: Final = logging.getLogger("qsync.server")

STALL_S: Final = 1.0
"""How long the event loop may be blocked before it counts as stalled, in seconds."""

STALE_S: Final = 1.0
"""How long a task that was leased ahead may wait to start before it is handed back, in seconds."""


class LoopWatchdog:
    """Watches the event loop on which it is created."""

    def __init__(self, ready: deque[LeasedTask]) -> None:
        self._ready = ready
        self.thread: int = threading.get_ident()
        """Thread of the event loop."""
        self._beat_sent = self._beat_seen = time.monotonic()
        self._logged = False

    def blocked_s(self) -> float:
        """Return how long the loop has been blocked, in seconds."""
        sent = self._beat_sent
        return time.monotonic() - sent if self._beat_seen < sent else 0.0

    def check(
        self,
        post: Callable[[Callable[[], None]], None],
        leases: ThreadLeaseKeeper,
        queues: Sequence[QueueState],
    ) -> None:
        """Log a stall, and hand back tasks; `post` calls a function on the loop."""
        now = time.monotonic()
        if self._beat_seen >= self._beat_sent:
            self._beat_sent = now
            self._logged = False
            post(self._beat)
            return
        if now - self._beat_sent < STALL_S:
            return
        if not self._logged:
            self._logged = True
            frame = sys._current_frames().get(self.thread)
            stack = "".join(traceback.format_stack(frame)) if frame else "unknown"
            log.warning(
                "a handler has blocked the event loop for over %g s; use a `def` handler, "
                "or calls that can be awaited:\n%s",
                STALL_S,
                stack,
            )
        # Tasks that cannot be handed back stay ready, so that their leases are renewed.
        self._ready.extendleft(reversed(leases.hand_back(self._take_stale())))
        for queue in queues:
            leases.hand_back_unread(queue)

    def _beat(self) -> None:
        self._beat_seen = time.monotonic()

    def _take_stale(self) -> list[LeasedTask]:
        """Remove stale tasks from the right end of `ready`, since the loop takes tasks from the
        left."""
        limit = boot_s() - STALE_S
        taken: list[LeasedTask] = []
        while self._ready:
            try:
                leased = self._ready.pop()
            except IndexError:  # the loop took the last task
                break
            if leased.phase is not QUEUED:
                continue
            if leased.fetched > limit:
                self._ready.append(leased)
                break
            taken.append(leased)
        taken.reverse()
        return taken
