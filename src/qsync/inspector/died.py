"""Dead tasks that no operator knows of yet."""

from __future__ import annotations

from datetime import datetime

import msgspec


class Died(msgspec.Struct, frozen=True, kw_only=True):
    """The dead tasks of a queue that no operator has acknowledged, and when they died."""

    number: int
    first_at: datetime
    last_at: datetime
