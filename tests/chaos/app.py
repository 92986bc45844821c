"""The app that `qsync worker` runs in the chaos tests. Each event is appended to the file that
CHAOS_HISTORY names, as one line in one write; it never goes through the store.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

import msgspec

from qsync import Mux, Qsync, TaskInfo
from qsync.server.current import current

mux = Mux()


class Plan(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A handler's instructions: how many seconds to sleep, and how many attempts to fail."""

    sleep: float = 0.0
    fail: int = 0


class Chaotic(Qsync):
    """An app whose servers often do the upkeep of their queues."""

    def server(self, mux: Mux | None = None, **config: Any) -> Any:
        return super().server(mux, sweep=0.2, **config)


_file = os.open(os.environ["CHAOS_HISTORY"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def note(kind: str, task: TaskInfo) -> None:
    about = f"{task.id} {task.attempt} {task.crashes} {task.token}"
    os.write(_file, f"{time.monotonic_ns()} {os.getpid()} {kind} {about}\n".encode())


def end(plan: Plan, task: TaskInfo) -> str:
    if task.attempt <= plan.fail:
        note("fail", task)
        raise RuntimeError(f"attempt {task.attempt} fails as planned")
    note("end", task)
    return task.token


@mux.handle("work")
async def work(task: TaskInfo) -> str:
    note("start", task)
    plan: Plan = task.value(Plan)
    try:
        await asyncio.sleep(plan.sleep)
    except asyncio.CancelledError:
        note("cancelled", task)
        raise
    return end(plan, task)


@mux.handle("work-in-thread")
def work_in_thread(task: TaskInfo) -> str:
    note("start", task)
    plan: Plan = task.value(Plan)
    ends = time.monotonic() + plan.sleep
    while time.monotonic() < ends:
        if current().cancelled:
            note("cancelled", task)
            raise RuntimeError("told to stop")
        time.sleep(0.005)
    return end(plan, task)


@mux.handle("die")
async def die(task: TaskInfo) -> None:
    note("start", task)
    os.kill(os.getpid(), signal.SIGKILL)


app = Chaotic(mux=mux)
