"""Runs leased tasks: at most `concurrency` at a time, each in a new context."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final
from weakref import WeakSet

from qsync.broker import ops
from qsync.broker.aio import AsyncBroker
from qsync.broker.ops import Completion
from qsync.errors import QsyncError
from qsync.retry_policy import NO_RULES
from qsync.server import fork_guard, outcome
from qsync.server.asyncio_internals import abandon
from qsync.server.clock import boot_s
from qsync.server.config import Config, seconds
from qsync.server.crash_isolation import CrashIsolation
from qsync.server.current import running
from qsync.server.failure_reports import Failures
from qsync.server.handler_context import HandlerContext, ServerContext
from qsync.server.handler_mismatch import Rivals
from qsync.server.hung_handlers import HUNG_AFTER_S, HungHandlers
from qsync.server.inline_start import InlineStarter
from qsync.server.invoke import BoundHandler, Invoker, encode_result
from qsync.server.isolation_timer import Isolation
from qsync.server.outage_log import Outage
from qsync.server.progress import Progress
from qsync.server.queue_state import (
    GONE,
    READY,
    RUNNING,
    LeasedTask,
    NotBegun,
    QueueState,
    Stop,
)
from qsync.server.run_metrics import RunMetrics
from qsync.server.settler import Settler
from qsync.server.timeouts import Timeouts
from qsync.task import PAYLOAD_LIMIT, TaskInfo

log = logging.getLogger("qsync.server")

AHEAD_S: Final = 0.1
"""Time for which tasks are leased ahead, in seconds, at the recent throughput."""

STALE_S: Final = 1.0
"""Time after which a task that was leased ahead and has not started is handed back, in seconds."""

MARK_AGAIN_US: Final = 5_000_000
"""Delay before the next attempt of a task that could not be marked as running, in microseconds."""


class Runner:
    """Runs each leased task, and passes its outcome to a settler."""

    def __init__(
        self,
        config: Config,
        invoker: Invoker,
        broker: AsyncBroker,
        settlers: dict[str, Settler],
        surroundings: ServerContext,
        on_lost: Callable[[int], None],
        hung: HungHandlers,
        outage: Outage,
        rivals: Rivals,
    ) -> None:
        self._config = config
        self._invoker = invoker
        self._broker = broker
        self._settlers = settlers
        for settler in settlers.values():
            settler.on_settled = self._see_suspect_end
        self._surroundings = surroundings
        self._progress = Progress(
            broker, {name: one.lane for name, one in settlers.items()}, outage
        )
        self.on_lost = on_lost
        self._hung = hung
        self.tally: RunMetrics | None = None
        """Collector of run metrics, or None."""
        self.ready: deque[LeasedTask] = deque()
        """Tasks leased ahead: the loop takes from the left, the heartbeat thread from the right."""
        self.running = 0
        self.room_made = asyncio.Event()
        for settler in settlers.values():
            settler.on_accepted = self.room_made.set
        self.room_matters = True
        """Whether to signal `room_made`; False while a round of fetches is in flight."""
        self.idle = asyncio.Event()
        self.idle.set()
        self.keyed = False
        """True once a task had a fairness key: lease fewer tasks ahead, to keep the order fair."""
        self.accepting = True
        self._result_limit = config.result_limit or PAYLOAD_LIMIT
        self._default_timeout = None if config.timeout is None else seconds(config.timeout)
        self._loop = asyncio.get_running_loop()
        self._pump = InlineStarter(self._run, self._start_some)
        self._limits = Timeouts(self._out_of_time)
        self._suspects = CrashIsolation()
        self._isolation = Isolation(broker, self._suspects, self._start_some)
        self._suspected = max(1, min(2, config.max_crashes - 1))
        """Number of crashes from which a task is a suspect."""
        self._suspect_timer: asyncio.TimerHandle | None = None
        self._guard = fork_guard.Guard(self._loop)
        self._failures = Failures(config, invoker, rivals)
        self._low_water = 0
        """Number of tasks in `ready` at which the server fetches again."""
        self._rate = 0.0
        self._started = 0
        self._rate_since = time.monotonic()
        self._deaf: WeakSet[asyncio.Task[None]] = WeakSet()
        """asyncio tasks of handlers that ignore their cancellation."""

    # The interface to the fetch loop.

    @property
    def unknown_types(self) -> list[tuple[str, str]]:
        """Return queue and type of the first tasks without a handler on this server."""
        return list(self._failures.unknown_types)

    def room(self) -> int:
        """Return how many more tasks the server may lease now."""
        suspects = self._suspects
        if not self.accepting or suspects.hold_up_others(time.monotonic()):
            return 0
        held = self.running + len(self.ready) + len(suspects.waiting)
        return self._config.concurrency - held + self._ahead()

    def wants(self) -> int:
        """Return how many tasks to fetch now; 0 while enough tasks are leased ahead."""
        room = self.room()
        if room <= 0:
            return 0
        return room if len(self.ready) <= self._low_water else 0

    def _ahead(self) -> int:
        now = time.monotonic()
        passed = now - self._rate_since
        if passed >= 0.05:
            weight = min(1.0, passed / 0.2)
            self._rate += weight * (self._started / passed - self._rate)
            self._started, self._rate_since = 0, now
        ahead = int(self._rate * AHEAD_S)
        if self.keyed:
            ahead = min(ahead, self._config.concurrency)
        if self._config.prefetch is not None:
            ahead = min(ahead, self._config.prefetch)
        self._low_water = ahead // 2
        return ahead

    def take(self, leased: Iterable[LeasedTask]) -> None:
        """Run these tasks in order as slots become free; hand them back if not `accepting`."""
        if not self.accepting:
            for one in leased:
                self.settle(one, ops.HandedBack(one.id, one.token))
            return
        self.ready.extend(leased)
        self._start_some()

    def settle(self, leased: LeasedTask, record: Any) -> None:
        """Pass a task's outcome to the settler of its queue."""
        self._settlers[leased.lane.queue].add(leased, record)

    def settle_unread(self, lane: QueueState, record: ops.Killed) -> None:
        """Settle a task whose message could not be read."""
        self._settlers[lane.queue].add(None, record)

    # Starting.

    def _start_some(self) -> None:
        ready, most, suspects = self.ready, self._config.concurrency, self._suspects
        if suspects.waiting:
            free = most - self.running
            for leased in suspects.take_together(time.monotonic(), free=free):
                if leased.phase == READY:
                    self._begin(leased)
        suspected = self._suspected
        isolating = suspects.alone is not None or len(suspects.waiting) > 0
        while self.running < most and ready:
            if isolating and suspects.hold_up_others(time.monotonic()):
                break
            try:
                leased = ready.popleft()
            except IndexError:  # the heartbeat thread took the last task
                break
            if leased.phase != READY:
                continue
            if leased.crashes >= suspected:
                suspects.waiting.append(leased)
                isolating = True
            else:
                self._begin(leased)
        if suspects.waiting:
            self._try_suspects()
        if not self.running and not ready:
            self.idle.set()
        if self.room_matters and len(ready) <= self._low_water:
            self.room_made.set()

    def _try_suspects(self) -> None:
        """Start the next suspect alone if it may start now, else set a timer."""
        suspects = self._suspects
        while suspects.alone is None:
            now = time.monotonic()
            if (leased := suspects.next_alone(now)) is None:
                return
            delay = suspects.delay(now, running=self.running, ready=len(self.ready))
            if delay > 0:
                if self._suspect_timer is None:
                    self._suspect_timer = self._loop.call_later(delay, self._suspect_is_due)
                return
            suspects.waiting.remove(leased)
            if leased.phase == READY:
                suspects.begin_alone(leased, now)
                self._begin(leased)
                if leased.phase != RUNNING:
                    suspects.alone = None

    def _suspect_is_due(self) -> None:
        self._suspect_timer = None
        self._start_some()

    def _begin(self, leased: LeasedTask) -> None:
        message = leased.message
        options = message.options
        way = self._invoker.find(message.type)
        if way is None:
            leased.lane.met_unknown = boot_s()
            record = outcome.unknown_type(leased, leased.lane.store_time_us())
            self._failures.unknown(leased, record)
            if self.tally is not None:
                self.tally.unknown(leased)
            self.settle(leased, record)
            return
        leased.info = info = TaskInfo(
            id=leased.id,
            type=message.type,
            payload=message.payload,
            queue=leased.lane.queue,
            retry=message.retry,
            attempt=leased.failure.attempts + 1,
            crashes=leased.crashes,
            enqueued_at_us=message.enqueued_at_us,
            deadline_us=options.deadline_us if options else None,
            headers=(options.headers if options else None) or {},
            token=leased.token,
            is_value=message.is_value,
        )
        if not self.running:
            self.idle.clear()
        self.running += 1
        self._started += 1
        leased.phase = RUNNING
        if self.tally is not None:
            self.tally.started(leased)
        self._pump.start(leased, info, way)

    def _too_late(self, leased: LeasedTask) -> Any:
        """Return the record for a task that may no longer start; None if it may start."""
        leased.begun_s = now = boot_s()
        if now >= leased.expires:
            # If another server has the task by now, the store ignores this record.
            return ops.HandedBack(leased.id, leased.token)
        if leased.message.options is not None and leased.past_deadline():
            self._failures.died(leased, outcome.TOO_LATE)
            return outcome.past_deadline(leased, leased.lane.store_time_us())
        return None

    async def _run(
        self, leased: LeasedTask, info: TaskInfo, way: BoundHandler, task: asyncio.Task[None] | None
    ) -> None:
        """Run a task to its outcome; `task` is the asyncio task that it runs in, None: its own."""
        if self._guard.forked:
            fork_guard.end()
        running.set(HandlerContext(leased, info, self._surroundings, self._progress.tell))
        try:
            if leased.crashes and not await self._mark(leased):
                return
            # The mark may have been slow, or a handler may have blocked the loop meanwhile.
            if leased.stop is None and (late := self._too_late(leased)) is not None:
                self._finish(leased, late)
                return
            if leased.stop is None:
                leased.task = task or asyncio.current_task()
                limit = self._timeout_of(leased)
                if limit is not None and not way.minds_timeout:
                    self._limits.add(leased, limit)
                value = await way.invoke(info, limit)
                leased.task = None
                if value is not None and type(value) in outcome.NEVER_RUN:
                    raise outcome.never_run(value)
                record: Any = self._done(leased, value, way)
                if leased.progress is not None and record.retention_us is not None:
                    await self._progress.flush(leased)  # the retained task shows its last progress
            else:
                record = self._stopped(leased, asyncio.CancelledError())
        except BaseException as error:
            leased.task = None
            if leased.phase != RUNNING:
                if self._guard.forked:
                    fork_guard.end()
                return  # `_give_up` has settled the task already
            if isinstance(error, NotBegun) and leased.stop is None:
                record = self._too_late(leased) or ops.HandedBack(leased.id, leased.token)
            else:
                record = self._stopped(leased, error)
        self._finish(leased, record)

    async def _mark(self, leased: LeasedTask) -> bool:
        """Mark a task that crashed before as running; return False if it may not run, once it is
        handed back or dropped."""
        suspects = self._suspects
        try:
            call = ops.start(leased.lane.keys, [leased.held], together=leased in suspects.together)
            [answer] = await self._broker.run(call, patience=None)
        except Exception as error:  # not the task's fault: an error of the store or a bug here
            ours = not isinstance(error, QsyncError)
            log.log(
                logging.ERROR if ours else logging.WARNING,
                "cannot mark task %s of queue %s: %s", leased.id, leased.lane.queue, error,
                extra=leased.fields, exc_info=ours,
            )  # fmt: skip
            self._finish(leased, ops.HandedBack(leased.id, leased.token, MARK_AGAIN_US))
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
        if leased.phase != RUNNING:
            return
        if leased.timer is not None:
            leased.timer.cancel()
            leased.timer = None
        if self.tally is not None:
            self.tally.finished(leased)
        self.running -= 1
        if record is None:
            if self.tally is not None:
                self.tally.settled(leased, None)
            leased.lane.drop([leased])
            self._see_suspect_end()
        else:
            self._settlers[leased.lane.queue].add(leased, record)
        if not self._pump.at_work:
            self._start_some()

    def _see_suspect_end(self) -> None:
        """Let other tasks start once the store knows how the suspect ended.

        Before that, a server crash counts for the suspect even if another task causes it.
        """
        suspects = self._suspects
        if suspects.alone is None and not suspects.together:
            return
        ended = suspects.alone is not None and suspects.alone.phase == GONE
        if ended:
            suspects.end(time.monotonic())
        if suspects.together:
            ended = suspects.drop_ended(time.monotonic()) or ended
        if ended:
            self._start_some()

    # Outcomes.

    def _done(self, leased: LeasedTask, value: Any, way: BoundHandler) -> Any:
        options = leased.message.options
        if options is None or options.retention_us is None:
            return Completion(leased.id, leased.token)
        begun_us = leased.begun_us(leased.lane.store_time_us())
        result = encode_result(value, way.carry_result, self._result_limit, begun_us=begun_us)
        return Completion(leased.id, leased.token, options.retention_us, result)

    def _stopped(self, leased: LeasedTask, error: BaseException) -> Any:
        """Return the record for a handler that raised; None if the lease is lost."""
        stop = leased.stop
        if stop == "lost":
            return None
        if stop == "cancelled":
            return leased.held
        if stop == "shutdown":
            return ops.HandedBack(leased.id, leased.token)
        if isinstance(error, asyncio.CancelledError):
            timed_out = stop == "timeout"
            limit = self._timeout_of(leased)
            error = outcome.timed_out(limit) if timed_out else outcome.gave_up_itself()
        now_us = leased.lane.store_time_us()
        way = self._invoker.find(leased.message.type)
        rules = NO_RULES if way is None else way.rules
        record = outcome.failed(leased, error, now_us, self._config.retry_delay, rules)
        self._failures.failed(leased, error, record)
        return record

    # Stopping tasks.

    def stop(self, leased: LeasedTask, why: Stop) -> None:
        """Stop a running task, or settle or drop one that has not started."""
        if leased.phase == READY and why == "cancelled":
            self.settle(leased, leased.held)
            return
        if leased.phase == READY:
            leased.lane.drop([leased])
            return
        if leased.phase != RUNNING or leased.stop == "lost":
            return
        leased.stop = why
        if leased.task is not None:
            leased.task.cancel()
        if why == "lost" or why == "timeout":
            leased.timer = self._loop.call_later(HUNG_AFTER_S, self._give_up, leased)

    def _out_of_time(self, leased: LeasedTask) -> None:
        """Stop a task at its timeout, unless it waited for a thread.

        With the default number of threads, which may be less than `concurrency`, the timeout begins
        when the task gets its thread.
        """
        limit = self._timeout_of(leased)
        if self._config.threads is None and limit is not None:
            left = leased.turn + limit - time.monotonic() if leased.turn else 0.0
            if leased.waits or left > 0.0:
                self._limits.add(leased, limit if leased.waits else left)
                return
        self.stop(leased, "timeout")

    def lose(self, leased: LeasedTask) -> None:
        """Stop a task whose lease this server no longer holds, as the store says.

        Ignore a task that is being settled: the answer to its settlement says what became of it.
        """
        if leased.phase in (READY, RUNNING):
            self.on_lost(1)
            log.warning(
                "lease of task %s of queue %s was lost", leased.id, leased.lane.queue,
                extra=leased.fields,
            )  # fmt: skip
            self.stop(leased, "lost")

    def _give_up(self, leased: LeasedTask) -> None:
        """Free the slot of a handler that ignores its stop, or of a task that could not start
        because the store does not answer."""
        if leased.phase != RUNNING:
            return
        deaf = leased.task
        if deaf is not None:
            log.error(
                "handler of task %s (%s) does not stop; its slot is freed, and it may still run",
                leased.id,
                ascii(leased.message.type)[1:-1],
                extra=leased.fields,
            )
        record = self._stopped(leased, asyncio.CancelledError())
        self._finish(leased, record)
        if deaf is not None:
            self._deaf.add(deaf)
            deaf.add_done_callback(self._hung.ended)
            self._hung.add()

    def _timeout_of(self, leased: LeasedTask) -> float | None:
        options = leased.message.options
        if options is not None and options.timeout_us is not None:
            return options.timeout_us / 1_000_000
        return self._default_timeout

    def hand_back_ready(self, *, older_than: float = -1e9) -> None:
        """Hand back the tasks that have not started and were fetched over `older_than` seconds ago;
        by default all of them."""
        limit = boot_s() - older_than
        stay: list[LeasedTask] = []
        for leased in [*self._take_ready(), *self._take_suspects(older_than)]:
            if leased.phase != READY:
                continue
            if leased.fetched > limit:
                stay.append(leased)
            else:
                self.settle(leased, ops.HandedBack(leased.id, leased.token))
        self.ready.extendleft(reversed(stay))
        if not self.running and not self.ready:
            self.idle.set()

    def _take_ready(self) -> list[LeasedTask]:
        taken = []
        while self.ready:
            try:
                taken.append(self.ready.popleft())
            except IndexError:
                break
        return taken

    def _take_suspects(self, older_than: float) -> list[LeasedTask]:
        if older_than > 0:
            return []  # suspects wait on purpose, so they do not become stale
        taken = list(self._suspects.waiting)
        self._suspects.waiting.clear()
        return taken

    def hand_back_waiting(self) -> None:
        """Hand back the tasks that have a slot and still wait for a thread or a process."""
        for leased in self._running():
            if leased.waits:
                self.stop(leased, "shutdown")

    def stop_all(self, why: Stop) -> None:
        """Stop every running handler."""
        for leased in self._running():
            self.stop(leased, why)

    def give_up_all(self) -> None:
        """Settle the tasks that still run after their stop, so that other servers can run them."""
        for leased in self._running():
            self._give_up(leased)

    def _running(self) -> list[LeasedTask]:
        """Return the tasks that have a slot; first those that wait for a thread or a process, so
        that none of them starts while the others are stopped."""
        held = [one for lane in self._lanes() for one in lane.held.copy().values()]
        return sorted((one for one in held if one.phase == RUNNING), key=lambda one: not one.waits)

    def stop_taking(self) -> None:
        """Start no more tasks, and hand back those that have not started."""
        self.accepting = False
        self.hand_back_ready()

    def _lanes(self) -> list[QueueState]:
        return [settler.lane for settler in self._settlers.values()]

    async def aclose(self) -> None:
        """Discard runs that have not started, and cancel pending reports and progress updates."""
        self._guard.close()
        self._pump.close()
        self._limits.close()
        for deaf in self._deaf:
            abandon(deaf)
        await self._failures.aclose()
        await self._isolation.aclose()
        await self._progress.aclose()
