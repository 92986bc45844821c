"""`qsync acl`: the line that gives a user of the store the rights that it needs, and no more."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from qsync.broker.acl import Role, rules
from qsync.cli.options import App, Prefix
from qsync.cli.store import load_app
from qsync.connections import PREFIX
from qsync.errors import InvalidTask


def acl(
    role: Annotated[Role, typer.Argument(help="What the user is to be.", show_default=False)],
    user: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="What to call it.  [default: qsync-ROLE]", show_default=False
        ),
    ] = None,
    prefix: Prefix = None,
    app: App = None,
    cluster: Annotated[bool, typer.Option("--cluster", help="For the nodes of a cluster.")] = False,
    old: Annotated[
        bool,
        typer.Option("--redis-7.0", help="For a Redis before 7.2, which knows fewer commands."),
    ] = False,
) -> None:
    """Print the command that makes a user of the store; put a password in.

    For example: qsync acl server --prefix shop

    client: enqueues, and asks what became of it. server: runs tasks. reader: looks. admin: looks,
    runs, deletes, pauses, repairs.
    """
    if app is not None and prefix in (None, os.environ.get(PREFIX)):
        prefix = load_app(app).prefix
    try:
        found = rules(role, prefix or "qsync", old=old, cluster=cluster)
    except InvalidTask as error:
        typer.echo(f"qsync acl: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(" ".join(("ACL SETUSER", user or f"qsync-{role}", "on >PASSWORD", *found)))
