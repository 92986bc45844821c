"""Ends a child process that a handler forked, once the child returns from the handler or awaits.

The child has a copy of the server, but the server's tasks, scheduled calls and connections belong
to the parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import Final, NoReturn
from weakref import WeakSet

log: Final = logging.getLogger("qsync.server")

generation: int = 0
"""Number of forks between the first process and this one."""


class ForkGuard:
    """Ends a forked child as soon as it continues the event loop; the guard is active until it is
    closed.

    Otherwise, the child would run the loop's scheduled calls and read replies that the store sent
    to its parent.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._closed = False
        self.forked: bool = False
        """True in a forked child."""
        _guards.add(self)

    def close(self) -> None:
        """Stop guarding the loop."""
        self._closed = True

    def act(self) -> None:
        """Schedule the end of this child process for the moment at which the loop continues."""
        self.forked = True
        if not self._closed:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon(end)


_guards: Final[WeakSet[ForkGuard]] = WeakSet()


def _count() -> None:
    global generation
    generation += 1
    for guard in _guards:
        guard.act()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_count)


def end() -> NoReturn:
    """Exit this process, a forked copy of the server, with status 1."""
    log.error(
        "process %d was forked by a handler, and has returned from the handler or awaits in it. "
        "It exits now; end forked processes with os._exit()", os.getpid(),
    )  # fmt: skip
    os._exit(1)
