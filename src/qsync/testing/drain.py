"""Runs the tasks of a test until nothing is pending, with a real server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from qsync.app import Qsync
from qsync.broker import ops, views
from qsync.broker.aio import AsyncBroker
from qsync.broker.call import Call
from qsync.broker.views import TaskPage, WorkCheck
from qsync.errors import QsyncError, SkipRetry
from qsync.keys import GlobalKeys, QueueKeys, server_of_token
from qsync.server.server import Server
from qsync.server.thread_pool import Threads
from qsync.state import TaskState
from qsync.task import TaskInfo
from qsync.testing.crash import CrashPlan

POLL_S = 0.001
"""Interval at which to check whether a server has ended its tasks, in seconds."""


BATCH_WAIT_S = 0.05
"""Maximum time that a batch waits for more tasks, in seconds; short because no other client
enqueues."""

LEASES = 250
"""Number of leases to read per call."""


class Drain:
    """One drain of an app."""

    def __init__(self, app: Qsync, plan: CrashPlan | None, threads: Threads | None) -> None:
        self._app = app
        self._plan = plan
        self._threads = threads
        self._errors: list[BaseException] = []
        self._unknown: dict[tuple[str, str], None] = {}

    async def run(self) -> None:
        """Run the pending tasks, and those enqueued in the meantime; raise the errors of
        handlers."""
        address = self._app._connections.address
        broker = AsyncBroker(address)
        try:
            while not self._crashed:
                queues = await self._queues(broker)
                if not await self._has_work(broker, queues):
                    break
                await self._serve(broker, queues)
        finally:
            await broker.aclose()
        self._raise()

    @property
    def _crashed(self) -> bool:
        return self._plan is not None and self._plan.happened

    async def _queues(self, broker: AsyncBroker) -> list[str]:
        names, cursor = set(self._app.server().config.weights), "0"
        while True:
            call = views.queues(GlobalKeys(self._app.prefix), cursor=cursor)
            part = await broker.run(call)
            names.update(part.names)
            cursor = part.cursor
            if cursor == "0":
                return sorted(names)

    async def _has_work(
        self, broker: AsyncBroker, queues: Sequence[str], server: Server | None = None
    ) -> bool:
        """Return whether tasks are pending, upkeep is due, or this server holds leases.

        The leases are read last, since a fetch may take the pending tasks at any moment.
        """
        lease_us = self._app.server().config.policy().lease_us
        keys = [QueueKeys(self._app.prefix, queue) for queue in queues]
        calls: list[Call[Any]] = [views.check_for_work(of, lease_us=lease_us) for of in keys]
        if server is not None:
            calls += [views.list_tasks(of, TaskState.ACTIVE, count=LEASES) for of in keys]
        for answer in await broker.run_many(calls):
            if isinstance(answer, QsyncError):
                raise answer
            if isinstance(answer, WorkCheck) and (answer.waits or answer.due):
                return True
            if isinstance(answer, TaskPage) and server is not None:
                owners = [server_of_token(row.shown.owner or "") for row in answer.rows]
                if server.id in owners:
                    return True
        return False

    async def _serve(self, broker: AsyncBroker, queues: Sequence[str]) -> None:
        server = self._server(queues)
        try:
            await server.start()
            while not self._crashed:
                if server.idle and not await self._has_work(broker, queues, server):
                    break
                await asyncio.sleep(POLL_S)
        except BaseException:  # e.g. a cancelled test; give handlers no more time
            server._force.set()
            raise
        finally:
            if self._crashed:
                await server.abort()
                await self._abandon(broker, server, queues)
            else:
                await server.stop()
        for queue, type in server._runner.unknown_types:
            self._unknown[type, queue] = None

    def _server(self, queues: Sequence[str]) -> Server:
        weights = self._app.server().config.weights
        server = self._app.server(queues={queue: weights.get(queue, 1) for queue in queues})
        server.replaced.ticks = False
        server.replaced.batch_wait_s = BATCH_WAIT_S
        server.replaced.threads = self._threads
        server.hooks.add("failed", self._failed)
        server.hooks.add("dead", self._dead)
        if self._plan is not None:
            self._plan.arm(server)
        return server

    async def _abandon(self, broker: AsyncBroker, server: Server, queues: Sequence[str]) -> None:
        """End the leases of the crashed server, as `qsync worker` does for a process that died."""
        for queue in queues:
            cursor = "0"
            while True:
                keys = QueueKeys(self._app.prefix, queue)
                call = ops.abandon(keys, server.id, cursor=cursor)
                cursor, _ = await broker.run(call)
                if cursor == "0":
                    break

    async def _failed(self, task: TaskInfo, error: BaseException) -> None:
        self._errors.append(_noted(task, error))

    async def _dead(self, task: TaskInfo, error: BaseException) -> None:
        if isinstance(error, SkipRetry):
            self._errors.append(_noted(task, error))

    def _raise(self) -> None:
        errors = [*self._errors]
        for type, queue in self._unknown:
            errors.append(
                QsyncError(
                    f"drain: no handler for type {type!r} of a task on queue {queue}; import the "
                    "module that defines the task"
                )
            )
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise BaseExceptionGroup(f"drain: {len(errors)} task attempts failed", errors)


def _noted(task: TaskInfo, error: Any) -> BaseException:
    """Return the error with a note that names its task."""
    raised: BaseException = error
    note = f"in task {task.type} {task.id} of queue {task.queue}, attempt {task.attempt}"
    with contextlib.suppress(Exception):  # the error's class may define another add_note
        raised.add_note(note)
    return raised
