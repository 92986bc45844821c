"""The tasks of `qsync demo`, written as a user would write them, and the records that they write.

`qsync worker qsync.cli.demo.tasks:app` serves them. Each process appends its records to its own
file in the folder that QSYNC_DEMO names; each line is a single write, so a kill leaves no partial
line.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time
from pathlib import Path
from typing import Any, Final

import qsync
from qsync import Qsync, TaskInfo
from qsync.mux import CallNext

FOLDER: Final = Path(os.environ.get("QSYNC_DEMO", "."))
GATE: Final = FOLDER / "gate"  # the slow tasks wait until this file exists
BLOCK_SIZE: Final = 64 * 1024


def _note(event: str, *facts: object) -> None:
    line = " ".join(map(str, (event, time.monotonic_ns(), *facts)))
    with (FOLDER / f"history-{os.getpid()}").open("ab", buffering=0) as history:
        history.write(f"{line}\n".encode())


def read_block(offset: int) -> bytes:
    """Return a block of the data file."""
    with (FOLDER / "data").open("rb") as file:
        file.seek(offset)
        return file.read(BLOCK_SIZE)


def digest_of(offset: int) -> str:
    """Return the digest of a block, computed in less than a millisecond."""
    return hashlib.sha256(read_block(offset), usedforsecurity=False).hexdigest()


async def recorded(task: TaskInfo, call_next: CallNext) -> Any:
    """Middleware: record when each attempt began, how it ended, and which digest it returned."""
    _note("start", task.id, task.type)
    end, value = "stopped", None
    try:
        value = await call_next()
        end = "done"
    except Exception:
        end = "failed"
        raise
    finally:
        _note(end, task.id, task.attempt, value if isinstance(value, str) else "")
    return value


app: Final = Qsync()  # QSYNC_URL names the store


@app.task("hash", middleware=[recorded])
async def hash_on_loop(offset: int) -> str:
    """Hash a block in a coroutine, which runs on the event loop."""
    return digest_of(offset)


@app.task("thread", middleware=[recorded])
def hash_in_thread(offset: int) -> str:
    """Hash a block in a plain function, which runs in a thread."""
    return digest_of(offset)


@app.task("process", middleware=[recorded], executor="process")
def hash_in_process(offset: int) -> str:
    """Hash a block in a plain function that runs in a child process."""
    return digest_of(offset)


@app.task("tenant", queue="shared", middleware=[recorded])
async def hash_for_tenant(offset: int) -> str:
    """Hash a block for a tenant; the fairness key lets tenants share a queue fairly."""
    return digest_of(offset)


@app.task("parent", queue="critical", middleware=[recorded])
async def parent(task: TaskInfo, offsets: list[int]) -> None:
    """Enqueue a task for each block.

    The new ids are derived from this task's id, so a second run adds no tasks.
    """
    ids = [f"{task.id}.{number}" for number in range(len(offsets))]
    children = [child.options(id=id).build(offset) for id, offset in zip(ids, offsets, strict=True)]
    await qsync.current().client.enqueue_many(children)


@app.task("child", queue="critical", middleware=[recorded], retention=3600)
async def child(offset: int) -> str:
    """Hash a block for the parent task.

    The retention keeps the id in use for an hour, because the parent might run again.
    """
    return digest_of(offset)


@app.task("typed", queue="critical", middleware=[recorded], retention=3600)
def count(offset: int) -> dict[str, int]:
    """Return the number of lines and words in a block.

    qsync checks the argument and the result against the annotations; the client awaits the result.
    """
    data = read_block(offset)
    return {"lines": data.count(b"\n"), "words": len(data.split())}


@app.task("slow", middleware=[recorded])
async def slow(seconds: float) -> None:
    """Wait until the demo kills a server, so that the kill interrupts this task."""
    while not GATE.exists():  # noqa: ASYNC110 - another process opens it
        await asyncio.sleep(0.1)
    await asyncio.sleep(seconds)


@app.task("flaky", middleware=[recorded], retry=3, retry_delay=0.3)
async def flaky(task: TaskInfo) -> None:
    """Fail twice and succeed on the third attempt."""
    if task.attempt <= 2:
        raise ConnectionError(f"attempt {task.attempt} fails")


@app.task("hopeless", middleware=[recorded], retry=2, retry_delay=0.2)
def hopeless() -> None:
    """Fail on every attempt, so that the task becomes dead."""
    raise ValueError("as always")


@app.task("scheduled", queue="critical", middleware=[recorded])
async def scheduled() -> None:
    """Do nothing; the task is enqueued with a delay and must not start early."""


@app.task("unique", queue="lower", middleware=[recorded], unique=3600)
async def unique(name: str) -> None:
    """Do nothing; several clients enqueue the task concurrently, and the store accepts one task per
    name."""


@app.task("late", middleware=[recorded])
async def late() -> None:
    """Do nothing; the task is due one microsecond before its deadline, so it never starts."""


@app.task("cancel", queue="critical", middleware=[recorded], retention=3600)
async def cancel() -> None:
    """Sleep for an hour, unless the client cancels the task first."""
    await asyncio.sleep(3600)


@app.task("poison", queue="critical", middleware=[recorded])
async def poison() -> None:
    """Kill the process that runs this task."""
    os.kill(os.getpid(), signal.SIGKILL)


@app.periodic(every=1, missed="all", name="tick", queue="critical", middleware=[recorded])
async def tick() -> None:
    """Do nothing; both servers enqueue each tick, even late, and the store accepts it once."""
