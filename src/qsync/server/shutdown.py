"""Ends the tasks of a stopping server, within its `shutdown_timeout` plus a few seconds.

If a node of the store does not reply, the tasks of other nodes are not delayed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Final

from qsync.server.capacity import Capacity
from qsync.server.clock import boot_s
from qsync.server.config import Config, seconds
from qsync.server.fetcher import Fetcher
from qsync.server.server_parts import cancel
from qsync.server.settler import Settler
from qsync.server.stopping import Stopping

log: Final = logging.getLogger("qsync.server")

FORCED_S: Final = 0.3
"""Time limit for each step after a second signal, in seconds."""

FETCHES_S: Final = 5.0
"""Longest wait for replies to fetches in flight, in seconds."""

CANCELLED_S: Final = 1.0
"""How long cancelled handlers may take to end, in seconds."""

SETTLE_S: Final = 5.0
"""Minimum time to settle tasks, in seconds, no matter how long running tasks took to end, since a
task that is not settled runs again."""

HAND_BACK_S: Final = 1.0
"""How long to try to hand back the tasks that the store did not settle, in seconds."""

PASS_ON_S: Final = 1.0
"""Longest time to wake other servers for pending tasks, in seconds."""


class Shutdown:
    """The steps that end a server; `force` is set by the second signal."""

    def __init__(
        self,
        config: Config,
        capacity: Capacity,
        stopping: Stopping,
        fetcher: Fetcher,
        settlers: Sequence[Settler],
        force: asyncio.Event,
    ) -> None:
        self._timeout_s = seconds(config.shutdown_timeout)
        self._capacity = capacity
        self._stopping = stopping
        self._fetcher = fetcher
        self._settlers = settlers
        self._force = force
        self._ends = 0.0
        """Time at which the timeout ends, by the clock `boot_s`."""

    async def end_running(self) -> None:
        """Hand back tasks that have not started; wait for running tasks, and then cancel them.

        In the meantime, read the replies to fetches in flight, since these fetches may have leased
        tasks.
        """
        self._ends = boot_s() + self._timeout_s
        self._stopping.stop_accepting()
        self._stopping.hand_back_waiting()
        fetches_s = self._limit(min(FETCHES_S, max(self._timeout_s, FORCED_S)))
        await asyncio.gather(self._fetcher.finish(fetches_s), self._wait_for_running())
        self._stopping.hand_back_ready()
        await self._stop_running()

    async def settle(self) -> None:
        """Settle all tasks in the store, and wake other servers for the tasks that remain."""
        settlers = self._settlers
        try:
            async with asyncio.timeout(self._limit(max(SETTLE_S, self._ends - boot_s()))):
                await asyncio.gather(*[settler.drained() for settler in settlers])
        except TimeoutError:
            log.warning("the store did not record the outcomes of all tasks in time")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limit(HAND_BACK_S)):
                    await asyncio.gather(*[settler.hand_back_rest() for settler in settlers])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limit(PASS_ON_S)):
                await self._fetcher.pass_on()

    def _limit(self, seconds: float) -> float:
        return FORCED_S if self._force.is_set() else seconds

    async def _wait_for_running(self) -> None:
        idle = asyncio.ensure_future(self._capacity.idle.wait())
        force = asyncio.ensure_future(self._force.wait())
        timeout = max(0.0, self._ends - boot_s())
        await asyncio.wait({idle, force}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        await cancel([idle, force])

    async def _stop_running(self) -> None:
        """Cancel running tasks; hand back those that are still running a moment later."""
        if not self._capacity.running:
            return
        self._stopping.stop_all("shutdown")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limit(CANCELLED_S)):
                await self._capacity.idle.wait()
        self._stopping.give_up_all()
