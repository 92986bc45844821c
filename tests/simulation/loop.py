"""An event loop whose time is virtual: when no callback is ready, it jumps to the next timer.

Every callback belongs to a strand or to the world. A strand is the event loop or a thread of a
simulated process; the world is the network, the store and the plan of the faults. Within a strand,
callbacks run in asyncio's order; the seed chooses between strands. A strand can be held back, and
the strands of a dead process never run again.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Literal, Protocol


class Handle:
    """A callback to run. The class provides what asyncio needs of a handle, and is cheaper than
    asyncio.Handle."""

    __slots__ = ("args", "callback", "cancelled_", "context", "when_")

    def __init__(
        self,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        context: contextvars.Context,
        when: float = 0.0,
    ) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self.cancelled_ = False
        self.when_ = when

    def cancel(self) -> None:
        self.cancelled_ = True

    def cancelled(self) -> bool:
        return self.cancelled_

    def when(self) -> float:
        return self.when_


class Process(Protocol):
    """The part of a simulated process that the loop uses."""

    alive: bool
    context: contextvars.Context
    strand: Strand
    threads: list[Strand]

    def holds(self, strand: Strand) -> bool:
        """Return whether the strand is held back."""


class Strand:
    """A sequence of steps: the event loop of a process, or one of its threads."""

    def __init__(self, process: Process, kind: Literal["loop", "thread"]) -> None:
        self.process = process
        self.kind = kind
        self.held: list[Handle] = []
        """Ready callbacks that wait until the strand is released."""
        self.line: deque[Handle] = deque()
        """Ready callbacks, in the order in which they run."""


STRAND: Final[contextvars.ContextVar[Strand | None]] = contextvars.ContextVar(
    "strand", default=None
)
"""Strand of the running callback; None for the world."""


STEP_S: Final = 0.000_002
"""Duration of a callback, in seconds. Time must pass even if callbacks poll without a pause."""

MAX_STEPS: Final = 400_000
"""Maximum number of steps in a history. If the store's clock jumps by an hour twelve times, a
history takes 215,000 steps, because thousands of ticks are missed."""


class Stuck(Exception):
    """Raised if no callback will ever become ready or the simulation makes no progress."""


class SimLoop(asyncio.BaseEventLoop):
    """The event loop that runs all processes of one history."""

    _stopping: bool

    def __init__(self, seed: str) -> None:
        super().__init__()
        self.now = 0.0
        self.steps = 0
        self._random = random.Random(seed)
        self._world: deque[Handle] = deque()
        self._lines: dict[Strand | None, deque[Handle]] = {}
        """Ready callbacks of each strand that has any; the strands are in the order in which they
        became ready."""
        self._timers: list[tuple[float, int, Handle]] = []
        self._numbers = itertools.count()
        self._signals: dict[tuple[Process, int], tuple[Callable[..., Any], tuple[Any, ...]]] = {}
        self._graveyard: list[Handle] = []
        """Callbacks of dead processes. The loop keeps these callbacks so that their finalizers do
        not run during the history."""
        self.executor: Callable[[Callable[[], Any]], asyncio.Future[Any]] | None = None

    def time(self) -> float:
        return self.now

    # Methods that asyncio and the code under test call.

    def call_soon(  # type: ignore[override]
        self,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Handle:
        if context is None:  # not `or`, since an empty context is falsy
            context = contextvars.copy_context()
        handle = Handle(callback, args, context)
        self._line_up(handle)
        return handle

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Handle:
        if context is None:
            context = contextvars.copy_context()
        handle = Handle(callback, args, context, when)
        heapq.heappush(self._timers, (when, next(self._numbers), handle))
        return handle

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Handle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_soon_threadsafe(  # type: ignore[override]
        self,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Handle:
        """Schedule the callback on the event loop of the process to which the calling thread
        belongs."""
        strand = STRAND.get()
        if context is None and strand is not None and strand.kind == "thread":
            context = strand.process.context.copy()
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(  # type: ignore[override]
        self, executor: None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        assert self.executor is not None
        return self.executor(lambda: func(*args))

    def add_signal_handler(  # type: ignore[override]
        self, sig: int, callback: Callable[..., Any], *args: Any
    ) -> None:
        strand = STRAND.get()
        assert strand is not None
        self._signals[strand.process, sig] = (callback, args)

    def remove_signal_handler(self, sig: int) -> bool:
        strand = STRAND.get()  # the process is dead and is being cleaned up
        return strand is not None and self._signals.pop((strand.process, sig), None) is not None

    # Methods that the world calls.

    def signal(self, process: Process, sig: int) -> bool:
        """Send a signal to a process; return False if it has no handler for the signal and must
        die."""
        if (process, sig) not in self._signals:
            return False
        callback, args = self._signals[process, sig]
        self.call_soon(callback, *args, context=process.context.copy())
        return True

    def release(self, strand: Strand) -> None:
        """Resume a strand that was held back."""
        held, strand.held = strand.held, []
        for handle in held:
            self._line_up(handle)

    def bury(self) -> None:
        """Discard all remaining callbacks."""
        self._lines.clear()
        self._timers.clear()
        self._graveyard.clear()

    # Running the steps.

    def _run_once(self) -> None:
        """Run steps until stopped, since a whole iteration of asyncio's own loop for each step
        would be slow."""
        lines, timers, pick = self._lines, self._timers, self._random.random
        while not self._stopping:
            while timers and (timers[0][0] <= self.now or timers[0][2].cancelled_):
                handle = heapq.heappop(timers)[2]
                if not handle.cancelled_:
                    self._line_up(handle)
            if not lines:
                self._jump()
                continue
            strands = list(lines)
            strand = strands[0] if len(strands) == 1 else strands[int(pick() * len(strands))]
            line = lines[strand]
            if strand is not None and strand.process.holds(strand):
                strand.held.extend(line)
                line.clear()
            else:
                self._perform(strand, line.popleft())
            if not line:
                del lines[strand]

    def _perform(self, strand: Strand | None, handle: Handle) -> None:
        if handle.cancelled_:
            return
        if strand is not None and not strand.process.alive:
            self._graveyard.append(handle)
            return
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise Stuck
        self.now += STEP_S
        try:
            handle.context.run(handle.callback, *handle.args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            callback = getattr(handle.callback, "__qualname__", handle.callback)
            message = f"exception in callback {callback}"
            self.call_exception_handler({"message": message, "exception": error})

    def _line_up(self, handle: Handle) -> None:
        strand = handle.context.get(STRAND)
        if strand is None:
            line = self._world
        elif not strand.process.alive:
            self._graveyard.append(handle)
            return
        elif strand.held:
            strand.held.append(handle)
            return
        else:
            line = strand.line
        if not line:
            self._lines[strand] = line
        line.append(handle)

    def _jump(self) -> None:
        if not self._timers:
            raise Stuck
        self.now = max(self.now, self._timers[0][0])

    def _write_to_self(self) -> None:
        """Do nothing: the loop never sleeps."""

    def _process_events(self, event_list: Any) -> None:
        """Do nothing: there are no sockets."""
