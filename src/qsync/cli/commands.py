"""The table of the commands, each in its own file, which is imported when needed."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import Any, Final

import typer
from typer.main import get_group

from qsync.cli.command import EXIT_CODES, CommandGroup

GROUPS: Final[dict[str, tuple[str, str]]] = {
    "task": ("task", "task"),
    "queue": ("queue_bounds", "queue"),
    "type": ("type", "type_"),
    "limit": ("limit", "limit"),
    "fairness": ("fairness", "fairness"),
    "dead": ("dead", "dead"),
    "errors": ("errors", "errors"),
    "schedule": ("schedule_backfill", "schedule"),
    "server": ("servers", "servers"),
}
"""File and name of each group of commands."""

HIDDEN: Final[dict[str, str]] = {
    "tasks": "task",
    "queues": "queue",
    "types": "type",
    "limits": "limit",
    "schedules": "schedule",
    "servers": "server",
    "error": "errors",
    "event": "events",
}
"""Other names of commands and groups, which the help does not list."""

COMMANDS: Final[dict[str, dict[str, str | None]]] = {
    "worker": {"epilog": None},
    "dashboard": {"epilog": None},
    "stats": {"short_help": "Show what needs attention, and the tasks of queues."},
    "top": {"short_help": "Watch queues, servers and running tasks."},
    "events": {"short_help": "Show who changed what, and when."},
    "doctor": {"epilog": None, "short_help": "Check whether the store is fit for the queue."},
    "acl": {"epilog": None, "short_help": "Print the command that creates a store user."},
    "demo": {"epilog": None, "short_help": "Watch tasks run, fail and survive a kill -9."},
}
"""Options of the single commands: a short help where the first line of the docstring is too long
for the list of commands, and no exit codes below the help where it names its own."""

MODULES: Final = {"demo": "demo.command"}
"""Files of commands that are not named after the command."""


class CommandTable(MutableMapping[str, Any]):
    """The commands of `qsync` by name. A command is imported when its value is read."""

    def __init__(self) -> None:
        names = [*COMMANDS, *GROUPS, *HIDDEN]
        self._commands: dict[str, Any] = dict.fromkeys(names)

    def __getitem__(self, name: str) -> Any:
        command = self._commands[name]
        if command is None:
            command = self._commands[name] = load(name)
        return command

    def __contains__(self, name: object) -> bool:
        return name in self._commands

    def __setitem__(self, name: str, command: Any) -> None:
        self._commands[name] = command

    def __delitem__(self, name: str) -> None:
        del self._commands[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._commands)

    def __len__(self) -> int:
        return len(self._commands)


def load(name: str) -> Any:
    """Import a command, and return what the command line runs for it."""
    parent = CommandGroup(rich_markup_mode=None)  # plain: boxes leave too little room at 80 columns
    shown = HIDDEN.get(name, name)
    if shown in COMMANDS:
        module = import_module(f"qsync.cli.{MODULES.get(shown, shown)}")
        options = {"epilog": EXIT_CODES, "short_help": None, **COMMANDS[shown]}
        function = getattr(module, shown)
        parent.command(name, hidden=name != shown, **options)(function)
    else:
        file, attribute = GROUPS[shown]
        module = import_module(f"qsync.cli.{file}")
        group: typer.Typer = getattr(module, attribute)
        parent.add_typer(group, name=name, hidden=name in HIDDEN)
    return get_group(parent).commands[name]
