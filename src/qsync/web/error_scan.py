"""Groups the failed tasks of all queues by error, in the background, while a page needs them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Final, NamedTuple

from qsync.errors import QsyncError
from qsync.fingerprint import FAILING
from qsync.inspector import ErrorGroup, Inspector, merge_groups
from qsync.state import TaskState

log: Final = logging.getLogger("qsync.web")

WAIT_S: Final = 0.2
"""Maximum time that a page waits for a scan, in seconds."""

BRIEF_S: Final = 0.05
"""Maximum time that the overview waits for the first scan, in seconds."""

MIN_AGE_S: Final = 2.0
"""Minimum age of the last scan before a new one begins, in seconds."""

SHARE: Final = 20
"""Minimum age of the last scan before a new one begins, as a multiple of its duration."""

UNRESTED: Final = 200_000
"""Number of tasks after which a scan begins to pause between its parts."""

UNWATCHED_S: Final = 30.0
"""Time after which a scan ends if no page has asked for it, in seconds."""


TREND_S: Final = 300.0
"""Time over which pages show how the number of tasks with an error has grown, in seconds."""


HISTORY: Final = 30
"""Number of scans kept to show the growth; each has up to a few hundred errors."""


class ErrorScan(NamedTuple):
    """The results of a scan so far; `total` is the number of failed tasks when it began."""

    groups: list[ErrorGroup]
    scanned: int
    total: int
    finished: bool
    growth: Mapping[str, int] = MappingProxyType({})
    """Change in the number of tasks with each error within `growth_s`; negative for a decrease."""
    growth_s: float = 0.0
    """Time since the scan with which this scan is compared, in seconds; 0 if there is none."""


NOTHING: Final = ErrorScan([], 0, 0, False)


class ErrorScanner:
    """Runs one scan at a time for all pages; a scan of many tasks pauses half of the time."""

    def __init__(self, inspector: Inspector) -> None:
        self._inspector = inspector
        self._task: asyncio.Task[None] | None = None
        self._last = NOTHING
        """The last finished scan; until the first one has finished, its results so far."""
        self._dead_of: dict[str, list[ErrorGroup]] = {}
        """Errors of the dead tasks by queue, as of the last finished scan."""
        self._history: deque[tuple[float, dict[str, int]]] = deque()
        """For each scan that ended within the last TREND_S: when it ended, and its number of tasks
        by error."""
        self._ended_at = 0.0
        self._took_s = 0.0
        self._asked_at = 0.0

    async def read(self) -> ErrorScan:
        """Return the last scan, or the first one even if it is unfinished. Begin a new scan if the
        last one is old."""
        self._begin_if_old()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=WAIT_S)
            if self._task.done() and not self._task.cancelled():
                self._task.result()  # raises the error with which the scan failed
        return self._last

    async def errors_since(self, queue: str, since: datetime) -> int | None:
        """Return the number of different errors of tasks that died in a queue since the given time.

        The number comes from the last scan; it is None before the first scan has finished. Begins
        a new scan if the last one is old.
        """
        self._begin_if_old()
        if queue not in self._dead_of and self._task is not None:
            await asyncio.wait([self._task], timeout=BRIEF_S)
        if (groups := self._dead_of.get(queue)) is None:
            return None
        return sum(group.last_at is not None and group.last_at >= since for group in groups)

    def _begin_if_old(self) -> None:
        self._asked_at = now = time.monotonic()
        running = self._task is not None and not self._task.done()
        age = now - self._ended_at
        if not running and (not self._last.finished or age > max(MIN_AGE_S, SHARE * self._took_s)):
            self._task = asyncio.create_task(self._scan(), name="qsync-dashboard-errors")
            self._task.add_done_callback(_read_exception)

    def forget(self) -> None:
        """Treat the last scan as old because tasks have changed, so that the next page begins a new
        scan."""
        self._ended_at = self._took_s = 0.0

    async def stop(self) -> None:
        """Stop the running scan."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, QsyncError):
                await task

    async def _scan(self) -> None:
        began = time.monotonic()
        queues = (await self._inspector.overview()).queues
        total = sum(queue.states[state] for queue in queues for state in FAILING)
        groups, scanned, dead_of = list[ErrorGroup](), 0, dict[str, list[ErrorGroup]]()
        for name, state in [(queue.name, state) for queue in queues for state in FAILING]:
            cursor: str | None = None
            while True:
                step_began = time.monotonic()
                if step_began - self._asked_at > UNWATCHED_S:
                    return
                part = await self._inspector.errors(name, state, cursor=cursor)
                groups, scanned = merge_groups([*groups, *part.groups]), scanned + part.scanned
                if state is TaskState.DEAD:
                    dead_of[name] = merge_groups([*dead_of.get(name, []), *part.groups])
                if not self._last.finished:
                    self._last = ErrorScan(groups, scanned, total, False)
                cursor = part.cursor
                if cursor is None:
                    break
                if scanned > UNRESTED:
                    await asyncio.sleep(time.monotonic() - step_began)
        self._ended_at = time.monotonic()
        self._took_s = self._ended_at - began
        growth_s, growth = self._growth({group.id: group.count for group in groups})
        self._last = ErrorScan(groups, scanned, scanned, True, growth, growth_s)
        self._dead_of = dead_of

    def _growth(self, counts: dict[str, int]) -> tuple[float, dict[str, int]]:
        """Return the time since an earlier scan, in seconds, and by how many tasks each error has
        grown since then."""
        while len(self._history) > 1 and self._history[1][0] <= self._ended_at - TREND_S:
            self._history.popleft()
        at, before = self._history[0] if self._history else (self._ended_at, counts)
        if not self._history or self._ended_at - self._history[-1][0] > TREND_S / HISTORY:
            self._history.append((self._ended_at, counts))
        return self._ended_at - at, {id: n - before.get(id, 0) for id, n in counts.items()}


def _read_exception(task: asyncio.Task[None]) -> None:
    """Retrieve the exception of a scan that no page awaits, so that asyncio does not report it."""
    if not task.cancelled():
        task.exception()
