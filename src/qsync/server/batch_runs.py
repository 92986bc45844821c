"""Runs batches: one call of a handler for several tasks, each with its own outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from qsync.broker.op_values import Completion, HandedBack
from qsync.server import fork_guard
from qsync.server.batch_call import BatchCall, BatchContext
from qsync.server.batch_gathering import Batch
from qsync.server.batch_outcomes import outcomes_of_call
from qsync.server.capacity import Capacity
from qsync.server.clock import boot_s
from qsync.server.current import running
from qsync.server.handler_context import ServerContext
from qsync.server.inline_start import Spawn
from qsync.server.invoke import BoundHandler, Invoker
from qsync.server.progress import ProgressReports
from qsync.server.queue_state import QUEUED, RUNNING, SETTLING, HandlerNotStarted, LeasedTask
from qsync.server.run_metrics import RunMetrics
from qsync.server.run_records import RunRecords
from qsync.server.settler import Settler
from qsync.server.stopping import Stopping
from qsync.task import TaskInfo


class BatchRuns:
    """Starts the batches that are due, and settles each task of a call with its own outcome."""

    def __init__(
        self,
        records: RunRecords,
        invoker: Invoker,
        capacity: Capacity,
        stopping: Stopping,
        context: ServerContext,
        progress: ProgressReports,
        guard: fork_guard.ForkGuard,
        metrics: RunMetrics | None,
        settlers: Mapping[str, Settler],
        spawn: Spawn,
        refill: Callable[[], None],
    ) -> None:
        self._outcomes = records
        self._invoker = invoker
        self._capacity = capacity
        self._stopping = stopping
        self._context = context
        self._progress = progress
        self._guard = guard
        self._metrics = metrics
        self._settlers = settlers
        self._spawn = spawn
        self._refill = refill

    def start(self, batch: Batch) -> None:
        """Start a batch in a slot; settle tasks past their deadline without running them."""
        tasks, infos = self._startable(batch)
        handler = self._invoker.find_batch(batch.type)
        if not tasks or handler is None:
            return
        capacity = self._capacity
        if not capacity.running:
            capacity.idle.clear()
        capacity.running += 1
        capacity.started += len(tasks)
        with_options = [task for task in tasks if task.message.options is not None]
        limits = [self._stopping.timeout_of(task) for task in with_options]
        if len(with_options) < len(tasks):
            limits.append(self._stopping.default_timeout)
        limit = min((limit for limit in limits if limit is not None), default=None)
        call = BatchCall(tasks, limit, plain=not with_options)
        for leased in tasks:
            leased.call = call
        self._spawn(self._run(call, infos, handler.together), tasks[0].id)

    def _startable(self, batch: Batch) -> tuple[list[LeasedTask], list[TaskInfo]]:
        """Mark the tasks of a batch as running, and return those that may still start."""
        now, metrics = boot_s(), self._metrics
        tasks: list[LeasedTask] = []
        infos: list[TaskInfo] = []
        for leased in batch.tasks:
            if leased.phase is not QUEUED:  # cancelled or lost while it waited
                continue
            leased.phase = RUNNING
            leased.begun_s = now
            leased.info = info = leased.task_info()
            if metrics is not None:
                metrics.started(leased)
            if now >= leased.expires or leased.message.options is not None:
                late = self._outcomes.too_late(leased)
                if late is not None:
                    self._settle([leased], [late])
                    continue
            tasks.append(leased)
            infos.append(info)
        return tasks, infos

    async def _run(self, call: BatchCall, infos: list[TaskInfo], way: BoundHandler) -> None:
        first = call.tasks[0]
        context = BatchContext(
            first, infos[0], self._context, self._progress.report, _infos=infos, _call=call
        )
        running.set(context)
        values: Sequence[Any] | None = None
        try:
            if call.stopped is not None:
                raise asyncio.CancelledError  # cancelled or lost while it waited to start
            call.handler = asyncio.current_task()
            if call.limit is not None:
                self._stopping.timeouts.add(first, call.limit)
            value = await way.invoke(infos[0], call.limit)
            call.handler = None
            if call.stopped is not None and call.stopped != "shutdown":
                raise asyncio.CancelledError  # the handler caught its cancellation
            if value is not None:
                values = outcomes_of_call(value, len(call.tasks))
        except BaseException as error:
            values = [error] * len(call.tasks)
        if self._guard.forked:
            fork_guard.end()
        call.handler = None
        if call.ended:
            return  # `give_up` has settled the tasks already
        if values is None and call.plain:
            self._end(call, None)
            return
        records = self._records(call, values or [None] * len(call.tasks), way)
        await self._flush_progress(call.tasks, records)
        self._end(call, records)

    def _records(self, call: BatchCall, values: Sequence[Any], way: BoundHandler) -> list[Any]:
        """Return one record per task; if several tasks share an error, log its traceback only
        once."""
        logged: set[int] = set()
        records: list[Any] = []
        for leased, value in zip(call.tasks, values, strict=True):
            if value is None and leased.stop is None and leased.message.options is None:
                records.append(Completion(leased.id, leased.token))
                continue
            records.append(self._record(leased, value, way, brief=id(value) in logged))
            if isinstance(value, BaseException):
                logged.add(id(value))
        return records

    def _record(self, leased: LeasedTask, value: Any, way: BoundHandler, *, brief: bool) -> Any:
        """Return the record for one task; None if its lease is lost."""
        outcomes = self._outcomes
        if leased.stop is not None and leased.stop != "shutdown":
            return outcomes.stopped(leased, asyncio.CancelledError())
        if isinstance(value, HandlerNotStarted) and leased.stop is None:
            return outcomes.too_late(leased) or HandedBack(leased.id, leased.token)
        if isinstance(value, BaseException):
            return outcomes.stopped(leased, value, brief=brief)
        try:
            return outcomes.done(leased, value, way)
        except BaseException as error:  # the result cannot be stored
            return outcomes.stopped(leased, error)

    async def _flush_progress(self, tasks: Sequence[LeasedTask], records: Sequence[Any]) -> None:
        """Store the last progress of the tasks that the store keeps after they complete."""
        if all(leased.progress is None for leased in tasks):
            return
        flushes: list[Awaitable[None]] = [
            self._progress.flush(leased)
            for leased, record in zip(tasks, records, strict=True)
            if leased.progress is not None and getattr(record, "retention_us", None) is not None
        ]
        await asyncio.gather(*flushes)

    def give_up(self, call: BatchCall) -> None:
        """End the tasks of a call whose handler ignores an order to stop."""
        self._end(
            call, [self._outcomes.stopped(task, asyncio.CancelledError()) for task in call.tasks]
        )

    def _end(self, call: BatchCall, records: Sequence[Any] | None) -> None:
        """Settle the tasks of a call and free its slot, unless both have been done already.

        `records` is None if all tasks have completed.
        """
        if call.ended:
            return
        call.ended = True
        if records is None:
            self._complete(call.tasks)
        else:
            self._settle(call.tasks, records)
        call.tasks = ()
        self._capacity.running -= 1
        self._refill()

    def _settle(self, tasks: Sequence[LeasedTask], records: Sequence[Any]) -> None:
        """Pass the records of tasks to their settlers; a record of None means a lost lease."""
        entries: dict[str, list[tuple[LeasedTask, Any]]] = {}
        for leased, record in zip(tasks, records, strict=True):
            leased.phase = SETTLING
            if leased.timer is not None:
                leased.timer.cancel()
                leased.timer = None
            if self._metrics is not None:
                self._metrics.finished(leased)
                if record is None:
                    self._metrics.settled(leased, None)
            if record is None:
                leased.queue.drop([leased])
            elif (of_queue := entries.get(leased.queue.name)) is not None:
                of_queue.append((leased, record))
            else:
                entries[leased.queue.name] = [(leased, record)]
        for queue, of_queue in entries.items():
            first = [(of_queue[0][0], boot_s())]
            self._settlers[queue].add_all((), of_queue, first, first)

    def _complete(self, tasks: Sequence[LeasedTask]) -> None:
        """Complete tasks that have no options and were not stopped."""
        if self._metrics is not None or len(self._settlers) > 1:
            self._settle(tasks, [Completion(leased.id, leased.token) for leased in tasks])
            return
        for leased in tasks:
            leased.phase = SETTLING
        first = [(tasks[0], boot_s())]
        for settler in self._settlers.values():
            settler.add_all(tasks, (), first, first)
