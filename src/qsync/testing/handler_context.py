"""A context for tests of functions that use `qsync.current()`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qsync.server.current import running
from qsync.server.standalone_context import PlainContext, plain_task
from qsync.task import TaskInfo

__all__ = ["context"]


@contextmanager
def context(
    *,
    state: Any = None,
    client: Any = None,
    cancelled: bool = False,
    task: TaskInfo | None = None,
) -> Iterator[PlainContext]:
    """Give `qsync.current()` this state, client and task inside the block, without a server.

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
