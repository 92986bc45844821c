"""`qsync servers`: list, quiet, stop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

import typer

from qsync.cli import completion
from qsync.cli.change_report import Outcome, finish
from qsync.cli.command import Command, set_command_path
from qsync.cli.options import (
    App,
    Json,
    Prefix,
    Url,
)
from qsync.cli.store import EXITS, exit_with, open_store, unknown_name
from qsync.cli.tables import Cell, Column, Row, print_line, print_table
from qsync.cli.text import print_json, progress, relative, short_duration
from qsync.inspector import Change, Inspector, ServerInfo

servers = typer.Typer(
    name="servers",
    help="Look at the servers that live, and tell them to stop. Alone: list.",
    invoke_without_command=True,
    epilog=EXITS,
)

ServerIds = Annotated[
    list[str],
    typer.Argument(
        metavar="SERVER", help="Ids of servers.", show_default=False,
        autocompletion=completion.servers,
    ),
]  # fmt: skip

Tasks = Annotated[bool, typer.Option("--tasks", help="Show what each of them runs, too.")]


@servers.callback()
def servers_alone(
    ctx: typer.Context,
    tasks: Tasks = False,
    url: Url = None,
    prefix: Prefix = None,
    app: App = None,
    as_json: Json = False,
) -> None:
    """Look at the servers that live, and tell them to stop. Alone: list."""
    set_command_path(ctx.command_path)
    if ctx.invoked_subcommand is None:
        _list(tasks, url, prefix, app, as_json)
    elif tasks or as_json or _given(ctx, "url") or _given(ctx, "prefix"):
        exit_with(f"options come after the command: qsync servers {ctx.invoked_subcommand} ...", 2)


def _given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


@servers.command("list", cls=Command, epilog=EXITS)
def list_servers(
    tasks: Tasks = False,
    url: Url = None,
    prefix: Prefix = None,
    app: App = None,
    as_json: Json = False,
) -> None:
    """Show the servers that live, and what they run.

    RUNS is how many tasks it runs and how many it can.
    """
    _list(tasks, url, prefix, app, as_json)


def _list(tasks: bool, url: str | None, prefix: str | None, app: str | None, as_json: bool) -> None:
    with open_store(url, prefix, app) as store:
        found = store.do(store.inspector.servers(tasks=tasks or as_json))
    if as_json:
        print_json(found)
    elif not found:
        print_line("There is no live server: start one by `qsync worker MODULE:APP`.")
    else:
        print_servers(found)
        for server in found if tasks else []:
            _print_running(server)


def print_servers(found: list[ServerInfo]) -> None:
    """The servers as a table."""
    columns = [
        Column("SERVER"), Column("PID", right=True), Column("RUNS", right=True),
        Column("UP", right=True), Column("QUEUES", flexible=True),
    ]  # fmt: skip
    print_table(columns, [server_row(server) for server in found])


def server_row(server: ServerInfo) -> Row:
    """A server as a row; the quiet ones say so."""
    queues = ",".join(
        name if weight == 1 else f"{name}={weight}" for name, weight in server.queues.items()
    )
    runs = f"{server.running}/{server.concurrency}"
    return [
        Cell(server.id, "dim" if server.quiet else ""),
        str(server.pid),
        Cell(runs, "" if server.running else "dim"),
        short_duration(server.uptime) if server.uptime else "",
        f"{'quiet: ' if server.quiet else ''}{queues}",
    ]


def _print_running(server: ServerInfo) -> None:
    print_line("")
    more = "" if server.complete else ", and maybe more"
    print_line(f"{server.id} has leases on {len(server.tasks)}{more}", "bold")
    columns = [
        Column("ID"), Column("QUEUE", flexible=True), Column("TYPE", flexible=True),
        Column("LEASE ENDS"), Column("PROGRESS"),
    ]  # fmt: skip
    rows = [
        [task.id, task.queue, task.type, relative(task.lease_until), progress(task.progress)]
        for task in server.tasks
    ]
    print_table(columns, rows)


@servers.command(cls=Command, epilog=EXITS)
def quiet(
    ids: ServerIds, url: Url = None, prefix: Prefix = None, app: App = None, as_json: Json = False
) -> None:
    """Tell servers to take no more tasks; what they run goes on."""
    _order(ids, url, prefix, app, as_json, lambda inspector: inspector.quiet)


@servers.command(cls=Command, epilog=EXITS)
def stop(
    ids: ServerIds, url: Url = None, prefix: Prefix = None, app: App = None, as_json: Json = False
) -> None:
    """Tell servers to stop, as SIGTERM does.

    A process of `qsync worker` is not started again; after the last one the worker ends.
    """
    _order(ids, url, prefix, app, as_json, lambda inspector: inspector.stop)


def _order(
    ids: list[str],
    url: str | None,
    prefix: str | None,
    app: str | None,
    as_json: bool,
    verb: Callable[[Inspector], Callable[[str], Awaitable[Change]]],
) -> None:
    async def order(inspector: Inspector, id: str) -> Outcome:
        change = await verb(inspector)(id)
        if change.outcome != "not_found":
            return Outcome(id, None, change)
        live = (await inspector.overview(names=())).servers
        why = unknown_name(live, id, "live server")
        return Outcome(id, None, Change(outcome="not_found", why=why))

    with open_store(url, prefix, app) as store:
        outcomes = [store.do(order(store.inspector, id)) for id in dict.fromkeys(ids)]
    finish(outcomes, "told", as_json=as_json, key="server")
