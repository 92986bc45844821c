"""The tasks of the benchmark, and what they note. Each server process has its own notes."""

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
WAIT: Final = "wait-5ms"
FIRST: Final = "first"
STAMPED: Final = "stamped"
DUE: Final = "due"

mux = Mux()

firsts: Final[list[int]] = []
"""When a task of type FIRST started: ns of the monotonic clock, which all processes share."""

delays: Final[list[int]] = []
"""How long after the time in their payload tasks started, ns."""


@mux.handle(LOOP)
async def no_op(task: TaskInfo) -> None:
    """Nothing."""


@mux.handle(THREAD)
def no_op_in_thread(task: TaskInfo) -> None:
    """Nothing, in a thread."""


@mux.handle(PROCESS, executor="process")
def no_op_in_process(task: TaskInfo) -> None:
    """Nothing, in another process."""


@mux.handle(WAIT)
async def wait(task: TaskInfo) -> None:
    """Wait as for a database."""
    await asyncio.sleep(0.005)


@mux.handle(FIRST)
async def first(task: TaskInfo) -> None:
    """Note when this started."""
    firsts.append(time.monotonic_ns())


@mux.handle(STAMPED)
async def stamped(task: TaskInfo) -> None:
    """Note how long ago it was sent: the payload is the monotonic clock then, ns."""
    delays.append(time.monotonic_ns() - int.from_bytes(task.payload))


@mux.handle(DUE)
async def due(task: TaskInfo) -> None:
    """Note how late it is: the payload is the time for which it was asked, ns since 1970."""
    delays.append(time.time_ns() - int.from_bytes(task.payload))
