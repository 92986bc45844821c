"""Reaps processes that PID 1 of a container inherits, or they stay zombies for its whole life."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Collection
from typing import Final

LOOK_S: Final = 1.0
"""Time between two checks for orphans that have ended, in seconds."""


def reap(ours: Collection[int]) -> int:
    """Reap processes that have ended, up to one of `ours`, which asyncio reaps; how many they were.

    What a handler started becomes a child of PID 1 when the process of the handler dies.
    """
    reaped = 0
    with contextlib.suppress(ChildProcessError):  # there is no child at all
        while True:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None or found.si_pid in ours:
                break
            os.waitpid(found.si_pid, os.WNOHANG)
            reaped += 1
    return reaped


async def keep_reaping(ours: Callable[[], Collection[int] | None]) -> None:
    """Reap orphans until cancelled; `ours` is None while it is not known which are ours."""
    while True:
        known = ours()
        if known is not None:
            reap(known)
        await asyncio.sleep(LOOK_S)
