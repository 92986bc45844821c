"""Checks functions that a program registers, and tells their own errors from a cancellation of the
code that calls them."""

from __future__ import annotations

import asyncio
import functools
import inspect
from typing import Any, Final

from qsync.loop_internals import running_loop


def takes(function: Any, count: int) -> bool:
    """Return whether the value can be called with this number of positional arguments; True if its
    signature is unknown."""
    if not callable(function):
        return False
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # e.g. a builtin
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def yields(function: Any) -> bool:
    """Return whether the value is a generator function, `def` or `async def`, whose body does not
    run when it is called."""
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function) and callable(function):
        function = type(function).__call__
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


NEVER_RUNS: Final = "is a generator function, whose body would never run"
"""Reason for which a generator function is refused."""


def stops_caller(error: BaseException) -> bool:
    """Return whether the error stops the coroutine that calls a function, as opposed to an error
    that the function raised.

    Such an error is the CancelledError of a cancelled asyncio task, or the GeneratorExit of a
    coroutine that is closed after its event loop has ended. Any other error, even SystemExit, was
    raised by the function, and must not end the server or change the outcome of a task.
    """
    loop = running_loop()
    task = None if loop is None else asyncio.current_task(loop)
    if isinstance(error, asyncio.CancelledError):
        return task is not None and task.cancelling() > 0
    return isinstance(error, GeneratorExit) and task is None
