"""Logs exceptions with the configured amount of detail, each in one record."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal, get_args

from qsync.errors import ConfigError
from qsync.formatting import printable
from qsync.server.error_text import message_of, program_trace
from qsync.value_text import class_name, shorten

LogErrors = Literal["class", "message", "traceback"]
"""Detail of an exception in the log; each level includes the one before it."""


def check_log_errors(value: LogErrors) -> LogErrors:
    """Return the value if it is valid; raise ConfigError otherwise."""
    if value not in get_args(LogErrors):
        choices = ", ".join(map(repr, get_args(LogErrors)))
        raise ConfigError(f"log_errors: {shorten(value)} is not one of {choices}")
    return value


def log_error(
    logger: logging.Logger,
    level: int,
    text: str,
    error: BaseException,
    detail: LogErrors,
    extra: Mapping[str, Any],
) -> None:
    """Log `text: error`. The log record has the field `error_class`, and also `error` unless
    `detail` is "class".

    The traceback has only the program's own frames and a bounded size. The record's `exc_text`,
    which every formatter of `logging` shows, holds the traceback.
    """
    if not logger.isEnabledFor(level):
        return
    name = printable(class_name(error))
    fields = {**extra, "error_class": name}
    if detail != "class":
        name = fields["error"] = message_of(error)
    trace = program_trace(error) if detail == "traceback" else ""
    log_trace(logger, level, f"{text}: {name}", trace, fields)


def log_trace(
    logger: logging.Logger, level: int, text: str, trace: str, extra: Mapping[str, Any]
) -> None:
    """Log a message with a traceback that is already formatted."""
    if not logger.isEnabledFor(level):
        return
    file, line, function, _ = logger.findCaller(stacklevel=2)
    record = logger.makeRecord(
        logger.name, level, file, line, text, (), None, function, dict(extra)
    )
    record.exc_text = trace or None
    logger.handle(record)
