"""The slots of a server, and the tasks that are leased before a slot is free.

Only the event loop changes these fields, except for `ready`. The loop takes tasks from the left end
of `ready`. While the loop is blocked, a heartbeat thread takes tasks from the right end. Each
access is one operation on the deque, which is atomic in the interpreter.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Container
from typing import Final

from qsync.mux import Executor
from qsync.server.batch_gathering import Gathering
from qsync.server.config import Config
from qsync.server.crash_isolation import CrashIsolation
from qsync.server.queue_state import LeasedTask

AHEAD_S: Final = 0.1
"""Amount of work that is leased ahead, in seconds at the recent throughput."""

THREAD_SHARE: Final = 5
"""Of the tasks that are leased ahead, one in THREAD_SHARE may already wait for a thread, which is
20 ms of work."""

MEASUREMENT_S: Final = 0.05
MEASUREMENT_STARTS: Final = 256
"""The throughput is measured again after this many seconds or starts, whichever comes first.
Because of the limit on starts, a server that suddenly gets many tasks soon leases tasks ahead."""


class Capacity:
    """Computes how many tasks the server may lease."""

    def __init__(
        self, config: Config, suspects: CrashIsolation, gathering: Gathering,
        *, threads_only: bool = False,
        place_of: Callable[[str], Executor] = lambda type: "loop",
        room_in: Callable[[Container[Executor]], float] = lambda places: math.inf,
    ) -> None:  # fmt: skip
        """Create a Capacity for a server that runs no tasks yet.

        If `threads_only` is true, every task with a slot needs one of `concurrency` threads.
        `place_of` tells where tasks of a type run, and `room_in` how many more tasks can begin at
        once in any of these places.
        """
        self._place_of = place_of
        self._room_in = room_in
        self._limited_places: set[Executor] = set()
        """Where the tasks with limits run that the server has leased so far."""
        self._config = config
        self._threads_only = threads_only
        self._suspects = suspects
        self.gathering = gathering
        """Batches that are incomplete or wait for a slot, with their leased tasks."""
        self.ready: deque[LeasedTask] = deque()
        """Tasks leased ahead."""
        self.running = 0
        self.started: int = 0
        """Number of tasks started since the throughput was last measured."""
        self._started_before = 0
        self.accepting = True
        self.fairness_seen = False
        """Whether a task with a fairness key has arrived. If so, fewer tasks are leased ahead, to
        keep the order fair."""
        self.room_made: asyncio.Event = asyncio.Event()
        self.notify_room = True
        """Whether to signal `room_made`; False while a round of fetches is in flight."""
        self.idle: asyncio.Event = asyncio.Event()
        self.idle.set()
        self.waiting_slots: int = 0
        """Number of slots beyond `concurrency`, for tasks that wait for a thread. While handlers
        are quick, these tasks let a thread begin its next task without waiting for the event
        loop."""
        self._refill_below = 0
        """Number of tasks in `ready` at or below which the server fetches again."""
        self._throughput = 0.0
        self._measured_at = time.monotonic()

    @property
    def started_total(self) -> int:
        """Number of tasks started so far."""
        return self._started_before + self.started

    @property
    def slots(self) -> int:
        """Return the number of tasks that may have a slot at the same time."""
        return self._config.concurrency + self.waiting_slots

    @property
    def in_use(self) -> int:
        """Return how many tasks run, not counting those that wait in a slot beyond
        `concurrency`."""
        return min(self.running, self._config.concurrency)

    def open_slots(self) -> int:
        """Return how many more tasks with limits could start now.

        Each needs a slot without a leased task, and a thread or process if it runs in one. The next
        tasks with limits may run in any of the places in which earlier ones ran.
        """
        suspects = self._suspects
        if not self.accepting or suspects.blocks_others(time.monotonic()):
            return 0
        held = self.running + len(self.ready) + len(suspects.waiting) + len(self.gathering.due)
        free = min(self._config.concurrency - held, self._room_in(self._limited_places))
        return max(0, int(free))

    def note_limits(self, type: str) -> None:
        """Record that the server has leased a task of this type that has limits."""
        self._limited_places.add(self._place_of(type))

    def free_slots(self) -> int:
        """Return how many more tasks the server may lease now.

        A batch takes one slot, however many tasks it has, and no slot while it is incomplete.
        """
        suspects = self._suspects
        if not self.accepting or suspects.blocks_others(time.monotonic()):
            return 0
        gathering = self.gathering
        held = self.running + len(self.ready) + len(suspects.waiting) + len(gathering.due)
        free = self._config.concurrency - held + self._ahead()
        return free if self.ready else free + gathering.spare()

    def fetch_size(self) -> int:
        """Return how many tasks to fetch now; 0 while enough tasks are leased ahead."""
        slots = self.free_slots()
        if slots <= 0:
            return 0
        return slots if len(self.ready) <= self._refill_below else 0

    def _ahead(self) -> int:
        now = time.monotonic()
        passed = now - self._measured_at
        if passed >= MEASUREMENT_S or (passed > 0 and self.started >= MEASUREMENT_STARTS):
            weight = min(1.0, passed / 0.2)
            self._throughput += weight * (self.started / passed - self._throughput)
            self._started_before += self.started
            self.started, self._measured_at = 0, now
        ahead = int(self._throughput * AHEAD_S)
        if self.fairness_seen:
            ahead = min(ahead, self._config.concurrency)
        if self._config.prefetch is not None:
            ahead = min(ahead, self._config.prefetch)
        self._refill_below = ahead // 2
        if self._threads_only:
            self.waiting_slots = ahead // THREAD_SHARE
        return ahead

    def signal(self) -> None:
        """Signal `idle` if nothing runs or is ready, and `room_made` if more tasks should be
        leased."""
        self.signal_idle()
        if self.notify_room and len(self.ready) <= self._refill_below:
            self.room_made.set()

    def signal_idle(self) -> None:
        """Signal `idle` if nothing runs or is ready."""
        if not self.running and not self.ready:
            self.idle.set()

    def take_ready(self) -> list[LeasedTask]:
        """Remove all tasks from `ready` and return them."""
        taken = []
        while self.ready:
            try:
                taken.append(self.ready.popleft())
            except IndexError:  # a heartbeat thread took the last task
                break
        return taken
