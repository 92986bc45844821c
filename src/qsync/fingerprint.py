"""The fingerprint of an error: the task's type, the exception's class and the raising function.

The fingerprint is computed from the error text in the store, so it does not depend on the server.
Servers append the fingerprint to each failure record, as a mark that a script in the store can
count.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import Final

import msgspec

from qsync.state import TaskState

_FRAME: Final = re.compile(r'  File "(.*)", line (\d+), in (.*)')
_LIBRARY: Final = re.compile(r"[/\\](site|dist)-packages[/\\]|[/\\]lib[/\\]python3[^/\\]*[/\\]|^<")
_NAME: Final = re.compile(r"[A-Za-z_][\w.]*")

FAILING: Final = (TaskState.DEAD, TaskState.RETRY)
"""States whose tasks have an error."""


class Fingerprint(msgspec.Struct, frozen=True):
    """The properties that tasks with the same error share; ErrorGroup has the same fields."""

    id: str
    type: str
    error: str
    where: str


@lru_cache(4096)
def fingerprint_of(type: str, error: str) -> Fingerprint:
    """Return the fingerprint of an error, whose text has the format of `describe` in server/."""
    head, _, trace = error.partition("\n")
    match = _NAME.match(head)
    name = match[0] if match else ""
    frame = _innermost(trace)
    place = "" if frame is None else f"{_short(frame[1])} in {frame[3]}"
    where = "" if frame is None else f"{_short(frame[1])}:{frame[2]} in {frame[3]}"
    # The line number is left out, since it changes whenever the file is edited above it.
    digest = hashlib.blake2b("\0".join((type, name, place)).encode(), digest_size=4)
    return Fingerprint(digest.hexdigest(), type, name, where)


def _innermost(trace: str) -> re.Match[str] | None:
    """Return the program's innermost frame in the first traceback, or else a library's."""
    innermost: re.Match[str] | None = None
    own: re.Match[str] | None = None
    for line in trace.split("\n"):
        if frame := _FRAME.match(line):
            innermost = frame
            own = own if _LIBRARY.search(frame[1]) else frame
        elif innermost is not None and not line.strip():
            break  # the tracebacks of causes follow
    return own or innermost


def _short(file: str) -> str:
    """Return the file with its folder, but without the parent folders, which each deploy may
    change."""
    return "/".join(re.split(r"[/\\]", file)[-2:])


def mark_of(type: str, error: str, key: str | None) -> str:
    """Return the mark of a failure: fairness key, its length in bytes as 4 hex digits, and
    fingerprint."""
    key = key or ""
    return f"{key}{len(key.encode()):04x}{fingerprint_of(type, error).id}"
