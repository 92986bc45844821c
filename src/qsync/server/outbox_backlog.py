"""The backlog of an outbox whose relay runs alongside the servers of this process.

A worker serves the backlog at /metrics on its health port. Relays are in `qsync.contrib.outbox`,
which servers do not import, so a relay adds its function here when it starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import msgspec


class OutboxBacklog(msgspec.Struct, frozen=True):
    """The number of waiting rows at the last count, and the age of the oldest row in seconds."""

    rows: int
    oldest_s: float


relays: Final[list[Callable[[], OutboxBacklog | None]]] = []
"""A function for each running relay; it returns None until the relay has counted its rows."""


def largest_backlog() -> OutboxBacklog | None:
    """Return the largest backlog of this process's relays."""
    return largest(backlog() for backlog in tuple(relays))


def largest(backlogs: Iterable[OutboxBacklog | None]) -> OutboxBacklog | None:
    """Return the largest row count and the largest age, not their sums, since relays of one outbox
    count the same rows."""
    counted = [backlog for backlog in backlogs if backlog is not None]
    if not counted:
        return None
    return OutboxBacklog(
        max(backlog.rows for backlog in counted), max(backlog.oldest_s for backlog in counted)
    )
