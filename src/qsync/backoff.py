"""How long to wait before the next attempt. Pure except for chance and warnings in the log.

By default a task waits a little after its first failure, since most are blips, and much longer
after each further one. Each delay is drawn evenly from a window, so that what failed together does
not come back together; see Marc Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog,
2015).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from random import random as _chance
from typing import Final

import msgspec

from qsync.errors import ConfigError
from qsync.keys import raised_at, shorten

log = logging.getLogger(__name__)

WINDOWS_S: Final = ((1, 2), (15, 30), (180, 300), (600, 1200), (1800, 3600))
"""Least and most seconds to wait after the first, second, ... failure; the last one repeats."""

AWAY_CAP_S: Final = 0.5
"""The longest wait of a server between tries while the store is away: soon after its return, work
goes on. How often it connects meanwhile the broker bounds."""

LONGEST_LIST: Final = 100
"""Delays that a list may have."""

_MAX_S: Final = 36_525 * 86_400  # a delay over 100 years is a mistake


class ExponentialBackoff(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A policy for `retry_delay`: delays that grow by a factor.

    first    seconds after the first failure
    factor   each further delay is so many times the one before
    longest  seconds that none exceeds
    jitter   up to this share of a delay, drawn anew each time, is taken off: 0 to 1
    """

    first: float = 1.0
    factor: float = 4.0
    longest: float = 3600.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        for name, least, most in (
            ("first", 0, _MAX_S), ("factor", 1, 1000), ("longest", 0, _MAX_S), ("jitter", 0, 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if type(value) not in (int, float) or not least <= value <= most:
                msg = f"{name}: {shorten(value)} is not a number from {least} to {most}"
                raise ConfigError(f"ExponentialBackoff: {msg}")

    def __call__(self, attempt: int, error: object = None) -> float:
        """Seconds to wait after this attempt; 1 is the first."""
        delay = self.first
        for _ in range(attempt - 1):
            if delay >= self.longest or self.factor == 1 or not delay:
                break
            delay *= self.factor
        return min(delay, self.longest) * (1 - self.jitter * _chance())  # noqa: S311 - of no secret


Delay = float | timedelta
"""Seconds, or a timedelta."""

Delays = Delay | Sequence[Delay] | ExponentialBackoff
"""A delay for all attempts, one for each (the last one repeats), or a policy."""

RetryPolicy = Delays | Callable[[int, Exception], Delay] | None
"""None: the default windows. A callable: (attempt, error) -> delay."""


def spread(least: float, most: float) -> float:
    """A number between these, for servers that should not all act at one moment."""
    return least + _chance() * (most - least)  # noqa: S311 - of no secret


def default_delay(attempt: int, *, random: Callable[[], float] = _chance) -> float:
    """Seconds to wait after this attempt (1 is the first), drawn from the default windows."""
    least, most = WINDOWS_S[min(max(attempt, 1), len(WINDOWS_S)) - 1]
    return least + random() * (most - least)


class Backoff:
    """Delays between attempts to reconnect: 50 to 100 ms at first, in the end 50 ms to 5 s.

    Never under 50 ms, so at most 20 attempts a second. Call `reset()` after a success.
    """

    def __init__(self, *, base: float = 0.1, cap: float = 5.0, floor: float = 0.05) -> None:
        self._base, self._cap, self._floor = base, cap, floor
        self._attempt = 0

    def next(self) -> float:
        """Seconds to wait before the next attempt: evenly from the floor to a doubling window."""
        window = min(self._cap, self._base * 2.0 ** min(self._attempt, 60))
        self._attempt += 1
        floor = min(self._floor, window)
        return floor + _chance() * (window - floor)  # noqa: S311 - of no secret

    def reset(self) -> None:
        """The next delay is a first one again."""
        self._attempt = 0


def retry_delay(policy: RetryPolicy, attempt: int, error: Exception) -> float:
    """Seconds to wait before a task runs again after this attempt (1 is the first) failed.

    A policy that raises, or gives anything but 0 s to 100 years, is replaced by the default with a
    warning in the log. The warning quotes no text: that of an exception may hold the payload.
    """
    if policy is None:
        return default_delay(attempt)
    answer: object = policy
    if callable(policy):
        try:
            answer = policy(attempt, error)
        except Exception as raised:
            log.warning("retry_delay raised %s, using the default delay", raised_at(raised))
            return default_delay(attempt)
    elif isinstance(policy, list | tuple) and policy:
        answer = policy[min(max(attempt, 1), len(policy)) - 1]
    seconds = answer.total_seconds() if isinstance(answer, timedelta) else answer
    if (
        isinstance(seconds, int | float)
        and not isinstance(seconds, bool)
        and 0 <= seconds <= _MAX_S
    ):
        return float(seconds)
    shown = repr(answer) if isinstance(answer, float | timedelta) else type(answer).__name__
    log.warning("retry_delay gave %s, not 0 s to 100 years, using the default delay", shown)
    return default_delay(attempt)
