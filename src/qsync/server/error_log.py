"""Writes exceptions to the log: as much of them as the user wants, each in one record."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal, get_args

from qsync.errors import ConfigError
from qsync.keys import class_name, shorten
from qsync.server.error_text import message_of, printable, program_trace

LogErrors = Literal["class", "message", "traceback"]
"""How much of an exception the log shows; each includes the one before it."""


def check_log_errors(value: LogErrors) -> LogErrors:
    """Return it, or raise ConfigError."""
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
    """Log `text: error`. The record has `error_class`, and with enough detail `error`, as fields.

    The traceback is that of the program's own frames. It is the `exc_text` of the record, which
    every formatter of `logging` shows, so that it is bounded whatever the exception holds.
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
    """Log a text and a traceback that is a text already."""
    if not logger.isEnabledFor(level):
        return
    file, line, function, _ = logger.findCaller(stacklevel=2)
    record = logger.makeRecord(
        logger.name, level, file, line, text, (), None, function, dict(extra)
    )
    record.exc_text = trace or None
    logger.handle(record)
