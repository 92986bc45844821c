"""Options of `qsync worker` that configure its servers."""

from __future__ import annotations

from typing import Annotated

import typer

from qsync.cli.options import duration_of
from qsync.server.error_log import LogErrors
from qsync.worker.child_limits import size_of

Threads = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Threads per process for `def` handlers; size database connection pools to match.  "
        "[default: CPUs + 4, at most 32 and --concurrency]",
        show_default=False,
    ),
]

TaskProcesses = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help='Processes for handlers with executor="process".  [default: one per CPU]',
        show_default=False,
    ),
]

MaxTasks = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Replace a process that has started this many tasks, e.g. 10000: once its successor "
        "is ready, it ends its running tasks as at a stop. One process is replaced at a time.  "
        "[default: no limit]",
        show_default=False,
    ),
]


def _size(text: str) -> int:
    try:
        return size_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


MaxMemory = Annotated[
    int | None,
    typer.Option(
        parser=_size,
        metavar="SIZE",
        help="Replace a process whose resident memory reaches this size, e.g. 500MiB or 1GiB, as "
        'with --max-tasks; the processes of executor="process" do not count.  '
        "[default: no limit]",
        show_default=False,
    ),
]

Timeout = Annotated[
    float | None,
    typer.Option(
        parser=duration_of,
        metavar="TIME",
        help="Time limit of an attempt, for tasks that set none, e.g. 90s, 15m.  "
        "[default: no limit]",
        show_default=False,
    ),
]


RetryDelay = Annotated[
    str | None,
    typer.Option(
        metavar="TIME,...",
        help="Delays before the next attempts, for tasks that set none, e.g. 1s,30s,5m; the last "
        "one repeats.  [default: exponential backoff, from 1 s up to 1 h]",
        show_default=False,
    ),
]


def delays_of(text: str) -> list[float]:
    """Return the seconds of `30s` or `1s,30s,5m`; BadParameter if it is neither."""
    return [duration_of(part) for part in text.split(",")]


MaxCrashes = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="A task is dead after it was running in N processes that died.  [default: 3]",
        show_default=False,
    ),
]

MaxHung = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Replace a process when more than N handlers ignore a request to stop.  "
        "[default: same as --concurrency]",
        show_default=False,
    ),
]

ResultLimit = Annotated[
    int | None,
    typer.Option(
        metavar="BYTES",
        help="Largest result; a task with a larger one is dead.  [default: the payload limit of "
        "the app, or 1048576]",
        show_default=False,
    ),
]

DeadLimit = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Dead tasks to keep per queue; the oldest are deleted first.  [default: 10000]",
        show_default=False,
    ),
]

DeadAge = Annotated[
    float | None,
    typer.Option(
        parser=duration_of,
        metavar="AGE",
        help="Time to keep dead tasks, e.g. 36h, 30d.  [default: 90d]",
        show_default=False,
    ),
]

Sweep = Annotated[
    float | None,
    typer.Option(
        parser=duration_of,
        metavar="TIME",
        help="Longest time between two maintenance runs of a queue.  [default: 5s]",
        show_default=False,
    ),
]

LogErrorsOption = Annotated[
    LogErrors | None,
    typer.Option(
        help="How much of a failed attempt to log. Messages and tracebacks may contain arguments "
        "of tasks.  [default: traceback]",
        show_default=False,
    ),
]
