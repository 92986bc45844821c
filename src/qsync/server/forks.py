"""Ends a child process that a handler forked and that returns from the handler.

It has a copy of the server, whose tasks, queue of calls and connections belong to its parent.
"""

from __future__ import annotations

import logging
import os
from typing import NoReturn

log = logging.getLogger("qsync.server")

generation = 0
"""How often this process or one of its forebears was forked."""


def _count() -> None:
    global generation
    generation += 1


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_count)


def end() -> NoReturn:
    """End this process, which is a copy of the server's."""
    log.error(
        "process %d was forked by a handler and returned from it: it ends here; a forked child "
        "has to end with os._exit()", os.getpid(),
    )  # fmt: skip
    os._exit(1)
