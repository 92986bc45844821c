"""`current()` has a useful repr and typed members, and a test can provide one to a function."""

from __future__ import annotations

import asyncio
import contextlib
import pydoc
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest

import qsync
from qsync import InvalidTask, Qsync, QsyncError, TaskInfo, current
from qsync.testing import context
from tests.support.stores import Store


class State:
    mail = "mail"


class Other:
    pass


app = Qsync("redis://localhost:1")


@app.task(name="months")
def months(count: int) -> int:
    for done in range(count):
        if current().cancelled:
            return done
        current().progress(done + 1, count)
    return count


@app.task(name="months-async")
async def months_async(task: TaskInfo, count: int) -> str:
    await asyncio.sleep(0)
    current().progress(1, count)
    return current().task.type


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -5, "3", None, 10**400])
def test_progress_that_is_not_a_number_from_0_is_refused(value: Any) -> None:
    with context() as given:
        with pytest.raises(InvalidTask, match=r"^progress: done: .* is not a finite number from 0"):
            current().progress(value, 10)
        with pytest.raises(InvalidTask, match=r"^progress: total: .* is not a finite number"):
            current().progress(3, value)
        current().progress(11, 10)
        current().progress(Decimal(3), 0)
    assert given.told == [(11, 10), (3, 0)]


def test_help_lists_the_members_of_current() -> None:
    text = pydoc.render_doc(qsync.current)
    for name in ("task", "progress", "cancelled", "client", "state"):
        assert f"current().{name}" in text


def test_task_is_called_in_place_with_a_plain_context() -> None:
    assert months(3) == 3
    with pytest.raises(QsyncError, match=r"qsync\.testing\.context"):
        current()

    async def use() -> str:
        info = TaskInfo(
            id="1", type="t", payload=b"", queue="default", retry=0, attempt=1, crashes=0,
            enqueued_at_us=0,
        )  # fmt: skip
        return await months_async(info, 2)

    assert asyncio.run(use()) == "months-async"


def test_test_context_provides_and_records_values() -> None:
    with context(state=State(), client="client") as given:
        assert months(2) == 2
        assert current().state.mail == "mail"
        assert current(State).state.mail == "mail"
        assert current().client == "client"
        assert given.told == [(1.0, 2.0), (2.0, 2.0)]
        given.cancelled = True
        assert months(2) == 0
    with context(), pytest.raises(QsyncError, match="client=client"):
        current().client.enqueue(None)
    with context(state=Other()), pytest.raises(QsyncError, match="the lifespan yielded Other"):
        current(State)


def test_task_called_within_a_handler_has_the_context_of_the_handler(
    valkey: Store, prefix: str
) -> None:
    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[State]:
        yield State()

    served = Qsync(valkey.url, prefix=prefix, lifespan=lifespan)

    @served.task(name="inner")
    def inner() -> str:
        return current(State).state.mail + current().task.type

    @served.task(name="outer", retention=60)
    async def outer() -> str:
        return inner()

    async def use() -> None:
        async with served, served.server():
            assert await (await outer.enqueue()).result(30) == "mailouter"

    asyncio.run(use())
