"""Logs when the store becomes unreachable and when it is reachable again, for all parts of a server
together.

Each part retries several times per second. The log gets one line for the first failure, then one
line per minute, and one line when all parts work again. The event loop and the heartbeat threads
call this module.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Final, NamedTuple

from qsync.errors import QsyncError, StoreUnavailable

log: Final = logging.getLogger("qsync.server")

REMIND_S: Final = 60.0
"""Interval of the log lines while the store is unreachable, in seconds."""


class PartFailure(NamedTuple):
    """A part of a server that is failing."""

    kind: type[QsyncError]
    """Class of the part's last error."""
    since: float
    """Time at which the part's current series of failures began, by time.monotonic."""


class Outage:
    """The parts of a server that cannot reach the store, or whose calls the store refuses."""

    def __init__(self) -> None:
        self.parts: dict[str, PartFailure] = {}
        """Parts that are failing. Any thread may read this without the lock."""
        self.reason: str = ""
        """Text of the last error; empty while all parts work. May be read without the lock."""
        self._lock = threading.Lock()
        self._since = 0.0
        self._said = 0.0
        self._noted: set[str] = set()
        """Actions whose failure was logged while a part was failing."""

    def failed(self, part: str, error: QsyncError) -> None:
        """Record that a part failed; the part will retry, and call `worked` when it succeeds."""
        with self._lock:
            now = time.monotonic()
            is_new = not self._fails_by(type(error))
            if not self.parts:
                self._since = now
            before = self.parts.get(part)
            self.parts[part] = PartFailure(type(error), now if before is None else before.since)
            self.reason = str(error)
            remind = now - self._said >= REMIND_S
            if is_new or remind:
                self._said = now
            lasts = _length_text(now - self._since)
        if not is_new and not remind:
            log.debug("still cannot %s: %s", part, error)
        elif is_new:
            log.warning("cannot %s, retrying: %s", part, error)
        elif isinstance(error, StoreUnavailable):
            log.warning("the store has been unavailable for %s: %s", lasts, error)
        else:
            log.warning("still cannot %s after %s: %s", part, lasts, error)

    def worked(self, part: str) -> None:
        """Record that a part works; log the recovery once all parts work."""
        if part not in self.parts:
            return
        with self._lock:
            failure = self.parts.pop(part, None)
            if self.parts or failure is None:
                return
            self.reason = ""
            self._noted.clear()
            lasted = _length_text(time.monotonic() - self._since)
        if failure.kind is StoreUnavailable:
            log.warning("the store is back after %s", lasted)
        else:
            log.warning("the store accepts all commands again, after %s", lasted)

    def note(self, action: str, error: QsyncError) -> None:
        """Log a failure that is not retried; while any part fails, log each action only once.

        Repeated failures, and failures while the store is known to be unreachable, are logged at
        DEBUG.
        """
        with self._lock:
            repeated = type(error) is StoreUnavailable and self._fails_by(StoreUnavailable)
            repeated = repeated or action in self._noted
            if self.parts:
                self._noted.add(action)
        log.log(logging.DEBUG if repeated else logging.WARNING, "cannot %s: %s", action, error)

    def failing_s(self, part: str) -> float:
        """Return the time since a part began to fail, in seconds; 0 while it works."""
        failure = self.parts.get(part)
        return 0.0 if failure is None else time.monotonic() - failure.since

    def _fails_by(self, kind: type[QsyncError]) -> bool:
        return any(failure.kind is kind for failure in self.parts.values())


def fetch_part(queue: str) -> str:
    """Return the name of the part that fetches from a queue, or waits for its tasks."""
    return f"fetch from queue {queue}"


def _length_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.1f} s"
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"
