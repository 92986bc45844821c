"""`qsync server`: list, quiet, stop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final

import typer

from qsync.cli import completion
from qsync.cli.change_report import Outcome, finish
from qsync.cli.command import EXIT_CODES, CommandGroup, argument, lists_alone
from qsync.cli.listing import Format, OutputOptions
from qsync.cli.options import Json, Preview, StoreOptions, sort_option
from qsync.cli.output import Cell, Column, Row, print_line, print_table
from qsync.cli.store import note_no_queue, open_store, unknown_name
from qsync.formatting import duration, percent, plural, relative
from qsync.inspector import Change, Inspector, ServerInfo

HELP: Final = (
    "List, drain and stop running servers (worker processes). Without a command, list them."
)

servers: Final = CommandGroup(
    name="server", help=HELP, invoke_without_command=True, epilog=EXIT_CODES
)

ServerIds = Annotated[list[str], argument(
    metavar="SERVER", autocompletion=completion.servers, help="Server id(s).",
)]  # fmt: skip

SORTS: Final[dict[str, Callable[[ServerInfo], Any]]] = {
    "id": lambda server: server.id,
    "running": lambda server: (-server.running, server.id),
    "up": lambda server: (-server.uptime, server.id),
}


Sort = Annotated[str, sort_option(
    SORTS, "Column to sort by: id, or running or up (largest first).  [default: id]",
)]  # fmt: skip

Tasks = Annotated[bool, typer.Option("--tasks", help="Show the tasks that each server is running.")]


@servers.command("list")
def list_servers(
    *, tasks: Tasks = False, sort: Sort = "id", store: StoreOptions, output: OutputOptions
) -> None:
    """List the running servers.

    RUNNING shows how many tasks a server is running and how many it can run, as of its last
    heartbeat, up to half a lease (15 s) ago. With --tasks, the tasks below each server are those
    that it leases now. They can be more than RUNNING, because a server leases tasks before they
    start.
    """
    with_tasks = tasks or output.format is Format.JSON
    with open_store(store) as session:

        def show() -> None:
            servers = session.run(session.inspector.servers(tasks=with_tasks))
            running = sorted(servers, key=SORTS[sort])
            output.print_rows(running, lambda whole: _print(running, tasks=tasks, whole=whole))
            note_no_queue(session, running)

        output.repeat(show)


lists_alone(servers, list_servers, HELP)


def _print(running: list[ServerInfo], *, tasks: bool, whole: bool) -> None:
    if not running:
        print_line("No servers are running. Start one: qsync worker MODULE:APP")
    print_table(SERVER_COLUMNS, [server_row(server) for server in running], whole=whole)
    for server in running if tasks else []:
        _print_tasks(server)


SERVER_COLUMNS: Final = (
    Column("SERVER"), Column("PID", right=True), Column("RUNNING", right=True),
    Column("UP", right=True), Column("QUEUES", shrink=True),
)  # fmt: skip


def server_row(server: ServerInfo) -> Row:
    """Return the row of a server; a server that takes no new tasks is marked `quiet`."""
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
def quiet(
    *, ids: ServerIds, dry_run: Preview = False, store: StoreOptions, as_json: Json = False
) -> None:
    """Drain servers: they take no new tasks and finish their running tasks."""
    if dry_run:
        _send(ids, store, as_json, _look, "would be drained")
    else:
        _send(ids, store, as_json, lambda inspector: inspector.quiet)


@servers.command()
def stop(
    *, ids: ServerIds, dry_run: Preview = False, store: StoreOptions, as_json: Json = False
) -> None:
    """Stop servers gracefully, as SIGTERM does.

    `qsync worker` does not replace a stopped process, and exits after its last process.
    """
    if dry_run:
        _send(ids, store, as_json, _look, "would be stopped")
    else:
        _send(ids, store, as_json, lambda inspector: inspector.stop)


def _look(inspector: Inspector) -> Callable[[str], Awaitable[Change]]:
    """Return a function that changes nothing and reports whether the server exists."""

    async def look(id: str) -> Change:
        return Change(outcome="not_found" if await inspector.server(id) is None else "done")

    return look


def _send(
    ids: list[str],
    store: StoreOptions,
    as_json: bool,
    verb: Callable[[Inspector], Callable[[str], Awaitable[Change]]],
    done: str = "request sent",
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
    finish(outcomes, done, as_json=as_json, key="server")
