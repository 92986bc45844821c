"""Validates a lifespan when it is given, instead of failing later at the server's start."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from qsync.errors import ConfigError
from qsync.value_text import shorten

Lifespan = Callable[..., AbstractAsyncContextManager[Any]]
"""Function that a server calls without arguments at its start; `current().state` is the value that
its context manager yields."""

_DECORATE: Final = "decorate an `async def` that yields once with @contextlib.asynccontextmanager"


def check_lifespan(value: Lifespan | None) -> Lifespan | None:
    """Return the lifespan, or None; raise ConfigError if a server cannot call and enter it."""
    if value is not None and (reason := _reason(value)):
        name = getattr(value, "__qualname__", None) or shorten(value)
        raise ConfigError(f"lifespan: {name} {reason}")
    return value


def _reason(value: Any) -> str | None:
    """Return why a server cannot use the lifespan; None if it can."""
    if hasattr(type(value), "__aenter__"):
        return "is a context manager already; give the function that makes one, without calling it"
    if not callable(value):
        return f"is not callable; {_DECORATE}"
    wrapped = inspect.unwrap(value)
    if inspect.isasyncgenfunction(value):
        return "yields, but has no decorator; add @contextlib.asynccontextmanager"
    if inspect.isgeneratorfunction(wrapped):
        return f"is not asynchronous; {_DECORATE}"
    if inspect.iscoroutinefunction(wrapped):
        return f"is a coroutine function that yields nothing; {_DECORATE}"
    if inspect.isclass(value) and not hasattr(value, "__aenter__"):
        return f"is a class without __aenter__; {_DECORATE}"
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):  # e.g. C code without a signature
        return None
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            return (
                f"needs the parameter {parameter.name!r}, and a server calls it without arguments; "
                "give a default, or a functools.partial"
            )
    return None
