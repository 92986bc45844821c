"""Counts handlers that still run long after their stop. Other tasks use their slots.

Hung handlers hold memory, connections and locks, which only the end of the process frees. So their
number is limited.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

HUNG_AFTER_S: Final = 5.0
"""Time after its stop from which a running handler counts as hung, in seconds."""


class HungHandlers:
    """The number of hung handlers; `on_too_many` is called with it on each one beyond `most`."""

    def __init__(self, most: int, on_too_many: Callable[[int], None]) -> None:
        self._most = most
        self._on_too_many = on_too_many
        self.count = 0

    def add(self) -> None:
        """Count one more hung handler."""
        self.count += 1
        if self.count > self._most:
            self._on_too_many(self.count)

    def ended(self, *_: object) -> None:
        """Uncount a hung handler that has ended after all."""
        self.count -= 1
