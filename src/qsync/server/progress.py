"""Stores the last progress report of each task, in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from qsync.broker import ops
from qsync.broker.aio import AsyncBroker
from qsync.errors import QsyncError
from qsync.server.outage_log import Outage
from qsync.server.queue_state import RUNNING, LeasedTask, QueueState


class ProgressReports:
    """Accepts progress reports from any thread; stores them with one call at a time per queue."""

    def __init__(
        self, broker: AsyncBroker, queues: Mapping[str, QueueState], outage: Outage
    ) -> None:
        self._broker = broker
        self._outage = outage
        self._queues = queues
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, set[LeasedTask]] = {}
        self._flushes: list[tuple[LeasedTask, asyncio.Future[None]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def report(self, leased: LeasedTask, done: float, total: float) -> None:
        """Record a task's progress, and schedule a call that stores it."""
        leased.progress = (done, total)
        self._loop.call_soon_threadsafe(self._note, leased)

    async def flush(self, leased: LeasedTask) -> None:
        """Wait until the last progress of a task has been stored, or could not be stored."""
        flushed: asyncio.Future[None] = self._loop.create_future()
        self._flushes.append((leased, flushed))
        self._note(leased)
        await flushed

    async def aclose(self) -> None:
        """Discard progress that is not stored yet."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _note(self, leased: LeasedTask) -> None:
        queue = leased.queue.name
        if queue in self._waiting:
            self._waiting[queue].add(leased)
            return
        self._waiting[queue] = {leased}
        task = self._loop.create_task(self._store(queue))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _store(self, queue: str) -> None:
        waiting: set[LeasedTask] = set()
        try:
            while waiting := self._waiting[queue]:
                self._waiting[queue] = set()
                rows = [
                    (leased.id, leased.token, *leased.progress)
                    for leased in waiting
                    if leased.progress is not None and leased.phase is RUNNING
                ]
                for part in ops.batches(rows, lambda row: len(row[0])):
                    await self._broker.run(ops.progress(self._queues[queue].keys, part))
                self._flushed(waiting)
        except QsyncError as error:
            self._outage.note(f"store the progress of tasks of queue {queue}", error)
        finally:
            self._flushed(waiting | self._waiting.pop(queue))

    def _flushed(self, stored: set[LeasedTask]) -> None:
        """Wake the callers of `flush` that wait for one of these tasks."""
        waiting, self._flushes = self._flushes, []
        for leased, flushed in waiting:
            if leased not in stored:
                self._flushes.append((leased, flushed))
            elif not flushed.done():
                flushed.set_result(None)
