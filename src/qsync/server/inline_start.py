"""Starts runs. Those that end without ever waiting share one asyncio task.

To make a task for a coroutine, and to have the loop call it, costs as much as all else that a
server does for a message. A handler that waits for nothing does not need one of its own: the pump
takes the first step of each run itself. One that then waits keeps the asyncio task in which it
began, and the pump goes on in a new one. So within a handler all is as if it had a task and a
context of its own.
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
"""After so long the rest of the loop has its turn."""

WAITS: Final = 100
"""A type whose handler waited gets a task at once for its next runs, as many as this."""

Run = Coroutine[Any, Any, None]
Begin = Callable[[LeasedTask, TaskInfo, BoundHandler, asyncio.Task[None] | None], Run]


class InlineStarter:
    """Starts runs in the order in which they come, each in a fresh copy of the server's context.

    `begin` makes the coroutine of a run; it is told its asyncio task if that is not its own. What
    ends while the pump is `at_work` makes room that is filled by `refill`, for many at a time.
    """

    def __init__(self, begin: Begin, refill: Callable[[], None]) -> None:
        self._begin = begin
        self._refill = refill
        self.at_work = False
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._line: deque[tuple[LeasedTask, TaskInfo, BoundHandler]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def start(self, leased: LeasedTask, info: TaskInfo, way: BoundHandler) -> None:
        """The run begins when the loop comes to it."""
        if way.waits:
            way.waits -= 1
            run = self._begin(leased, info, way, None)
            self._loop.create_task(run, name=leased.id, context=self._context.copy())
            return
        self._line.append((leased, info, way))
        if self._task is None:
            self._task = self._loop.create_task(self._work())

    def close(self) -> None:
        """What has not begun never will."""
        self._closed = True
        self._line.clear()

    async def _work(self) -> None:
        me = cast("asyncio.Task[None]", asyncio.current_task())
        references = sys.getrefcount(me)
        try:
            turn_ends = time.monotonic() + TURN_S
            while self._line:
                leased, info, way = self._line.popleft()
                me.set_name(leased.id)
                run, context = self._begin(leased, info, way, me), self._context.copy()
                self.at_work = True
                try:
                    awaited = context.run(run.send, None)
                except StopIteration:
                    if me.cancelling() or sys.getrefcount(me) > references:
                        break  # the handler did something with its task: that has to be its own
                    if time.monotonic() > turn_ends:
                        self._end_turn()
                        await asyncio.sleep(0)
                        turn_ends = time.monotonic() + TURN_S
                    elif not self._line:
                        self._end_turn()
                    continue
                way.waits = WAITS
                behind, self._line = self._line, deque()
                for one in behind:  # else those that come next would overtake them
                    self.start(*one)
                self._pass_on()
                await _go_on(context, run, awaited)
                return
        finally:
            if self._task is me:
                self._pass_on()

    def _end_turn(self) -> None:
        self.at_work = False
        self._refill()

    def _pass_on(self) -> None:
        """This task works the line no more; another does if there is something in it."""
        self._end_turn()
        more = self._line and not self._closed
        self._task = self._loop.create_task(self._work()) if more else None


@coroutine
def _go_on(context: contextvars.Context, run: Run, awaited: Any) -> Generator[Any, Any, None]:
    """Take a run that waits for something to its end, each step within its context."""
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
