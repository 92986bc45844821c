"""A result that cannot be stored makes the task fail; `result()`, the log and listings show why."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from qsync import ConfigError, Mux, Qsync, Task, TaskFailed, TaskInfo, TaskState
from tests.support.stores import Store

MB = 1_000_000


def result_of(app: Qsync, value: Any, retention: float | None = 60) -> tuple[Any, Any, list[int]]:
    """Run a task; return its result or error, its status afterwards (or None), and its attempts."""
    mux, attempts = Mux(), list[int]()

    @mux.handle("t")
    async def handler(task: TaskInfo) -> Any:
        attempts.append(task.attempt)
        return value

    async def main() -> tuple[Any, Any]:
        async with app.async_client() as client, app.server(mux, sweep=0.1):
            handle = await client.enqueue(Task("t", retention=retention, retry=2, retry_delay=0))
            try:
                result: Any = await handle.result(10)
            except TaskFailed as error:
                result = error
            return result, await handle.info()

    return *asyncio.run(main()), attempts


@pytest.mark.faults(59)
@pytest.mark.parametrize("make", [lambda n: b"x" * n, lambda n: "x" * n, lambda n: [0] * n])
def test_result_over_the_limit_fails_the_task_at_once(
    valkey: Store, prefix: str, make: Callable[[int], Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "qsync.server")
    app = Qsync(valkey.url, prefix=prefix, payload_limit=1000)
    error, status, attempts = result_of(app, make(1200))
    assert isinstance(error, TaskFailed)
    assert "exceeds the limit of 1000 (result_limit)" in str(error)
    assert (status.state, attempts) == (TaskState.DEAD, [1])
    assert "exceeds the limit of 1000" in status.last_error
    [line] = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert "exceeds the limit of 1000" in line.getMessage()


def test_result_that_cannot_be_encoded_fails_the_task_at_once(valkey: Store, prefix: str) -> None:
    error, status, attempts = result_of(Qsync(valkey.url, prefix=prefix), object())
    assert isinstance(error, TaskFailed)
    assert "the result could not be stored" in str(error)
    assert (status.state, attempts) == (TaskState.DEAD, [1])


@pytest.mark.parametrize(
    "options", [{"payload_limit": 3 * MB}, {"result_limit": 3 * MB}, {"payload_limit": 9 * MB}]
)
def test_result_up_to_the_limit_is_kept(
    valkey: Store, prefix: str, options: dict[str, int]
) -> None:
    app = Qsync(valkey.url, prefix=prefix, **options)  # type: ignore[arg-type]
    result, status, _ = result_of(app, b"x" * 2 * MB)
    assert result == b"x" * 2 * MB
    assert status.state is TaskState.COMPLETED


def test_default_limit_is_that_of_payloads(valkey: Store, prefix: str) -> None:
    app = Qsync(valkey.url, prefix=prefix)
    result, _, _ = result_of(app, b"x" * 1024 * 1024)
    assert len(result) == 1024 * 1024
    error, _, _ = result_of(app, b"x" * (1024 * 1024 + 1))
    assert isinstance(error, TaskFailed)


@pytest.mark.parametrize("value", [0, -1, 1.5, "1", True, 2**40])
def test_wrong_limit_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="result_limit"):
        Qsync("redis://localhost", result_limit=value)
