"""Logs failures of an outbox: when one begins, once per minute while it lasts, and when it ends."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import Final

from qsync.formatting import duration

log: Final = logging.getLogger("qsync.outbox")

REMIND_S: Final = 60.0
"""Time between two log lines about an action that keeps failing, in seconds."""


@dataclass(slots=True)
class _Failure:
    """When an action began to fail, and when this was last logged."""

    since: float
    logged: float


class RetryLog:
    """Logs when an action of an outbox begins to fail, still fails, and works again. Safe to call
    from any thread."""

    def __init__(self) -> None:
        self._failures: dict[str, _Failure] = {}
        self._lock = threading.Lock()

    def failed(self, action: str, error: BaseException, *, then: str = "retrying") -> None:
        """Record that an action failed, e.g. "send rows of queue mail"."""
        now = time.monotonic()
        with self._lock:
            failure = self._failures.get(action)
            is_new = failure is None
            if failure is None:
                failure = self._failures[action] = _Failure(now, now)
            remind = now - failure.logged >= REMIND_S
            if remind:
                failure.logged = now
        if is_new:
            log.warning("cannot %s, %s: %s", action, then, first_line(error))
        elif remind:
            lasts = duration(now - failure.since)
            log.warning("still cannot %s after %s: %s", action, lasts, first_line(error))
        else:
            log.debug("still cannot %s: %s", action, first_line(error))

    def forget(self, action: str) -> None:
        """Forget a failing action because there is nothing left for it to do."""
        self._failures.pop(action, None)

    def worked(self, action: str) -> None:
        """Record that an action has succeeded."""
        if action not in self._failures:
            return
        with self._lock:
            failure = self._failures.pop(action, None)
        if failure is not None:
            log.warning(
                "can %s again, after %s", action, duration(time.monotonic() - failure.since)
            )


def first_line(error: BaseException) -> str:
    """Return the class and the first line of an error. Further lines of a driver's error may
    contain the SQL statement with its parameters, and so the payloads of tasks."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
