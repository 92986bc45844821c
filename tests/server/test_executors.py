"""Executors for `def` handlers: threads that may hang, and processes that may die."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qsync.errors import InvalidTask, Retry, SkipRetry, Snooze
from qsync.mux import Handler, make_handler
from qsync.server import process_pool
from qsync.server.thread_pool import HandlerError, ProcessPool, ThreadPool
from qsync.task import TaskInfo
from tests.support import handlers
from tests.support.stores import wait_until, wait_until_async

INFO = TaskInfo(
    id="id1", type="t", payload=b"data", queue="default", retry=3, attempt=2, crashes=0,
    enqueued_at_us=1, headers={"trace": "abc"},
)  # fmt: skip


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the parent folder of the tests to the path, so that the processes can import the
    handlers."""
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[2]), *sys.path])


def submit(pool: ThreadPool, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
    return pool.submit(contextvars.copy_context(), function, args, {})


def own_threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if re.fullmatch(r"qsync-\d+", one.name)]


# Threads.


def test_thread_call_gets_arguments_and_context_and_returns_its_value() -> None:
    variable = contextvars.ContextVar[str]("variable")

    def function(a: int, *, b: int) -> tuple[int, str, str, bool]:
        thread = threading.current_thread()
        return a + b, variable.get(), thread.name, thread.daemon

    async def main() -> None:
        pool = ThreadPool(3)
        context = contextvars.copy_context()
        context.run(variable.set, "seen")
        answer = await pool.submit(context, function, (1,), {"b": 2})
        assert answer == (3, "seen", "qsync-1", True)
        assert await pool.close(1)

    asyncio.run(main())
    wait_until(lambda: not own_threads())


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
async def test_every_exception_of_a_function_reaches_the_caller(kind: type[BaseException]) -> None:
    def function() -> None:
        raise kind("mine")

    pool = ThreadPool(1)
    with pytest.raises(kind, match="mine"):
        await submit(pool, function)
    assert await submit(pool, lambda: "well") == "well"
    await pool.close(1)


async def test_stop_iteration_becomes_a_runtime_error() -> None:
    pool = ThreadPool(1)
    with pytest.raises(RuntimeError, match="StopIteration") as caught:
        await submit(pool, next, iter(()))
    assert isinstance(caught.value.__cause__, StopIteration)
    await pool.close(1)


async def test_threads_start_on_demand_up_to_the_limit() -> None:
    pool = ThreadPool(3)
    for _ in range(5):
        await submit(pool, time.sleep, 0)
    assert len(own_threads()) == 1, "sequential runs need only one thread"
    gate, inside, most = threading.Event(), [], []

    def wait() -> None:
        inside.append(1)
        most.append(len(inside))
        gate.wait(10)
        inside.pop()

    futures = [submit(pool, wait) for _ in range(10)]
    await wait_until_async(lambda: len(inside) == 3)
    gate.set()
    await asyncio.gather(*futures)
    assert max(most) == 3
    assert len(own_threads()) == 3
    await pool.close(1)


async def test_results_that_wait_for_the_loop_are_delivered_together() -> None:
    loop = asyncio.get_running_loop()
    pool = ThreadPool(2)
    futures = [submit(pool, lambda n: n, n) for n in range(1000)]
    wakes = []
    wake = loop.call_soon_threadsafe
    loop.call_soon_threadsafe = lambda *args: (wakes.append(1), wake(*args))[1]  # type: ignore[method-assign,assignment]
    wait_until(lambda: pool._queue.empty())  # blocks the event loop
    assert await asyncio.gather(*futures) == list(range(1000))
    assert len(wakes) < 10
    await pool.close(1)


@pytest.mark.faults(6)
def test_abandoned_call_loses_its_thread_until_it_returns_and_another_replaces_it() -> None:
    async def main() -> None:
        pool = ThreadPool(1)
        gate, inside = threading.Event(), threading.Event()

        def hang() -> None:
            inside.set()
            gate.wait(10)

        hanging = submit(pool, hang)
        queued = submit(pool, lambda: "queued")
        await wait_until_async(inside.is_set)
        pool.abandon(hanging)
        pool.abandon(hanging)
        assert hanging.cancelled()
        assert pool.lost == 1
        assert await asyncio.wait_for(queued, 5) == "queued"
        assert await asyncio.wait_for(submit(pool, lambda: "next"), 5) == "next"
        assert len(own_threads()) == 2
        gate.set()
        await wait_until_async(lambda: pool.lost == 0)
        await wait_until_async(lambda: len(own_threads()) == 1)
        assert await submit(pool, lambda: "last") == "last"
        await pool.close(1)

    asyncio.run(main())
    wait_until(lambda: not own_threads())


async def test_abandoned_waiting_call_never_starts() -> None:
    pool = ThreadPool(1)
    gate, inside, called = threading.Event(), threading.Event(), []

    def hang() -> None:
        inside.set()
        gate.wait(10)

    hanging = submit(pool, hang)
    await wait_until_async(inside.is_set)
    waiting = submit(pool, called.append, 1)
    pool.abandon(waiting)
    assert pool.lost == 0
    gate.set()
    await hanging
    await submit(pool, time.sleep, 0)
    assert called == []
    await pool.close(1)


@pytest.mark.faults(74)
def test_abandoned_calls_leave_no_lost_or_surplus_thread() -> None:
    async def main() -> None:
        pool = ThreadPool(4)
        for round in range(300):
            futures = [submit(pool, time.sleep, 0) for _ in range(8)]
            if round % 3:
                await asyncio.sleep(0)
            for future in futures[:: 1 + round % 2]:
                pool.abandon(future)
            await asyncio.gather(*futures, return_exceptions=True)
        await wait_until_async(lambda: pool.lost == 0 and not pool._calls)
        assert pool._live <= 4
        await wait_until_async(lambda: len(own_threads()) == pool._live)
        assert await submit(pool, lambda: "well") == "well"
        await pool.close(1)

    asyncio.run(main())
    wait_until(lambda: not own_threads())


def test_closing_pool_refuses_calls_and_waits_a_bounded_time() -> None:
    gate, inside = threading.Event(), threading.Event()

    def hang() -> None:
        inside.set()
        gate.wait(10)

    async def main() -> None:
        pool = ThreadPool(1)
        hanging, waiting = submit(pool, hang), submit(pool, time.sleep, 0)
        await wait_until_async(inside.is_set)
        began = time.monotonic()
        assert await pool.close(0.05) is False
        assert time.monotonic() - began < 1
        assert waiting.cancelled()
        assert not hanging.done()
        with pytest.raises(RuntimeError, match="closed"):
            submit(pool, time.sleep, 0)

    raised = []
    threading.excepthook, before = raised.append, threading.excepthook
    try:
        asyncio.run(main())
        gate.set()  # the loop has been closed
        wait_until(lambda: not own_threads())
    finally:
        threading.excepthook = before
    assert raised == []


async def test_closing_waits_for_running_calls() -> None:
    pool = ThreadPool(2)
    running = submit(pool, lambda: (time.sleep(0.1), "done")[1])
    await wait_until_async(lambda: pool._queue.empty())
    assert await pool.close(5) is True
    assert running.result() == "done"


def test_finished_call_is_released() -> None:
    class Thing:
        pass

    def fail(thing: Thing) -> None:
        raise ValueError(thing)

    async def main() -> None:
        pool = ThreadPool(1)
        thing = Thing()
        seen = weakref.ref(thing)
        assert await submit(pool, lambda one: 1, thing) == 1
        with pytest.raises(ValueError, match="Thing"):
            await submit(pool, fail, thing)
        del thing
        await asyncio.sleep(0)
        assert seen() is None
        await pool.close(1)

    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()


def test_thread_call_has_little_overhead() -> None:
    """The lower bound is far below the rate of an idle machine, so only a real slowdown fails the
    test."""

    async def main() -> float:
        pool = ThreadPool(10)
        left = 5000

        async def some() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await submit(pool, len, ())

        began = time.perf_counter()
        await asyncio.gather(*[some() for _ in range(100)])
        rate = 5000 / (time.perf_counter() - began)
        await pool.close(1)
        return rate

    assert max(asyncio.run(main()) for _ in range(3)) > 5_000


# Processes.


def handler(function: Callable[..., Any], path: str | None = None) -> Handler:
    made = make_handler("t", function, executor="process")
    return made if path is None else Handler("t", function, "process", path=path)


def run(function: Callable[..., Any], timeout: float | None = None) -> Any:
    async def main() -> Any:
        pool = ProcessPool(1)
        try:
            return await pool.run(handler(function), INFO, timeout)
        finally:
            await pool.close(0)

    return asyncio.run(main())


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_process_gets_the_task_and_returns_a_value() -> None:
    value = run(handlers.look)
    assert value["info"] == ["id1", "data", 2, {"trace": "abc"}]
    assert value["current"] == "id1"
    assert value["pid"] != os.getpid()
    assert value["client"] == "current().client: no server runs this process"


def test_value_that_a_process_cannot_return_is_named_by_its_type() -> None:
    assert type(run(handlers.unencodable)).__name__ == "Odd"


async def test_arguments_of_an_app_task_are_decoded_in_the_process() -> None:
    pool = ProcessPool(1)
    path = "tests.support.handlers:decorated"
    assert await pool.run(handler(handlers.look, path), INFO, None) == "data!"
    with pytest.raises(InvalidTask, match="does not fit"):
        info = TaskInfo(**{**{n: getattr(INFO, n) for n in INFO.__struct_fields__}, "id": "unfit"})
        await pool.run(handler(handlers.look, path), info, None)
    await pool.close(0)


def test_exceptions_are_transferred_with_name_text_and_traceback() -> None:
    with pytest.raises(HandlerError, match=r"^OddError: it broke\n") as caught:
        run(handlers.fail)
    assert "in fail" in caught.value.traceback
    assert "ZeroDivisionError" in caught.value.traceback, "the message also gives the cause"
    with pytest.raises(HandlerError, match=r"^SystemExit: 7\n"):
        run(handlers.leave)
    with pytest.raises(HandlerError, match="its text raised"):
        run(handlers.fail_without_text)
    with pytest.raises(HandlerError, match="No module named 'nowhere'"):
        asyncio.run(one_path("nowhere:nothing"))


async def one_path(path: str) -> None:
    pool = ProcessPool(1)
    try:
        await pool.run(handler(handlers.look, path), INFO, None)
    finally:
        await pool.close(0)


def test_retry_skip_retry_and_snooze_are_transferred_unchanged() -> None:
    with pytest.raises(Retry, match="later") as caught:
        run(handlers.retry)
    assert caught.value.delay == 90
    with pytest.raises(SkipRetry, match="never"):
        run(handlers.skip)
    with pytest.raises(Snooze) as snoozed:
        run(handlers.snooze)
    assert snoozed.value.delay == 3600
    with pytest.raises(HandlerError, match="ConfigError: Retry: delay: 'soon'"):
        run(handlers.retry_wrongly)


@pytest.mark.parametrize(
    ("function", "manner"), [(handlers.exit_hard, "exit code 3"), (handlers.crash, "SIGSEGV")]
)
async def test_process_that_dies_fails_only_its_task(
    function: Callable[..., Any], manner: str, tmp_path: Path
) -> None:
    pool = ProcessPool(2)
    neighbour = asyncio.create_task(pool.run(handler(handlers.wait_for), info(tmp_path), None))
    with pytest.raises(HandlerError, match=f"the process died: .*{manner}"):
        await pool.run(handler(function), INFO, None)
    assert (await pool.run(handler(handlers.look), INFO, None))["current"] == "id1"
    (tmp_path / "go").touch()
    assert await neighbour == "waited"
    await pool.close(0)


def info(folder: Path) -> TaskInfo:
    return TaskInfo(
        id="id2", type="t", payload=str(folder).encode(), queue="default", retry=3, attempt=1,
        crashes=0, enqueued_at_us=1,
    )  # fmt: skip


@pytest.mark.faults(6)
async def test_timeout_kills_only_its_own_process(tmp_path: Path) -> None:
    hanging, other = tmp_path / "hanging", tmp_path / "other"
    hanging.mkdir()
    other.mkdir()

    pool = ProcessPool(2)
    neighbour = asyncio.create_task(pool.run(handler(handlers.wait_for), info(other), None))
    with pytest.raises(TimeoutError):
        await pool.run(handler(handlers.wait_for), info(hanging), 0.5)
    pid = int((hanging / "pid").read_text())
    await wait_until_async(lambda: gone(pid), timeout=2)
    assert not gone(int((other / "pid").read_text()))
    (other / "go").touch()
    assert await neighbour == "waited"
    await pool.close(0)


async def test_a_cancelled_call_kills_its_process_and_frees_the_slot(tmp_path: Path) -> None:
    pool = ProcessPool(1)
    call = asyncio.create_task(pool.run(handler(handlers.wait_for), info(tmp_path), None))
    await wait_until_async((tmp_path / "pid").exists)
    pid = int((tmp_path / "pid").read_text() or "0")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await wait_until_async(lambda: gone(pid), timeout=2)
    assert (await pool.run(handler(handlers.look), INFO, None))["current"] == "id1"
    await pool.close(0)


def test_slow_import_continues_after_its_caller_has_given_up(tmp_path: Path) -> None:
    module = "slow_to_import_for_qsync_tests"
    (tmp_path / f"{module}.py").write_text(
        "import os, pathlib, time\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "(folder / 'begun').touch()\n"
        "while not (folder / 'go').exists(): time.sleep(0.01)\n"
        "def handle(task): return os.getpid()\n"
    )

    async def main() -> None:
        pool = ProcessPool(1)
        slow = handler(handlers.look, f"{module}:handle")
        first = asyncio.create_task(pool.run(slow, INFO, None))
        await wait_until_async((tmp_path / "begun").exists)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        (tmp_path / "begun").unlink()
        (tmp_path / "go").touch()
        assert await pool.run(slow, INFO, 5) > 0
        assert not (tmp_path / "begun").exists(), "it is imported once"
        await pool.close(0)

    sys.path.insert(0, str(tmp_path))
    try:
        asyncio.run(main())
    finally:
        sys.path.remove(str(tmp_path))


async def test_a_process_killed_while_idle_costs_no_task() -> None:
    pool = ProcessPool(1)
    for _ in range(2):
        pid = (await pool.run(handler(handlers.look), INFO, None))["pid"]
        os.kill(pid, signal.SIGKILL)
    assert (await pool.run(handler(handlers.look), INFO, None))["pid"] != pid
    await pool.close(0)


@pytest.mark.faults(16)
async def test_processes_are_reused_and_recycled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_pool, "REUSE", 3)

    pool = ProcessPool(4)
    pids = [(await pool.run(handler(handlers.look), INFO, None))["pid"] for _ in range(6)]
    assert pids == [pids[0]] * 3 + [pids[3]] * 3
    assert pids[0] != pids[3]
    monkeypatch.setattr(process_pool, "IDLE_S", 0.0)
    last = (await pool.run(handler(handlers.look), INFO, None))["pid"]
    await wait_until_async(lambda: gone(last))
    await pool.close(0)


async def test_process_pool_runs_at_most_its_limit_at_once(tmp_path: Path) -> None:
    folders = [tmp_path / str(n) for n in range(3)]
    for folder in folders:
        folder.mkdir()

    pool = ProcessPool(2)
    calls = [
        asyncio.create_task(pool.run(handler(handlers.wait_for), info(folder), None))
        for folder in folders
    ]
    await wait_until_async(lambda: sum((folder / "pid").exists() for folder in folders) == 2)
    (folders[0] / "go").touch()
    assert await calls[0] == "waited"
    await wait_until_async((folders[2] / "pid").exists)
    for folder in folders[1:]:
        (folder / "go").touch()
    assert await asyncio.gather(*calls) == ["waited"] * 3
    await pool.close(0)


def test_closing_kills_processes_that_do_not_end_in_time(tmp_path: Path) -> None:
    async def main() -> int:
        pool = ProcessPool(1)
        call = asyncio.create_task(pool.run(handler(handlers.wait_for), info(tmp_path), None))
        await wait_until_async((tmp_path / "pid").exists)
        pid = int((tmp_path / "pid").read_text() or "0")
        await pool.close(0.05)
        with pytest.raises(HandlerError, match="the process was killed"):
            await call
        with pytest.raises(HandlerError, match="closed"):
            await pool.run(handler(handlers.look), INFO, None)
        return pid

    assert gone(asyncio.run(main()))


async def test_child_processes_ignore_signals_to_the_group(tmp_path: Path) -> None:
    pool = ProcessPool(1)
    call = asyncio.create_task(pool.run(handler(handlers.wait_for), info(tmp_path), None))
    await wait_until_async((tmp_path / "pid").exists)
    pid = int((tmp_path / "pid").read_text() or "0")
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    (tmp_path / "go").touch()
    assert await call == "waited"
    await pool.close(0)


PARENT = """
import asyncio, sys
from pathlib import Path
from tests.server.test_executors import ProcessPool, handler, handlers, info
if __name__ == "__main__":
    asyncio.run(ProcessPool(1).run(handler(handlers.wait_for), info(Path(sys.argv[1])), None))
"""


def test_processes_die_with_a_killed_parent(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as parent:
        try:
            wait_until((tmp_path / "pid").exists, timeout=20)
        finally:
            parent.kill()
    pid = int((tmp_path / "pid").read_text() or "0")
    wait_until(lambda: gone(pid))
