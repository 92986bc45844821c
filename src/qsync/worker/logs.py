"""Logging for the commands: one line per event, as text for people or as JSON for machines.

A record that any logger logs within a handler has the task's id, queue, type and attempt.
A thread writes the lines, so code that logs is not affected if standard error fails or blocks. If
the reader is too slow, lines are dropped and counted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import queue
import select
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any, Final, Literal

from qsync.formatting import printable
from qsync.server.current import fields_of, running

Form = Literal["text", "json"]

WAITING: Final = 10_000
"""Maximum number of lines that may wait to be written."""

FLUSH_S: Final = 1.0
"""How long a flush waits for lines to be written, in seconds."""

_COLOURS: Final = {"DEBUG": 2, "WARNING": 33, "ERROR": 31, "CRITICAL": 31}

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def configure(level: str | None, *, tag: str, form: Form | None = None) -> None:
    """Write log records of `level` or above (default: info) to standard error; `tag` names the
    process.

    If the app has set up logging itself, its setup is kept, and only an explicit `level` has an
    effect.
    """
    root = logging.getLogger()
    if not root.handlers:
        terminal = sys.stderr is not None and sys.stderr.isatty()
        handler = Lines()
        handler.addFilter(add_task)
        handler.setFormatter(Json(tag) if form == "json" else Text(tag, terminal=terminal))
        root.addHandler(handler)
        level = level or "info"
    elif form is not None:
        logging.getLogger("qsync").warning(
            "--log-format %s: ignored, since the app has set up logging itself", form
        )
    if level is not None:
        root.setLevel(level.upper())


def catch_uncaught() -> None:
    """Log warnings and uncaught exceptions, including those of threads, instead of printing them.

    Otherwise, unformatted tracebacks would mix with the log records.
    """
    if not is_set_up():
        return

    sys.excepthook = _uncaught
    threading.excepthook = lambda args: _uncaught(*args[:3])
    sys.unraisablehook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    logging.captureWarnings(True)


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: Any) -> None:
    if error is not None and not issubclass(kind, SystemExit):
        logging.getLogger("qsync").error("uncaught exception", exc_info=(kind, error, trace))


def is_set_up() -> bool:
    """Return whether this module's handler writes the records, rather than the app's own."""
    return any(isinstance(handler, Lines) for handler in logging.getLogger().handlers)


def add_task(record: logging.LogRecord) -> bool:
    """Add the current task's fields to a record that a handler logs; as a filter, keep all
    records."""
    around = running.get(None)
    if around is not None and not hasattr(record, "task_id"):
        vars(record).update(fields_of(around.task))
    return True


class Lines(logging.Handler):
    """Writes lines to standard error from a thread, in order."""

    def __init__(self) -> None:
        super().__init__()
        self._descriptor = _descriptor()
        self._lines: queue.Queue[str] = queue.Queue(WAITING)
        self._dropped = 0
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record for the thread that writes the lines."""
        try:
            line = self.format(record)
        except Exception as error:  # e.g. wrong arguments for the format
            line = self.format(_unshowable(record, error))
        if sys.is_finalizing():  # no thread can start now, so a wait for it would never end
            if self._descriptor is not None:
                with contextlib.suppress(OSError):
                    os.write(self._descriptor, f"{line}\n".encode(errors="backslashreplace"))
            return
        if self._thread is None or not self._thread.is_alive():  # e.g. in a forked child
            self._thread = threading.Thread(target=self._write, name="qsync-log", daemon=True)
            self._thread.start()
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    def flush(self) -> None:
        """Wait up to FLUSH_S until the queued lines are written."""
        ends = time.monotonic() + FLUSH_S
        while self._lines.unfinished_tasks and time.monotonic() < ends:
            time.sleep(0.005)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            dropped, self._dropped = self._dropped, 0
            if dropped:
                line = f"{dropped} log lines were dropped here\n{line}"
            if self._descriptor is not None:
                with contextlib.suppress(OSError):  # e.g. a full disk, which cannot be logged
                    _write_all(self._descriptor, f"{line}\n".encode(errors="backslashreplace"))
            self._lines.task_done()


def _unshowable(record: logging.LogRecord, error: Exception) -> logging.LogRecord:
    """Return a record to log in place of one that cannot be formatted."""
    place = f"{PurePath(record.pathname).name}:{record.lineno}"
    return logging.makeLogRecord({
        "name": record.name, "levelname": record.levelname, "created": record.created,
        "msg": f"a record made at {place} cannot be shown: {type(error).__name__}",
    })  # fmt: skip


def hold_standard_files() -> None:
    """If any of the descriptors 0 to 2 is closed, open it on /dev/null.

    Otherwise, the next file or socket would get that descriptor's number, and could receive output
    for standard error.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The new descriptor gets the lowest free number.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _descriptor() -> int | None:
    """Return the descriptor of standard error; None if it is closed, because its number may then
    belong to another file."""
    try:
        return None if sys.stderr is None else sys.stderr.fileno()
    except (OSError, ValueError):
        return None


def _write_all(descriptor: int, data: bytes) -> None:
    """Write without `sys.stderr`, because a thread that hangs in it makes the interpreter crash at
    exit."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # the descriptor is non-blocking
            select.select([], [descriptor], [])


class Text(logging.Formatter):
    """Formats lines for people, at a terminal or in a file."""

    def __init__(self, tag: str, *, terminal: bool) -> None:
        super().__init__()
        self._tag = tag
        self._terminal = terminal

    def format(self, record: logging.LogRecord) -> str:
        """Return one line; at a terminal, the traceback follows on separate lines."""
        moment = datetime.fromtimestamp(record.created, UTC)
        text = escape(record.getMessage())
        task_id = getattr(record, "task_id", None)
        if task_id is not None and str(task_id) not in text:
            text += f" (task {escape(str(task_id))})"
        trace = _trace(self, record)
        if not self._terminal:
            stamp = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
            rest = f" {escape(trace)}" if trace else ""
            name = escape(record.name)
            return f"{stamp} {record.levelname} {self._tag} {name}: {text}{rest}"
        clock = moment.astimezone().strftime("%H:%M:%S.%f")[:-3]
        line = f"{clock} {record.levelname:7} {self._tag:4} {text}"
        if trace:
            line += "\n" + "\n".join(map(escape, trace.split("\n")))
        colour = _COLOURS.get(record.levelname)
        return line if colour is None else f"\x1b[{colour}m{line}\x1b[0m"


class Json(logging.Formatter):
    """Formats one JSON object per line, in ASCII, with the fields passed as `extra`."""

    def __init__(self, tag: str) -> None:
        super().__init__()
        self._tag = tag

    def format(self, record: logging.LogRecord) -> str:
        """Return one line; newlines and other control characters are escaped in all strings."""
        moment = datetime.fromtimestamp(record.created, UTC)
        shown: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "process": self._tag,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in vars(record).items():
            if name not in _STANDARD and name not in shown:
                shown[name] = value if _is_plain(value) else str(value)
        if trace := _trace(self, record):
            shown["exception"] = trace
        return json.dumps(shown).replace("\x7f", "\\u007f")


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    if record.exc_info:
        return formatter.formatException(record.exc_info)
    return record.exc_text or ""


def _is_plain(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str | int)


def escape(text: str) -> str:
    """Escape unprintable characters, so that the text is one line that is safe in a terminal."""
    return printable(text)
