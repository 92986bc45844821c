"""Prints the progress of a long run, and ends the run early on Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Final, Self

EVERY_S: Final = 60.0
SAME_SIGNAL_S: Final = 1.0
"""Longest time between two signals that count as one request, in seconds."""

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Progress:
    """Prints one line per minute, and records the first signal that asks the run to stop.

    A run checks `stopped` between its steps and, once this is set, ends with the verdict so far. A
    second signal ends the run without a verdict. Further signals within a second are ignored,
    because `timeout` and a terminal send each signal twice.
    """

    def __init__(self, every_s: float = EVERY_S) -> None:
        self.stopped = False
        self.on_stop: Callable[[], object] = lambda: None
        self._stopped_at = 0.0
        self._every_s = every_s
        self._began = time.monotonic()
        self._printed = self._began - every_s
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._handlers = {number: signal.signal(number, self._stop) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def tell(self, line: Callable[[], str]) -> None:
        """Print the time since the start and the line, unless a line was printed less than a minute
        ago."""
        now = time.monotonic()
        if now - self._printed >= self._every_s:
            self._printed = now
            sys.stderr.write(f"{(now - self._began) / 60:.0f} min: {line()}\n")
            sys.stderr.flush()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if frame is None:
            return  # a simulated server passes on a signal that the simulation sent to it
        now = time.monotonic()
        if self.stopped:
            if now - self._stopped_at > SAME_SIGNAL_S:
                raise KeyboardInterrupt
            return
        self.stopped, self._stopped_at = True, now
        self.on_stop()
        sys.stderr.write("stopping; a second signal ends the run without a verdict\n")
        sys.stderr.flush()
