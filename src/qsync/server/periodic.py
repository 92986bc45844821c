"""Periodic tasks: every server of an app enqueues every tick, and the store accepts each tick once.

There is no leader. A tick has the same task id on all servers. The script that enqueues the task of
a tick also records the tick as the last one of its schedule. So a second server that calls the
script for this tick changes nothing. Ticks continue as long as one server is live. The time comes
from the store, so the servers' own clocks do not matter. The script also skips the ticks of paused
schedules.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from qsync import schedule
from qsync.backoff import AWAY_CAP_S, Backoff
from qsync.broker import op_values, ops, program_schedule_ops, registry_ops
from qsync.broker.aio import AsyncBroker
from qsync.broker.schedule_records import digest_of, record_of, template_of
from qsync.broker.schedule_run_ops import missed
from qsync.errors import QsyncError, SchemaMismatch
from qsync.keys import GlobalKeys, QueueKeys
from qsync.new_task import NewTask, new_nonce, new_task
from qsync.queue_announcer import AsyncRegistrations, QueueAnnouncer
from qsync.schedule import Periodic
from qsync.server.clock import boot_s
from qsync.server.hook_calls import OnCreated
from qsync.server.outage_log import Outage
from qsync.server.schedule_notes import send_notes
from qsync.task import Task
from qsync.times import is_of_wrong_clock
from qsync.value_text import raised_at, shorten


class Entry:
    """A schedule and the time up to which its ticks are known to be enqueued."""

    __slots__ = ("after_us", "at_us", "build", "periodic")

    def __init__(self, periodic: Periodic, build: Callable[[], Task]) -> None:
        self.periodic: Periodic = periodic
        self.build: Callable[[], Task] = build
        self.after_us: int | None = None
        self.at_us: int | None = None
        """Time of the next check, in microseconds; None if there is none."""

    @property
    def name(self) -> str:
        """The name of the schedule."""
        return self.periodic.name

    def missed(self, tick_us: int | None, now_us: int) -> tuple[int, int] | None:
        """Return the last and the first tick that were skipped before `tick_us`, the due tick; None
        if none was skipped."""
        schedule = self.periodic.schedule
        if self.periodic.missed != "skip" or self.after_us is None:
            return None
        last_us = schedule.previous(now_us if tick_us is None else tick_us - 1)
        if last_us is None or last_us <= self.after_us:
            return None
        return last_us, schedule.next_after(self.after_us) or last_us

    def due(self, now_us: int, grace_us: int) -> int | None:
        """Return the first tick to enqueue now, in microseconds; None if none is due."""
        ticks = schedule.due_ticks(
            self.periodic.schedule, self.after_us, now_us, self.periodic.missed,
            grace_us=grace_us, limit=1,
        )  # fmt: skip
        return ticks[0] if ticks else None


class ScheduleHeap:
    """Entries ordered by the time of their next check."""

    def __init__(self, grace_us: int) -> None:
        self._grace_us = grace_us
        self._heap: list[tuple[int, int, Entry]] = []
        self._order = itertools.count()
        self.missed: list[tuple[Entry, int, int]] = []
        """Skipped ticks as (entry, last tick, first tick); the caller clears the list."""

    def plan(self, entry: Entry, at_us: int | None) -> None:
        """Set the time of an entry's next check; None means that there is none."""
        entry.at_us = at_us
        if at_us is not None:
            heapq.heappush(self._heap, (at_us, next(self._order), entry))

    def learn(self, entry: Entry, after_us: int, now_us: int, *, again: bool = False) -> None:
        """Record the time up to which an entry's ticks are enqueued, and plan a check for that
        time.

        Ignore a time that is not later than the known time, unless `again` is true or the known
        time is from a clock that was ahead.
        """
        if is_of_wrong_clock(entry.after_us or now_us, now_us):
            entry.after_us = None
        if entry.after_us is None or after_us > entry.after_us or again:
            entry.after_us = max(after_us, entry.after_us or after_us)
            self.plan(entry, after_us)

    def next_us(self) -> int | None:
        """Return the time of the earliest check, in microseconds; None if there is none."""
        while self._heap and self._heap[0][2].at_us != self._heap[0][0]:
            heapq.heappop(self._heap)  # outdated, since the entry has a new time
        return self._heap[0][0] if self._heap else None

    def pop(self, now_us: int, limit: int) -> Sequence[tuple[Entry, int]]:
        """Remove entries with a due tick, and return each with that tick.

        At most `limit` entries are checked. The caller must schedule the entries again with `plan`.
        """
        due = []
        for _ in range(limit):
            at_us = self.next_us()
            if at_us is None or at_us > now_us:
                break
            entry = heapq.heappop(self._heap)[2]
            tick_us = entry.due(now_us, self._grace_us)
            if (ticks := entry.missed(tick_us, now_us)) is not None:
                self.missed.append((entry, *ticks))
            if tick_us is None:
                self.plan(entry, entry.periodic.schedule.next_after(now_us))
            else:
                entry.at_us = None
                due.append((entry, tick_us))
        return due


log: Final = logging.getLogger("qsync.server")

GRACE_US: Final = 30_000_000
"""Longest delay with which a tick counts as on time, in microseconds, even if its schedule skips
missed ticks. This delay covers a restart of the only server and a failover of the store."""

RELEARN_S: Final = 60.0
"""Interval between two reads of the store's time and of the ticks that other servers enqueued, in
seconds."""

LEAST_SLEEP_S: Final = 0.001

TURN: Final = 50
"""Number of schedules that are processed before the event loop gets a turn; one cron expression
takes about 0.1 ms."""


@dataclass(frozen=True, slots=True)
class PeriodicTask:
    """A schedule, and a function that builds the tasks of a tick from the tick's id.

    All tasks that `build` returns are enqueued to the queue of the first task.
    """

    periodic: Periodic
    build: Callable[[], Task]


class PeriodicLoop:
    """Enqueues the tasks of ticks when they are due, until cancelled.

    Any number of these loops may run on one store. After a store error, the loop continues and
    retries. If the task of a tick cannot be built, the tick is skipped and an error is logged.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        prefix: str,
        tasks: Sequence[PeriodicTask],
        outage: Outage | None = None,
        on_created: OnCreated | None = None,
    ) -> None:
        by_queue: dict[str, list[PeriodicTask]] = {}
        for task in tasks:
            by_queue.setdefault(task.build().queue, []).append(task)
        outage = outage or Outage()
        self._queues = [
            _PeriodicQueue(broker, prefix, queue, some, outage, on_created)
            for queue, some in by_queue.items()
        ]

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            for queue in self._queues:
                group.create_task(queue.run())


class _PeriodicQueue:
    """The periodic tasks of one queue; each queue may be on another node with its own clock."""

    def __init__(
        self,
        broker: AsyncBroker,
        prefix: str,
        queue: str,
        tasks: Sequence[PeriodicTask],
        outage: Outage,
        on_created: OnCreated | None,
    ) -> None:
        self._broker = broker
        self._on_created = on_created
        self._outage = outage
        self._part = f"enqueue periodic tasks of queue {queue}"
        self._globals = GlobalKeys(prefix)
        self._registry = QueueAnnouncer(boot_s)
        self._registrations = AsyncRegistrations(broker.run_many, self._registered)
        self._keys = QueueKeys(prefix, queue)
        self._heap = ScheduleHeap(GRACE_US)
        self._entries = [Entry(task.periodic, task.build) for task in tasks]
        self._digests = [digest_of(task.periodic.schedule) for task in tasks]
        self._ahead_us = 0  # lower bound of the store's clock minus this machine's clock
        self._backoff = Backoff(cap=AWAY_CAP_S)

    async def run(self) -> None:
        try:
            await self._run()
        finally:
            await self._registrations.aclose(0)

    async def _run(self) -> None:
        while True:
            try:
                await self._follow(await self._learn())
            except SchemaMismatch as error:
                log.info("periodic tasks of queue %s are stopped: %s", self._keys.queue, error)
                return
            except QsyncError as error:
                self._outage.failed(self._part, error)
                await asyncio.sleep(self._backoff.next())

    async def _learn(self) -> float:
        """Read the store's time and the last ticks; return when to read them again, by the clock
        `boot_s`."""
        self._register()
        before_us = self._ahead_us
        for start in range(0, len(self._entries), op_values.BATCH_SIZE):
            entries = self._entries[start : start + op_values.BATCH_SIZE]
            names, digests = (
                [entry.name for entry in entries],
                self._digests[start : start + op_values.BATCH_SIZE],
            )
            call = program_schedule_ops.begin_ticks(self._keys, names, digests=digests)
            now_us, after = await self._broker.run(call)
            # The estimate ignores how long the reply took to arrive, so a tick may be late by that
            # time but is never early.
            self._ahead_us = now_us - _boot_us()
            went_back = self._ahead_us < before_us - 1_000_000  # then planned times are too late
            for entry, after_us in zip(entries, after, strict=True):
                self._heap.learn(entry, after_us, now_us, again=went_back)
        await self._publish()
        self._backoff.reset()
        self._outage.worked(self._part)
        return boot_s() + RELEARN_S

    def _register(self) -> None:
        """Register the queue if a registration is due.

        This happens in the background, since the set of queues may be on another node.
        """
        queue = self._keys.queue
        if self._registry.due(queue):
            self._registrations.add(queue, registry_ops.register(self._globals, [queue]))

    def _registered(self, queue: str, reply: object) -> None:
        if isinstance(reply, QsyncError):
            self._registry.failed(queue)

    async def _publish(self) -> None:
        """Store the schedules, with templates of their tasks so that operators can trigger them."""
        for start in range(0, len(self._entries), TURN):
            rows = [self._published(entry) for entry in self._entries[start : start + TURN]]
            for part in ops.batches(rows, lambda row: sum(map(len, row))):
                await self._broker.run(program_schedule_ops.publish_schedules(self._keys, part))

    def _published(self, entry: Entry) -> tuple[str, bytes, bytes]:
        try:
            task = entry.build()
            # The template is the same on all servers, so that the store can tell that nothing has
            # changed.
            template = template_of(new_task(task, bytes(8), queue=self._keys.queue))
        except Exception:  # logged at the next tick, not here every minute
            return entry.name, record_of(entry.periodic, ""), b""
        return entry.name, record_of(entry.periodic, task.type), template

    async def _follow(self, until: float) -> None:
        """Enqueue ticks when they are due, until this time by the clock `boot_s`."""
        while (now := boot_s()) < until:
            self._register()
            now_us = _boot_us() + self._ahead_us
            due = self._heap.pop(now_us, TURN)
            if self._heap.missed:
                skipped, self._heap.missed = self._heap.missed, []
                notes = [missed(entry.name, last_us, first) for entry, last_us, first in skipped]
                await send_notes(self._broker, self._keys, notes)
            if due:
                await self._enqueue(due)
            next_us = self._heap.next_us()
            pause = RELEARN_S if next_us is None else (next_us - now_us) / 1_000_000
            if pause > 0:
                pause = max(min(pause, until - now), LEAST_SLEEP_S)
            await asyncio.sleep(max(pause, 0.0))

    async def _enqueue(self, due: Sequence[tuple[Entry, int]]) -> None:
        """Enqueue one tick for each entry; if some cannot be enqueued, raise the first error.

        `due` has at most one tick per entry, because a second tick could make the store ignore a
        retry of the first.
        """
        for entry, tick_us in due:  # so that a tick is retried unless `_passed` plans the next one
            self._heap.plan(entry, tick_us)
        tasks = [(entry, tick_us, self._build(entry, tick_us)) for entry, tick_us in due]
        calls = [
            program_schedule_ops.tick(self._keys, entry.name, tick_us, task)
            for entry, tick_us, task in tasks
            if task is not None
        ]
        replies = await self._broker.run_many(calls)
        answers = iter(replies)
        failed: QsyncError | None = None
        created = []
        for entry, tick_us, task in tasks:
            answer = next(answers) if task is not None else None
            if isinstance(answer, QsyncError):
                failed = failed or answer
            else:
                self._passed(entry, tick_us)
                if answer and task is not None:
                    created.append(task)
        if self._on_created is not None:
            self._on_created(created, _boot_us() + self._ahead_us)
        if failed is not None:
            raise failed

    def _passed(self, entry: Entry, tick_us: int) -> None:
        entry.after_us = max(tick_us, entry.after_us or tick_us)
        self._heap.plan(entry, entry.periodic.schedule.next_after(entry.after_us))

    def _build(self, entry: Entry, tick_us: int) -> NewTask | None:
        try:
            task = entry.build()
            task = task.replace(id=schedule.tick_id(entry.name, tick_us))
            return new_task(task, new_nonce(), queue=self._keys.queue)
        except Exception as error:
            # The error's text may contain arguments, which must not be logged.
            log.error(
                "periodic task %s: this tick is skipped, since building its task raised %s",
                shorten(entry.name), raised_at(error),
            )  # fmt: skip
            return None


def _boot_us() -> int:
    return int(boot_s() * 1_000_000)
