"""Reaps the zombies of orphans that the worker inherits as PID 1 of a container."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Collection
from typing import Final

REAP_INTERVAL_S: Final = 1.0
"""Time between two checks for orphans that have ended, in seconds."""


def reap(ours: Collection[int]) -> int:
    """Reap ended processes, up to the first in `ours`, which asyncio reaps; return their number.

    A process that a handler started becomes a child of PID 1 when the handler's process dies.
    """
    reaped = 0
    with contextlib.suppress(ChildProcessError):  # there are no children
        while True:
            child = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if child is None or child.si_pid in ours:
                break
            os.waitpid(child.si_pid, os.WNOHANG)
            reaped += 1
    return reaped


async def keep_reaping(ours: Callable[[], Collection[int] | None]) -> None:
    """Reap orphans until cancelled; skip a round while `ours` returns None (not known)."""
    while True:
        reapable = ours()
        if reapable is not None:
            reap(reapable)
        await asyncio.sleep(REAP_INTERVAL_S)
