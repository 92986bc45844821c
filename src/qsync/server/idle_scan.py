"""Which queues of a server have something to do: idle ones cost it next to nothing.

A server of one queue goes round that one. A server of many looks at all of them once in `sweep`: a
look is a fifth of a fetch, writes nothing, and many go together. It fetches only where a look found
tasks or upkeep that is due. All servers of a queue look; the first to find upkeep due does it, so
that it is shared among them, and any that is left suffices. In between a queue becomes busy by a
wake, or when the time comes of which its last fetch told.

So a wake that is lost costs `sweep` at most, and an idle queue costs a look in that time.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from qsync.backoff import spread
from qsync.broker import views
from qsync.broker.ops import Listened
from qsync.broker.shell import AsyncBroker
from qsync.broker.views import Looked
from qsync.errors import QsyncError, SchemaMismatch
from qsync.server.config import Config
from qsync.server.outage_log import Outage
from qsync.server.queue_state import QueueState, boot_s
from qsync.server.wake_channel import Wakes

PART: Final = "look for tasks"
PAGE: Final = 100
"""Looks that go together."""

SLOW_S: Final = 300.0
"""How often a queue that looks idle is fetched from nevertheless: that trims what is dead, and
sweeps what is forgotten."""

PASS_ON_S: Final = 0.1
"""A server without a free slot does upkeep for what is due no more often than this."""


class Lookout:
    """The queues that have something to do."""

    def __init__(
        self,
        broker: AsyncBroker,
        lanes: Sequence[QueueState],
        config: Config,
        outage: Outage,
        wakes: Wakes | None,
        on_found: Callable[[], None],
    ) -> None:
        self.many = len(lanes) > 1
        self.due: set[str] = set()
        """Queues of which a look, or the time, said that upkeep is due."""
        self._broker = broker
        self._lanes = lanes
        self._strict = config.strict
        self._sweep_s = config.sweep_s
        self._lease_us = config.policy().lease_us
        self._outage = outage
        self._wakes = wakes
        self._on_found = on_found
        self.on_unsent: Callable[[QueueState], None] = lambda lane: None
        """Called when somebody sent no message to this server, which waited for one."""
        self.has_room = False
        """The server has free slots, so that it may be woken."""
        # A few queues are fetched from at once; of many a look tells which.
        self._busy = {} if len(lanes) > PAGE else {lane.queue: lane for lane in lanes}
        self._times: list[tuple[float, str, QueueState]] = []
        self._timed: dict[str, float] = {}
        """By queue, the first of its times in the heap."""
        now = boot_s()
        self._slow_at = {lane.queue: now + spread(0, SLOW_S) for lane in lanes}

    def busy(self) -> Iterable[QueueState]:
        """Queues that may have something to do, the one last fetched from at the end."""
        return self._busy.values()

    def count(self) -> int:
        """How many queues are busy."""
        return len(self._busy)

    def first(self, most: int) -> Sequence[QueueState]:
        """As many busy queues as a round looks at; all of them where the heaviest goes first."""
        if self._strict or len(self._busy) <= most:
            return list(self._busy.values())
        some = list(itertools.islice(self._busy.values(), most))
        for lane in some:  # whatever becomes of them, the others have their turn
            self._to_end(lane)
        return some

    def _to_end(self, lane: QueueState) -> None:
        self._busy.pop(lane.queue, None)
        self._busy[lane.queue] = lane

    def rests(self, lane: QueueState) -> bool:
        """Whether only a wake, a look or the time makes anything to do for a queue."""
        return lane.queue not in self._busy

    def begin(self, now: float) -> None:
        """A round begins: queues whose time has come are busy."""
        if not self.many:
            [lane] = self._lanes
            self._at_its_time(lane, now)
            return
        while self._times and self._times[0][0] <= now:
            at, queue, lane = heapq.heappop(self._times)
            if self._timed.get(queue) != at:
                continue
            del self._timed[queue]
            if not self._at_its_time(lane, now) and lane.next_due is not None:
                self.at(lane, lane.next_due)

    def _at_its_time(self, lane: QueueState, now: float) -> bool:
        if lane.next_due is None or now < lane.next_due:
            return False
        lane.next_due = None
        lane.empty = False
        self._busy[lane.queue] = lane
        if self.many and now - lane.last_fetch > PASS_ON_S:
            self.due.add(lane.queue)
        return True

    def at(self, lane: QueueState, moment: float) -> None:
        """The queue is busy at that moment, by boot_s, if its `next_due` still says so."""
        if self.many and moment < self._timed.get(lane.queue, math.inf):
            self._timed[lane.queue] = moment
            heapq.heappush(self._times, (moment, lane.queue, lane))

    def next_at(self) -> float:
        """When the time of a queue comes, by boot_s."""
        return self._times[0][0] if self._times else math.inf

    def upkeep_at(self, lane: QueueState) -> float:
        """When a fetch is due, whether or not there are tasks; where tasks are held it tells that
        the store lost its data."""
        if self.many and not lane.held:
            return math.inf
        return lane.last_fetch + self._sweep_s

    def wake(self, lane: QueueState) -> None:
        """There may be tasks in a queue."""
        self._busy[lane.queue] = lane

    def fetched(self, lane: QueueState) -> None:
        """A fetch from a queue was sent."""
        self.due.discard(lane.queue)
        if self.many:
            self._slow_at[lane.queue] = boot_s() + SLOW_S
            self._to_end(lane)

    def rest(self, lanes: Iterable[QueueState]) -> None:
        """Nothing is to be done for these queues until a wake, a look, or their time."""
        if self.many:
            for lane in lanes:
                if lane.queue not in self.due:
                    self._busy.pop(lane.queue, None)

    # Looks.

    async def run(self) -> None:
        """Look at all queues once in `sweep`, until cancelled."""
        while True:
            began = boot_s()
            try:
                await self._look()
                self._outage.worked(PART)
            except SchemaMismatch:
                raise
            except QsyncError as error:
                self._outage.failed(PART, error)
            interval = self._sweep_s * spread(0.9, 1.0)  # servers need not look together
            await asyncio.sleep(max(interval - (boot_s() - began), 0.001))

    async def with_tasks(self) -> Sequence[QueueState]:
        """The queues in which tasks wait; where that is not known, all that are busy."""
        if not self.many:
            return self._lanes
        with contextlib.suppress(QsyncError):
            await self._look()
        return list(self._busy.values())

    async def _look(self) -> None:
        """Look at every queue once; raises the first error when some could not be looked at."""
        if self._broker.address.kind == "cluster":
            errors = await asyncio.gather(*map(self._look_and_listen, self._lanes))
            if self._wakes is not None:
                self._wakes.follow_slots()
        else:
            parts = range(0, len(self._lanes), PAGE)
            errors = [await self._look_at(self._lanes[at : at + PAGE]) for at in parts]
        for error in errors:
            if error is not None:
                raise error

    async def _look_at(self, lanes: Sequence[QueueState]) -> QsyncError | None:
        calls = [views.look(lane.keys, lease_us=self._lease_us) for lane in lanes]
        failed: QsyncError | None = None
        now = boot_s()
        answers = await self._broker.run_many(calls)
        for lane, answer in zip(lanes, answers, strict=True):
            if isinstance(answer, QsyncError):
                failed = failed or answer
            else:
                lane.answered = now
                self._see(lane, answer, now)
        return failed

    async def _look_and_listen(self, lane: QueueState) -> QsyncError | None:
        """Look at a queue of a cluster, and say that the server is idle there if that is so."""
        wakes = self._wakes
        idle = self.has_room and (self.rests(lane) or lane.empty)
        if wakes is None or not idle or not wakes.ready(lane):
            return await self._look_at([lane])
        return await self.listen(wakes, [lane])

    async def listen(self, wakes: Wakes, lanes: Sequence[QueueState]) -> QsyncError | None:
        """Say that the server is idle in these queues, and look at them."""
        failed: QsyncError | None = None
        now = boot_s()
        wakes.take(lanes)
        marks = [wakes.mark(lane) for lane in lanes]
        answers = await self._broker.run_many([wakes.call(lane) for lane in lanes])
        for lane, mark, answer in zip(lanes, marks, answers, strict=True):
            if isinstance(answer, QsyncError):
                failed = failed or answer
                wakes.failed(lane)
                continue
            lane.answered = now
            wakes.listed(lane, answer, mark)
            if answer.woken:
                wakes.on_wake(lane)
            if answer.unsent:
                self.on_unsent(lane)
            self._see(lane, answer, now)
        return failed

    def _see(self, lane: QueueState, looked: Looked | Listened, now: float) -> None:
        other = lane.generation is not None and looked.generation != lane.generation
        if looked.due or other or now >= self._slow_at[lane.queue]:
            self.due.add(lane.queue)
        elif not looked.waits:
            return
        if looked.waits:
            lane.empty = False
        self._busy[lane.queue] = lane
        self._on_found()
