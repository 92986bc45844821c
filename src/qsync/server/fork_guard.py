"""Ends a child process that a handler forked and that returns from the handler, or awaits in it.

It has a copy of the server, whose tasks, queue of calls and connections belong to its parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import Final, NoReturn
from weakref import WeakSet

log = logging.getLogger("qsync.server")

generation = 0
"""How often this process or one of its forebears was forked."""


class Guard:
    """Lets no forked child go on in an event loop, until it is closed.

    The child would run what waits there, and read what the store tells its parent.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        _guards.add(self)

    def close(self) -> None:
        """Leave the loop alone."""
        _guards.discard(self)

    def act(self) -> None:
        """End this process, a child, when the loop goes on."""
        with contextlib.suppress(RuntimeError):  # it is closed
            self._loop.call_soon(end)


_guards: Final[WeakSet[Guard]] = WeakSet()


def _count() -> None:
    global generation
    generation += 1
    for guard in _guards:
        guard.act()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_count)


def end() -> NoReturn:
    """End this process, which is a copy of the server's."""
    log.error(
        "process %d was forked by a handler and returned from it, or awaits: it ends here; a "
        "forked child has to end with os._exit()", os.getpid(),
    )  # fmt: skip
    os._exit(1)
