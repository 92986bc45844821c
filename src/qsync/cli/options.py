"""Options that several commands share, declared once."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
import typer

from qsync.cli import completion
from qsync.cli.clock_gap import clock_gap
from qsync.cli.command import USAGE, argument, exit_with, option
from qsync.connections import PREFIX, URL
from qsync.errors import InvalidTask
from qsync.inspector import Filter, SearchQuery
from qsync.inspector.queues import PURGED
from qsync.inspector.search_query import duration_in, parse_search
from qsync.state import TaskState

_URL_HELP: Final = f"Prefer {URL} if it contains a password."

Url = Annotated[str | None, option(
    metavar="URL", envvar=URL, help=f"URL of the store. {_URL_HELP}",
)]  # fmt: skip

Prefix = Annotated[str | None, option(
    metavar="NAME", envvar=PREFIX, help=f"Prefix of all keys; or set {PREFIX}.  [default: qsync]",
)]  # fmt: skip

APP: Final = "QSYNC_APP"

App = Annotated[str | None, option(
    metavar="MODULE:APP", envvar=APP, help="Use the URL and prefix of your app, e.g. "
    f"shop.tasks:app; or set {APP}.",
)]  # fmt: skip

AppUrl = Annotated[str | None, option(
    metavar="URL", help=f"URL of the store, if the app does not set it. {_URL_HELP}",
)]  # fmt: skip
"""Option without an environment variable, because an app without a URL reads QSYNC_URL itself."""

AppPrefix = Annotated[str | None, option(
    metavar="NAME", help=f"Prefix of all keys, if the app does not set it; or set {PREFIX}.",
)]  # fmt: skip

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation.")]

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only count the matching tasks; change nothing.")
]

Preview = Annotated[
    bool, typer.Option("--dry-run", help="Print what would change; change nothing.")
]

QueueName = Annotated[str, argument(
    metavar="QUEUE", autocompletion=completion.queues, help="Queue name.",
)]  # fmt: skip

QueueNames = Annotated[list[str], argument(
    metavar="QUEUE", autocompletion=completion.queues, help="Queue name(s).",
)]  # fmt: skip

TaskQueue = Annotated[str | None, option(
    "--queue", "-q", metavar="NAME", autocompletion=completion.queues,
    help="Queue of the task.  [default: found by the id]",
)]  # fmt: skip

OnlyQueue = Annotated[str | None, option(
    "--queue", "-q", metavar="NAME", autocompletion=completion.queues,
    help="Only this queue.  [default: all queues]",
)]  # fmt: skip

IntoQueue = Annotated[str | None, option(
    "--queue", "-q", metavar="NAME", help="Queue to enqueue to.  [default: the task function's "
    "queue, or default]",
)]  # fmt: skip

Arguments = Annotated[str | None, option(
    "--json", metavar="ARGS", help="Payload as JSON; for a task function, an object with an entry "
    "for each argument. Use - to read from standard input.  [default: no payload]",
)]  # fmt: skip

TaskId = Annotated[str, typer.Argument(metavar="ID", help="Task id.", show_default=False)]

TaskIds = Annotated[list[str], typer.Argument(metavar="ID", help="Task id(s).", show_default=False)]

Limit = Annotated[
    int, typer.Option("--limit", "-n", metavar="N", min=1, help="Show at most N tasks.")
]

Cursor = Annotated[str | None, option(
    metavar="TEXT", help="Continue after this cursor, which the previous page printed. Keep the "
    "other options the same.",
)]  # fmt: skip

By = Annotated[str | None, option(
    metavar="NAME", help="Your name, for the record of actions.  [default: your user and host]",
)]  # fmt: skip

Why = Annotated[str, option("--reason", "--why", metavar="TEXT", help="Reason, shown to everyone.")]

States = Annotated[list[TaskState] | None, option(
    "--state", "-s", metavar="STATE", help=f"Only tasks in this state: {', '.join(TaskState)}. "
    "Repeatable.  [default: any]",
)]  # fmt: skip


def purged_state(text: str) -> TaskState:
    """Return the state with this name; raise BadParameter if its tasks cannot be purged."""
    if text in PURGED:
        return TaskState(text)
    others = ", ".join(PURGED)
    if text == TaskState.ACTIVE:
        raise typer.BadParameter(f"running tasks cannot be purged: cancel them, or use {others}")
    raise typer.BadParameter(f"{text!r} is not one of {others}")


Purged = Annotated[list[TaskState] | None, option(
    "--state", "-s", metavar="STATE", parser=purged_state, autocompletion=lambda: list(PURGED),
    help=f"State of the tasks to delete: {', '.join(PURGED)}. Required and repeatable.",
)]  # fmt: skip


def duration_of(text: str) -> float:
    """Convert a duration such as `90`, `90s`, `15m`, `2h`, `3d`, `1w` or `1h30m` to seconds."""
    seconds = duration_in(text)
    if seconds is None:
        raise typer.BadParameter(f"{text!r} is not a duration; write 90s, 15m, 2h, 3d or 1w")
    return seconds


def moment_of(text: str) -> datetime:
    """Parse an ISO 8601 time; without an offset, the time is in the local time zone."""
    try:
        time = datetime.fromisoformat(text)
        gap = clock_gap(time) if time.tzinfo is None else None
        moment = time.astimezone()
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is not a time; write 2026-12-01T08:00 or 2026-12-01T08:00+01:00"
        ) from None
    if gap is not None:
        raise typer.BadParameter(
            f"{text!r} does not exist in your time zone: clocks are put forward from "
            f"{gap[0]:%H:%M} to {gap[1]:%H:%M}; choose another time"
        )
    return moment


def column_of(names: Collection[str]) -> Callable[[str], str]:
    """Return a parser for `--sort` that accepts these names in upper or lower case."""

    def parse(text: str) -> str:
        if text.lower() not in names:
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(names)}")
        return text.lower()

    return parse


def sort_option(names: Collection[str], text: str) -> Any:
    """Return the option --sort for a list that can be sorted by these columns."""
    return option(
        "--sort", metavar="COLUMN", parser=column_of(names), help=text,
        autocompletion=lambda: list(names),
    )  # fmt: skip


def queue_option(text: str) -> Any:
    """Return the --queue option of a command that has a default queue."""
    return typer.Option(
        "--queue", "-q", metavar="NAME", help=text, autocompletion=completion.queues
    )


OfType = Annotated[str | None, option(
    "--type", "-t", metavar="NAME", help="Only tasks of this type; * and ? are wildcards, e.g. "
    "'mail.*'.",
)]  # fmt: skip

WithError = Annotated[str | None, option(
    "--error", "-e", metavar="TEXT", help="Only tasks whose last error contains TEXT "
    "(case-insensitive).",
)]  # fmt: skip

WithId = Annotated[str | None, option(
    "--id", metavar="TEXT", help="Only tasks whose id contains TEXT.",
)]  # fmt: skip

OlderThan = Annotated[float | None, option(
    parser=duration_of, metavar="AGE", help="Only tasks older than AGE, e.g. 90s, 15m, 2h. A dead "
    "task's age counts from when it died, any other task's age from when it was enqueued.",
)]  # fmt: skip

NewerThan = Annotated[float | None, option(
    parser=duration_of, metavar="AGE", help="Only tasks newer than AGE; see --older-than.",
)]  # fmt: skip


Query = Annotated[str | None, option(
    metavar="TEXT", help="Select tasks as the dashboard's search does, e.g. 'type:send "
    "args.customer:acme age:>1h'.",
)]  # fmt: skip

SearchText = Annotated[str | None, argument(
    metavar="[QUERY]", help="Select tasks as the dashboard's search does, e.g. 'type:send "
    "state:dead age:>1h'; same as --query.",
)]  # fmt: skip


Delay = Annotated[float | None, option(
    parser=duration_of, metavar="DURATION",
    help="Time to wait before the task runs, e.g. 90s or 2h.",
)]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """The options that say which store to use."""

    url: Url = None
    prefix: Prefix = None
    app: App = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterOptions:
    """The options that select tasks; a task must match all of them."""

    queue: OnlyQueue = None
    type: OfType = None
    error: WithError = None
    id: WithId = None
    older_than: OlderThan = None
    newer_than: NewerThan = None
    query: Query = None

    def __post_init__(self) -> None:
        """Take the queue from the query; exit if the query is invalid or contradicts an option."""
        queues = self._parsed.queues
        if not queues:
            return
        if len(queues) > 1 or "*" in queues[0] or "?" in queues[0]:
            exit_with("the query may name only one queue, without wildcards", USAGE)
        if self.queue not in (None, queues[0]):
            exit_with(f"--queue {self.queue} and queue:{queues[0]} cannot be used together", USAGE)
        object.__setattr__(self, "queue", queues[0])

    @property
    def filter(self) -> Filter | None:
        """The filter for the tasks of a queue; None if every task matches."""
        options = {"type": self.type, "error": self.error, "id": self.id,
                   "older_than": self.older_than, "newer_than": self.newer_than}  # fmt: skip
        set_options = {name: value for name, value in options.items() if value is not None}
        query = self._parsed.filter or Filter()
        for name in set_options:
            if getattr(query, name) is not None:
                exit_with(
                    f"the query and --{name.replace('_', '-')} cannot be used together", USAGE
                )
        selected = msgspec.structs.replace(query, **set_options)
        return None if selected == Filter() else selected

    @property
    def states(self) -> list[TaskState]:
        """The states that the query names; empty if it names none."""
        return list(self._parsed.states)

    @property
    def _parsed(self) -> SearchQuery:
        try:
            return parse_search(self.query or "")
        except InvalidTask as error:
            exit_with(str(error), USAGE)


Priority = Annotated[int | None, option(
    metavar="1-9", help="Priority; pending tasks with a higher priority start first.  [default: 5]",
)]  # fmt: skip

UniqueKey = Annotated[str | None, option(
    metavar="TEXT", help="Only one unfinished task of the queue may have this key.",
)]  # fmt: skip

WhenDuplicate = Annotated[str | None, option(
    "--on-duplicate", metavar="CHOICE", help="What to do if another task has the key: raise "
    "(fail), skip (print that task's id) or replace (give that task this payload).  "
    "[default: raise]",
)]  # fmt: skip

Debounce = Annotated[float | None, option(
    parser=duration_of, metavar="DURATION", help="Run the task this long after the last enqueue "
    "with the key, e.g. 5s.",
)]  # fmt: skip

DebounceMax = Annotated[float | None, option(
    parser=duration_of, metavar="DURATION", help="Run the task at most this long after the first "
    "enqueue with the key, e.g. 1m.",
)]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class EnqueueOptions:
    """The options that set a new task's priority and how its duplicates are handled."""

    priority: Priority = None
    unique_key: UniqueKey = None
    on_duplicate: WhenDuplicate = None
    debounce: Debounce = None
    debounce_max: DebounceMax = None

    @property
    def options(self) -> dict[str, Any]:
        """The options for the new task, by name; None for each option that is not set."""
        options = {field.name: getattr(self, field.name) for field in fields(self)}
        is_plain = self.on_duplicate is None and self.debounce is None
        return options | {"unique": True if self.unique_key and is_plain else None}
