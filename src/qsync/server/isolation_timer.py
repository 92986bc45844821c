"""Ends the isolation of a suspect after a time limit, so that other tasks may run alongside it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from qsync.broker import ops
from qsync.broker.aio import AsyncBroker
from qsync.errors import QsyncError
from qsync.server.crash_isolation import ALONE_S, CrashIsolation
from qsync.server.queue_state import RUNNING, LeasedTask

log: Final = logging.getLogger("qsync.server")


class Isolation:
    """A timer for the suspect that is running alone; it calls `on_end` when other tasks may
    start."""

    def __init__(
        self, broker: AsyncBroker, suspects: CrashIsolation, on_end: Callable[[], None]
    ) -> None:
        self._broker = broker
        self._suspects = suspects
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None

    def watch(self, leased: LeasedTask) -> None:
        """Allow other tasks to run alongside this suspect if it is still running when its time
        limit for running alone expires."""
        seconds = self._suspects.alone_s(leased)
        self._loop.call_later(seconds, self._check, leased)

    async def aclose(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _check(self, leased: LeasedTask) -> None:
        if self._suspects.alone is leased and leased.phase is RUNNING:
            self._task = self._loop.create_task(self._join(leased))

    async def _join(self, leased: LeasedTask) -> None:
        """Tell the store to count no more crashes against the suspect; then let other tasks run
        alongside it."""
        try:
            call = ops.mark_started(leased.queue.keys, [leased.held], together=True)
            [answer] = await self._broker.run(call)
        except QsyncError as error:
            log.warning(
                "cannot let other tasks run alongside task %s yet: %s", leased.id, error,
                extra=leased.fields,
            )  # fmt: skip
            self._loop.call_later(ALONE_S, self._check, leased)
            return
        suspects = self._suspects
        if answer == "ok" and suspects.alone is leased and leased.phase is RUNNING:
            suspects.join(time.monotonic())
            self._on_end()
