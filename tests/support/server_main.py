"""Runs a server that tests kill, stop and continue. Run as a script:

    python -m tests.support.server_main URL PREFIX HISTORY CONFIG

CONFIG is a JSON object with the options of the server, and with options for its environment:

    clock_s   seconds by which its clock is ahead; from SIGUSR1 on, its clock is as far behind
    ticks     number of periodic tasks, each with the period `every_s`

Each event is appended to HISTORY as one line in one write, so that the lines survive the process.
Events never go through the store.
"""

from __future__ import annotations

import asyncio
import ctypes
import datetime
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from qsync.broker import redis_clients
from qsync.keys import server_of_token
from qsync.mux import Mux
from qsync.schedule import Every, Periodic
from qsync.server.current import current
from qsync.server.periodic import PeriodicTask
from qsync.server.server import Server
from qsync.task import Task, TaskInfo

Note = Callable[[str, TaskInfo | None], None]

right_time_ns = time.time_ns

mux = Mux()
note: Note


class Plan(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Instructions for a handler, in the payload of its task. Times are in seconds.

    sleep       duration of the run
    sleep_at    duration by server id
    deaf        ignore the cancellation
    fail        number of attempts that fail
    fail_at     ids of servers on which all attempts fail
    progress_at ids of servers on which the handler reports a progress of 50 %
    die         kill the process by SIGKILL
    hold_at     path of a FIFO, by server id; the handler waits until the FIFO is opened for writing
    """

    sleep: float = 0.0
    sleep_at: dict[str, float] = {}
    deaf: bool = False
    fail: int = 0
    fail_at: list[str] = []
    progress_at: list[str] = []
    die: bool = False
    hold_at: dict[str, str] = {}

    def seconds(self, task: TaskInfo) -> float:
        return self.sleep_at.get(server_of(task), self.sleep)

    def end(self, task: TaskInfo) -> str:
        """Finish a handler: fail, or return the id of the server."""
        if server_of(task) in self.progress_at:
            current().progress(50, 100)
        if task.attempt <= self.fail or server_of(task) in self.fail_at:
            note("fail", task)
            raise RuntimeError(f"attempt {task.attempt} fails as planned")
        note("end", task)
        return server_of(task)


def server_of(task: TaskInfo) -> str:
    return server_of_token(task.token)


@mux.handle("work")
async def work(task: TaskInfo) -> str:
    note("start", task)
    plan: Plan = task.value(Plan)
    if plan.die:
        os.kill(os.getpid(), signal.SIGKILL)
    ends = time.monotonic() + plan.seconds(task)
    while (left := ends - time.monotonic()) > 0:
        try:
            await asyncio.sleep(left)
        except asyncio.CancelledError:
            note("cancelled", task)
            if not plan.deaf:
                raise
    return plan.end(task)


@mux.handle("nothing")
async def nothing(task: TaskInfo) -> None:
    pass


@mux.handle("work-in-thread")
def work_in_thread(task: TaskInfo) -> str:
    note("start", task)
    plan: Plan = task.value(Plan)
    ends = time.monotonic() + plan.seconds(task)
    while time.monotonic() < ends:
        if current().cancelled and not plan.deaf:
            note("cancelled", task)
            break
        time.sleep(0.01)
    return plan.end(task)


@mux.handle("block")
async def blocks_the_loop(task: TaskInfo) -> str:
    note("start", task)
    plan: Plan = task.value(Plan)
    time.sleep(plan.seconds(task))  # noqa: ASYNC251 - the mistake whose effects are tested
    return plan.end(task)


def noting_in(path: str) -> Note:
    """Return a function that appends events to this file."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    pid = os.getpid()

    def write(event: str, task: TaskInfo | None) -> None:
        about = f"{task.id} {task.attempt} {task.crashes}" if task else "- 0 0"
        line = f"{time.monotonic_ns()} {right_time_ns()} {pid} {event} {about}\n"
        os.write(file, line.encode())

    return write


@mux.handle("hold")
async def holds_the_interpreter(task: TaskInfo) -> str:
    note("start", task)
    plan: Plan = task.value(Plan)
    if fifo := plan.hold_at.get(server_of(task)):
        ctypes.PyDLL(None).open(fifo.encode(), os.O_RDONLY)  # stands for C code that holds the GIL
    return plan.end(task)


def have_a_wrong_clock(ahead_s: float) -> None:
    """Set all wall clocks `ahead_s` seconds ahead. On each SIGUSR1, the clocks jump to the opposite
    error."""
    offset_ns = int(ahead_s * 1e9)

    def leap(*_: object) -> None:
        nonlocal offset_ns
        offset_ns = -offset_ns

    class WrongDatetime(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return cls.fromtimestamp(time.time(), tz)

        @classmethod
        def utcnow(cls) -> Any:
            return cls.now(datetime.UTC).replace(tzinfo=None)

    signal.signal(signal.SIGUSR1, leap)
    time.time_ns = lambda: right_time_ns() + offset_ns
    time.time = lambda: time.time_ns() / 1e9
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").partition(".")[0] == "qsync":
            for name, value in list(vars(module).items()):
                if value is datetime.datetime:
                    setattr(module, name, WrongDatetime)


def periodic(ticks: int, every_s: float) -> list[PeriodicTask]:
    return [
        PeriodicTask(Periodic(f"tick-{n}", Every(every_s), "skip"), lambda: Task("work", {}))
        for n in range(ticks)
    ]


def main() -> None:
    global note
    url, prefix, history, text = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    note = noting_in(history)
    config = json.loads(text)
    if ahead_s := config.pop("clock_s", None):
        have_a_wrong_clock(ahead_s)
    ticking = periodic(config.pop("ticks", 0), config.pop("every_s", 1.0))
    server = Server(redis_clients.parse(url), prefix=prefix, mux=mux, periodic=ticking, **config)

    async def serve() -> None:
        await server.run()
        note("left", None)

    asyncio.run(serve())
    note("exit", None)


if __name__ == "__main__":
    main()
