"""Detects runs that exceed their timeout, with one timer for all runs.

Runs with the same timeout expire in the order in which they started. So one queue of runs per
timeout is enough, and no run needs its own timer.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import Final

from qsync.server.queue_state import RUNNING, LeasedTask

SPARE: Final = 256
"""Number of ended runs that a queue may hold, in addition to current runs, before the queue is
cleaned up."""


class Timeouts:
    """Calls `over` with each run that exceeds its timeout."""

    def __init__(self, over: Callable[[LeasedTask], None]) -> None:
        self._over = over
        self._loop = asyncio.get_running_loop()
        self._queues: dict[float, deque[tuple[float, LeasedTask]]] = {}
        self._room: dict[float, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._next = math.inf

    @property
    def size(self) -> int:
        """Return the number of runs in the queues, including some that have ended."""
        return sum(map(len, self._queues.values()))

    def add(self, leased: LeasedTask, seconds: float, *, passed_s: float = 0.0) -> None:
        """Start the timeout of a run that began `passed_s` seconds ago; no other run may have begun
        since."""
        ends = self._loop.time() + seconds - passed_s
        queue = self._queues.get(seconds)
        if queue is None:
            queue = self._queues[seconds] = deque()
            self._room[seconds] = SPARE
        queue.append((ends, leased))
        if len(queue) > self._room[seconds]:
            self._clear(seconds)
        if ends < self._next:
            self._set_timer(ends)

    def close(self) -> None:
        """Cancel all timeouts."""
        self._queues.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _clear(self, seconds: float) -> None:
        running = deque(entry for entry in self._queues[seconds] if entry[1].phase is RUNNING)
        self._queues[seconds] = running
        self._room[seconds] = 2 * len(running) + SPARE

    def _set_timer(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = due
        self._timer = self._loop.call_at(due, self._check_expired) if math.isfinite(due) else None

    def _check_expired(self) -> None:
        now = self._loop.time()
        over: list[tuple[float, LeasedTask]] = []
        for seconds, queue in list(self._queues.items()):
            while queue and (queue[0][1].phase is not RUNNING or queue[0][0] <= now):
                ended = queue.popleft()
                if ended[1].phase is RUNNING:
                    over.append(ended)
            if not queue:
                del self._queues[seconds], self._room[seconds]
        self._set_timer(min((queue[0][0] for queue in self._queues.values()), default=math.inf))
        for _, leased in sorted(over, key=lambda entry: entry[0]):
            self._over(leased)
