"""All uses of undocumented names of asyncio."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from signal import Signals
from typing import Any, Final

log: Final = logging.getLogger("qsync.server")


def abandon(task: asyncio.Task[Any]) -> None:
    """Let `asyncio.run` end even if a task ignores its cancellation.

    Without this function, `asyncio.run` would wait for that task forever. If this Python lacks the
    undocumented names, log a warning. The process then ends at a second signal, or when its
    supervisor kills it.
    """
    try:
        asyncio._unregister_task(task)
        # Suppress asyncio's "Task was destroyed" warning at exit, when logging may not work.
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    except AttributeError:
        log.warning(
            "the event loop cannot end before handlers that ignore their cancellation: "
            "this release of qsync does not support this version of Python"
        )


def callback_of(
    loop: asyncio.AbstractEventLoop, number: Signals
) -> tuple[Callable[..., object], tuple[Any, ...]] | None:
    """Return the handler that the loop has for a signal; None if it has no handler or hides it."""
    try:
        handle = loop._signal_handlers.get(number)  # type: ignore[attr-defined]
        return None if handle is None else (handle._callback, handle._args)
    except AttributeError:  # the loop is from uvloop or a newer asyncio
        return None
