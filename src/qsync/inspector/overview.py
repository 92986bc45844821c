"""A snapshot of all queues."""

from __future__ import annotations

from datetime import datetime

import msgspec

from qsync.inspector.values import QueueInfo


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """The queues, by name, and the ids of the live servers; `at` is the store's time.

    `total` is the number of queues in use. With more than about a thousand, `queues` holds a part
    of them, and `overview(cursor=...)` reads the next part. `later` are the queues left out because
    a later version of qsync wrote their data.
    """

    at: datetime
    queues: list[QueueInfo]
    servers: list[str]
    total: int = 0
    cursor: str | None = None
    later: list[str] = []

    @property
    def more(self) -> int:
        """Number of queues in other parts."""
        return max(0, self.total - len(self.queues) - len(self.later))
