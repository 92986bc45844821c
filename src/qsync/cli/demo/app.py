"""The tasks of `qsync demo`, as a user would write them.

`qsync worker qsync.cli.demo.app:app` serves them, in the processes of the demo's own worker.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qsync
from qsync import Qsync, TaskInfo
from qsync.cli.demo.plan import Block, digest_of
from qsync.cli.demo.records import gate_is_open, note, write
from qsync.mux import CallNext


@asynccontextmanager
async def lifespan() -> AsyncIterator[None]:
    """A server that has begun says so."""
    note("server", os.getppid())
    yield


async def recorded(task: TaskInfo, call_next: CallNext) -> Any:
    """Middleware: when each attempt began and how it ended."""
    note("start", task.id, task.type, task.attempt, task.crashes)
    how = "stopped"
    try:
        value = await call_next()
        how = "done"
    except Exception:
        how = "failed"
        raise
    finally:
        note(how, task.id, task.attempt)
    return value


app = Qsync(lifespan=lifespan)  # the store is the one that QSYNC_URL names


def hash_into_manifest(block: Block) -> None:
    """Hash a block of a file and write the line for it; once more does no harm."""
    write("manifest", f"{digest_of(block)} {block.key}")


@app.task("hash", middleware=[recorded])
async def hash_on_loop(block: Block) -> None:
    """A coroutine; a block is small, so that it holds up the others for less than a millisecond."""
    hash_into_manifest(block)


@app.task("thread", middleware=[recorded])
def hash_in_thread(block: Block) -> None:
    """A plain function runs in a thread."""
    hash_into_manifest(block)


@app.task("process", middleware=[recorded], executor="process")
def hash_in_process(block: Block) -> None:
    """The same in a process of its own."""
    hash_into_manifest(block)


@app.task("tenant", queue="shared", middleware=[recorded])
async def hash_for_tenant(block: Block) -> None:
    """Enqueued with a fairness key: tenants share a queue."""
    hash_into_manifest(block)


@app.task("parent", queue="critical", middleware=[recorded])
async def parent(task: TaskInfo, blocks: list[Block]) -> None:
    """Enqueues a task for each block. Their ids come from its own, so a second run adds none."""
    await qsync.current().client.enqueue_many(
        [
            child.options(id=f"{task.id}.{number}").build(block)
            for number, block in enumerate(blocks)
        ]
    )


@app.task("child", queue="critical", middleware=[recorded], retention=3600)
async def child(block: Block) -> None:
    """Kept for an hour, so that its id stays taken for as long as its parent might run again."""
    hash_into_manifest(block)


@dataclass
class Text:
    """What there is in a file."""

    lines: int
    words: int


@app.task("typed", queue="critical", middleware=[recorded], retention=3600)
def count(path: Path) -> Text:
    """Arguments and result are checked against the annotations; the client awaits the result."""
    data = path.read_bytes()
    return Text(data.count(b"\n"), len(data.split()))


@app.task("slow", middleware=[recorded])
async def slow(seconds: float) -> None:
    """Waits until a server has been killed, and then as for a network.

    So the kill comes while such tasks run, however busy the machine is.
    """
    while not gate_is_open():  # noqa: ASYNC110 - another process opens it
        await asyncio.sleep(0.1)
    await asyncio.sleep(seconds)


@app.task("flaky", middleware=[recorded], retry=3, retry_delay=0.3)
async def flaky(task: TaskInfo) -> None:
    """Succeeds the third time."""
    if task.attempt <= 2:
        msg = f"attempt {task.attempt} fails"
        raise ConnectionError(msg)


@app.task("hopeless", middleware=[recorded], retry=2, retry_delay=0.2)
def hopeless() -> None:
    """Never succeeds."""
    msg = "as always"
    raise ValueError(msg)


@app.task("scheduled", queue="critical", middleware=[recorded])
async def scheduled() -> None:
    """Enqueued with a delay; what counts is when it starts."""


@app.task("unique", queue="lower", middleware=[recorded], unique=3600)
async def unique(name: str) -> None:
    """Enqueued by many at once; one is accepted for each name."""


@app.task("late", middleware=[recorded])
async def late() -> None:
    """Due after its deadline, so that it must never start."""


@app.task("cancel", queue="critical", middleware=[recorded], retention=3600)
async def cancel() -> None:
    """Would take an hour, if it were not cancelled."""
    await asyncio.sleep(3600)


@app.task("poison", queue="critical", middleware=[recorded])
async def poison() -> None:
    """Kills the process that runs it."""
    os.kill(os.getpid(), signal.SIGKILL)


@app.periodic(every=1, missed="all", name="tick", queue="critical", middleware=[recorded])
async def tick() -> None:
    """Both servers enqueue every tick, late or not, and the store takes each one once."""
