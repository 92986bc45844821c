"""The heartbeats of a server: one thread for each node of the store."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from qsync.broker import blocking_pool  # noqa: F401 - loaded before the first beat needs it
from qsync.broker.aio import AsyncBroker
from qsync.broker.blocking import Broker
from qsync.server.heartbeat import Heartbeat
from qsync.server.leases import LeaseKeeper, ThreadLeaseKeeper
from qsync.server.loop_watchdog import LoopWatchdog
from qsync.server.outage_log import Outage
from qsync.server.queue_state import QueueState
from qsync.server.server_parts import PartGroup


class HeartbeatThreads(PartGroup):
    """One heartbeat thread per node, so that no node delays renewals on another.

    The first one watches the event loop.
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
