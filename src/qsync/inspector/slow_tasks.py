"""The slowest tasks of a type: running, dead, or completed today or yesterday."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final

import msgspec

from qsync.broker import type_ops, views
from qsync.inspector.live_servers import _LiveServersMixin
from qsync.inspector.task_rows import DecodedTask, decode_row, server_of
from qsync.slow_runs import SlowRun, decode_slow_runs, slowest
from qsync.state import TaskState
from qsync.times import DAY_US, from_us
from qsync.type_rolls import reported_slow_runs, slow_runs_of

SLOW_TASKS_READ: Final = 1000
"""Maximum number of running tasks, and of dead tasks, that are read."""

_TASKS_PER_PAGE: Final = 250

SLOW_TASKS_SHOWN: Final = 10


class SlowTask(msgspec.Struct, frozen=True, kw_only=True):
    """A running, completed or dead task; `at` is the start of its last attempt.

    seconds  duration of the last attempt
    stored   whether the store still has the task; a completed task is kept for its retention
    """

    id: str
    state: TaskState
    seconds: float
    at: datetime
    server: str
    stored: bool = True


class _SlowTasksMixin(_LiveServersMixin):
    """Finds slow tasks."""

    async def slow_tasks(self, type: str, *, queue: str = "default") -> list[SlowTask]:
        """Return up to 10 tasks of a type: those whose last attempts took the longest.

        The search covers up to 1,000 running tasks and the newest 1,000 dead tasks of the queue. It
        also covers the type's ten slowest completed runs of today and its ten slowest of yesterday
        (UTC), as servers report them.
        """
        keys = self._keys(queue)
        now_us, records = await self._live()
        since = {id: us for record in records for name, id, us in record.since if name == queue}
        tasks = [
            *await self._first_tasks(queue, TaskState.ACTIVE),
            *await self._first_tasks(queue, TaskState.DEAD, backwards=True),
        ]
        slow = slowest_of((task for task in tasks if _type_of(task) == type), since, now_us)
        completed = [_completed(run) for run in await self._slow_runs(type, queue, now_us)]
        listed = sorted([*slow, *completed], key=lambda task: -task.seconds)[:SLOW_TASKS_SHOWN]
        if not listed:
            return []
        shown = await self._broker.run(
            views.get_tasks(keys, [task.id for task in listed], messages=False)
        )
        return [
            msgspec.structs.replace(task, stored=stored is not None)
            for task, stored in zip(listed, shown, strict=True)
        ]

    async def _first_tasks(
        self, queue: str, state: TaskState, *, backwards: bool = False
    ) -> list[DecodedTask]:
        """Read the first SLOW_TASKS_READ tasks in a state, page by page."""
        tasks: list[DecodedTask] = []
        place: views.PageKey | None = None
        while len(tasks) < SLOW_TASKS_READ:
            call = views.list_tasks(
                self._keys(queue), state, count=_TASKS_PER_PAGE, after=place, backwards=backwards
            )
            page = await self._broker.run(call)
            tasks += [decode_row(row) for row in page.rows]
            if not page.more or not page.rows:
                break
            place = page.rows[-1].place
        return tasks[:SLOW_TASKS_READ]

    async def _slow_runs(self, type: str, queue: str, now_us: int) -> list[SlowRun]:
        """Read the slowest completed runs, including reports that have not been merged yet."""
        keys, at_once = self._keys(queue), type_ops.REPORTS_READ
        field = slow_runs_of(type)
        parts: list[type_ops.StoredTypeStats] = await self._run_all(
            [
                type_ops.type_stats(keys, [] if offset else [field], reports=at_once, offset=offset)
                for offset in range(0, type_ops.MAX_REPORTS, at_once)
            ]
        )
        reports = {name: data for part in parts for name, data in part.reports.items()}
        fresh = reported_slow_runs(reports).get(type, [])
        return slowest([*decode_slow_runs(parts[0].blocks[field]), *fresh], now_us // DAY_US)


def slowest_of(
    tasks: Iterable[DecodedTask], since: Mapping[str, int], now_us: int
) -> list[SlowTask]:
    """Return the tasks whose last attempts took, or have taken so far, the longest.

    `since` maps the ids of running tasks to their start times.
    """
    slow = [found for task in tasks if (found := _slow(task, since, now_us)) is not None]
    return sorted(slow, key=lambda task: -task.seconds)[:SLOW_TASKS_SHOWN]


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


def _completed(run: SlowRun) -> SlowTask:
    return SlowTask(
        id=run.id, state=TaskState.COMPLETED, seconds=run.run_us / 1_000_000,
        at=from_us(run.ended_us - run.run_us), server=run.server,
    )  # fmt: skip


def _type_of(task: DecodedTask) -> str:
    return task.message.type if task.message else ""
