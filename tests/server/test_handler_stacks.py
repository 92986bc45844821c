"""Servers report the start time of running tasks and the stacks of their handlers."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

from qsync import Mux, Task, TaskInfo
from qsync.inspector import Inspector
from qsync.server.server_inbox import WAITING
from tests.support.handlers import wait_for
from tests.support.server import bench
from tests.support.stores import Store, wait_until_async


async def wait_at_this_line(gate: asyncio.Event) -> None:
    await gate.wait()


async def test_stack_names_the_line_of_each_kind_of_handler(
    valkey: Store, prefix: str, tmp_path: Path
) -> None:
    mux, gate, stop = Mux(), asyncio.Event(), threading.Event()

    @mux.handle("loop")
    async def on_loop(task: TaskInfo) -> None:
        await wait_at_this_line(gate)

    @mux.handle("thread")
    def in_thread(task: TaskInfo) -> None:
        stop.wait()  # the stack of the thread must name this line

    mux.handle("process", executor="process")(wait_for)
    async with bench(valkey.url, prefix) as made:
        tasks = [
            Task("loop", id="loop"), Task("thread", id="thread"),
            Task("process", str(tmp_path).encode(), id="process"),
        ]  # fmt: skip
        await made.client.enqueue_many([*tasks, Task("thread", id="waits"), Task("loop", id="l2")])
        try:
            async with made.server(mux, threads=1, lease=30, concurrency=9):
                for task in (*tasks, Task("thread", id="waits")):
                    assert task.id is not None
                    await made.reaches(task.id, "active")
                inspector = Inspector(made.broker, prefix=prefix)
                await wait_until_async(lambda: stack_has(inspector, "thread", "stop.wait()"))
                loop = await inspector.stack("loop")
                assert loop is not None
                assert "wait_at_this_line" in loop.stack
                assert "await gate.wait()" in loop.stack
                assert "qsync/server" not in loop.stack
                assert await stack_has(inspector, "waits", WAITING)
                await wait_until_async((tmp_path / "pid").exists)
                process = await inspector.stack("process")
                assert process is not None
                assert "in wait_for" in process.stack
                assert "multiprocessing" not in process.stack
                assert "qsync/server" not in process.stack
                assert await inspector.stack("none") is None
                assert await inspector.stack_seen(loop.server, "thread") is not None
                assert await inspector.stack_seen(loop.server, "other") is None

                # One fetch leased both tasks; a later fetch leases a third task.
                await made.client.enqueue(Task("loop", id="later"))
                await made.reaches("later", "active")
                since = (await inspector.explain("loop")).since
                assert since is not None
                assert datetime.now(UTC) - since < timedelta(seconds=60)
                gate.set()
        finally:
            stop.set()
            (tmp_path / "go").touch()
        pending = await inspector.stack("loop")
        assert pending is None


async def stack_has(inspector: Inspector, id: str, text: str) -> bool:
    found = await inspector.stack(id)
    assert found is not None
    return text in found.stack
