"""Asks before something is destroyed, and says how far long work is."""

from __future__ import annotations

import sys
import time
from typing import Final

import typer

from qsync.cli.store import NOT_DONE, WRONG, exit_with

EVERY_S: Final = 0.1
EVERY_LINE_S: Final = 5.0
"""How often progress is told: at a terminal in place, elsewhere as a line."""


def confirm(question: str, *, yes: bool) -> None:
    """The end, unless the user wants it."""
    if yes:
        return
    if not sys.stdin.isatty():
        exit_with("it destroys, and there is no terminal to ask at: say --yes", WRONG)
    if not typer.confirm(question, err=True):
        typer.echo("Nothing was done.", err=True)
        raise typer.Exit(NOT_DONE)


class Progress:
    """Tells on standard error how far work is."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._told_at = time.monotonic()
        self._width = 0

    def tell(self, text: str) -> None:
        """Say it, unless something was said a moment ago."""
        now = time.monotonic()
        if now - self._told_at < (EVERY_S if self._terminal else EVERY_LINE_S):
            return
        self._told_at = now
        if self._terminal:
            typer.echo(f"\r{text.ljust(self._width)}", nl=False, err=True)
            self._width = len(text)
        else:
            typer.echo(text, err=True)

    def end(self) -> None:
        """Wipe what is in place."""
        if self._width:
            typer.echo(f"\r{' ' * self._width}\r", nl=False, err=True)
            self._width = 0
