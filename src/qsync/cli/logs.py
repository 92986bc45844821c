"""Logging of the commands: one line for each event, made for a person at a terminal or a file."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Final

_COLOURS: Final = {"DEBUG": 2, "WARNING": 33, "ERROR": 31, "CRITICAL": 31}


def configure(level: str | None, *, tag: str) -> None:
    """Log to standard error, `info` and above unless told otherwise; `tag` names the process.

    An app that has set up logging itself keeps it; then only a level that was asked for counts.
    """
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_Lines(tag, terminal=sys.stderr.isatty()))
        root.addHandler(handler)
        level = level or "info"
    if level is not None:
        root.setLevel(level.upper())


class _Lines(logging.Formatter):
    def __init__(self, tag: str, *, terminal: bool) -> None:
        super().__init__()
        self._tag = tag
        self._terminal = terminal

    def format(self, record: logging.LogRecord) -> str:
        """One line; at a terminal a traceback follows as it is, elsewhere it is in the line."""
        time = datetime.fromtimestamp(record.created, UTC)
        text = escape(record.getMessage())
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        if not self._terminal:
            stamp = time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
            rest = f" {escape(trace)}" if trace else ""
            return f"{stamp} {record.levelname} {self._tag} {record.name}: {text}{rest}"
        clock = time.astimezone().strftime("%H:%M:%S.%f")[:-3]
        line = f"{clock} {record.levelname:7} {self._tag:4} {text}"
        if trace:
            line += "\n" + "\n".join(map(escape, trace.split("\n")))
        colour = _COLOURS.get(record.levelname)
        return line if colour is None else f"\x1b[{colour}m{line}\x1b[0m"


def escape(text: str) -> str:
    """The text in one line that sets no terminal off: what cannot be printed is escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
