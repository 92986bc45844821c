"""Periodic tasks: every server of an app enqueues every tick, and the store takes each one once.

There is no leader. A tick has the same task id on all servers, and the store remembers the last
tick of each schedule, in the same script that enqueues its task: whoever comes second changes
nothing. So ticks come as long as one server lives, and its clock does not matter: time is what the
store says it is. That script skips the ticks of a paused schedule, too, so no server has to know.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from qsync import schedule
from qsync.backoff import AWAY_CAP_S, Backoff
from qsync.broker import ops
from qsync.broker.schedule_records import digest_of, record_of, template_of
from qsync.broker.shell import AsyncBroker
from qsync.errors import QsyncError, SchemaMismatch
from qsync.keys import GlobalKeys, QueueKeys, raised_at, shorten
from qsync.queue_announcer import AsyncRegistrations, QueueAnnouncer
from qsync.schedule import Periodic
from qsync.server.outage_log import Outage
from qsync.server.queue_state import boot_s
from qsync.server.schedule_heap import Agenda, Entry
from qsync.task import NewTask, Task, new_nonce, new_task

log = logging.getLogger("qsync.server")

GRACE_US: Final = 30_000_000
"""A tick that is at most so late counts as on time, whatever its schedule does about missed ones.
It covers the restart of the only server, and a failover of the store."""

RELEARN_S: Final = 60.0
"""How often the store is asked for its time, and for the ticks that other servers enqueued."""

LEAST_SLEEP_S: Final = 0.001

TURN: Final = 50
"""So many schedules are looked at before others on the loop have their turn: a cron expression
takes about 0.1 ms."""


@dataclass(frozen=True, slots=True)
class PeriodicTask:
    """A schedule, and how the task of a tick is made; the task gets the id of its tick.

    All tasks that `build` makes go to the queue of the first one.
    """

    periodic: Periodic
    build: Callable[[], Task]


class PeriodicLoop:
    """Enqueues the tasks of ticks when these are due, for as long as it runs.

    Any number of them may run on one store. No error of the store ends it, nor does a task that
    cannot be built: that tick is skipped, with an error in the log.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        prefix: str,
        tasks: Sequence[PeriodicTask],
        outage: Outage | None = None,
    ) -> None:
        by_queue: dict[str, list[PeriodicTask]] = {}
        for task in tasks:
            by_queue.setdefault(task.build().queue, []).append(task)
        outage = outage or Outage()
        self._queues = [
            _Queue(broker, prefix, queue, some, outage) for queue, some in by_queue.items()
        ]

    async def run(self) -> None:
        """Never returns; cancel it."""
        async with asyncio.TaskGroup() as group:
            for queue in self._queues:
                group.create_task(queue.run())


class _Queue:
    """The periodic tasks of one queue; each queue has a node, and so a clock, of its own."""

    def __init__(
        self,
        broker: AsyncBroker,
        prefix: str,
        queue: str,
        tasks: Sequence[PeriodicTask],
        outage: Outage,
    ) -> None:
        self._broker = broker
        self._outage = outage
        self._part = f"enqueue periodic tasks of queue {queue}"
        self._globals = GlobalKeys(prefix)
        self._registry = QueueAnnouncer(boot_s)
        self._registrations = AsyncRegistrations(broker.run_many, self._registered)
        self._keys = QueueKeys(prefix, queue)
        self._agenda = Agenda(GRACE_US)
        self._entries = [Entry(task.periodic, task.build) for task in tasks]
        self._digests = [digest_of(task.periodic.schedule) for task in tasks]
        self._ahead_us = 0  # the store's clock less ours, at least
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
                log.error("no more periodic tasks of queue %s: %s", self._keys.queue, error)
                return
            except QsyncError as error:
                self._outage.failed(self._part, error)
                await asyncio.sleep(self._backoff.next())

    async def _learn(self) -> float:
        """Learn the store's time and the last ticks; returns until when that will do."""
        self._register()
        before_us = self._ahead_us
        for at in range(0, len(self._entries), ops.BATCH_SIZE):
            entries = self._entries[at : at + ops.BATCH_SIZE]
            names, digests = (
                [entry.name for entry in entries],
                self._digests[at : at + ops.BATCH_SIZE],
            )
            call = ops.begin_ticks(self._keys, names, digests=digests)
            now_us, after = await self._broker.run(call)
            # The answer took some time to come, so the store's clock is ahead of this: a tick may
            # be late by as much, and is never early.
            self._ahead_us = now_us - _boot_us()
            went_back = self._ahead_us < before_us - 1_000_000  # and what was planned is too late
            for entry, after_us in zip(entries, after, strict=True):
                self._agenda.learn(entry, after_us, again=went_back)
        await self._publish()
        self._backoff.reset()
        self._outage.worked(self._part)
        return boot_s() + RELEARN_S

    def _register(self) -> None:
        """Tell the store of the queue when that is due. Nobody waits for it: the set of queues may
        be on another node."""
        queue = self._keys.queue
        if self._registry.due(queue):
            self._registrations.add(queue, ops.register(self._globals, [queue]))

    def _registered(self, queue: str, reply: object) -> None:
        if isinstance(reply, QsyncError):
            self._registry.failed(queue)

    async def _publish(self) -> None:
        """Say what schedules there are, and by which tasks to trigger them."""
        for at in range(0, len(self._entries), TURN):
            rows = [self._published(entry) for entry in self._entries[at : at + TURN]]
            for part in ops.batches(rows, lambda row: sum(map(len, row))):
                await self._broker.run(ops.publish(self._keys, part))

    def _published(self, entry: Entry) -> tuple[str, bytes, bytes]:
        try:
            task = entry.build()
            template = template_of(new_task(task, new_nonce(), queue=self._keys.queue))
        except Exception:  # said when it comes to a tick, and not every minute
            return entry.name, record_of(entry.periodic, ""), b""
        return entry.name, record_of(entry.periodic, task.type), template

    async def _follow(self, until: float) -> None:
        """Enqueue ticks as they come due, until that time."""
        while (now := boot_s()) < until:
            self._register()
            now_us = _boot_us() + self._ahead_us
            due = self._agenda.pop(now_us, TURN)
            if due:
                await self._enqueue(due)
            next_us = self._agenda.next_us()
            pause = RELEARN_S if next_us is None else (next_us - now_us) / 1_000_000
            if pause > 0:
                pause = max(min(pause, until - now), LEAST_SLEEP_S)
            await asyncio.sleep(max(pause, 0.0))

    async def _enqueue(self, due: Sequence[tuple[Entry, int]]) -> None:
        """Enqueue one tick for each entry; raises the first error when some did not get through.

        Never two of one entry at a time: the second would make the first one past.
        """
        for entry, tick_us in due:  # to be tried again, unless it gets through
            self._agenda.plan(entry, tick_us)
        tasks = [(entry, tick_us, self._build(entry, tick_us)) for entry, tick_us in due]
        calls = [
            ops.tick(self._keys, entry.name, tick_us, task)
            for entry, tick_us, task in tasks
            if task is not None
        ]
        replies = await self._broker.run_many(calls)
        answers = iter(replies)
        failed: QsyncError | None = None
        for entry, tick_us, task in tasks:
            answer = next(answers) if task is not None else None
            if isinstance(answer, QsyncError):
                failed = failed or answer
            else:
                self._passed(entry, tick_us)
        if failed is not None:
            raise failed

    def _passed(self, entry: Entry, tick_us: int) -> None:
        entry.after_us = max(tick_us, entry.after_us or tick_us)
        self._agenda.plan(entry, entry.periodic.schedule.next_after(entry.after_us))

    def _build(self, entry: Entry, tick_us: int) -> NewTask | None:
        try:
            task = entry.build()
            task = task.replace(id=schedule.tick_id(entry.name, tick_us))
            return new_task(task, new_nonce(), queue=self._keys.queue)
        except Exception as error:
            # Its text may hold arguments, which do not belong in a log.
            log.error(
                "periodic task %s: no task for this tick, building it raised %s",
                shorten(entry.name), raised_at(error),
            )  # fmt: skip
            return None


def _boot_us() -> int:
    return int(boot_s() * 1_000_000)
