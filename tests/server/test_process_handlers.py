"""Handlers in separate processes: their errors, their output, and the programs that they start."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from qsync.mux import Mux
from qsync.server.thread_pool import HandlerError, ProcessPool
from qsync.task import Task, TaskInfo
from tests.server.test_executors import INFO, gone, handler
from tests.support import handlers
from tests.support.server import bench
from tests.support.stores import Store, wait_until_async

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])


def waiting_in(folder: Path) -> TaskInfo:
    fields: dict[str, Any] = {name: getattr(INFO, name) for name in INFO.__struct_fields__}
    return TaskInfo(**{**fields, "payload": str(folder).encode()})


def test_on_error_and_retry_delay_get_the_class_that_was_raised(valkey: Store, prefix: str) -> None:
    mux = Mux()
    kinds = {
        "value": handlers.fail_with_value, "own": handlers.fail, "key": handlers.fail_with_key,
        "attributes": handlers.fail_with_attributes, "local": handlers.fail_locally,
        "exit": handlers.leave, "os": handlers.fail_with_os_error,
        "cancelled": handlers.fail_with_cancelled_error,
    }  # fmt: skip
    for name, function in kinds.items():
        mux.handle(name, executor="process")(function)
    told: dict[str, BaseException] = {}
    asked: dict[str, BaseException] = {}

    def on_error(error: BaseException, task: TaskInfo) -> None:
        told[task.type] = error

    def retry_delay(attempt: int, error: BaseException) -> float:
        asked[type(error).__name__] = error
        return 600.0

    async def main() -> None:
        async with (
            bench(valkey.url, prefix) as b,
            b.server(mux, processes=1, on_error=on_error, retry_delay=retry_delay),
        ):
            ids = {name: (await b.client.enqueue(Task(name, retry=1))).id for name in kinds}
            for id in ids.values():

                async def retried(id: str = id) -> bool:
                    return await b.state(id) == "retry"

                await wait_until_async(retried, timeout=60)
            info = await b.client.handle(ids["own"]).info()
            assert info.last_error is not None
            assert info.last_error.startswith("OddError: it broke")
            assert "in fail" in info.last_error
            assert "ZeroDivisionError" in info.last_error

    asyncio.run(main())
    assert type(told["value"]) is ValueError
    assert told["value"].args == ("no good", 7)
    assert type(told["own"]) is handlers.OddError
    assert str(told["own"]) == "it broke"
    assert isinstance(told["key"], KeyError)
    assert str(told["key"]) == "'missing'"
    slow = told["attributes"]
    assert type(slow) is handlers.SlowDownError
    assert slow.after == 12
    assert isinstance(told["os"], FileNotFoundError)
    assert told["os"].errno == 2
    # The class exists only in the other process; here, the error has the nearest known base class
    # and the original name.
    assert isinstance(told["local"], LookupError)
    assert type(told["local"]).__name__ == "LocalError"
    assert type(told["exit"]) is SystemExit
    assert told["exit"].args == (7,)
    assert isinstance(told["cancelled"], HandlerError)
    assert {"ValueError", "OddError", "SlowDownError", "FileNotFoundError"} <= asked.keys()


def test_exception_groups_of_a_process_match_retry_rules(valkey: Store, prefix: str) -> None:
    mux = Mux()
    rules: dict[str, dict[str, Any]] = {
        "group": {"retry_for": ExceptionGroup},
        "base": {"retry_for": BaseExceptionGroup},
        "exit": {"retry_for": SystemExit},
        "refused": {"dont_retry_for": ExceptionGroup},
    }
    for name, options in rules.items():
        function = handlers.leave if name == "exit" else handlers.fail_with_group
        options = {"retry_delay": lambda attempt, error: 0, **options}
        mux.handle(name, executor="process", **options)(function)
    told: dict[str, BaseException] = {}
    attempts: dict[str, int] = {}

    def on_error(error: BaseException, task: TaskInfo) -> None:
        told[task.type] = error
        attempts[task.type] = task.attempt

    async def main() -> None:
        async with (
            bench(valkey.url, prefix) as b,
            b.server(mux, processes=1, on_error=on_error),
        ):
            for name in rules:
                handle = await b.client.enqueue(Task(name, retry=1))
                await b.reaches(handle.id, "dead")
            await wait_until_async(lambda: len(told) == len(rules))

    asyncio.run(main())
    assert attempts == {"group": 2, "base": 2, "exit": 2, "refused": 1}
    group = told["group"]
    assert type(group) is ExceptionGroup
    assert group.message == "several"
    value, odd, inner = group.exceptions
    assert type(value) is ValueError
    assert value.args == (1,)
    assert type(odd) is handlers.OddError
    assert type(inner) is ExceptionGroup
    assert isinstance(inner.exceptions[0], HandlerError)  # an unknown class
    assert str(inner.exceptions[0]).startswith("LocalError: ")
    assert str(group) == "several (3 sub-exceptions)"


@pytest.mark.faults(96)
async def test_a_timeout_kills_the_programs_that_the_handler_started(tmp_path: Path) -> None:
    pool = ProcessPool(1)
    info = waiting_in(tmp_path)
    await pool.run(handler(handlers.look), INFO, None)
    with pytest.raises(TimeoutError):
        await pool.run(handler(handlers.start_a_program), info, 3)
    program = int((tmp_path / "program").read_text())
    await wait_until_async(lambda: gone(program))
    await pool.close(0)


@pytest.mark.faults(96)
@pytest.mark.parametrize("how", ["timeout", "crash"])
def test_output_before_a_kill_is_not_lost(tmp_path: Path, how: str) -> None:
    program = f"""
import asyncio, sys
from pathlib import Path
from tests.server.test_executors import ProcessPool, handler, handlers, INFO
from tests.server.test_process_handlers import waiting_in
async def main():
    pool = ProcessPool(1)
    await pool.run(handler(handlers.look), INFO, None)
    try:
        function = handlers.print_and_{"wait" if how == "timeout" else "crash"}
        await pool.run(handler(function), waiting_in(Path({str(tmp_path)!r})), 3)
    except Exception as error:
        print(type(error).__name__, flush=True)
    await pool.close(0)
if __name__ == "__main__":
    asyncio.run(main())
"""
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60, check=False,
    )  # fmt: skip
    assert "printed before the end" in done.stdout, done.stderr
    assert ("TimeoutError" if how == "timeout" else "HandlerError") in done.stdout


async def test_a_process_that_forks_runs_the_next_task_once() -> None:
    pool = ProcessPool(1)
    first = await pool.run(handler(handlers.look), INFO, None)
    assert await pool.run(handler(handlers.fork), INFO, None) == first["pid"]
    for _ in range(5):
        assert (await pool.run(handler(handlers.look), INFO, None))["pid"] == first["pid"]
    await pool.close(0)


async def test_large_arguments_and_values_are_transferred() -> None:
    pool = ProcessPool(1)
    fields: dict[str, Any] = {name: getattr(INFO, name) for name in INFO.__struct_fields__}
    info = TaskInfo(**{**fields, "payload": bytes(5_000_000)})
    assert await pool.run(handler(handlers.echo), info, None) == bytes(5_000_000)
    await pool.close(0)


def test_process_call_has_little_overhead() -> None:
    """The CPU time of the server is measured, since other work on the machine hardly affects it."""

    async def main() -> float:
        pool, nothing = ProcessPool(2), handler(handlers.nothing)
        await asyncio.gather(*[pool.run(nothing, INFO, None) for _ in range(2)])
        began = time.process_time()
        for _ in range(10):
            await asyncio.gather(*[pool.run(nothing, INFO, None) for _ in range(50)])
        took = time.process_time() - began
        await pool.close(0)
        return took / 500

    assert asyncio.run(main()) < 0.001
