"""Makes a forked child forget what it must not share with its parent: connections, random values.

Python calls the functions of `os.register_at_fork` in the children that it forks. uWSGI forks
without Python, unless it has the option `py-call-uwsgi-fork-hooks`. So `notice` compares the
process id, which blocking calls and the encoding of a task do.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Final

_resets: Final[list[Callable[[], None]]] = []
_lock = threading.Lock()
_pid = os.getpid()


def on_fork(reset: Callable[[], None]) -> None:
    """Call `reset` in each forked child, before it does anything else with qsync."""
    _resets.append(reset)


def notice() -> None:
    """Reset what was inherited if this process was forked without Python."""
    if os.getpid() != _pid:
        with _lock:  # other threads wait until all is reset
            if os.getpid() != _pid:
                _reset()


def _reset() -> None:
    global _pid
    for reset in _resets:
        reset()
    _pid = os.getpid()


def _forked() -> None:
    """Reset in a child that Python has forked; a thread of its parent may have held the lock."""
    global _lock
    _lock = threading.Lock()
    _reset()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_forked)
