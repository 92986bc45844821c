"""`qsync type`: pause, resume."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from qsync.cli import completion
from qsync.cli.command import Group, exit_with
from qsync.cli.options import By, Json, StoreOptions, Why
from qsync.cli.output import print_json, print_line
from qsync.cli.prompts import current_user
from qsync.cli.store import check_queue, exit_unknown_queue, open_store
from qsync.formatting import plural

type_: Final = Group(name="type", help="Pause and resume one type of tasks.", no_args_is_help=True)

TypeName = Annotated[
    str, typer.Argument(metavar="TYPE", help="Type of the tasks.", show_default=False)
]

TypeQueue = Annotated[
    str,
    typer.Option(
        "--queue", "-q", metavar="NAME", help="Queue of the type.",
        autocompletion=completion.queues,
    ),
]  # fmt: skip


@type_.command()
def pause(
    *,
    name: TypeName,
    queue: TypeQueue = "default",
    why: Why = "",
    by: By = None,
    store: StoreOptions,
    as_json: Json = False,
) -> None:
    """Start no further tasks of a type until it is resumed; other types go on.

    For example: qsync type pause send_mail --queue mail --reason "provider is down"

    Survives restarts. Running tasks continue, and tasks can be enqueued: they wait as `limited`.
    """
    author = current_user() if by is None else by
    with open_store(store) as session:
        change = session.run(session.inspector.pause_type(name, queue=queue, by=author, why=why))
        if not change.ok:
            session.run(exit_unknown_queue(session.inspector, queue))
    if as_json:
        print_json({"queue": queue, "type": name, "outcome": change.outcome})
    else:
        print_line(f"{name}: paused in queue {queue}")


@type_.command()
def resume(
    *, name: TypeName, queue: TypeQueue = "default", store: StoreOptions, as_json: Json = False
) -> None:
    """Let the tasks of a type start again, in their order.

    For example: qsync type resume send_mail --queue mail
    """
    with open_store(store) as session:
        paused = session.run(session.inspector.paused_types(queue))
        waiting = sum(one.waiting for one in paused if one.type == name)
        change = session.run(session.inspector.resume_type(name, queue=queue))
        if not change.ok:
            session.run(check_queue(session.inspector, queue))
            others = f"; paused: {', '.join(one.type for one in paused)}" if paused else ""
            exit_with(f"type {name} is not paused in queue {queue}{others}")
    if as_json:
        print_json({"queue": queue, "type": name, "outcome": change.outcome, "waiting": waiting})
    else:
        print_line(f"{name}: resumed in queue {queue}; {plural(waiting, 'task')} waited")
