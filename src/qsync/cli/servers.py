"""`qsync servers`: list, quiet, stop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Final

import typer

from qsync.cli import completion
from qsync.cli.change_report import Outcome, finish
from qsync.cli.command import EXIT_CODES, USAGE, Group, exit_with, set_command_path, with_options
from qsync.cli.options import Json, StoreOptions
from qsync.cli.output import Cell, Column, Row, print_json, print_line, print_table
from qsync.cli.store import open_store, unknown_name
from qsync.formatting import duration, percent, plural, relative
from qsync.inspector import Change, Inspector, ServerInfo

HELP: Final = (
    "List running servers (worker processes), drain and stop them. Without a command: list."
)

servers: Final = Group(name="servers", help=HELP, invoke_without_command=True, epilog=EXIT_CODES)

ServerIds = Annotated[
    list[str],
    typer.Argument(
        metavar="SERVER", help="Server id(s).", show_default=False,
        autocompletion=completion.servers,
    ),
]  # fmt: skip

Tasks = Annotated[bool, typer.Option("--tasks", help="Show the tasks that each server runs.")]


@servers.callback(help=HELP)
@with_options
def servers_alone(
    *, ctx: typer.Context, tasks: Tasks = False, store: StoreOptions, as_json: Json = False
) -> None:
    """List the running servers if no command is given."""
    set_command_path(ctx.command_path)
    if ctx.invoked_subcommand is None:
        _list(tasks, store, as_json)
    elif tasks or as_json or _is_given(ctx, "url") or _is_given(ctx, "prefix"):
        command = f"{ctx.command_path} {ctx.invoked_subcommand} ..."
        exit_with(f"put the options after the command: {command}", USAGE)


def _is_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


@servers.command("list")
def list_servers(*, tasks: Tasks = False, store: StoreOptions, as_json: Json = False) -> None:
    """List the running servers.

    RUNNING is the number of tasks that a server runs, and how many it can run.
    """
    _list(tasks, store, as_json)


def _list(tasks: bool, store: StoreOptions, as_json: bool) -> None:
    with open_store(store) as session:
        running = session.run(session.inspector.servers(tasks=tasks or as_json))
    if as_json:
        print_json(running)
    elif not running:
        print_line("No servers are running. Start one: qsync worker MODULE:APP")
    else:
        print_table(SERVER_COLUMNS, [server_row(server) for server in running])
        for server in running if tasks else []:
            _print_tasks(server)


SERVER_COLUMNS: Final = (
    Column("SERVER"), Column("PID", right=True), Column("RUNNING", right=True),
    Column("UP", right=True), Column("QUEUES", shrink=True),
)  # fmt: skip


def server_row(server: ServerInfo) -> Row:
    """Return the row of a server; one that takes no new tasks is marked `quiet`."""
    queues = ",".join(
        name if weight == 1 else f"{name}={weight}" for name, weight in server.queues.items()
    )
    running = f"{server.running}/{server.concurrency}"
    return [
        Cell(server.id, "dim" if server.quiet else ""),
        str(server.pid),
        Cell(running, "" if server.running else "dim"),
        duration(server.uptime) if server.uptime else "",
        f"{'quiet: ' if server.quiet else ''}{queues}",
    ]


def _print_tasks(server: ServerInfo) -> None:
    print_line("")
    more = "" if server.complete else ", maybe more"
    print_line(f"{server.id} holds {plural(len(server.tasks), 'lease')}{more}", "bold")
    columns = [
        Column("ID"), Column("QUEUE", shrink=True), Column("TYPE", shrink=True),
        Column("LEASE EXPIRES"), Column("PROGRESS"),
    ]  # fmt: skip
    rows = [
        [task.id, task.queue, task.type, relative(task.lease_until), percent(task.progress)]
        for task in server.tasks
    ]
    print_table(columns, rows)


@servers.command()
def quiet(*, ids: ServerIds, store: StoreOptions, as_json: Json = False) -> None:
    """Drain servers: they take no new tasks and finish those that they run."""
    _send(ids, store, as_json, lambda inspector: inspector.quiet)


@servers.command()
def stop(*, ids: ServerIds, store: StoreOptions, as_json: Json = False) -> None:
    """Stop servers gracefully, as SIGTERM does.

    A process of `qsync worker` is not restarted; the worker ends with its last process.
    """
    _send(ids, store, as_json, lambda inspector: inspector.stop)


def _send(
    ids: list[str],
    store: StoreOptions,
    as_json: bool,
    verb: Callable[[Inspector], Callable[[str], Awaitable[Change]]],
) -> None:
    async def send(inspector: Inspector, id: str) -> Outcome:
        change = await verb(inspector)(id)
        if change.outcome != "not_found":
            return Outcome(id, None, change)
        running = (await inspector.overview(names=())).servers
        why = unknown_name(running, id, "running server")
        return Outcome(id, None, Change(outcome="not_found", why=why))

    with open_store(store) as session:
        outcomes = [session.run(send(session.inspector, id)) for id in dict.fromkeys(ids)]
    finish(outcomes, "request sent", as_json=as_json, key="server")
