"""Parts of a server that the test kit replaces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qsync.broker.address import Address
from qsync.broker.aio import AsyncBroker
from qsync.server.thread_pool import Threads


@dataclass(slots=True)
class ReplacedParts:
    """The broker; where `def` handlers run (None means a pool of threads); whether schedules tick;
    and the longest wait of a batch for more tasks, in seconds (None means that of its handler)."""

    broker: Callable[[Address], AsyncBroker] = AsyncBroker
    threads: Threads | None = None
    ticks: bool = True
    batch_wait_s: float | None = None
