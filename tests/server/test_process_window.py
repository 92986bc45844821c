"""A task that waits in a process behind a running task never starts there after it has been taken
back."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from qsync.server import process_pool, process_pool_member
from qsync.server.queue_state import HandlerNotStarted
from qsync.server.thread_pool import HandlerError, ProcessPool
from tests.server.test_executors import INFO, handler
from tests.server.test_waiting_tasks import waiting_in
from tests.support import handlers
from tests.support.stores import wait_until_async


class Claim:
    """A claim that records whether the task waits. The test decides whether the task may begin."""

    def __init__(self) -> None:
        self.given = True
        self.waits = False

    def wait(self) -> None:
        self.waits = True

    def may_begin(self) -> bool:
        self.waits = False
        return self.given


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[2]), *sys.path])
    monkeypatch.setattr(process_pool_member, "QUICK_S", 60.0)
    monkeypatch.setattr(process_pool, "TAKE_BACK_AFTER_S", 60.0)


@asynccontextmanager
async def warm_pool(folder: Path) -> AsyncIterator[tuple[ProcessPool, int]]:
    """Yield a pool of one process that has imported the handlers, and its pid."""
    pool = ProcessPool(1)
    first = waiting_in(folder / "warm")
    (folder / "warm" / "go").touch()
    await pool.run(handler(handlers.wait_for), first, None)
    await pool.run(handler(handlers.nothing), INFO, None)
    pid = (await pool.run(handler(handlers.look), INFO, None))["pid"]
    try:
        yield pool, pid
    finally:
        await pool.close(0)


def start(pool: ProcessPool, function: Any, *args: Any) -> asyncio.Task[Any]:
    info, limit, claim = (*args, None, None, None)[:3]
    return asyncio.create_task(pool.run(handler(function), info or INFO, limit, claim))


async def sent(pool: ProcessPool, count: int) -> None:
    await wait_until_async(lambda: sum(len(one.sent) for one in pool._processes) == count)


@pytest.mark.faults(96)
async def test_a_timeout_kills_the_running_task_and_the_others_run_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with warm_pool(tmp_path) as (pool, pid):
        long = start(pool, handlers.wait_for, waiting_in(tmp_path / "long"), 0.5)
        behind = [start(pool, handlers.look) for _ in range(5)]
        await sent(pool, 6)
        monkeypatch.setattr(process_pool, "TAKE_BACK_AFTER_S", 0.1)
        pool._watch(pool._processes[0])
        with pytest.raises(TimeoutError):
            await long
        pids = {value["pid"] for value in await asyncio.gather(*behind)}
        assert len(pids) == 1
        assert pid not in pids


@pytest.mark.faults(96)
async def test_crash_fails_only_the_running_task(tmp_path: Path) -> None:
    async with warm_pool(tmp_path) as (pool, pid):
        await pool.run(handler(handlers.look), INFO, None)
        long = start(pool, handlers.wait_for, waiting_in(tmp_path / "long"))
        behind = [start(pool, handlers.look) for _ in range(5)]
        await wait_until_async((tmp_path / "long" / "pid").exists)
        await sent(pool, 6)
        pool._processes[0]._kill_group()
        with pytest.raises(HandlerError, match="the process died: killed by SIGKILL"):
            await long
        pids = {value["pid"] for value in await asyncio.gather(*behind)}
        assert pid not in pids


async def test_task_withdrawn_behind_another_never_begins(tmp_path: Path) -> None:
    async with warm_pool(tmp_path) as (pool, pid):
        long = start(pool, handlers.wait_for, waiting_in(tmp_path / "long"))
        given_up = start(pool, handlers.wait_for, waiting_in(tmp_path / "given_up"))
        last = start(pool, handlers.look)
        await wait_until_async((tmp_path / "long" / "pid").exists)
        await sent(pool, 3)
        given_up.cancel()
        await asyncio.wait([given_up])
        assert given_up.cancelled()
        (tmp_path / "long" / "go").touch()
        assert await long == "waited"
        assert (await last)["pid"] == pid, "the process was not killed"
        assert not (tmp_path / "given_up" / "pid").exists()


async def test_task_behind_long_one_is_taken_back_and_claimed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with warm_pool(tmp_path) as (pool, pid):
        claim = Claim()
        long = start(pool, handlers.wait_for, waiting_in(tmp_path / "long"))
        second = start(pool, handlers.wait_for, waiting_in(tmp_path / "2"), None, claim)
        await wait_until_async((tmp_path / "long" / "pid").exists)
        await sent(pool, 2)
        assert claim.waits, "a stopping server can still take the task back"
        monkeypatch.setattr(process_pool, "TAKE_BACK_AFTER_S", 0.0)
        pool._watch(pool._processes[0])
        await sent(pool, 1)
        claim.given = False
        (tmp_path / "long" / "go").touch()
        assert await long == "waited"
        with pytest.raises(HandlerNotStarted):
            await second
        assert not (tmp_path / "2" / "pid").exists()
        assert (await pool.run(handler(handlers.look), INFO, None))["pid"] == pid


async def test_task_behind_another_does_not_count_as_waiting_once_it_begins(tmp_path: Path) -> None:
    async with warm_pool(tmp_path) as (pool, _):
        claim = Claim()
        first = start(pool, handlers.wait_for, waiting_in(tmp_path / "1"))
        second = start(pool, handlers.wait_for, waiting_in(tmp_path / "2"), None, claim)
        await sent(pool, 2)
        assert claim.waits
        (tmp_path / "1" / "go").touch()
        await first
        assert not claim.waits
        (tmp_path / "2" / "go").touch()
        await second


async def test_closing_stops_calls_waiting_in_process(tmp_path: Path) -> None:
    async with warm_pool(tmp_path) as (pool, _):
        long = start(pool, handlers.wait_for, waiting_in(tmp_path / "long"))
        behind = start(pool, handlers.wait_for, waiting_in(tmp_path / "2"))
        await wait_until_async((tmp_path / "long" / "pid").exists)
        await sent(pool, 2)
        closing = asyncio.create_task(pool.close(20))
        with pytest.raises(HandlerError, match="closed"):
            await behind
        (tmp_path / "long" / "go").touch()
        assert await long == "waited"
        await closing
        assert not (tmp_path / "2" / "pid").exists()


async def test_values_reach_their_own_calls_after_withdrawals(tmp_path: Path) -> None:
    async with warm_pool(tmp_path) as (pool, pid):
        for _ in range(10):
            runs = [start(pool, handlers.echo, waiting_in(tmp_path / "0"))]
            (tmp_path / "0").rmdir()
            for n in range(1, 30):
                runs.append(start(pool, handlers.echo, waiting_in(tmp_path / str(n))))
                (tmp_path / str(n)).rmdir()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            for process in pool._processes:
                pool._wait_again(process.recall())
            values = await asyncio.gather(*runs)
            assert values == [str(tmp_path / str(n)).encode() for n in range(30)]
        assert (await pool.run(handler(handlers.look), INFO, None))["pid"] == pid
