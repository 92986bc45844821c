"""Formats exceptions as size-limited text for the store and the log, even if they are broken."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from traceback import FrameSummary
from typing import Final

from qsync.errors import InvalidTask, QsyncError
from qsync.formatting import printable
from qsync.message import ERROR_LIMIT, SHORT_ERROR_LIMIT
from qsync.value_text import class_name

MESSAGE_LIMIT: Final = 1000
"""Maximum size of an error's message in the log, in bytes."""

TRACE_LIMIT: Final = 8192
"""Maximum size of a traceback in the log, in bytes."""

STACK_LIMIT: Final = 4096
"""Maximum size of the stack of a running handler, in bytes."""

DEPTH_LIMIT: Final = 200
"""Maximum number of frames that are read from that stack."""

_PACKAGE: Final = str(Path(__file__).parent.parent)
_OURS: Final = (str(Path(__file__).parent), str(Path(_PACKAGE, "contrib")))
_STANDARD: Final = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})
_INSTALLED: Final = ("/site-packages/", "/dist-packages/")
_FILE: Final = re.compile(r'  File "(.*)", line \d+')

Keep = Callable[[list[FrameSummary]], list[FrameSummary]]


class BadPayload(InvalidTask):
    """The payload does not match the handler's arguments; a retry would fail too."""


class ResultNotKept(QsyncError):
    """The handler's return value cannot be stored; a retry would fail too."""


class NeverRun(QsyncError):
    """The handler returned a coroutine or generator that did not run; a retry would fail too."""


def describe(error: BaseException, limit: int = ERROR_LIMIT) -> str:
    """Return an exception as text of at most `limit` bytes of UTF-8, even if its `str` raises.

    The text begins with the class and the message of the exception. The traceback follows, without
    the frames that called the handler, and then the same for the exception's causes. If the text is
    too long, its middle part is left out.
    """
    head = cut(head_of(error), limit // 2)
    if isinstance(error, BadPayload | NeverRun | ResultNotKept):
        return head  # a traceback would have no frames of the handler
    try:
        elsewhere = getattr(error, "traceback", None)  # set if the handler ran in another process
        parts = [str(elsewhere)] if elsewhere else _traces(error, _without_ours)
    except BaseException:  # the user's class may override any of these attributes
        parts = []
    return cut("\n\n".join([head, *filter(None, parts)]), limit)


def head_of(error: BaseException) -> str:
    """Return the class and the message, even if the error's `str` raises."""
    name = class_name(error)
    try:
        text = str(error)
    except BaseException as broken:
        text = f"<its text raised {class_name(broken)}>"
    return f"{name}: {text}" if text else name


def message_of(error: BaseException) -> str:
    """Return the class and the message as one line, truncated to MESSAGE_LIMIT bytes and then
    escaped."""
    return printable(cut(head_of(error), MESSAGE_LIMIT))


def program_trace(error: BaseException) -> str:
    """Return the traceback for the log, with only the program's own frames; "" if it has no frames.

    The traceback leaves out frames of the standard library, of installed packages and of qsync,
    unless there are no other frames. So if the program itself is an installed package, its
    tracebacks also show library frames.
    """
    if isinstance(error, BadPayload | NeverRun | ResultNotKept):
        return ""
    try:
        elsewhere = getattr(error, "traceback", None)  # set if the handler ran in another process
        # At its time limit, qsync raises TimeoutError; frames of qsync would not help.
        keep = _foreign_frames if type(error) is TimeoutError else _program_frames
        parts = [_own_lines(str(elsewhere))] if elsewhere else _traces(error, keep)
    except BaseException:  # the user's class may override any of these attributes
        return ""
    text = cut("\n".join(part.rstrip("\n") for part in parts if part), TRACE_LIMIT)
    return "\n".join(map(printable, text.split("\n")))


def _traces(error: BaseException, keep: Keep) -> list[str]:
    return [_trace(error, keep), *_causes(error, keep)]


def _trace(error: BaseException, keep: Keep) -> str:
    stack = traceback.extract_tb(error.__traceback__, limit=-40)
    return "".join(traceback.format_list(keep(list(stack))))


def _without_ours(stack: list[FrameSummary]) -> list[FrameSummary]:
    return [frame for frame in stack if not frame.filename.startswith(_OURS)]


def stack_text(stack: list[FrameSummary], limit: int) -> str:
    """Return a stack as text of at most `limit` bytes, without the frames of the server."""
    return cut("".join(traceback.format_list(_without_ours(stack))), limit)


def _program_frames(stack: list[FrameSummary]) -> list[FrameSummary]:
    """Return the program's frames. If there are none, return those of libraries, of Python or of
    qsync, in this order of preference."""
    return _foreign_frames(stack) or stack


def _foreign_frames(stack: list[FrameSummary]) -> list[FrameSummary]:
    """Return the program's frames. If there are none, return those of libraries, or else
    Python's."""
    foreign = [frame for frame in stack if not frame.filename.startswith(_PACKAGE)]
    own = [frame for frame in foreign if _is_own(frame.filename)]
    return own or [shown for shown in foreign if not _is_of_python(shown.filename)] or foreign


@lru_cache(1024)
def _is_own(file: str) -> bool:
    if not (file.startswith("<") or Path(file).is_absolute()):  # e.g. a .pyx file of an extension
        return False
    installed = any(part in file.replace("\\", "/") for part in _INSTALLED)
    return not (installed or _is_of_python(file) or file.startswith(_PACKAGE))


@lru_cache(1024)
def _is_of_python(file: str) -> bool:
    if any(part in file for part in _INSTALLED):
        return False
    return file.startswith(("<frozen ", *_STANDARD))


def _own_lines(text: str) -> str:
    """Return the program's own lines of a traceback that is already formatted."""
    lines, keeping = [], True
    for line in text.splitlines():
        if match := _FILE.match(line):
            keeping = _is_own(match[1])
        elif not line.startswith("    "):
            keeping = True
        if keeping:
            lines.append(line)
    return "\n".join(lines)


def _causes(error: BaseException, keep: Keep, depth: int = 3) -> Iterator[str]:
    """Yield the text of a group's exceptions and of causes or contexts, at most 3 of each."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions[:3]:
            yield f"in it {head_of(inner)}"
            yield _trace(inner, keep)
    cause, how = error.__cause__, "raised from"
    if cause is None and not error.__suppress_context__:
        cause, how = error.__context__, "raised while handling"
    if cause is not None and depth:
        yield f"{how} {head_of(cause)}"
        yield _trace(cause, keep)
        yield from _causes(cause, keep, depth - 1)


def cut(text: str, limit: int) -> str:
    """Return the text, without its middle part if it has more than `limit` bytes of UTF-8."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= limit:
        return data.decode("utf-8")
    half = (limit - 5) // 2
    return f"{data[:half].decode('utf-8', 'ignore')}\n...\n{data[-half:].decode('utf-8', 'ignore')}"


def first_line(text: str, limit: int = SHORT_ERROR_LIMIT) -> str:
    """Return the first line of an error, at most `limit` bytes of UTF-8."""
    data = text.partition("\n")[0].encode("utf-8", "backslashreplace")
    return data[:limit].decode("utf-8", "ignore")
