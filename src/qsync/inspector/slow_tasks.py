"""The slowest tasks of a type that the store still has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final

import msgspec

from qsync.broker import views
from qsync.inspector.live_servers import _LiveServersMixin
from qsync.inspector.task_rows import DecodedTask, decode_row, server_of
from qsync.state import TaskState
from qsync.times import from_us

READ: Final = 250
"""Number of running and of dead tasks that are read."""

SHOWN: Final = 10


class SlowTask(msgspec.Struct, frozen=True, kw_only=True):
    """A running task, or a dead one with the duration of its last attempt; `at` is its start."""

    id: str
    state: TaskState
    seconds: float
    at: datetime
    server: str


class _SlowTasksMixin(_LiveServersMixin):
    """Finds slow tasks."""

    async def slow_tasks(self, type: str, *, queue: str = "default") -> list[SlowTask]:
        """Return up to 10 tasks of a type that have run, or ran, for the longest time.

        They are among the first 250 running and the last 250 dead tasks of the queue; of tasks that
        completed the store keeps no durations that can be listed.
        """
        keys = self._keys(queue)
        now_us, records = await self._live()
        since = {id: us for record in records for name, id, us in record.since if name == queue}
        pages = await self._run_all(
            [
                views.list_tasks(keys, TaskState.ACTIVE, count=READ),
                views.list_tasks(keys, TaskState.DEAD, count=READ, backwards=True),
            ]
        )
        tasks = [decode_row(row) for page in pages for row in page.rows]
        return slowest_of((task for task in tasks if _type_of(task) == type), since, now_us)


def slowest_of(
    tasks: Iterable[DecodedTask], since: Mapping[str, int], now_us: int
) -> list[SlowTask]:
    """Return the tasks that have run, or ran, for the longest time.

    `since` has the start times of those that are running.
    """
    slow = [found for task in tasks if (found := _slow(task, since, now_us)) is not None]
    return sorted(slow, key=lambda task: -task.seconds)[:SHOWN]


def _slow(task: DecodedTask, since: Mapping[str, int], now_us: int) -> SlowTask | None:
    if task.shown.state is TaskState.ACTIVE:
        begun_us, ended_us, server = since.get(task.id, 0), now_us, server_of(task.shown) or ""
    else:
        last = task.failure.history[-1] if task.failure.history else None
        begun_us = last.begun_us if last else 0
        ended_us, server = (last.at_us, last.server) if last else (0, "")
    if not begun_us:
        return None
    return SlowTask(
        id=task.id, state=task.shown.state, seconds=max(0, ended_us - begun_us) / 1_000_000,
        at=from_us(begun_us), server=server,
    )  # fmt: skip


def _type_of(task: DecodedTask) -> str:
    return task.message.type if task.message else ""
