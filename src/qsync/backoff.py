"""Delays before retries. Does no I/O, apart from drawing random numbers and logging warnings.

By default a task waits 1 to 2 s after its first failure, since most failures are transient, and
much longer after each further failure. Each delay is drawn uniformly from a window, so that tasks
that failed together do not retry together. See Marc Brooker, "Exponential Backoff And Jitter" (AWS
Architecture Blog, 2015).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from random import random as _chance
from typing import Final

import msgspec

from qsync.errors import ConfigError
from qsync.value_text import raised_at, shorten

log: Final = logging.getLogger(__name__)

WINDOWS_S: Final = ((1, 2), (15, 30), (180, 300), (600, 1200), (1800, 3600))
"""Shortest and longest delay after each failure, in seconds; the last pair repeats."""

AWAY_CAP_S: Final = 0.5
"""Longest delay between a server's attempts to reach the store while it is down, in seconds. The
delay is short, so that work resumes soon after the store is back; the broker separately limits how
often it reconnects."""

LONGEST_LIST: Final = 100
"""Maximum number of delays in a list."""

_MAX_S: Final = 36_525 * 86_400  # 100 years, since a longer delay is probably a mistake


class ExponentialBackoff(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A policy for `retry_delay`: each delay is a multiple of the previous delay.

    first    delay after the first failure, in seconds
    factor   ratio of each delay to the previous one, 1 to 1000
    longest  longest delay, in seconds
    jitter   largest share of a delay that is subtracted at random, 0 to 1

    Raises ConfigError when a value is out of range.
    """

    first: float = 1.0
    factor: float = 4.0
    longest: float = 3600.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        for name, minimum, maximum in (
            ("first", 0, _MAX_S), ("factor", 1, 1000), ("longest", 0, _MAX_S), ("jitter", 0, 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if type(value) not in (int, float) or not minimum <= value <= maximum:
                msg = f"{name}: {shorten(value)} is not a number from {minimum} to {maximum}"
                raise ConfigError(f"ExponentialBackoff: {msg}")

    def __call__(self, attempt: int, error: object = None) -> float:
        """Return the delay after this attempt, in seconds; attempt 1 is the first."""
        delay = self.first
        for _ in range(attempt - 1):
            if delay >= self.longest or self.factor == 1 or not delay:
                break
            delay *= self.factor
        return min(delay, self.longest) * (1 - self.jitter * _chance())  # noqa: S311 - not a secret


Delay = float | timedelta
"""A delay in seconds or as a timedelta."""

Delays = Delay | Sequence[Delay] | ExponentialBackoff
"""One delay for all attempts, a list of delays (the last one repeats), or a policy."""

RetryPolicy = Delays | Callable[[int, Exception], Delay] | None
"""Delays, a callable `(attempt, error) -> delay`, or None for the default windows."""


def spread(minimum: float, maximum: float) -> float:
    """Return a random number in this range, so that servers do not all act at the same moment."""
    return minimum + _chance() * (maximum - minimum)  # noqa: S311 - not a secret


def default_delay(attempt: int, *, random: Callable[[], float] = _chance) -> float:
    """Return the default delay after this attempt, in seconds; attempt 1 is the first."""
    minimum, maximum = WINDOWS_S[min(max(attempt, 1), len(WINDOWS_S)) - 1]
    return minimum + random() * (maximum - minimum)


class Backoff:
    """Delays between attempts to reconnect: at first 50 to 100 ms, later 50 ms to 5 s.

    A delay is at least 50 ms, so there are at most 20 attempts per second. Call `reset()` after a
    success. `base`, `cap` and `floor` are in seconds.
    """

    def __init__(self, *, base: float = 0.1, cap: float = 5.0, floor: float = 0.05) -> None:
        self._base, self._cap, self._floor = base, cap, floor
        self._attempt = 0

    def next(self) -> float:
        """Return the next delay, in seconds, drawn from a window that doubles each time."""
        window = min(self._cap, self._base * 2.0 ** min(self._attempt, 60))
        self._attempt += 1
        floor = min(self._floor, window)
        return floor + _chance() * (window - floor)  # noqa: S311 - not a secret

    def reset(self) -> None:
        """Start again with the first delay."""
        self._attempt = 0


def retry_delay(policy: RetryPolicy, attempt: int, error: Exception) -> float:
    """Return the delay before the next attempt, in seconds; `attempt` is the number of the failed
    attempt, from 1.

    If the policy raises any exception, or returns a value outside 0 s to 100 years, the function
    logs a warning and returns the default delay. The warning omits the text of the exception, which
    may contain the payload.
    """
    if policy is None:
        return default_delay(attempt)
    answer: object = policy
    if callable(policy):
        try:
            answer = policy(attempt, error)
        except BaseException as raised:  # even SystemExit, which would end the server
            log.warning("retry_delay raised %s; using the default delay", raised_at(raised))
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
    log.warning("retry_delay returned %s, not 0 s to 100 years; using the default delay", shown)
    return default_delay(attempt)
