"""Exits cleanly on a signal that arrives while a command still imports the user's code."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import typer


class _Stopped(BaseException):
    """Not an Exception, so that imported code does not catch it by accident."""


@contextlib.contextmanager
def early_stop(doing: str) -> Iterator[Callable[[], None]]:
    """Exit with code 0 and one line on SIGTERM or SIGINT, even as PID 1.

    The kernel does not deliver a signal to PID 1 that it has no handler for. A command that runs an
    event loop sets handlers of its own. `doing` says what was interrupted. Call the yielded
    function at the end: imported code may have swallowed the exception.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    seen: list[str] = []

    def stop(number: int, frame: FrameType | None) -> None:
        seen.append(signal.Signals(number).name)
        raise _Stopped

    def check() -> None:
        if seen:
            raise _Stopped

    numbers = (signal.SIGTERM, signal.SIGINT)
    before: dict[int, Any] = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield check
    except BaseException as error:
        # Imported code may have turned the exception into another one.
        if not seen:
            raise
        typer.echo(f"qsync worker: {seen[0]} while {doing}: no task was started", err=True)
        raise typer.Exit(0) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
