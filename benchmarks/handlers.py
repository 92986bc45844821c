"""The handlers of the benchmark. Each server process keeps its own records."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from qsync.mux import Mux
from qsync.task import TaskInfo

PAYLOAD: Final = b"x" * 32

LOOP: Final = "no-op"
THREAD: Final = "no-op-thread"
PROCESS: Final = "no-op-process"
BATCH: Final = "no-op-batch"
THREAD_BATCH: Final = "no-op-thread-batch"
WAIT: Final = "wait-5ms"
FIRST: Final = "first"
STAMPED: Final = "stamped"
DUE: Final = "due"
SLOT: Final = "slot"

mux = Mux()

first_starts_ns: Final[list[int]] = []
"""Start times of tasks of type FIRST, by the monotonic clock, which all processes share."""

delays_ns: Final[list[int]] = []
"""Delay of each task's start after the time in its payload, in nanoseconds."""


starts_ns: Final[list[int]] = []
"""Start times of tasks of type SLOT, by the monotonic clock."""

ends_ns: Final[list[int]] = []
"""End times of tasks of type SLOT, by the monotonic clock."""


@mux.handle(LOOP)
async def no_op(task: TaskInfo) -> None:
    """Do nothing."""


@mux.handle(THREAD)
def no_op_in_thread(task: TaskInfo) -> None:
    """Do nothing, in a thread."""


@mux.handle(PROCESS, executor="process")
def no_op_in_process(task: TaskInfo) -> None:
    """Do nothing, in another process."""


@mux.batch(BATCH, max_size=100, max_wait=0.02)
async def no_op_batch(tasks: list[TaskInfo]) -> None:
    """Do nothing, for up to 100 tasks per call."""


@mux.batch(THREAD_BATCH, max_size=100, max_wait=0.02)
def no_op_batch_in_thread(tasks: list[TaskInfo]) -> None:
    """Do nothing, in a thread, for up to 100 tasks per call."""


@mux.handle(WAIT)
async def wait(task: TaskInfo) -> None:
    """Wait for 5 ms, as a task that queries a database would."""
    await asyncio.sleep(0.005)


@mux.handle(FIRST)
async def first(task: TaskInfo) -> None:
    """Record the time."""
    first_starts_ns.append(time.monotonic_ns())


@mux.handle(STAMPED)
async def stamped(task: TaskInfo) -> None:
    """Record the delay; the payload is the enqueue time by the monotonic clock, in ns."""
    delays_ns.append(time.monotonic_ns() - int.from_bytes(task.payload))


@mux.handle(DUE)
async def due(task: TaskInfo) -> None:
    """Record the delay; the payload is the scheduled time, in ns since 1970."""
    delays_ns.append(time.time_ns() - int.from_bytes(task.payload))


@mux.handle(SLOT)
async def slot(task: TaskInfo) -> None:
    """Record the start time, and the delay since the last task of this type ended."""
    starts_ns.append(time.monotonic_ns())
    if ends_ns:
        delays_ns.append(starts_ns[-1] - ends_ns[-1])
    ends_ns.append(time.monotonic_ns())
