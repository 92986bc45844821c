"""Confirmation prompts, the progress of long work, and the name of the user."""

from __future__ import annotations

import getpass
import socket
import sys
import time
from collections.abc import Callable
from typing import Final, Self

import typer

from qsync.cli.command import INTERRUPTED, NOT_DONE, USAGE, exit_with

TERMINAL_INTERVAL_S: Final = 0.1
"""Minimum time between two progress messages on a terminal, in seconds."""

LOG_INTERVAL_S: Final = 5.0
"""Minimum time between two progress messages that do not go to a terminal, in seconds."""


def confirm(question: str, *, yes: bool, effect: str = "deletes data") -> None:
    """Ask the user to confirm, unless `yes` is true; exit if they decline."""
    if yes:
        return
    if not sys.stdin.isatty():
        exit_with(f"this {effect} and there is no terminal to confirm: add --yes", USAGE)
    code = NOT_DONE
    try:
        if typer.confirm(question, err=True):
            return
    except typer.Abort as aborted:  # Ctrl-C, or Ctrl-D, which declines
        typer.echo("", err=True)
        if isinstance(aborted.__context__, KeyboardInterrupt):
            code = INTERRUPTED
    typer.echo("Nothing was changed.", err=True)
    raise typer.Exit(code)


class ProgressLine:
    """Shows the progress of work on standard error: in place on a terminal, otherwise as lines."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._shown_at = time.monotonic()
        self._width = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the text from the terminal."""
        if self._width:
            typer.echo(f"\r{' ' * self._width}\r", nl=False, err=True)
            self._width = 0

    def show(self, text: str) -> None:
        """Show a text, unless the last one was shown less than an interval ago."""
        now = time.monotonic()
        if now - self._shown_at < (TERMINAL_INTERVAL_S if self._terminal else LOG_INTERVAL_S):
            return
        self._shown_at = now
        if self._terminal:
            typer.echo(f"\r{text.ljust(self._width)}", nl=False, err=True)
            self._width = len(text)
        else:
            typer.echo(text, err=True)


def current_user() -> str:
    """Return the names of the user and of this machine, e.g. `ann@host`."""
    return f"{_ask(getpass.getuser, 'unknown')}@{_ask(socket.gethostname, 'unknown')}"


def _ask(ask: Callable[[], str], fallback: str) -> str:
    try:
        return ask()
    except (OSError, KeyError, ImportError):  # e.g. in a container, the user may have no name
        return fallback
