"""The command `qsync`: one file for each noun, put together here."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from qsync.cli.acl import acl
from qsync.cli.command import Command
from qsync.cli.dashboard import dashboard
from qsync.cli.dead import dead
from qsync.cli.demo.command import demo
from qsync.cli.doctor import doctor
from qsync.cli.queue import queue
from qsync.cli.schedule import schedule
from qsync.cli.servers import servers
from qsync.cli.stats import stats
from qsync.cli.store import EXITS
from qsync.cli.task import task
from qsync.cli.top import top
from qsync.cli.worker import worker
from qsync.version import __version__

STORE: Final[dict[str, Any]] = {"cls": Command, "epilog": EXITS}

app = typer.Typer(
    name="qsync",
    help="A distributed task queue on Redis or Valkey.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain: boxes leave too little room at 80 columns
)
# Where the first line of a help is too long for the list of commands, it is said in fewer words.
app.command(name="demo", short_help="Watch tasks run, fail and survive a kill -9.")(demo)
app.command(name="worker")(worker)
app.command(name="dashboard", cls=Command)(dashboard)
app.command(name="stats", short_help="Show what queues hold and have done.", **STORE)(stats)
app.command(name="top", short_help="Watch queues, servers and running tasks.", **STORE)(top)
for noun in (queue, task, dead, servers, schedule):
    app.add_typer(noun)
app.command(name="doctor", cls=Command, short_help="Say whether the store is fit for the queue.")(
    doctor
)
app.command(name="acl", short_help="Print the rights that a user of the store needs.")(acl)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qsync {__version__}")
        raise typer.Exit


@app.callback()
def _qsync(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and exit: 0 done, 1 it went wrong, 2 it was asked wrongly."""
    app(prog_name="qsync")
