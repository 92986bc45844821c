"""What the inspector returns about types of tasks."""

from __future__ import annotations

import msgspec

from qsync.inspector.values import Pause


class PausedType(msgspec.Struct, frozen=True, kw_only=True):
    """A paused type of a queue.

    pause    who paused it, why and when
    waiting  tasks that have been set aside; more may be pending until a server comes to them
    """

    type: str
    pause: Pause
    waiting: int
