"""Renews leases in a separate thread, so that no lease expires while a handler blocks the loop.

Every third of the lease duration, the thread renews the leases on all held tasks. The replies name
the tasks whose lease is lost and the tasks to cancel.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from qsync.broker import blocking_pool  # noqa: F401 - loaded before the first beat needs it
from qsync.broker.aio import AsyncBroker
from qsync.broker.blocking import Broker
from qsync.errors import StoreUnavailable
from qsync.server.clock import boot_s
from qsync.server.leases import LeaseKeeper, Refusal, ThreadLeaseKeeper
from qsync.server.loop_watchdog import LoopWatchdog
from qsync.server.outage_log import Outage
from qsync.server.queue_state import QueueState
from qsync.server.server_parts import PartGroup

log: Final = logging.getLogger("qsync.server")

STOP_S: Final = 1.0
"""How long a stopping server waits for a renewal in flight, in seconds."""

TICK_S: Final = 0.25
"""Longest pause between two checks of the heartbeat thread, in seconds."""


class Heartbeat:
    """A thread that renews the leases of the queues on one node.

    `on_refusals` is called on the event loop, and `watchdog`, if there is one, in the thread.
    """

    def __init__(
        self,
        leases: ThreadLeaseKeeper,
        queues: Sequence[QueueState],
        *,
        lease_s: float,
        on_refusals: Callable[[Sequence[Refusal]], None],
        watchdog: LoopWatchdog | None = None,
    ) -> None:
        self._leases = leases
        self._queues = queues
        self._lease_s = lease_s
        self._on_refusals = on_refusals
        self._watchdog = watchdog
        self._loop = asyncio.get_running_loop()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="qsync-heartbeat", daemon=True)

    async def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def stop(self) -> None:
        """Stop the thread; if a renewal takes longer than STOP_S, let the thread end on its own."""
        self._end.set()
        await asyncio.to_thread(self._thread.join, STOP_S)

    def _run(self) -> None:
        try:
            self._renew_until_stopped()
        finally:
            self._leases.close()

    def _renew_until_stopped(self) -> None:
        next_renewal = boot_s() + self._lease_s / 3
        tick = min(TICK_S, self._lease_s / 12)
        while not self._end.wait(tick):
            try:
                if self._watchdog is not None:
                    self._watchdog.check(self._post, self._leases, self._queues)
                if boot_s() >= next_renewal:
                    began = boot_s()
                    done = self._renew()
                    # After a failure, retry soon, before the leases expire.
                    next_renewal = began + self._lease_s / (3 if done else 10)
            except Exception:
                log.exception("the heartbeat continues after an unexpected error")

    def _renew(self) -> bool:
        """Renew the leases on all held tasks; return False if some renewals failed.

        The queues may be on several nodes, since the slots of a cluster can move. If a node does
        not answer, the rest of the round skips it, so that it does not delay the renewals on the
        other nodes.
        """
        silent: set[str] = set()
        all_done = True
        for queue in self._queues:
            node = self._leases.node_of(queue)
            if node in silent or self._end.is_set():
                all_done = False
                continue
            all_done &= self._leases.renew_unread(queue)
            if (error := self._leases.renew(queue, self._post_refusals)) is not None:
                all_done = False
                if isinstance(error, StoreUnavailable):
                    silent.add(node)
        return all_done

    def _post_refusals(self, refusals: Sequence[Refusal]) -> None:
        self._post(partial(self._on_refusals, refusals))

    def _post(self, function: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:  # the loop is closed
            self._end.set()


class HeartbeatThreads(PartGroup):
    """One heartbeat thread per node, so that no node delays the renewals on another node.

    Only the first thread also watches the event loop.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        queues: Sequence[QueueState],
        lease_s: float,
        leases: LeaseKeeper,
        watchdog: LoopWatchdog,
        outage: Outage,
    ) -> None:
        by_node: dict[str, list[QueueState]] = {}
        for queue in queues:
            by_node.setdefault(broker.node_name(queue.keys.key("active")), []).append(queue)
        watchdogs = itertools.chain([watchdog], itertools.repeat(None))
        beats = [
            Heartbeat(
                ThreadLeaseKeeper(
                    Broker(broker.address, connections=1, read_timeout=lease_s / 10),
                    lease_s,
                    outage,
                ),
                of_node,
                lease_s=lease_s,
                on_refusals=leases.stop,
                watchdog=watchdog_or_none,
            )
            for of_node, watchdog_or_none in zip(by_node.values(), watchdogs, strict=False)
        ]
        super().__init__(beats)
