"""What running handlers are doing: since when they run, and the lines at which they are."""

from __future__ import annotations

import heapq
import sys
import threading
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from traceback import FrameSummary
from types import FrameType
from typing import Any, Final

from qsync import codec
from qsync.server.clock import boot_s
from qsync.server.error_text import DEPTH_LIMIT, STACK_LIMIT, stack_text
from qsync.server.queue_state import RUNNING, LeasedTask, QueueState

STACKS_KEPT: Final = 5
"""Number of answers that a server's record has."""

RUNS_RECORDED: Final = 100
"""Number of tasks whose start a server's record has: those that run longest."""

ELSEWHERE: Final = "The handler runs in another process of this server, which does not answer."

WAITING: Final = "The handler waits for a free thread or process."


class HandlerStacks:
    """Reads what the tasks of a server's queues are doing; used on the event loop."""

    def __init__(
        self,
        queues: Sequence[QueueState],
        process_stack: Callable[[LeasedTask], Awaitable[str]],
    ) -> None:
        self._queues = {queue.name: queue for queue in queues}
        self._process_stack = process_stack
        self._answers: deque[tuple[str, str, str, str]] = deque(maxlen=STACKS_KEPT)
        """Number of the request, queue, id and stack."""

    async def answer(self, number: str, name: str, id: str) -> None:
        """Read the stack of a task for the request of this number."""
        queue = self._queues.get(name)
        leased = None if queue is None else queue.held.get(id)
        text = "" if leased is None else stack_of(leased)
        if leased is not None and text == ELSEWHERE:
            text = await self._process_stack(leased) or ELSEWHERE
        self._answers.append((number[:40], name, id, text))

    def fields(self) -> dict[str, bytes]:
        """Return the fields of the server's record."""
        return {
            "since": codec.encode(self._longest()),
            "stacks": codec.encode(list(self._answers)),
        }

    def _longest(self) -> list[tuple[str, str, int]]:
        """Return queue, id and start by the store's clock, in us, of the tasks that run longest."""
        running = [
            (leased.begun_s, queue.name, leased.id)
            for queue in self._queues.values()
            for leased in list(queue.held.values())
            if leased.phase is RUNNING and leased.begun_s
        ]
        now = boot_s()
        return [
            (name, id, self._queues[name].store_time_us() - int((now - begun) * 1_000_000))
            for begun, name, id in heapq.nsmallest(RUNS_RECORDED, running)
        ]


def stack_of(leased: LeasedTask) -> str:
    """Return the stack of a task's handler; empty if it has not started or has ended."""
    if leased.phase is not RUNNING:
        return ""
    if leased.waits:
        return WAITING
    if leased.thread and leased.thread != threading.get_ident():
        frame = sys._current_frames().get(leased.thread)
        frames = [] if frame is None else list(traceback.extract_stack(frame, DEPTH_LIMIT))
    else:
        frames = _awaiting(leased.task.get_coro()) if leased.task is not None else []
    return stack_text(frames, STACK_LIMIT) or (ELSEWHERE if leased.turn else "")


def _awaiting(coroutine: Any) -> list[FrameSummary]:
    """Return the frames of a suspended coroutine and of what it awaits, the outermost first."""
    frames: list[FrameSummary] = []
    while coroutine is not None and len(frames) < DEPTH_LIMIT:
        frame: FrameType | None = None
        for prefix in ("cr", "gi", "ag"):
            frame = getattr(coroutine, f"{prefix}_frame", None) or frame
        if frame is None:
            break
        frames += traceback.StackSummary.extract([(frame, frame.f_lineno)])
        # The inline starter drives a run without awaiting it.
        driven = frame.f_code.co_name == "_resume"
        inner = frame.f_locals.get("run") if driven else None
        for name in ("cr_await", "gi_yieldfrom", "ag_await"):
            inner = inner or getattr(coroutine, name, None)
        coroutine = inner
    return frames
