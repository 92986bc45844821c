"""Starts runs. Runs that end without awaiting anything share one asyncio task.

Creating and scheduling an asyncio task costs as much as all the other work that a server does for a
message. A handler that awaits nothing does not need its own task, so the starter takes the first
step of each run itself. If the run then waits, it keeps the asyncio task in which it began, and the
starter continues in a new asyncio task. Each handler still has its own asyncio task and context.

The starter takes ready tasks one at a time, for up to YIELD_AFTER_S, and then settles all tasks
that ended in this turn together.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Mapping
from functools import partial
from types import CoroutineType, coroutine
from typing import Any, Final, Protocol, cast

from qsync.broker.op_values import Completion
from qsync.server import fork_guard
from qsync.server.clock import boot_s
from qsync.server.current import running
from qsync.server.handler_context import HandlerContext, ServerContext, TellProgress
from qsync.server.invoke import BoundHandler
from qsync.server.outcome import NEVER_RUN, never_run
from qsync.server.queue_state import RUNNING, SETTLING, LeasedTask
from qsync.server.run_metrics import RunMetrics
from qsync.server.run_records import RunRecords
from qsync.server.type_counter import TIMED

YIELD_AFTER_S: Final = 0.0002
"""Time after which the starter yields to the rest of the event loop, in seconds."""

WAITS: Final = 100
"""Number of runs of a type that get their own asyncio task after a run of that type waited."""

Run = Coroutine[Any, Any, None]
Spawn = Callable[[Run, str], None]
Ended = tuple[LeasedTask, Completion]
Timed = tuple[LeasedTask, float]
FirstSteps = Generator[Any, Any, None]


class Runs(Protocol):
    """Supplies the starter with tasks, and runs those that wait; implemented by `Runner`."""

    def startable(self) -> Iterator[tuple[LeasedTask, BoundHandler]]:
        """Take the tasks that may start now, in their order, while slots are free."""

    def begin(self, leased: LeasedTask, way: BoundHandler) -> None:
        """Start a run in a thread or in its own asyncio task."""

    def occupy(self, leased: LeasedTask) -> None:
        """Give a slot to a run until the run ends."""

    def run(
        self, leased: LeasedTask, way: BoundHandler, task: asyncio.Task[None] | None = None,
        begun: Awaitable[Any] | None = None,
    ) -> Run:  # fmt: skip
        """Run a task that has a slot until the task has an outcome.

        `task` is the asyncio task to run it in; None means a separate one. `begun` is the awaitable
        of a handler that has already begun.
        """

    def fail(self, leased: LeasedTask, error: BaseException) -> None:
        """Settle a task that has a slot and whose handler raised."""

    def end_turn(self, turn: Turn) -> None:
        """Settle the tasks that have ended without a slot, and let other tasks start."""


class Turn:
    """The tasks that have ended without a slot in one turn of the starter."""

    __slots__ = ("completed", "last", "timed", "with_results")

    def __init__(self) -> None:
        self.completed: list[LeasedTask] = []
        """Tasks that completed without a result."""
        self.with_results: list[Ended] = []
        """Tasks that completed with a result."""
        self.timed: list[Timed] = []
        """Sample of the ended tasks; only the durations of this sample are counted."""
        self.last: Timed | None = None
        """Run that used up the time of the turn. A long run always comes last."""

    def by_queue(self) -> Mapping[str, Turn]:
        """Split the turn by the queues of its tasks."""
        turns: defaultdict[str, Turn] = defaultdict(Turn)
        for leased in self.completed:
            turns[leased.queue.name].completed.append(leased)
        for entry in self.with_results:
            turns[entry[0].queue.name].with_results.append(entry)
        for run in self.timed:
            turns[run[0].queue.name].timed.append(run)
        if self.last is not None:
            turns[self.last[0].queue.name].last = self.last
        return turns


class InlineStarter:
    """Starts runs in the order of their arrival, each in a new copy of the server's context.

    While the starter is `draining`, the slots of ended runs stay free; at the end of its turn, they
    are all filled together.
    """

    def __init__(
        self,
        runs: Runs,
        context: ServerContext,
        tell: TellProgress,
        guard: fork_guard.ForkGuard,
        metrics: RunMetrics | None,
        records: RunRecords,
    ) -> None:
        self._runs = runs
        self._server = context
        self._tell = tell
        self._guard = guard
        self._metrics = metrics
        self._records = records
        self.draining: bool = False
        self._turn = Turn()
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._task: asyncio.Task[None] | None = None
        """asyncio task in which the next runs begin; None if there is nothing to start."""
        self._more = False
        """Whether there was something to start after the last turn."""
        self._closed = False
        self._first_steps = first_steps()

    def wake(self) -> None:
        """Start tasks in a later step of the event loop."""
        self._more = True
        if self._task is None and not self._closed:
            self._task = self._loop.create_task(self._work())

    def spawn(self, run: Run, name: str) -> None:
        """Start a run in a separate asyncio task with a separate copy of the server's context."""
        self._loop.create_task(run, name=name, context=self._context.copy())

    def close(self) -> None:
        """Start no more tasks."""
        self._closed = True

    async def _work(self) -> None:
        me = cast("asyncio.Task[None]", asyncio.current_task())
        try:
            while not self._closed:
                waits = self._run_turn(me)
                if waits is not None:
                    self._task = None
                self._end_turn()
                if waits is not None:
                    await _resume(*waits)
                if self._task is not me:
                    return
                if not self._more:
                    self._task = None
                    return
                await asyncio.sleep(0)
        finally:
            if self._task is me:
                self._task = None
                self._end_turn()

    def _run_turn(self, me: asyncio.Task[None]) -> tuple[Run, Any, contextvars.Context] | None:
        """Run tasks for YIELD_AFTER_S at most; return the run that waits, or None.

        If a handler cancels the asyncio task, or keeps a reference to it, the turn ends, so that
        other runs do not share that task.
        """
        base, step, getrefcount, cancelling = (
            self._context, self._step, sys.getrefcount, me.cancelling,
        )  # fmt: skip
        references = getrefcount(me)
        self.draining = True
        now = boot_s()
        turn_ends = now + YIELD_AFTER_S
        for leased, way in self._runs.startable():
            if way.suspended_recently or way.submit is not None:
                self._runs.begin(leased, way)
                continue
            me.set_name(leased.id)
            context = base.copy()
            rest = context.run(step, leased, way, me, now)
            if rest is not None and (waits := _begin(context, rest)) is not None:
                way.suspended_recently = WAITS
                return waits
            if cancelling() or getrefcount(me) > references:
                self._task = None
                return None
            now = boot_s()
            if now > turn_ends:
                self._turn.last = (leased, now)
                return None
        return None

    def _step(
        self, leased: LeasedTask, way: BoundHandler, task: asyncio.Task[None], now: float
    ) -> Run | None:
        """Take the first step of a run in its context; return the rest of the run, if any."""
        options = leased.message.options
        if leased.crashes or now >= leased.expires or way.enforces_timeout:
            return self._run_in_slot(leased, way, task)
        if options is not None and leased.past_deadline():
            return self._run_in_slot(leased, way, task)
        leased.phase, leased.begun_s, leased.task = RUNNING, now, task
        leased.info = info = leased.task_info()
        if self._metrics is not None:
            self._metrics.started(leased)
        running.set(HandlerContext(leased, info, self._server, self._tell))
        try:
            handler = way.invoke(info, None) if way.direct is None else way.direct(info)
            if type(handler) is not CoroutineType:
                return self._run_in_slot(leased, way, task, handler)
        except BaseException as error:
            self._failed(leased, error)
            return None
        steps = self._first_steps
        try:
            answer = steps.send(handler)
        except BaseException as error:
            self._first_steps = first_steps()
            self._failed(leased, error)
            return None
        if type(answer) is not Returned:
            self._first_steps = first_steps()
            return self._run_in_slot(leased, way, task, _resume(steps, answer))
        value = answer.value
        if self._guard.forked:
            fork_guard.end()
        if value is not None and type(value) in NEVER_RUN:
            self._failed(leased, never_run(value))
        elif options is None or options.retention_us is None:
            self._end(leased)
            self._turn.completed.append(leased)
        else:
            return self._keep(leased, way, value)
        return None

    def _keep(self, leased: LeasedTask, way: BoundHandler, value: Any) -> Run | None:
        """End the run of a task whose result is kept; if its last progress must be stored first,
        return the rest of the run."""
        leased.task = None
        if leased.progress is not None:
            return self._run_in_slot(leased, way, None, _ended(value))
        try:
            record = self._records.done(leased, value, way)
        except BaseException as error:  # the result cannot be kept
            self._failed(leased, error)
        else:
            self._end(leased)
            self._turn.with_results.append((leased, record))
        return None

    def _end(self, leased: LeasedTask) -> None:
        leased.task = None
        leased.phase = SETTLING
        if self._metrics is not None:
            self._metrics.finished(leased)
        turn = self._turn
        if not (len(turn.completed) + len(turn.with_results)) % TIMED:
            turn.timed.append((leased, boot_s()))

    def _run_in_slot(
        self, leased: LeasedTask, way: BoundHandler, task: asyncio.Task[None] | None,
        begun: Awaitable[Any] | None = None,
    ) -> Run:  # fmt: skip
        """Give a slot to a task whose handler may wait; return its run, or the rest of a run that
        has begun."""
        self._runs.occupy(leased)
        return self._runs.run(leased, way, task, begun)

    def _failed(self, leased: LeasedTask, error: BaseException) -> None:
        self._runs.occupy(leased)
        self._runs.fail(leased, error)

    def _end_turn(self) -> None:
        self.draining = self._more = False
        turn, self._turn = self._turn, Turn()
        self._runs.end_turn(turn)


class Returned:
    """The value of a handler that ended in its first step."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value: Any = value


_RETURNED_NONE: Final = Returned(None)


def first_steps() -> FirstSteps:
    """Return a generator that takes the first step of each handler that is sent to it.

    The generator yields a Returned if the handler has ended, else the object that the handler
    awaits. In the second case, each further `send` resumes the handler, until the generator yields
    a Returned. After a handler has raised, the generator is exhausted. Using this generator costs a
    third of what it costs to call the handler's own `send` until StopIteration.
    """
    steps = _take_first_steps()
    next(steps)
    return steps


@coroutine
def _take_first_steps() -> FirstSteps:
    handler = yield
    while True:
        handler = yield _returned((yield from handler))


def _returned(value: Any) -> Returned:
    return _RETURNED_NONE if value is None else Returned(value)


async def _ended(value: Any) -> Any:
    """Return the value of a handler that has ended."""
    return value


def _begin(context: contextvars.Context, run: Run) -> tuple[Run, Any, contextvars.Context] | None:
    """Take the first step of a run; return the run and the object that it awaits, if any."""
    try:
        return run, context.run(run.send, None), context
    except StopIteration:
        return None


@coroutine
def _resume(
    run: Coroutine[Any, Any, Any] | FirstSteps, awaited: Any,
    context: contextvars.Context | None = None,
) -> Generator[Any, Any, Any]:  # fmt: skip
    """Resume a waiting run until it ends, running each step in the context; return the run's
    value."""
    while True:
        try:
            sent = yield awaited
        except BaseException as error:
            step = partial(run.throw, error)
        else:
            step = partial(run.send, sent)
        try:
            awaited = step() if context is None else context.run(step)
        except StopIteration as end:
            return end.value
        if type(awaited) is Returned:
            return awaited.value
