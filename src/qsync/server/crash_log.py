"""Logs the tasks that were running when their server died, and whether they run again or are
dead."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from qsync.broker import stored_task, views
from qsync.broker.aio import AsyncBroker
from qsync.broker.leased_batch import crash_count
from qsync.broker.op_values import FetchResult
from qsync.broker.truncated import decode_cut
from qsync.broker.views import StoredTaskRow
from qsync.codec import CodecError
from qsync.errors import QsyncError
from qsync.formatting import plural, printable
from qsync.keys import QueueKeys
from qsync.server.hook_calls import HookCalls
from qsync.server.queue_state import LeasedTask
from qsync.state import TaskState

log: Final = logging.getLogger("qsync.server")

TASKS_NAMED: Final = 20
"""Maximum number of tasks that one log record names; further tasks are only counted."""

HOOKED: Final = 250
"""Maximum number of tasks per fetch for which the "dead" hooks are called."""

STORE_TIMEOUT_S: Final = 5.0
"""Time limit for reading the tasks from the store, in seconds."""


class CrashLog:
    """Logs, in the background, the tasks that fetches recovered."""

    def __init__(self, broker: AsyncBroker, hooks: HookCalls | None = None) -> None:
        self._broker = broker
        self._hooks = hooks
        self._log_tasks: set[asyncio.Task[None]] = set()

    def recovered(
        self, keys: QueueKeys, fetched: FetchResult, leased: Sequence[LeasedTask]
    ) -> None:
        """Log the tasks of dead servers that a fetch moved to `pending` or to `dead`."""
        names = {
            leased_task.id: named(leased_task.id, leased_task.message.type, leased_task.crashes)
            for leased_task in leased
            if leased_task.crashes
        }
        task = asyncio.get_running_loop().create_task(self._log(keys, fetched, names))
        self._log_tasks.add(task)
        task.add_done_callback(self._log_tasks.discard)

    async def _log(self, keys: QueueKeys, fetched: FetchResult, names: dict[str, str]) -> None:
        try:
            died = await self._died(keys, fetched) if fetched.died else []
            if fetched.recovered > len(names):
                call = views.list_tasks(keys, TaskState.PENDING, count=TASKS_NAMED)
                rows = (await self._broker.run(call, patience=STORE_TIMEOUT_S)).rows
                names |= {row.id: name_of(row) for row in rows if crash_count(row.shown.crashes)}
        except QsyncError as error:
            log.debug("cannot read which tasks of queue %s were recovered: %s", keys.queue, error)
            died = []
        if fetched.recovered:
            log.warning(
                "queue %s: recovered %s from servers that died%s",
                keys.queue, plural(fetched.recovered, "task"),
                listed(list(names.values()), fetched.recovered),
            )  # fmt: skip
        for row in died[:TASKS_NAMED]:
            self._tell_death(keys.queue, row)
        if died and self._hooks is not None:
            await self._call_hooks(self._hooks, keys, died)
        died = died[:TASKS_NAMED]
        if fetched.died > len(died):
            more = fetched.died - len(died)
            log.error(
                "queue %s: %s crashed too often and became dead",
                keys.queue,
                plural(more, "more task"),
            )

    async def _died(self, keys: QueueKeys, fetched: FetchResult) -> list[StoredTaskRow]:
        """Return the tasks that this fetch moved to `dead`: those that died at the time of the
        fetch."""
        count = min(fetched.died, TASKS_NAMED if self._hooks is None else HOOKED)
        call = views.list_tasks(keys, TaskState.DEAD, count=count, backwards=True)
        page = await self._broker.run(call, patience=STORE_TIMEOUT_S)
        return [row for row in page.rows if row.shown.score == fetched.now_us]

    async def _call_hooks(
        self, hooks: HookCalls, keys: QueueKeys, died: Sequence[StoredTaskRow]
    ) -> None:
        """Call the "dead" hooks. First read the messages again, since `died` may have truncated
        messages."""
        ids = [row.id for row in died]
        try:
            shown = await self._broker.run(views.get_tasks(keys, ids), patience=STORE_TIMEOUT_S)
        except QsyncError as error:
            log.warning("cannot read the dead tasks of queue %s for hooks: %s", keys.queue, error)
            return
        hooks.crashed(
            [
                stored_task.status(id, keys.queue, task)
                for id, task in zip(ids, shown, strict=True)
                if task is not None
            ]
        )

    def _tell_death(self, queue: str, row: StoredTaskRow) -> None:
        type, crashes = _type_of(row), crash_count(row.shown.crashes)
        log.error(
            "task %s of type %s on queue %s is dead: crashed %s",
            row.id, type, queue, plural(crashes, "time"),
            extra={
                "task_id": row.id, "queue": queue, "task_type": type, "crashes": crashes,
                "final": True,
            },
        )  # fmt: skip

    async def aclose(self) -> None:
        """Cancel pending log records."""
        for task in self._log_tasks:
            task.cancel()
        await asyncio.gather(*self._log_tasks, return_exceptions=True)


def name_of(row: StoredTaskRow) -> str:
    """Return the id, type and crash count of a stored task as text."""
    return named(row.id, _type_of(row), crash_count(row.shown.crashes))


def named(id: str, type: str, crashes: int) -> str:
    """Return an id, a type and a crash count as text: `id (type, crash 2)`."""
    count = f", crash {crashes}" if crashes else ""
    return f"{id} ({printable(type)}{count})"


def listed(names: Sequence[str], total: int) -> str:
    """Return `: a, b and 7 more`, or an empty string if there are no names."""
    if not names:
        return ""
    shown = ", ".join(names[:TASKS_NAMED])
    more = total - min(len(names), TASKS_NAMED)
    return f": {shown}" + (f" and {more} more" if more > 0 else "")


def _type_of(row: StoredTaskRow) -> str:
    try:
        message = decode_cut(row.shown.message or b"", row.length)
    except CodecError:
        return "unknown"
    return printable(message.type)
