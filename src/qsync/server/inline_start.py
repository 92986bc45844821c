"""Starts runs. Runs that end without awaiting anything share one asyncio task.

Creating and scheduling an asyncio task costs as much as all other work that a server does for a
message. A handler that awaits nothing does not need a task of its own: the starter takes the first
step of each run itself. If the run then waits, it keeps the asyncio task in which it began, and the
starter continues in a new one. Each handler still sees an asyncio task and a context of its own.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from types import coroutine
from typing import Any, Final, cast

from qsync.server.invoke import BoundHandler
from qsync.server.queue_state import LeasedTask
from qsync.task import TaskInfo

TURN_S: Final = 0.0002
"""Time after which the starter yields to the rest of the event loop, in seconds."""

WAITS: Final = 100
"""Number of runs of a type that get their own asyncio task after one of its runs waited."""

Run = Coroutine[Any, Any, None]
Spawn = Callable[[Run, str], None]
Begin = Callable[[LeasedTask, TaskInfo, BoundHandler, asyncio.Task[None] | None], Run]


class InlineStarter:
    """Starts runs in the order of their arrival, each in a new copy of the server's context.

    `begin` makes the coroutine of a run; it gets the shared asyncio task, or None if the run has
    its own. While the starter is `draining`, the slots of ended runs stay free; `refill` then fills
    all of them at once.
    """

    def __init__(self, begin: Begin, refill: Callable[[], None]) -> None:
        self._begin = begin
        self._refill = refill
        self.draining: bool = False
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._queue: deque[tuple[LeasedTask, TaskInfo, BoundHandler]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def start(self, leased: LeasedTask, info: TaskInfo, way: BoundHandler) -> None:
        """Schedule a run; it begins in a later step of the event loop."""
        if way.suspended_recently:
            way.suspended_recently -= 1
            run = self._begin(leased, info, way, None)
            self._loop.create_task(run, name=leased.id, context=self._context.copy())
            return
        self._queue.append((leased, info, way))
        if self._task is None:
            self._task = self._loop.create_task(self._work())

    def spawn(self, run: Run, name: str) -> None:
        """Start a run in a separate asyncio task with a separate copy of the server's context."""
        self._loop.create_task(run, name=name, context=self._context.copy())

    def close(self) -> None:
        """Discard the runs that have not begun."""
        self._closed = True
        self._queue.clear()

    async def _work(self) -> None:
        me = cast("asyncio.Task[None]", asyncio.current_task())
        references = sys.getrefcount(me)
        try:
            turn_ends = time.monotonic() + TURN_S
            while self._queue:
                leased, info, way = self._queue.popleft()
                me.set_name(leased.id)
                run, context = self._begin(leased, info, way, me), self._context.copy()
                self.draining = True
                try:
                    awaited = context.run(run.send, None)
                except StopIteration:
                    if me.cancelling() or sys.getrefcount(me) > references:
                        break  # the handler cancelled or kept its task: don't share it further
                    if time.monotonic() > turn_ends:
                        self._end_turn()
                        await asyncio.sleep(0)
                        turn_ends = time.monotonic() + TURN_S
                    elif not self._queue:
                        self._end_turn()
                    continue
                way.suspended_recently = WAITS
                behind, self._queue = self._queue, deque()
                for queued in behind:  # now, so that later arrivals do not overtake them
                    self.start(*queued)
                self._hand_over()
                await _resume(context, run, awaited)
                return
        finally:
            if self._task is me:
                self._hand_over()

    def _end_turn(self) -> None:
        self.draining = False
        self._refill()

    def _hand_over(self) -> None:
        """Stop using this task; continue in a new one if runs are queued."""
        self._end_turn()
        more = self._queue and not self._closed
        self._task = self._loop.create_task(self._work()) if more else None


@coroutine
def _resume(context: contextvars.Context, run: Run, awaited: Any) -> Generator[Any, Any, None]:
    """Drive a waiting run to its end, each step in the run's context."""
    while True:
        try:
            sent = yield awaited
        except BaseException as error:
            step = partial(run.throw, error)
        else:
            step = partial(run.send, sent)
        try:
            awaited = context.run(step)
        except StopIteration:
            return
