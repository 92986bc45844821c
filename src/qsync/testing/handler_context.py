"""A context for tests of functions that use `qsync.current()`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from qsync.server.current import running
from qsync.server.standalone_context import PlainContext, plain_task
from qsync.task import DEFAULT, TaskInfo
from qsync.times import datetime_us

__all__ = ["context", "task_info"]


def task_info(
    *,
    id: str = "in-place",
    type: str = "in-place",
    payload: bytes = b"",
    queue: str = DEFAULT,
    retry: int = 3,
    attempt: int = 1,
    crashes: int = 0,
    enqueued_at: datetime | None = None,
    deadline: datetime | None = None,
    headers: Mapping[str, str] | None = None,
    final: bool = False,
) -> TaskInfo:
    """Return a TaskInfo for a direct call of a function whose first parameter is a TaskInfo.

        assert await crawl(task_info(attempt=2), "https://example.com") == 200

    `enqueued_at` defaults to now. Raises InvalidTask if a time is not an aware datetime.
    """
    return TaskInfo(
        id=id, type=type, payload=payload, queue=queue, retry=retry, attempt=attempt,
        crashes=crashes, final=final, headers=headers or {},
        enqueued_at_us=datetime_us("enqueued_at", enqueued_at or datetime.now(UTC)),
        deadline_us=None if deadline is None else datetime_us("deadline", deadline),
    )  # fmt: skip


@contextmanager
def context(
    *,
    state: Any = None,
    client: Any = None,
    cancelled: bool = False,
    task: TaskInfo | None = None,
) -> Iterator[PlainContext]:
    """Make `qsync.current()` return this state, client and task inside the block, without a server.

        with testing.context(state={"mail": mail}) as given:
            close_month("2026-11")
        assert given.told[-1] == (2, 2)       # the last call of current().progress()

    Set `given.cancelled = True` to simulate a cancelled task. The context also applies in
    `asyncio.to_thread` and asyncio tasks, but not in a `threading.Thread` that the block starts.
    """
    plain = PlainContext(
        plain_task("in-place") if task is None else task,
        state=state, client=client, cancelled=cancelled,
    )  # fmt: skip
    token = running.set(plain)
    try:
        yield plain
    finally:
        running.reset(token)
