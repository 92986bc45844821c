"""`qsync acl`: prints the command that creates a store user with the least permissions."""

from __future__ import annotations

import os
import re
from typing import Annotated, Final

import typer

from qsync.broker.acl import Role, rules
from qsync.cli.command import USAGE, exit_with
from qsync.cli.options import App, Prefix
from qsync.cli.store import load_app
from qsync.connections import PREFIX
from qsync.errors import InvalidTask

_USER: Final = re.compile(r"[A-Za-z0-9_.@:+-]{1,128}")
"""Matches a user name that needs no quotes, neither in a shell nor in a command to the store."""


def acl(
    *,
    role: Annotated[
        Role,
        typer.Argument(metavar="ROLE", help="client, server, reader or admin.", show_default=False),
    ],
    user: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Name of the user.  [default: qsync-ROLE]", show_default=False
        ),
    ] = None,
    prefix: Prefix = None,
    app: App = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Also allow the commands that cluster clients need.")
    ] = False,
    old: Annotated[
        bool,
        typer.Option("--redis-7.0", help="Leave out commands that are new in Redis 7.2."),
    ] = False,
) -> None:
    """Print the command that creates a store user; replace PASSWORD before you run it.

    For example: qsync acl server --prefix shop

    client: enqueues tasks and reads their results. server: runs tasks. reader: reads everything.
    admin: reads everything; runs and deletes tasks; pauses, deletes and repairs queues.
    """
    if user is not None and not _USER.fullmatch(user):
        exit_with("--user: must be 1 to 128 of the characters A-Z a-z 0-9 _ . @ : + -", USAGE)
    if app is not None and prefix in (None, os.environ.get(PREFIX)):
        prefix = load_app(app).prefix
    try:
        permissions = rules(role, prefix or "qsync", old=old, cluster=cluster)
    except InvalidTask as error:
        exit_with(str(error), USAGE)
    typer.echo(" ".join(("ACL SETUSER", user or f"qsync-{role}", "on >PASSWORD", *permissions)))
