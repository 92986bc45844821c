"""An event loop whose time is virtual: when nothing is ready it jumps to the next timer.

Every callback belongs to a strand, which is the event loop or a thread of a simulated process, or
to the world. Within a strand the order is asyncio's; between strands the seed chooses. A strand
can be held back, and one whose process died never runs again.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Literal, Protocol


class Process(Protocol):
    """A simulated process, as far as the loop has to know it."""

    alive: bool
    context: contextvars.Context
    strand: Strand
    threads: list[Strand]

    def holds(self, strand: Strand) -> bool:
        """Whether the strand stands still."""


class Strand:
    """What runs in order: the event loop of a process, or one of its threads."""

    def __init__(self, process: Process, kind: Literal["loop", "thread"]) -> None:
        self.process = process
        self.kind = kind
        self.held: list[asyncio.Handle] = []
        """What is ready and has to wait until the strand goes on."""


STRAND: Final[contextvars.ContextVar[Strand | None]] = contextvars.ContextVar(
    "strand", default=None
)
"""None: the world, that is the network, the store and the plan of the faults."""


STEP_S: Final = 0.000_002
"""How long a callback takes: some time has to pass when something waits for a moment."""

MAX_STEPS: Final = 150_000


class Stuck(Exception):
    """Nothing is ready and nothing will be; or things go round in circles."""


class SimLoop(asyncio.BaseEventLoop):
    """The loop of one history; it holds all processes."""

    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]
    _stopping: bool

    def __init__(self, seed: str) -> None:
        super().__init__()
        self.now = 0.0
        self.steps = 0
        self.current: asyncio.Handle | None = None
        self._random = random.Random(seed)
        self._lines: dict[Strand | None, deque[asyncio.Handle]] = {}
        self._signals: dict[tuple[Process, int], tuple[Callable[..., Any], tuple[Any, ...]]] = {}
        self._graveyard: list[asyncio.Handle] = []
        """What the dead had to do: kept, so that nothing of theirs is cleaned up meanwhile."""
        self.executor: Callable[[Callable[[], Any]], asyncio.Future[Any]] | None = None

    def time(self) -> float:
        return self.now

    def call_soon_threadsafe(  # type: ignore[override]
        self,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """What a thread asks for is done by the event loop of its process."""
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
        strand = STRAND.get()  # None: the process is long dead, and is being buried
        return strand is not None and self._signals.pop((strand.process, sig), None) is not None

    def signal(self, process: Process, sig: int) -> bool:
        """Send a signal to a process; False when it has no handler for it, which is its death."""
        if (process, sig) not in self._signals:
            return False
        callback, args = self._signals[process, sig]
        self.call_soon(callback, *args, context=process.context.copy())
        return True

    def lined_up(self, strand: Strand) -> list[asyncio.Handle]:
        """What the strand has to do now."""
        fresh = [one for one in self._ready if one._context.get(STRAND) is strand]
        return [*strand.held, *self._lines.get(strand, ()), *fresh]

    def release(self, strand: Strand) -> None:
        """A strand that was held back goes on."""
        held, strand.held = strand.held, []
        self._ready.extend(held)

    def _run_once(self) -> None:
        self._take_due()
        while self._ready:
            handle = self._ready.popleft()
            self._line_up(handle, handle._context.get(STRAND))
        if not self._lines:
            self._jump()
            return
        strand = next(iter(self._lines))
        if len(self._lines) > 1:
            strand = self._random.choice(list(self._lines))
        line = self._lines[strand]
        if strand is not None and strand.process.holds(strand):
            strand.held.extend(line)
            line.clear()
        else:
            handle = line.popleft()
            if strand is not None and not strand.process.alive:
                self._graveyard.append(handle)
            elif not handle._cancelled:
                self.steps += 1
                self.now += STEP_S
                self.current = handle
                handle._run()
        if not line:
            del self._lines[strand]

    def _line_up(self, handle: asyncio.Handle, strand: Strand | None) -> None:
        if handle._cancelled:
            return
        if strand is not None and not strand.process.alive:
            self._graveyard.append(handle)
            return
        if strand is not None and strand.held:
            strand.held.append(handle)
            return
        self._lines.setdefault(strand, deque()).append(handle)

    def _take_due(self) -> None:
        if self.steps > MAX_STEPS:
            raise Stuck
        timers = self._scheduled
        while timers and (timers[0]._cancelled or timers[0]._when <= self.now):
            handle = heapq.heappop(timers)
            handle._scheduled = False
            if not handle._cancelled:
                self._ready.append(handle)

    def _jump(self) -> None:
        if self._stopping:
            return
        if not self._scheduled:
            raise Stuck
        self.now = max(self.now, self._scheduled[0]._when)

    def _write_to_self(self) -> None:
        """Nothing sleeps, so nothing has to be woken."""

    def _process_events(self, event_list: Any) -> None:
        """There are no sockets."""
