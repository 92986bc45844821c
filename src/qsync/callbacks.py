"""Checks functions that a program registers, and tells their own errors from a cancellation of the
code that calls them."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from qsync.loop_internals import running_loop


def takes(function: Any, count: int) -> bool:
    """Return whether the value can be called with this number of positional arguments."""
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # a builtin without a readable signature
        return True
    return True


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
