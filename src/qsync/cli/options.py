"""Options that several commands have, declared once."""

from __future__ import annotations

import re
from typing import Annotated, Final

import typer

from qsync.cli import completion
from qsync.connections import PREFIX, URL
from qsync.inspector.queues import PURGED
from qsync.state import TaskState

_URL_HELP: Final = f"A password is better off in {URL}, which says the same."

Url = Annotated[
    str | None,
    typer.Option(
        metavar="URL", envvar=URL, help=f"The store. {_URL_HELP}", show_default=False,
        show_envvar=False,
    ),
]  # fmt: skip

Prefix = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", envvar=PREFIX,
        help=f"What all keys begin with; as {PREFIX}.  [default: qsync]", show_default=False,
        show_envvar=False,
    ),
]  # fmt: skip

APP: Final = "QSYNC_APP"

App = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:APP", envvar=APP,
        help=f"An app of yours, whose URL and prefix are used, e.g. shop.tasks:app; as {APP}.",
        show_default=False, show_envvar=False,
    ),
]  # fmt: skip

AppUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help=f"The store, for an app that does not name it. {_URL_HELP}",
        show_default=False,
    ),
]
"""Without a variable: the app reads that itself, if it wants to."""

AppPrefix = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"What all keys begin with, for an app that does not say; as {PREFIX}.",
        show_default=False,
    ),
]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")]

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Change nothing: say how many tasks it would be.")
]

QueueName = Annotated[
    str,
    typer.Argument(
        metavar="QUEUE", help="Its name.", show_default=False, autocompletion=completion.queues
    ),
]

QueueNames = Annotated[
    list[str],
    typer.Argument(
        metavar="QUEUE", help="Names of queues.", show_default=False,
        autocompletion=completion.queues,
    ),
]  # fmt: skip

InQueue = Annotated[
    str | None,
    typer.Option(
        "--queue", "-q", metavar="NAME", help="The queue.  [default: whichever has it]",
        show_default=False, autocompletion=completion.queues,
    ),
]  # fmt: skip

OfQueue = Annotated[
    str | None,
    typer.Option(
        "--queue", "-q", metavar="NAME", help="This queue alone.  [default: all queues]",
        show_default=False, autocompletion=completion.queues,
    ),
]  # fmt: skip

TaskId = Annotated[str, typer.Argument(metavar="ID", help="Of the task.", show_default=False)]

TaskIds = Annotated[
    list[str], typer.Argument(metavar="ID", help="Of the tasks.", show_default=False)
]

Limit = Annotated[
    int, typer.Option("--limit", "-n", metavar="N", min=1, help="Tasks to show at most.")
]

Cursor = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Where an earlier listing ended, as it said; all else must be as it was there.",
        show_default=False,
    ),
]

By = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Who.  [default: you, at this machine]", show_default=False),
]

Why = Annotated[str, typer.Option(metavar="TEXT", help="Why, for others.", show_default=False)]

_STATES: Final = ", ".join(TaskState)

State = Annotated[
    list[TaskState] | None,
    typer.Option(
        "--state", "-s", metavar="STATE",
        help=f"In this state: {_STATES}. May be given again.  [default: any]",
        show_default=False,
    ),
]  # fmt: skip


def purged_state(text: str) -> TaskState:
    """A state that can be emptied."""
    if text in PURGED:
        return TaskState(text)
    others = ", ".join(PURGED)
    if text == TaskState.ACTIVE:
        raise typer.BadParameter(f"what runs is cancelled instead; there are {others}")
    raise typer.BadParameter(f"{text!r} is not one of {others}")


Purged = Annotated[
    list[TaskState] | None,
    typer.Option(
        "--state", "-s", metavar="STATE", parser=purged_state,
        help=f"In this state: {', '.join(PURGED)}. Needed, and may be given again.",
        show_default=False, autocompletion=lambda: list(PURGED),
    ),
]  # fmt: skip

_UNITS: Final = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")


def duration_of(text: str) -> float:
    """Seconds, of `90`, `90s`, `15m`, `2h`, `3d`, `1w` or `1h30m`."""
    found = _PART.findall(text)
    if not found or _PART.sub("", text).strip() or any(unit not in _UNITS for _, unit in found):
        raise typer.BadParameter(f"{text!r} is not a duration: 90s, 15m, 2h, 3d, 1w, say")
    return sum(float(number) * _UNITS[unit] for number, unit in found)


OfType = Annotated[
    str | None,
    typer.Option(
        "--type", "-t", metavar="NAME",
        help="Of this type; with * or ? in it a pattern: 'mail.*'.", show_default=False,
    ),
]  # fmt: skip

WithError = Annotated[
    str | None,
    typer.Option(
        "--error", "-e", metavar="TEXT",
        help="With this text in their last error, whatever its case.", show_default=False,
    ),
]  # fmt: skip

WithId = Annotated[
    str | None,
    typer.Option("--id", metavar="TEXT", help="With this text in their id.", show_default=False),
]

_AGE: Final = "(90s, 15m, 2h, 3d, 1w) ago"

OlderThan = Annotated[
    float | None,
    typer.Option(
        parser=duration_of, metavar="AGE",
        help=f"That died, or if they live were enqueued, longer {_AGE}.", show_default=False,
    ),
]  # fmt: skip

NewerThan = Annotated[
    float | None,
    typer.Option(
        parser=duration_of, metavar="AGE", help=f"The same, less long {_AGE}.", show_default=False
    ),
]
