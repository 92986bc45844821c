"""A command that works on the store: knows its name, and ids that begin like an option."""

from __future__ import annotations

import re
from contextvars import ContextVar
from typing import Any, Final

from typer.core import TyperCommand

_MADE_ID: Final = re.compile(r"-[A-Za-z0-9_-]{21}")
"""A task's id, made by us: one in 64 begins with a dash."""

_path: ContextVar[str] = ContextVar("path", default="qsync")


def command_path() -> str:
    """The command that runs, as it is typed: `qsync task show`."""
    return _path.get()


def set_command_path(path: str) -> None:
    """From now on this is the command that runs."""
    _path.set(path)


class Command(TyperCommand):
    """Takes what looks like the id of a task for one, also where it begins with a dash."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what follows the command's name."""
        set_command_path(ctx.command_path)
        return super().parse_args(ctx, self._ids_last(args))

    def _ids_last(self, args: list[str]) -> list[str]:
        options = {name: param for param in self.params for name in param.opts}
        words, ids, before = list[str](), list[str](), None
        end = args.index("--") if "--" in args else len(args)
        for word in args[:end]:
            takes = before is not None and not getattr(options.get(before), "is_flag", True)
            if _MADE_ID.fullmatch(word) and word not in options and not takes:
                ids.append(word)
            else:
                words.append(word)
            before = word
        last = ids + args[end + 1 :]
        return [*words, "--", *last] if last else words
