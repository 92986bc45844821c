"""Options of `qsync worker` that are options of its servers, declared as the others are."""

from __future__ import annotations

from typing import Annotated

import typer

from qsync.cli.options import duration_of
from qsync.server.error_log import LogErrors

Threads = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Threads for handlers that are not coroutines: a pool of database connections needs "
        "so many per process.  [default: CPUs + 4, at most 32 and --concurrency]",
        show_default=False,
    ),
]

TaskProcesses = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help='Processes for handlers with executor="process".  [default: one for each CPU]',
        show_default=False,
    ),
]

Timeout = Annotated[
    float | None,
    typer.Option(
        parser=duration_of,
        metavar="TIME",
        help="Time that one attempt may take, for tasks that do not say: 90s, 15m.  "
        "[default: no limit]",
        show_default=False,
    ),
]


RetryDelay = Annotated[
    str | None,
    typer.Option(
        metavar="TIME,...",
        help="Wait before each further attempt, for tasks that do not say; the last one repeats: "
        "1s,30s,5m.  [default: growing from 1 to 2 s up to 1 h]",
        show_default=False,
    ),
]


def delays_of(text: str) -> list[float]:
    """Seconds, of `30s` or `1s,30s,5m`; BadParameter if it is neither."""
    return [duration_of(part) for part in text.split(",")]


MaxCrashes = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="A task with which so many processes died is dead.  [default: 3]",
        show_default=False,
    ),
]

MaxHung = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="A process with more handlers that do not stop when told to is replaced.  "
        "[default: as --concurrency]",
        show_default=False,
    ),
]

ResultLimit = Annotated[
    int | None,
    typer.Option(
        metavar="BYTES",
        help="Largest result that is kept. A task whose result is larger is dead.  [default: as "
        "for payloads, 1048576 unless the app says]",
        show_default=False,
    ),
]

DeadLimit = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Dead tasks that each queue keeps, the newest.  [default: 10000]",
        show_default=False,
    ),
]

DeadAge = Annotated[
    float | None,
    typer.Option(
        parser=duration_of,
        metavar="AGE",
        help="Time for which they are kept: 36h, 30d.  [default: 90d]",
        show_default=False,
    ),
]

Sweep = Annotated[
    float | None,
    typer.Option(
        parser=duration_of,
        metavar="TIME",
        help="How often each queue is looked at for upkeep, at least.  [default: 5s]",
        show_default=False,
    ),
]

LogErrorsOption = Annotated[
    LogErrors | None,
    typer.Option(
        help="How much of a failed attempt the log shows. Messages and tracebacks may hold what "
        "tasks were given.  [default: traceback]",
        show_default=False,
    ),
]
