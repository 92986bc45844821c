"""Handlers with executor="process" that use all of `current()`."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsync import Qsync, Task, TaskInfo, current


@dataclass
class State:
    """The state that the lifespan yields."""

    pid: int
    runs: int = 0


@asynccontextmanager
async def lifespan() -> AsyncIterator[State]:
    yield State(os.getpid())
    if "LIFESPAN_END" in os.environ:
        os.close(os.open(f"{os.environ['LIFESPAN_END']}/{os.getpid()}", os.O_CREAT))


@asynccontextmanager
async def broken_lifespan() -> AsyncIterator[State]:
    if os.environ.get("PARENT_OF_TEST") != str(os.getpid()):
        raise OSError("no database here")
    yield State(0)


app = Qsync("redis://127.0.0.1:1", prefix="nowhere", patience=0, lifespan=lifespan, processes=1)


@app.task(name="child")
def child(number: int) -> int:
    return number


@app.task(name="parent", executor="process", retention=60, retry=0)
def parent(number: int, delay: float = 0) -> list[Any]:
    here = current(State)
    here.state.runs += 1
    for done in range(5):
        here.progress(done + 1, 5)
    later = child.options(delay=delay)
    by_client = here.client.enqueue(later.build(number)).id
    by_function = later.enqueue_sync(number + 1).id
    return [here.state.pid, here.state.runs, here.cancelled, os.getpid(), by_client, by_function]


def look(task: TaskInfo) -> dict[str, Any]:
    """Enqueue a task with the client of `current()`, and return the attributes of `current()`."""
    here = current()
    here.progress(1, 3)
    handle = here.client.enqueue(Task("other", b"x", id="other"))
    try:
        state = repr(here.state)
    except Exception as error:
        state = f"{type(error).__name__}: {error}"
    return {"handle": handle.id, "state": state, "same": here.client is current().client}


def linger(task: TaskInfo) -> None:
    """Report progress, then wait until the file that the payload names exists."""
    current().progress(2, 7)
    while not Path(task.payload.decode()).exists():
        time.sleep(0.01)
