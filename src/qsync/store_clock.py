"""The store's clock, as known in the current context (`contextvars`). Without I/O.

All times in the store come from the store's own clock. So "3 min ago" must be computed with that
clock, and not with the clock of the machine that shows it. Until `follow` is called, both clocks
are assumed to agree.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Final

_ahead_s: Final[ContextVar[float]] = ContextVar("qsync_store_ahead_s", default=0.0)


def now() -> datetime:
    """Return the current time of the store's clock."""
    return datetime.fromtimestamp(time.time() + _ahead_s.get(), UTC)


def ahead(store_time: datetime) -> float:
    """Return how far the store's clock, which has just been read, is ahead of this machine's, in
    seconds."""
    return store_time.timestamp() - time.time()


def follow(ahead_s: float) -> None:
    """Set how far `now` is ahead of this machine's clock in this context, in seconds."""
    _ahead_s.set(ahead_s)
