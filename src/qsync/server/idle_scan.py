"""Finds the busy queues of a server, so that idle queues cost almost nothing.

A server of one queue always fetches from it. A server of many queues checks all of them once per
`sweep`. A check costs a fifth of a fetch, writes nothing, and shares a pipeline with other checks.
The server fetches only from queues in which a check found tasks or due upkeep. All servers of a
queue check the queue. The first server that finds that upkeep is due performs it, so the servers
share this work. Between checks, a queue becomes busy through a wake, or at the due time that its
last fetch returned. So a lost wake delays tasks by at most `sweep`, and an idle queue costs one
check per `sweep`.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from qsync.backoff import AWAY_CAP_S, Backoff, spread
from qsync.broker import views
from qsync.broker.aio import AsyncBroker
from qsync.broker.ops import IdleCheck
from qsync.broker.views import WorkCheck
from qsync.errors import QsyncError, SchemaMismatch, StoreUnavailable
from qsync.server.clock import boot_s
from qsync.server.config import Config
from qsync.server.outage_log import Outage
from qsync.server.queue_state import QueueState
from qsync.server.wake_channel import Wakes

PART: Final = "look for tasks"
CHECKS_PER_EXCHANGE: Final = 100
"""Number of checks in one pipeline."""

SLOW_S: Final = 300.0
"""Longest time without a fetch from an idle queue, in seconds.

Each fetch also trims dead tasks and removes expired data.
"""

PASS_ON_S: Final = 0.1
"""Shortest interval, in seconds, between the fetches by which a server without a free slot promotes
due tasks."""


class BusyQueues:
    """The busy queues of a server: those that may need a fetch.

    `on_unsent` is called when a client added tasks but sent no wake message to this idle server.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        queues: Sequence[QueueState],
        config: Config,
        outage: Outage,
        wakes: Wakes | None,
        *,
        on_found: Callable[[], None],
        on_unsent: Callable[[QueueState], None],
    ) -> None:
        self.many: bool = len(queues) > 1
        self.due: set[str] = set()
        """Queues whose upkeep is due, according to a check or to the queue's due time."""
        self._broker = broker
        self._queues = queues
        self._strict = config.strict
        self._sweep_s = config.sweep_s
        self._lease_us = config.policy().lease_us
        self._outage = outage
        self._wakes = wakes
        self._on_found = on_found
        self._on_unsent = on_unsent
        self.has_room = False
        """True if the server has free slots, so that it may be woken."""
        # Up to CHECKS_PER_EXCHANGE queues start as busy; if there are more, the first check finds
        # out which of them are busy.
        self._busy = (
            {} if len(queues) > CHECKS_PER_EXCHANGE else {queue.name: queue for queue in queues}
        )
        self._times: list[tuple[float, str, QueueState]] = []
        self._timed: dict[str, float] = {}
        """Earliest time in the heap, by queue."""
        now = boot_s()
        self._slow_at = {queue.name: now + spread(0, SLOW_S) for queue in queues}

    def all(self) -> Iterable[QueueState]:
        """Return the busy queues; the queue with the latest fetch is at the end."""
        return self._busy.values()

    def count(self) -> int:
        """Return the number of busy queues."""
        return len(self._busy)

    def first(self, limit: int) -> Sequence[QueueState]:
        """Return the first `limit` busy queues; all of them if the server is `strict`."""
        if self._strict or len(self._busy) <= limit:
            return list(self._busy.values())
        some = list(itertools.islice(self._busy.values(), limit))
        for queue in some:  # so that the next round begins with the remaining queues
            self._to_end(queue)
        return some

    def _to_end(self, queue: QueueState) -> None:
        self._busy.pop(queue.name, None)
        self._busy[queue.name] = queue

    def is_idle(self, queue: QueueState) -> bool:
        """Return whether a queue is idle, i.e. needs no fetch until a wake, a check or its next due
        time."""
        return queue.name not in self._busy

    def begin(self, now: float) -> None:
        """At the start of a round, mark the queues whose due time has come as busy."""
        if not self.many:
            [queue] = self._queues
            self._mark_if_due(queue, now)
            return
        while self._times and self._times[0][0] <= now:
            due, name, queue = heapq.heappop(self._times)
            if self._timed.get(name) != due:
                continue
            del self._timed[name]
            if not self._mark_if_due(queue, now) and queue.next_due is not None:
                self.set_due(queue, queue.next_due)

    def _mark_if_due(self, queue: QueueState, now: float) -> bool:
        if queue.next_due is None or now < queue.next_due:
            return False
        queue.next_due = None
        queue.exhausted = False
        self._busy[queue.name] = queue
        if self.many and now - queue.last_fetch > PASS_ON_S:
            self.due.add(queue.name)
        return True

    def set_due(self, queue: QueueState, moment: float) -> None:
        """Plan to mark the queue as busy at this time by the clock `boot_s`, if its `next_due` has
        passed by then."""
        if self.many and moment < self._timed.get(queue.name, math.inf):
            self._timed[queue.name] = moment
            heapq.heappush(self._times, (moment, queue.name, queue))

    def next_at(self) -> float:
        """Return the earliest due time of all queues, by the clock `boot_s`; infinity if there is
        none."""
        return self._times[0][0] if self._times else math.inf

    def upkeep_at(self, queue: QueueState) -> float:
        """Return when a fetch is due even without tasks, by the clock `boot_s`.

        A fetch detects whether the store has lost its data. A server with many queues needs such a
        fetch only for queues whose tasks it holds.
        """
        if self.many and not queue.held:
            return math.inf
        return queue.last_fetch + self._sweep_s

    def wake(self, queue: QueueState) -> None:
        """Mark a queue as busy, since it may have tasks."""
        self._busy[queue.name] = queue

    def fetched(self, queue: QueueState) -> None:
        """Record that a fetch from a queue was sent."""
        self.due.discard(queue.name)
        if self.many:
            self._slow_at[queue.name] = boot_s() + SLOW_S
            self._to_end(queue)

    def rest(self, queues: Iterable[QueueState]) -> None:
        """Mark these queues as idle until a wake, a check or the queue's next due time makes them
        busy."""
        if self.many:
            for queue in queues:
                if queue.name not in self.due:
                    self._busy.pop(queue.name, None)

    # Checks.

    async def run(self) -> None:
        """Check all queues once per `sweep`, until cancelled."""
        backoff = Backoff(cap=AWAY_CAP_S)
        while True:
            interval = self._sweep_s * spread(0.9, 1.0)  # jitter spreads the checks
            ends = boot_s() + interval
            unchecked = await self._check(self._queues)
            if self._wakes is not None:
                self._wakes.follow_slots()
            while unchecked and boot_s() < ends:
                await asyncio.sleep(backoff.next())
                unchecked = await self._check(unchecked)
            backoff.reset()
            await asyncio.sleep(max(ends - boot_s(), 0.001))

    async def with_tasks(self, queues: Sequence[QueueState]) -> Sequence[QueueState]:
        """Return the queues that may have pending tasks; if there are several queues, check them
        first."""
        if not self.many:
            return queues
        for start in range(0, len(queues), CHECKS_PER_EXCHANGE):
            await self._check_page(queues[start : start + CHECKS_PER_EXCHANGE])
        return [queue for queue in queues if not self.is_idle(queue)]

    async def _check(self, queues: Sequence[QueueState]) -> Sequence[QueueState]:
        """Check each queue once, and log an outage; return queues whose store is unreachable.

        So the caller need not check the queues of all nodes again if one node of a cluster is down.
        """
        if self._broker.address.kind == "cluster":
            pages = [[queue] for queue in queues]
            errors = await asyncio.gather(*map(self._check_and_listen, queues))
        else:
            starts = range(0, len(queues), CHECKS_PER_EXCHANGE)
            pages = [list(queues[start : start + CHECKS_PER_EXCHANGE]) for start in starts]
            errors = [await self._check_page(page) for page in pages]
        failures = [error for error in errors if error is not None]
        if not failures:
            self._outage.worked(PART)
            return ()
        if isinstance(failures[0], SchemaMismatch):
            raise failures[0]
        self._outage.failed(PART, failures[0])
        return [
            queue
            for page, error in zip(pages, errors, strict=True)
            if isinstance(error, StoreUnavailable)
            for queue in page
        ]

    async def _check_page(self, queues: Sequence[QueueState]) -> QsyncError | None:
        calls = [views.check_for_work(queue.keys, lease_us=self._lease_us) for queue in queues]
        failed: QsyncError | None = None
        now = boot_s()
        answers = await self._broker.run_many(calls)
        for queue, answer in zip(queues, answers, strict=True):
            if isinstance(answer, QsyncError):
                failed = failed or answer
            else:
                queue.answered = now
                self._apply_check(queue, answer, now)
        return failed

    async def _check_and_listen(self, queue: QueueState) -> QsyncError | None:
        """Check a queue of a cluster; if the server is idle there, register it as idle too."""
        wakes = self._wakes
        idle = self.has_room and (self.is_idle(queue) or queue.exhausted)
        if wakes is None or not idle or not wakes.ready(queue):
            return await self._check_page([queue])
        return await self.listen(wakes, [queue])

    async def listen(self, wakes: Wakes, queues: Sequence[QueueState]) -> QsyncError | None:
        """Register the server as idle in these queues, which also checks them for work; return the
        first error."""
        failed: QsyncError | None = None
        now = boot_s()
        wakes.take(queues)
        marks = [wakes.mark(queue) for queue in queues]
        answers = await self._broker.run_many([wakes.call(queue) for queue in queues])
        for queue, mark, answer in zip(queues, marks, answers, strict=True):
            if isinstance(answer, QsyncError):
                failed = failed or answer
                wakes.failed(queue)
                continue
            queue.answered = now
            wakes.listed(queue, answer, mark)
            if answer.woken:
                wakes.on_wake(queue)
            if answer.unsent:
                self._on_unsent(queue)
            self._apply_check(queue, answer, now)
        return failed

    def _apply_check(self, queue: QueueState, check: WorkCheck | IdleCheck, now: float) -> None:
        data_lost = queue.generation is not None and check.generation != queue.generation
        if check.due or data_lost or now >= self._slow_at[queue.name]:
            self.due.add(queue.name)
        elif not check.waits:
            return
        if check.waits:
            queue.exhausted = False
        self._busy[queue.name] = queue
        self._on_found()
