"""Exceptions as bounded text, for the store and for the log, whatever their classes do."""

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
from qsync.keys import class_name
from qsync.task import ERROR_LIMIT, SHORT_ERROR_LIMIT

MESSAGE_LIMIT: Final = 1000
"""Bytes of an error's message in the log."""

TRACE_LIMIT: Final = 8192
"""Bytes of a traceback in the log."""

_OURS: Final = str(Path(__file__).parent)
_PACKAGE: Final = str(Path(__file__).parent.parent)
_STANDARD: Final = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})
_INSTALLED: Final = ("/site-packages/", "/dist-packages/")
_FILE: Final = re.compile(r'  File "(.*)", line \d+')

Keep = Callable[[list[FrameSummary]], list[FrameSummary]]


class BadPayload(InvalidTask):
    """The payload does not fit the handler: another attempt would not go better."""


class ResultNotKept(QsyncError):
    """The handler returned what cannot be stored: another attempt would not go better."""


class NeverRun(QsyncError):
    """The handler returned a body that nobody ran: another attempt would not go better."""


def describe(error: BaseException, limit: int = ERROR_LIMIT) -> str:
    """An exception as text, `limit` bytes of UTF-8 at most, whatever its `str` does.

    The first line says what it is, and then comes the traceback, cut in the middle when long, and
    the same of what it was raised from. What called the handler is left out.
    """
    head = cut(head_of(error), limit // 2)
    if isinstance(error, BadPayload | NeverRun | ResultNotKept):
        return head  # it says all; nothing of the user's has run
    try:
        elsewhere = getattr(error, "traceback", None)  # of a handler in another process
        parts = [str(elsewhere)] if elsewhere else _traces(error, _without_ours)
    except Exception:  # whatever a class of the user's has in the places of these
        parts = []
    return cut("\n\n".join([head, *filter(None, parts)]), limit)


def head_of(error: BaseException) -> str:
    """Class and message."""
    name = class_name(error)
    try:
        text = str(error)
    except BaseException as broken:
        text = f"<its text raised {class_name(broken)}>"
    return f"{name}: {text}" if text else name


def message_of(error: BaseException) -> str:
    """Class and message for a line of the log: in one line, bounded."""
    return printable(cut(head_of(error), MESSAGE_LIMIT))


def program_trace(error: BaseException) -> str:
    """The traceback as the log has it: the frames of the program itself, "" without any.

    Frames of the standard library, of installed packages and of qsync are left out, unless there
    are no others. So a program that is itself installed is shown with its libraries.
    """
    if isinstance(error, BadPayload | NeverRun | ResultNotKept):
        return ""
    try:
        elsewhere = getattr(error, "traceback", None)  # of a handler in another process
        parts = [_own_lines(str(elsewhere))] if elsewhere else _traces(error, _own)
    except Exception:  # whatever a class of the user's has in the places of these
        return ""
    text = cut("\n".join(part.rstrip("\n") for part in parts if part), TRACE_LIMIT)
    return "\n".join(map(printable, text.split("\n")))


def printable(text: str) -> str:
    """The text with all that cannot be printed escaped, newlines too."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _traces(error: BaseException, keep: Keep) -> list[str]:
    return [_trace(error, keep), *_causes(error, keep)]


def _trace(error: BaseException, keep: Keep) -> str:
    stack = traceback.extract_tb(error.__traceback__, limit=-40)
    return "".join(traceback.format_list(keep(list(stack))))


def _without_ours(stack: list[FrameSummary]) -> list[FrameSummary]:
    return [frame for frame in stack if not frame.filename.startswith(_OURS)]


def _own(stack: list[FrameSummary]) -> list[FrameSummary]:
    """The frames of the program; without any those of libraries, and last those of Python."""
    foreign = [frame for frame in stack if not frame.filename.startswith(_PACKAGE)]
    own = [frame for frame in foreign if _is_own(frame.filename)]
    return own or [one for one in foreign if not _is_of_python(one.filename)] or foreign or stack


@lru_cache(1024)
def _is_own(file: str) -> bool:
    if not (file.startswith("<") or Path(file).is_absolute()):  # a .pyx of an extension, say
        return False
    installed = any(part in file.replace("\\", "/") for part in _INSTALLED)
    return not (installed or _is_of_python(file) or file.startswith(_PACKAGE))


@lru_cache(1024)
def _is_of_python(file: str) -> bool:
    if any(part in file for part in _INSTALLED):
        return False
    return file.startswith(("<frozen ", *_STANDARD))


def _own_lines(text: str) -> str:
    """The same for a traceback that is a text already."""
    kept, keeping = [], True
    for line in text.splitlines():
        if found := _FILE.match(line):
            keeping = _is_own(found[1])
        elif not line.startswith("    "):
            keeping = True
        if keeping:
            kept.append(line)
    return "\n".join(kept)


def _causes(error: BaseException, keep: Keep, most: int = 3) -> Iterator[str]:
    """What is in it, what it was raised from, or while handling which: three of each at most."""
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions[:3]:
            yield f"in it {head_of(one)}"
            yield _trace(one, keep)
    cause, how = error.__cause__, "raised from"
    if cause is None and not error.__suppress_context__:
        cause, how = error.__context__, "raised while handling"
    if cause is not None and most:
        yield f"{how} {head_of(cause)}"
        yield _trace(cause, keep)
        yield from _causes(cause, keep, most - 1)


def cut(text: str, limit: int) -> str:
    """The text, its middle left out when it has more bytes of UTF-8 than `limit`."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= limit:
        return data.decode("utf-8")
    half = (limit - 5) // 2
    return f"{data[:half].decode('utf-8', 'ignore')}\n...\n{data[-half:].decode('utf-8', 'ignore')}"


def first_line(text: str) -> str:
    """The first line of an error, SHORT_ERROR_LIMIT bytes of UTF-8 at most."""
    data = text.partition("\n")[0].encode("utf-8", "backslashreplace")
    return data[:SHORT_ERROR_LIMIT].decode("utf-8", "ignore")
