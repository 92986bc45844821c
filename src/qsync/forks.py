"""Makes a forked child discard the state that it must not share with its parent, such as
connections.

Python calls the functions of `os.register_at_fork` in the children that it forks. uWSGI forks
without calling them, unless its option `py-call-uwsgi-fork-hooks` is set. Therefore, blocking
calls, and the code that encodes a task, call `notice`. On Linux, `notice` reads a byte of a page
that the kernel clears in each child. Reading it is ten times as fast as the system call for the
process id.
"""

from __future__ import annotations

import mmap
import os
import sys
import threading
from collections.abc import Callable
from typing import Final

_WIPE_ON_FORK: Final = 18
"""Value of MADV_WIPEONFORK (Linux 4.14 and later), for which Python's `mmap` has no constant."""

_resets: Final[list[Callable[[], None]]] = []
_lock = threading.Lock()
_pid = os.getpid()


def _wiped_page() -> mmap.mmap | None:
    """Return a page that begins with a byte of 1 and that the kernel clears in each forked child.

    Return None if the system has no such pages.
    """
    if sys.platform != "linux":
        return None
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        page.madvise(_WIPE_ON_FORK)
    except OSError:
        page.close()
        return None
    page[0] = 1
    return page


_page = _wiped_page()


def on_fork(reset: Callable[[], None]) -> None:
    """Call `reset` in each forked child, before it does anything else with qsync."""
    _resets.append(reset)


def notice() -> None:
    """Reset the inherited state if this process was forked without Python's fork hooks."""
    if _is_child():
        with _lock:  # other threads wait until the reset is complete
            if _is_child():
                _reset()


def _is_child() -> bool:
    """Return whether this process was forked since the last reset."""
    return os.getpid() != _pid if _page is None else not _page[0]


def _reset() -> None:
    global _pid
    for reset in _resets:
        reset()
    _pid = os.getpid()
    if _page is not None:
        _page[0] = 1


def _forked() -> None:
    """Reset the inherited state in a child that Python has forked.

    Replace the lock, since a thread of the parent may have held it.
    """
    global _lock
    _lock = threading.Lock()
    _reset()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_forked)
