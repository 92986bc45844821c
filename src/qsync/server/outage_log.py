"""Says in the log that the store is away, and when it is back: once for all parts of a server.

Every part goes on trying several times a second. The first failure is one line, then there is one a
minute, and one when all parts work again. Called by the loop and by the heartbeat's threads.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from qsync.errors import QsyncError, StoreUnavailable

log = logging.getLogger("qsync.server")

REMIND_S: Final = 60.0
"""How often the log says that the store is still away, seconds."""


class Outage:
    """Which parts of a server do not reach the store, or are refused by it."""

    def __init__(self) -> None:
        self.parts: dict[str, type[QsyncError]] = {}
        """What fails, and how; may be looked into without the lock."""
        self._lock = threading.Lock()
        self._since = 0.0
        self._said = 0.0

    def failed(self, part: str, error: QsyncError) -> None:
        """Note that a part failed, which tries again and calls `worked` when it succeeds."""
        with self._lock:
            now = time.monotonic()
            news = type(error) not in self.parts.values()
            if not self.parts:
                self._since = now
            self.parts[part] = type(error)
            remind = now - self._said >= REMIND_S
            if news or remind:
                self._said = now
            lasts = _shown(now - self._since)
        if not news and not remind:
            log.debug("still cannot %s: %s", part, error)
        elif news:
            log.warning("cannot %s: %s", part, error)
        elif isinstance(error, StoreUnavailable):
            log.warning("the store has been away for %s: %s", lasts, error)
        else:
            log.warning("cannot %s, for %s now: %s", part, lasts, error)

    def worked(self, part: str) -> None:
        """Note that a part works; the last of those that failed says that all do."""
        if part not in self.parts:
            return
        with self._lock:
            kind = self.parts.pop(part, None)
            if self.parts or kind is None:
                return
            lasted = _shown(time.monotonic() - self._since)
        if kind is StoreUnavailable:
            log.warning("the store is back after %s", lasted)
        else:
            log.warning("the store refuses nothing any more, after %s", lasted)

    def note(self, what: str, error: QsyncError) -> None:
        """Log a failure of what is not tried again; in an outage only at level DEBUG."""
        with self._lock:
            known = type(error) is StoreUnavailable and StoreUnavailable in self.parts.values()
        log.log(logging.DEBUG if known else logging.WARNING, "cannot %s: %s", what, error)


def _shown(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.1f} s"
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"
