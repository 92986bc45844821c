"""Runs leased tasks: at most `concurrency` at a time, each in a new context."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from qsync.broker import op_values, ops
from qsync.broker.aio import AsyncBroker
from qsync.errors import QsyncError
from qsync.server import fork_guard, outcome
from qsync.server.batch_runs import BatchRuns
from qsync.server.capacity import Capacity
from qsync.server.clock import boot_s
from qsync.server.config import Config
from qsync.server.crash_isolation import CrashIsolation
from qsync.server.current import running
from qsync.server.failure_reports import Failures
from qsync.server.handler_context import HandlerContext, ServerContext
from qsync.server.handler_mismatch import HandlerFinder
from qsync.server.hook_calls import HookCalls
from qsync.server.inline_start import InlineStarter, Turn
from qsync.server.invoke import BoundHandler, Invoker
from qsync.server.isolation_timer import Isolation
from qsync.server.outage_log import Outage
from qsync.server.progress import ProgressReports
from qsync.server.queue_state import (
    QUEUED,
    RELEASED,
    RUNNING,
    HandlerNotStarted,
    LeasedTask,
    QueueState,
)
from qsync.server.run_metrics import RunMetrics
from qsync.server.run_records import RunRecords
from qsync.server.settler import Settler
from qsync.server.stopping import HungHandlers, Stopping
from qsync.server.thread_runs import ThreadRuns

log: Final = logging.getLogger("qsync.server")

MARK_AGAIN_US: Final = 5_000_000
"""Delay, in microseconds, before the next attempt of a task that could not be marked as running."""


class Runner:
    """Runs each leased task, and passes its outcome to a settler."""

    def __init__(
        self,
        config: Config,
        invoker: Invoker,
        broker: AsyncBroker,
        settlers: Mapping[str, Settler],
        capacity: Capacity,
        suspects: CrashIsolation,
        hung: HungHandlers,
        context: ServerContext,
        on_lost: Callable[[int], None],
        outage: Outage,
        finder: HandlerFinder,
        metrics: RunMetrics | None,
        hooks: HookCalls | None,
    ) -> None:
        self._invoker = invoker
        self._broker = broker
        self._settlers = settlers
        self._capacity = capacity
        self._ready = capacity.ready
        self._suspects = suspects
        self._context = context
        self._metrics = metrics
        self._hooks = hooks
        self._progress = ProgressReports(
            broker, {name: settler.queue for name, settler in settlers.items()}, outage
        )
        self._concurrency = config.concurrency
        self._loop = asyncio.get_running_loop()
        self._isolation = Isolation(broker, suspects, self._start_some)
        self._suspected = max(1, min(2, config.max_crashes - 1))
        """Number of crashes that make a task a suspect."""
        self._closing: list[LeasedTask] = []
        """Tasks that raised RateLimited; they keep their slots until the limit is closed."""
        self._suspect_timer: asyncio.TimerHandle | None = None
        self._guard = fork_guard.ForkGuard(self._loop)
        self._failures = Failures(config, invoker, finder, hooks)
        self.stopping: Stopping = Stopping(
            config, [settler.queue for settler in settlers.values()], capacity, suspects, hung,
            settle=self.settle, on_give_up=self.give_up, on_lost=on_lost,
        )  # fmt: skip
        self._default_timeout = self.stopping.default_timeout
        self._records = RunRecords(config, invoker, self._failures, self.stopping)
        self._starter = InlineStarter(
            self, context, self._progress.report, self._guard, metrics, self._records
        )
        self._threads = ThreadRuns(
            self._records, context, self._progress.report, invoker.threads,
            begin_timeout=self._begin_timeout, finish=self._finish, resume=self.run,
        )  # fmt: skip
        self._gathering = capacity.gathering
        self._batches = BatchRuns(
            self._records, invoker, capacity, self.stopping, context, self._progress, self._guard,
            metrics, settlers, spawn=self._starter.spawn, refill=self._start_some,
        )  # fmt: skip

    @property
    def unknown_types(self) -> list[tuple[str, str]]:
        """Return the queue and type of the first tasks for which this server has no handler."""
        return list(self._failures.unknown_types)

    def submit(self, leased: Iterable[LeasedTask]) -> None:
        """Run tasks in order as slots become free; if the server accepts none, hand them back."""
        if not self._capacity.accepting:
            for task in leased:
                self.settle(task, op_values.HandedBack(task.id, task.token))
            return
        self._ready.extend(leased)
        self._start_some()

    def settle(self, leased: LeasedTask, record: Any) -> None:
        """Pass a task's outcome to the settler of its queue."""
        self._settlers[leased.queue.name].add(leased, record)

    def settle_unread(self, queue: QueueState, record: op_values.Killed) -> None:
        """Settle a task whose message could not be read."""
        self._settlers[queue.name].add(None, record)

    def _start_some(self) -> None:
        capacity, ready, suspects = self._capacity, self._ready, self._suspects
        if self._gathering.due:
            self.start_batches()
        if suspects.waiting:
            self._start_together()
        for leased, way in self.startable():
            if not way.suspended_recently and way.submit is None:
                ready.appendleft(leased)
                self._starter.wake()
                break
            self.begin(leased, way)
        if suspects.waiting:
            self._try_suspects()
        capacity.signal()

    def startable(self) -> Iterator[tuple[LeasedTask, BoundHandler]]:
        """While slots are free, take the tasks that may start now from `ready`.

        Suspects are set aside, and tasks of batch handlers are collected into batches.
        """
        capacity, ready, suspects = self._capacity, self._ready, self._suspects
        slots, suspected, bound = capacity.slots, self._suspected, self._invoker.bound
        isolating = suspects.alone is not None or len(suspects.waiting) > 0
        while ready and capacity.running < slots:
            if isolating and suspects.blocks_others(time.monotonic()):
                return
            try:
                leased = ready.popleft()
            except IndexError:  # a heartbeat thread took the last task
                return
            if leased.phase is not QUEUED:
                continue
            if leased.crashes >= suspected:
                suspects.waiting.append(leased)
                isolating = True
                continue
            type = leased.message.type
            way = bound.get(type) or self._invoker.find(type)
            if way is None:
                self._begin_batched(leased)
            else:
                yield leased, way

    def _start_together(self) -> None:
        """Start the suspects that may run together."""
        free = self._concurrency - self._capacity.running
        for leased in self._suspects.take_together(time.monotonic(), free=free):
            if leased.phase is QUEUED:
                self._begin(leased)

    def _try_suspects(self) -> None:
        """Start the next suspect alone if it may start now; otherwise, set a timer."""
        suspects = self._suspects
        while suspects.alone is None:
            now = time.monotonic()
            if (leased := suspects.next_alone(now)) is None:
                return
            delay = suspects.delay(now, running=self._capacity.running, ready=len(self._ready))
            if delay > 0:
                if self._suspect_timer is None:
                    self._suspect_timer = self._loop.call_later(delay, self._suspect_is_due)
                return
            suspects.waiting.remove(leased)
            if leased.phase is QUEUED:
                suspects.begin_alone(leased, now)
                if not self._begin(leased):
                    suspects.alone = None

    def _suspect_is_due(self) -> None:
        self._suspect_timer = None
        self._start_some()

    def start_batches(self) -> None:
        """Start the batches that are due while slots are free."""
        due, capacity, suspects = self._gathering.due, self._capacity, self._suspects
        while due and capacity.running < self._concurrency:
            if suspects.blocks_others(time.monotonic()):
                return
            self._batches.start(due.popleft())

    def _begin_batched(self, leased: LeasedTask) -> bool:
        """Start or batch a task of a batch handler; return False if there is no such handler."""
        batch = self._invoker.find_batch(leased.message.type)
        if batch is None:
            leased.queue.unknown_type_at = boot_s()
            record = outcome.unknown_type(leased, leased.queue.store_time_us())
            self._failures.unknown(leased, record)
            if self._metrics is not None:
                self._metrics.unknown(leased)
            self.settle(leased, record)
            return False
        if leased.crashes:  # runs in a separate call, since it may have crashed a server
            self.begin(leased, batch.alone)
            return True
        self._gathering.add(leased, batch.limits, self._ready)
        if self._gathering.due:
            self.start_batches()
        return True

    def _begin(self, leased: LeasedTask) -> bool:
        """Start a task, or add it to a batch; return False if this server has no handler for it."""
        way = self._invoker.find(leased.message.type)
        if way is None:
            return self._begin_batched(leased)
        self.begin(leased, way)
        return True

    def begin(self, leased: LeasedTask, way: BoundHandler) -> None:
        """Start a task in a thread or in its own asyncio task."""
        if way.suspended_recently:
            way.suspended_recently -= 1
        self.occupy(leased)
        if way.submit is None or leased.crashes or leased.expired() or leased.past_deadline():
            self._starter.spawn(self.run(leased, way), leased.id)
        else:
            self._threads.start(leased, way, way.submit)

    def occupy(self, leased: LeasedTask) -> None:
        """Give a slot to a task, until its run ends."""
        capacity = self._capacity
        if not capacity.running:
            capacity.idle.clear()
        capacity.running += 1
        capacity.started += 1
        if leased.phase is QUEUED:
            leased.info = leased.task_info()
            leased.phase = RUNNING
            if self._metrics is not None:
                self._metrics.started(leased)

    def end_turn(self, turn: Turn) -> None:
        """Settle the tasks that have ended without a slot, and start other tasks."""
        self._capacity.started += len(turn.completed) + len(turn.with_results)
        only = len(self._settlers) == 1
        turns = dict.fromkeys(self._settlers, turn) if only else turn.by_queue()
        for name, part in turns.items():
            if part.completed or part.with_results:
                slowest = () if part.last is None else (part.last,)
                settler = self._settlers[name]
                settler.add_all(part.completed, part.with_results, part.timed, slowest)
        self._start_some()

    async def run(
        self, leased: LeasedTask, way: BoundHandler, task: asyncio.Task[None] | None = None,
        begun: Awaitable[Any] | None = None,
    ) -> None:  # fmt: skip
        """Run a task until it has an outcome.

        `task` is the asyncio task to run it in; None means a separate one. `begun` is the awaitable
        of a handler that has already begun.
        """
        if self._guard.forked:
            fork_guard.end()
        try:
            if begun is None:
                info: Any = leased.info
                running.set(HandlerContext(leased, info, self._context, self._progress.report))
                if leased.crashes and not await self._mark(leased):
                    return
                # Marking the task may have been slow, or a handler may have blocked the loop.
                if leased.stop is None and (late := self._records.too_late(leased)) is not None:
                    self._finish(leased, late)
                    return
            elif leased.task is not None:
                self._begin_timeout(leased, way)
            if leased.stop is None:
                value = await (self._call(leased, way, task) if begun is None else begun)
                leased.task = None
                if value is not None and type(value) in outcome.NEVER_RUN:
                    raise outcome.never_run(value)
                if leased.stop is not None and leased.stop != "shutdown":
                    raise asyncio.CancelledError  # the handler caught its cancellation
                record: Any = self._records.done(leased, value, way)
                if leased.progress is not None and record.retention_us is not None:
                    await self._progress.flush(leased)  # a retained task shows its last progress
            else:
                record = self._records.stopped(leased, asyncio.CancelledError())
        except BaseException as error:
            begun = None  # avoids a reference cycle of traceback, this frame and future
            self.fail(leased, error)
        else:
            self._finish(leased, record)

    def _call(
        self, leased: LeasedTask, way: BoundHandler, task: asyncio.Task[None] | None
    ) -> Awaitable[Any]:
        """Call the handler of a task that starts now, and begin its timeout."""
        leased.task = task or asyncio.current_task()
        info: Any = leased.info
        return way.invoke(info, self._begin_timeout(leased, way))

    def _begin_timeout(self, leased: LeasedTask, way: BoundHandler) -> float | None:
        """Begin the timeout of a run that has started; return it in seconds, or None."""
        limit = self._default_timeout
        if leased.message.options is not None:
            limit = self.stopping.timeout_of(leased)
        if limit is not None and not way.enforces_timeout:
            self.stopping.timeouts.add(leased, limit, passed_s=boot_s() - leased.begun_s)
        return limit

    def fail(self, leased: LeasedTask, error: BaseException) -> None:
        """End the run of a task whose handler raised, unless `give_up` has settled it already."""
        leased.task = None
        if self._guard.forked:
            fork_guard.end()
        if leased.phase is not RUNNING:
            return
        if isinstance(error, HandlerNotStarted) and leased.stop is None:
            record = self._records.too_late(leased) or op_values.HandedBack(leased.id, leased.token)
        else:
            record = self._records.stopped(leased, error)
        self._finish(leased, record)

    async def _mark(self, leased: LeasedTask) -> bool:
        """Mark a task with earlier crashes as running; return False if it may not run.

        A task that may not run has been handed back or dropped.
        """
        suspects = self._suspects
        try:
            call = ops.mark_started(
                leased.queue.keys, [leased.held], together=leased in suspects.together
            )
            [answer] = await self._broker.run(call, patience=None)
        except Exception as error:  # a store error or a bug in qsync; the task is not at fault
            ours = not isinstance(error, QsyncError)
            log.log(
                logging.ERROR if ours else logging.WARNING,
                "cannot mark task %s of queue %s: %s", leased.id, leased.queue.name, error,
                extra=leased.fields, exc_info=ours,
            )  # fmt: skip
            self._finish(leased, op_values.HandedBack(leased.id, leased.token, MARK_AGAIN_US))
            return False
        if answer != "ok":  # the lease is lost
            self._finish(leased, None)
            return False
        self._failures.suspected(leased)
        if suspects.alone is leased:
            self._isolation.watch(leased)
        return True

    def _finish(self, leased: LeasedTask, record: Any) -> None:
        if self._guard.forked:
            fork_guard.end()
        if leased.phase is not RUNNING:
            return
        if leased.timer is not None:
            leased.timer.cancel()
            leased.timer = None
        if self._metrics is not None:
            self._metrics.finished(leased)
        if type(record) is outcome.Snoozed and record.limit:
            self._closing.append(leased)  # keep the slot until the limit is closed
        else:
            self._capacity.running -= 1
        if record is None:
            if self._metrics is not None:
                self._metrics.settled(leased, None)
            leased.queue.drop([leased])
            self.see_suspect_end()
        else:
            self._settlers[leased.queue.name].add(leased, record)
        if not self._starter.draining:
            self._start_some()

    def see_settled(self) -> None:
        """Free the slots of settled tasks whose limit is now closed, and check the suspects."""
        if self._closing:
            ended = [leased for leased in self._closing if leased.phase is RELEASED]
            self._closing = [leased for leased in self._closing if leased.phase is not RELEASED]
            self._capacity.running -= len(ended)
            self._start_some()
        self.see_suspect_end()

    def see_suspect_end(self) -> None:
        """Allow other tasks to start once the store has recorded how the suspect ended.

        Before that, a server crash would count against the suspect even if another task caused it.
        """
        suspects = self._suspects
        if suspects.alone is None and not suspects.together:
            return
        ended = suspects.alone is not None and suspects.alone.phase is RELEASED
        if ended:
            suspects.end(time.monotonic())
        if suspects.together:
            ended = suspects.drop_ended(time.monotonic()) or ended
        if ended:
            self._start_some()

    def take_back_from_threads(self, waited_s: float) -> None:
        """Hand back the tasks that have waited for a thread for over `waited_s` seconds."""
        self._invoker.threads.take_back(waited_s)

    def give_up(self, leased: LeasedTask) -> None:
        """End a task whose handler keeps running although it was stopped, along with the other
        tasks of its call."""
        if leased.call is not None:
            self._batches.give_up(leased.call)
            return
        self._finish(leased, self._records.stopped(leased, asyncio.CancelledError()))

    async def aclose(self) -> None:
        """Discard runs that have not started, and cancel pending reports and progress updates.

        The heartbeats must have stopped already."""
        self._guard.close()
        self._starter.close()
        self.stopping.close()
        await self._failures.aclose()
        if self._hooks is not None:
            await self._hooks.aclose()
        await self._isolation.aclose()
        await self._progress.aclose()
        for settler in self._settlers.values():
            settler.queue.held.clear()  # break a cycle that gc does not track
