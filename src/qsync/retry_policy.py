"""Which failures of a handler are followed by another attempt, and when. Pure."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from qsync.errors import ConfigError, Retry
from qsync.keys import shorten

ErrorClasses = type[BaseException] | tuple[type[BaseException], ...]
"""One class of exceptions, or several, as `isinstance` takes them."""

DelayCallable = Callable[[int, Exception], float | timedelta]
"""`(attempt, error) -> delay`; 1 is the first attempt."""


@dataclass(frozen=True, slots=True)
class RetryRules:
    """What a handler says of its own failures."""

    delay: DelayCallable | None = None
    retry_for: ErrorClasses | None = None
    """None: all of them."""
    dont_retry_for: ErrorClasses = ()

    def is_final(self, error: BaseException) -> bool:
        """Whether no other attempt follows this error; `Retry` is followed by one in any case."""
        if isinstance(error, Retry):
            return False
        if isinstance(error, self.dont_retry_for):
            return True
        return self.retry_for is not None and not isinstance(error, self.retry_for)


NO_RULES = RetryRules()


def retry_rules(
    *, retry_delay: Any = None, retry_for: Any = None, dont_retry_for: Any = None
) -> RetryRules:
    """Check what a handler says of its failures; ConfigError names what is wrong."""
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
    for one in classes:
        if not (isinstance(one, type) and issubclass(one, BaseException)):
            msg = f"{option}: {shorten(one)} is no exception class, like ConnectionError"
            raise ConfigError(msg)
    return classes


def _takes_two(function: Any) -> bool:
    if not callable(function) or inspect.iscoroutinefunction(function):
        return False
    try:
        inspect.signature(function).bind(1, ValueError())
    except TypeError:
        return False
    except ValueError:  # of a builtin
        return True
    return True
