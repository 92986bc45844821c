"""All names of asyncio that are not documented, in one place."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from signal import Signals
from typing import Any

log = logging.getLogger("qsync.server")


def abandon(task: asyncio.Task[Any]) -> None:
    """Let `asyncio.run` end although a task ignores its cancellation.

    It would wait for that task for ever. Without the undocumented names it does, and so says the
    log: the process then ends by a second signal, or when its supervisor kills it.
    """
    try:
        asyncio._unregister_task(task)
        # Nor is it worth a word when the process ends, which cannot always log by then.
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    except AttributeError:
        log.warning(
            "the event loop cannot end before handlers that ignore their cancellation: "
            "this Python is newer than this qsync knows"
        )


def callback_of(
    loop: asyncio.AbstractEventLoop, number: Signals
) -> tuple[Callable[..., object], tuple[Any, ...]] | None:
    """What the loop itself calls at a signal; None when that is nothing, or cannot be known."""
    try:
        handle = loop._signal_handlers.get(number)  # type: ignore[attr-defined]
        return None if handle is None else (handle._callback, handle._args)
    except AttributeError:  # uvloop, or a later version of asyncio
        return None
