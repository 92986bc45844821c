"""The command `qsync`, assembled from one file per command or group."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup
from typer.main import get_group

from qsync.cli.command import EXIT_CODES, INTERRUPTED, CommandGroup, command_path, usage_in_one_line
from qsync.cli.typer_internals import defer_pydantic
from qsync.version import __version__
from qsync.worker.logs import hold_standard_files

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
"""Module and attribute that hold each group of commands."""

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
"""Aliases of commands and groups; the help does not list them."""

COMMANDS: Final[dict[str, dict[str, str | None]]] = {
    "worker": {"epilog": None},
    "dashboard": {"epilog": None},
    "stats": {"short_help": "Show problems, and the tasks of each queue by state."},
    "top": {"short_help": "Watch queues, servers and running tasks."},
    "events": {"short_help": "Show who changed what, and when."},
    "doctor": {"epilog": None, "short_help": "Check whether the store is suitable for qsync."},
    "acl": {"epilog": None, "short_help": "Print the command that creates a store user."},
    "demo": {"epilog": None, "short_help": "Watch tasks run, fail and survive a kill -9."},
}
"""Settings of individual commands: a short help if the first line of the docstring is too long for
the list of commands, and no epilog if the help itself lists the exit codes."""

MODULES: Final = {"demo": "demo.command"}
"""Modules of the commands whose module is not named after the command."""


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
    """Import a command or a group, and return it as the object that the parser calls."""
    parent = CommandGroup(rich_markup_mode=None)  # boxes would not fit into 80 columns
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


UNWRITABLE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
"""Error numbers raised when standard output cannot be written to."""

SECTIONS: Final[dict[str, tuple[str, ...]]] = {
    "Run": ("worker", "dashboard"),
    "Look": (
        "stats",
        "top",
        "task",
        "queue",
        "type",
        "limit",
        "fairness",
        "dead",
        "errors",
        "schedule",
        "server",
        "events",
    ),
    "Check": ("doctor", "acl"),
    "Try": ("demo",),
}


class Sections(TyperGroup):
    """The commands by section; suggests the full command if a user types only its verb.

    A command is imported when it is requested, so `qsync stats` does not import the others.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands: CommandTable = CommandTable()

    def make_context(self, *words: Any, **more: Any) -> Any:
        """Parse the options that come before the command; print a problem as one line."""
        with usage_in_one_line():
            return super().make_context(*words, **more)

    def invoke(self, ctx: Any) -> Any:
        """Parse the arguments of the command and run it; print a problem as one line."""
        with usage_in_one_line():
            return super().invoke(ctx)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands into the help."""
        width = max(map(len, self.commands))
        for title, names in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([
                    (name.ljust(width), self.commands[name].get_short_help_str(66))
                    for name in names
                ])  # fmt: skip

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the arguments name."""
        name = args[0]
        if self.get_command(ctx, name) is None:
            full_names = [
                f"`qsync {noun} {name}`"
                for noun, command in self.commands.items()
                if noun not in HIDDEN and name in getattr(command, "commands", {})
            ]
            if full_names:
                ctx.fail(f"No command {name!r}. Did you mean {' or '.join(full_names)}?")
        return super().resolve_command(ctx, args)


defer_pydantic()

app: Final = CommandGroup(
    name="qsync",
    cls=Sections,
    help="A distributed task queue on Redis or Valkey.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # boxes would not fit into 80 columns
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"qsync {__version__}")
        raise typer.Exit


@app.callback()
def _qsync(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and exit: 0 ok, 1 failed, 2 usage."""
    if sys.stdout is None:  # standard output was closed, so use /dev/null
        hold_standard_files()
        sys.stdout = open(1, "w")  # noqa: SIM115 - until the end of the process
    try:
        app(prog_name="qsync")
    except KeyboardInterrupt:  # Ctrl-C before the command has started
        sys.exit(INTERRUPTED)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # discards buffered output
        sys.exit(f"{command_path()}: cannot write to standard output: {error.strerror}")
