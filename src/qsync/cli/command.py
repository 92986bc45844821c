"""The name of the running command, for messages."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from typer.core import TyperCommand

_path: ContextVar[str] = ContextVar("path", default="qsync")


def command_path() -> str:
    """Return the running command as it is typed, e.g. `qsync task show`."""
    return _path.get()


def set_command_path(path: str) -> None:
    """Set the running command."""
    _path.set(path)


class Command(TyperCommand):
    """A command that sets the command path when it runs."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Set the command path, then parse the arguments."""
        set_command_path(ctx.command_path)
        return super().parse_args(ctx, args)
