"""Decides which failures of a handler are retried, and after what delay. Without I/O."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from qsync.backoff import ExponentialBackoff
from qsync.callbacks import takes, yields
from qsync.errors import ConfigError, Retry
from qsync.value_text import shorten

ErrorClasses = type[BaseException] | tuple[type[BaseException], ...]
"""An exception class or a tuple of exception classes, as `isinstance` accepts them."""

DelayCallable = Callable[[int, Exception], float | timedelta]
"""A function `(attempt, error) -> delay`; the delay is in seconds or a timedelta, and attempt 1 is
the first."""


@dataclass(frozen=True, slots=True)
class RetryRules:
    """The retry options of a handler."""

    delay: DelayCallable | None = None
    retry_for: ErrorClasses | None = None
    """Error classes to retry; None means all."""
    dont_retry_for: ErrorClasses = ()

    def is_final(self, error: BaseException) -> bool:
        """Return whether this error must not be retried; False for `Retry`."""
        if isinstance(error, Retry):
            return False
        if isinstance(error, self.dont_retry_for):
            return True
        return self.retry_for is not None and not isinstance(error, self.retry_for)


NO_RULES = RetryRules()


def retry_rules(
    *, retry_delay: Any = None, retry_for: Any = None, dont_retry_for: Any = None
) -> RetryRules:
    """Check the retry options of a handler.

    Raise ConfigError, which names the option, if an option is wrong.
    """
    if isinstance(retry_delay, type) and issubclass(retry_delay, ExponentialBackoff):
        name = retry_delay.__name__
        raise ConfigError(f"retry_delay: {name} is a class; pass an instance of it: {name}()")
    if retry_delay is not None and not _takes_two(retry_delay):
        msg = f"retry_delay: {shorten(retry_delay)} is not `def (attempt, error) -> delay`"
        raise ConfigError(msg)
    if retry_delay is None and retry_for is None and dont_retry_for is None:
        return NO_RULES
    return RetryRules(
        retry_delay,
        None if retry_for is None else _classes("retry_for", retry_for),
        () if dont_retry_for is None else _classes("dont_retry_for", dont_retry_for),
    )


def _classes(option: str, value: Any) -> tuple[type[BaseException], ...]:
    classes = tuple(value) if isinstance(value, list | tuple | set | frozenset) else (value,)
    for cls in classes:
        if not (isinstance(cls, type) and issubclass(cls, BaseException)):
            msg = f"{option}: {shorten(cls)} is not an exception class such as ConnectionError"
            raise ConfigError(msg)
    return classes


def _takes_two(function: Any) -> bool:
    return takes(function, 2) and not inspect.iscoroutinefunction(function) and not yields(function)
