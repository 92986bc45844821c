"""How long to wait before the next attempt. Pure but for chance, and for a warning in the log.

Full jitter after Marc Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015): a
delay is drawn evenly from a window that doubles with every attempt, so that what failed together
does not come back together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from random import random as _uniform
from typing import Final

log = logging.getLogger(__name__)

RetryPolicy = float | timedelta | Callable[[int, Exception], float | timedelta] | None
"""None: full jitter. Seconds or a timedelta: fixed. A callable: (attempt, error) -> delay."""

AWAY_CAP_S: Final = 0.5
"""The longest wait of a server between tries while the store is away: soon after its return, work
goes on. How often it connects meanwhile the broker bounds."""

_MAX_S = 36_525 * 86_400  # a delay over 100 years is a mistake


def full_jitter(
    attempt: int,
    *,
    base: float = 100.0,
    cap: float = 3600.0,
    floor: float = 1.0,
    random: Callable[[], float] = _uniform,
) -> float:
    """Seconds to wait after this attempt (1 is the first): evenly from `floor` to the window.

    The window is `base` after the first failure, doubles with each further one, and ends at `cap`.
    So a task runs again after 1 to 100 s, then 1 to 200 s, and in the end 1 s to 1 h. The first
    window is that wide to spare what made the tasks fail: when 10,000 of them fail at once, no
    second of the next 100 s gets more than 200 of their retries, second and third ones counted.
    """
    window = min(cap, base * 2.0 ** min(max(attempt - 1, 0), 60))
    floor = min(floor, window)
    return floor + random() * (window - floor)


class Backoff:
    """Delays between attempts to reconnect: 50 to 100 ms at first, in the end 50 ms to 5 s.

    Never under 50 ms, so at most 20 attempts a second. Call `reset()` after a success.
    """

    def __init__(self, *, base: float = 0.1, cap: float = 5.0, floor: float = 0.05) -> None:
        self._base, self._cap, self._floor = base, cap, floor
        self._attempt = 0

    def next(self) -> float:
        """Seconds to wait before the next attempt."""
        self._attempt += 1
        return full_jitter(self._attempt, base=self._base, cap=self._cap, floor=self._floor)

    def reset(self) -> None:
        """The next delay is a first one again."""
        self._attempt = 0


def retry_delay(policy: RetryPolicy, attempt: int, error: Exception) -> float:
    """Seconds to wait before a task runs again after this attempt (1 is the first) failed.

    A policy that raises, or gives anything but 0 s to 100 years, is replaced by full jitter with a
    warning in the log. The warning quotes no text: that of an exception may hold the payload.
    """
    if policy is None:
        return full_jitter(attempt)
    answer: object = policy
    if callable(policy):
        try:
            answer = policy(attempt, error)
        except Exception as raised:
            log.warning("retry_delay raised %s, using full jitter", type(raised).__name__)
            return full_jitter(attempt)
    seconds = answer.total_seconds() if isinstance(answer, timedelta) else answer
    if (
        isinstance(seconds, int | float)
        and not isinstance(seconds, bool)
        and 0 <= seconds <= _MAX_S
    ):
        return float(seconds)
    shown = repr(answer) if isinstance(answer, float | timedelta) else type(answer).__name__
    log.warning("retry_delay gave %s, not 0 s to 100 years, using full jitter", shown)
    return full_jitter(attempt)
