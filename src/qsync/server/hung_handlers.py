"""Counts handlers that go on long after they were told to stop. Their slots are used by others.

They still hold memory, connections and locks that nobody can take from them but the end of the
process: so there may only be so many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

HUNG_AFTER_S: Final = 5.0
"""How long after it was told to stop a handler may go on before it counts as hung."""


class HungHandlers:
    """How many there are now; `on_too_many` is called whenever one comes that is beyond `most`."""

    def __init__(self, most: int, on_too_many: Callable[[int], None]) -> None:
        self._most = most
        self._on_too_many = on_too_many
        self.count = 0

    def add(self) -> None:
        """One more hangs."""
        self.count += 1
        if self.count > self._most:
            self._on_too_many(self.count)

    def ended(self, *_: object) -> None:
        """One that was added has ended after all."""
        self.count -= 1
