"""Threads that take turns with the event loop, so that exactly one thread runs at any time. A
simulated thread is a greenlet that yields whenever it blocks. A callback of the loop resumes the
thread in its own strand, at an instant of virtual time. The seed thus determines the order, and the
thread runs the real code, including its blocking calls.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from greenlet import getcurrent, greenlet  # type: ignore[import-untyped] # it has no stubs

from tests.simulation.loop import STRAND, SimLoop, Strand


class Killed(BaseException):
    """Raised in a thread to unwind it when the history is over."""


class Turns:
    """The threads of one history."""

    on_loop = False
    """True to plant a mistake: code that should run in a thread then runs on the event loop."""

    def __init__(self, loop: SimLoop) -> None:
        self.loop = loop
        self.main = getcurrent()
        self.threads: list[SimThread] = []
        self.errors: list[BaseException] = []

    def run_in_thread(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run a function in a thread of the current process; return a future of its result."""
        future: asyncio.Future[Any] = self.loop.create_future()
        strand = STRAND.get()
        assert strand is not None
        context = strand.process.context.copy()

        def done(value: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(value)

        def work() -> None:
            try:
                value, error = function(), None
            except Exception as raised:
                value, error = None, raised
            self.loop.call_soon(done, value, error, context=context)

        SimThread(self, target=work).start()
        return future

    def end(self) -> None:
        """Unwind the threads."""
        for thread in self.threads:
            thread.kill()


_running: SimThread | None = None


def current_thread() -> SimThread:
    """Return the simulated thread that is running."""
    assert _running is not None, "the event loop must not block"
    return _running


class SimThread:
    """Replaces threading.Thread."""

    def __init__(
        self,
        turns: Turns,
        *,
        target: Callable[..., Any],
        name: str = "",
        daemon: bool = True,
        args: tuple[Any, ...] = (),
    ) -> None:
        self._turns = turns
        self._target, self._args = target, args
        self._flow = greenlet(self._main, turns.main)
        self._ticket = 0
        self._alive = False
        self._killed = False
        self._ended = SimEvent(turns)

    def start(self) -> None:
        """Start the thread; the target begins to run on the thread's next turn."""
        strand = STRAND.get()
        assert strand is not None
        process = strand.process
        self.strand = process.strand if self._turns.on_loop else Strand(process, "thread")
        process.threads.append(self.strand)
        self.context = contextvars.copy_context()
        self.context.run(STRAND.set, self.strand)
        self._turns.threads.append(self)
        self._flow.gr_context = self.context.copy()
        self._alive = True
        self._turns.loop.call_soon(self._resume, self._ticket, context=self.context)

    def is_alive(self) -> bool:
        """Return whether the thread has started and has not ended."""
        return self._alive

    def join(self, timeout: float | None = None) -> None:
        """Block the calling simulated thread until this one has ended."""
        if self._alive:
            self._ended.wait(timeout)

    def park(self, timeout: float | None) -> None:
        """Let other threads continue; return after this timeout or when woken."""
        if self._killed:
            raise Killed
        self._ticket += 1
        loop, timer = self._turns.loop, None
        if timeout is not None:
            timer = loop.call_later(
                max(0.0, timeout), self._resume, self._ticket, context=self.context
            )
        self._turns.main.switch()
        if timer is not None:
            timer.cancel()
        if self._killed:
            raise Killed

    def wake(self) -> None:
        """Let the thread continue in its next turn."""
        self._turns.loop.call_soon(self._resume, self._ticket, context=self.context)

    def kill(self) -> None:
        """Unwind the thread."""
        self._killed = True
        if self._alive:
            self._switch()

    def _resume(self, ticket: int) -> None:
        if self._alive and ticket == self._ticket:
            self._switch()

    def _switch(self) -> None:
        global _running
        loop = asyncio._get_running_loop()
        _running = self
        asyncio._set_running_loop(None)
        try:
            self._flow.switch()
        finally:
            asyncio._set_running_loop(loop)
            _running = None

    def _main(self) -> None:
        STRAND.set(self.strand)
        try:
            if not self._killed:
                self._target(*self._args)
        except Killed:
            pass
        except BaseException as error:
            self._turns.errors.append(error)
        finally:
            self._alive = False
            if not self._killed:
                self._ended.set()


class SimEvent:
    """Replaces threading.Event."""

    def __init__(self, turns: Turns) -> None:
        self._set = False
        self._waiting: list[SimThread] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        waiting, self._waiting = self._waiting, []
        for thread in waiting:
            thread.wake()

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._set:
            thread = current_thread()
            self._waiting.append(thread)
            thread.park(timeout)
            if thread in self._waiting:
                self._waiting.remove(thread)
        return self._set


class SimQueue:
    """Replaces queue.SimpleQueue."""

    def __init__(self, turns: Turns) -> None:
        self._items: deque[Any] = deque()
        self._filled = SimEvent(turns)

    def put(self, item: Any) -> None:
        self._items.append(item)
        self._filled.set()

    def get(self) -> Any:
        while not self._items:
            self._filled.clear()
            self._filled.wait()
        return self._items.popleft()


class SimCondition:
    """Replaces threading.Condition; no other thread runs while a thread holds it."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._event = SimEvent(turns)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def notify_all(self) -> None:
        event, self._event = self._event, SimEvent(self._turns)
        event.set()

    def wait(self, timeout: float | None = None) -> bool:
        return self._event.wait(timeout)

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        ends = None if timeout is None else self._turns.loop.now + timeout
        while not (answer := predicate()):
            left = None if ends is None else ends - self._turns.loop.now
            if left is not None and left <= 0:
                break
            self.wait(left)
        return answer
