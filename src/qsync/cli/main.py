"""The command `qsync`, put together from one file per command or group."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from qsync.cli.acl import acl
from qsync.cli.command import INTERRUPTED, Group, command_path, usage_in_one_line
from qsync.cli.dashboard import dashboard
from qsync.cli.dead import dead
from qsync.cli.demo.command import demo
from qsync.cli.doctor import doctor
from qsync.cli.errors import errors
from qsync.cli.events import events
from qsync.cli.fairness import fairness
from qsync.cli.limit import limit
from qsync.cli.queue_bounds import queue
from qsync.cli.schedule_backfill import schedule
from qsync.cli.servers import servers
from qsync.cli.stats import stats
from qsync.cli.task import task
from qsync.cli.top import top
from qsync.cli.type import type_
from qsync.cli.worker import worker
from qsync.version import __version__
from qsync.worker.logs import hold_standard_files

UNWRITABLE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
"""Errors of a standard output that takes no more."""

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
    """The commands by section; for a verb without its noun, it names the full command."""

    def make_context(self, *words: Any, **more: Any) -> Any:
        """Parse the options before the command."""
        with usage_in_one_line():
            return super().make_context(*words, **more)

    def invoke(self, ctx: Any) -> Any:
        """Parse the arguments of the command, and run it."""
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
        full_names = [
            f"`qsync {noun} {name}`"
            for noun, command in self.commands.items()
            if name in getattr(command, "commands", {}) and not command.hidden
        ]
        if full_names and self.get_command(ctx, name) is None:
            ctx.fail(f"No command {name!r}. Did you mean {' or '.join(full_names)}?")
        return super().resolve_command(ctx, args)


app: Final = Group(
    name="qsync",
    cls=Sections,
    help="A distributed task queue on Redis or Valkey.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain: boxes leave too little room at 80 columns
)
# Short help where the first line of the docstring is too long for the list of commands.
app.command("worker", epilog=None)(worker)
app.command("dashboard", epilog=None)(dashboard)
app.command("stats", short_help="Show the tasks and counters of queues.")(stats)
app.command("top", short_help="Watch queues, servers and running tasks.")(top)
for _noun in (task, queue, type_, limit, fairness, dead, errors, schedule, servers):
    app.add_typer(_noun)
for _noun, _plural in (
    (task, "tasks"), (queue, "queues"), (type_, "types"), (limit, "limits"),
    (schedule, "schedules"), (servers, "servers"), (errors, "error"),
):  # fmt: skip
    app.add_typer(_noun, name=_plural, hidden=True)
app.command("events", short_help="Show who changed what, and when.")(events)
app.command("doctor", epilog=None, short_help="Check whether the store is fit for the queue.")(
    doctor
)
app.command("acl", epilog=None, short_help="Print the command that creates a store user.")(acl)
app.command("demo", epilog=None, short_help="Watch tasks run, fail and survive a kill -9.")(demo)


def _print_version(wanted: bool) -> None:
    if wanted:
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
    if sys.stdout is None:  # closed: as if it were /dev/null
        hold_standard_files()
        sys.stdout = open(1, "w")  # noqa: SIM115 - until the end of the process
    try:
        app(prog_name="qsync")
    except KeyboardInterrupt:  # before the command has begun
        sys.exit(INTERRUPTED)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still buffered
        sys.exit(f"{command_path()}: cannot write to standard output: {error.strerror}")
