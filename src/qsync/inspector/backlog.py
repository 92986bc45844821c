"""Whose tasks are pending: an estimate of the fairness keys in a backlog."""

from __future__ import annotations

from collections import Counter
from typing import Final

import msgspec

from qsync.broker import bounds_ops
from qsync.inspector.base import Base

KEYS_SAMPLED: Final = 200
"""Number of pending tasks whose fairness key is read."""


class KeyShares(msgspec.Struct, frozen=True, kw_only=True):
    """The fairness keys of pending tasks, read at positions spread over the queue.

    pending  number of pending tasks
    read     number of those whose key was read: all of them, or 200
    keys     number of those by fairness key, the most first; tasks without a key are not in it
    """

    pending: int
    read: int
    keys: dict[str, int]

    def share(self, key: str) -> float:
        """Return the share of a fairness key, from 0 to 1."""
        return self.keys.get(key, 0) / self.read if self.read else 0.0

    def estimate(self, key: str) -> int:
        """Return about how many pending tasks have a fairness key; exact if all were read."""
        return round(self.share(key) * self.pending)


class _BacklogMixin(Base):
    """Reads whose tasks are pending."""

    async def key_shares(self, queue: str = "default") -> KeyShares:
        """Return the fairness keys of pending tasks: of up to 200 exactly, of more as a sample."""
        call = bounds_ops.sample_keys(self._keys(queue), count=KEYS_SAMPLED)
        pending, keys = await self._broker.run(call)
        counts = Counter(key for key in keys if key)
        return KeyShares(pending=pending, read=len(keys), keys=dict(counts.most_common()))
