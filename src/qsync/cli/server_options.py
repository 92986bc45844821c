"""Options of `qsync worker`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import typer

from qsync.cli.command import argument, option
from qsync.cli.options import APP, duration_of
from qsync.server.error_log import LogErrors
from qsync.worker import logs
from qsync.worker.child_limits import size_of

Level = Literal["debug", "info", "warning", "error"]

Threads = Annotated[int | None, option(
    metavar="N", help="Threads per process for `def` handlers; size database connection pools to "
    "match.  [default: CPUs + 4, at most 32 and --concurrency]",
)]  # fmt: skip

TaskProcesses = Annotated[int | None, option(
    metavar="N", help='Child processes per worker process, for handlers with '
    'executor="process".  [default: one per CPU]',
)]  # fmt: skip

MaxTasks = Annotated[int | None, option(
    metavar="N", min=1, help="Replace a process that has started this many tasks, e.g. 10000. "
    "The process shuts down gracefully when its successor is ready. One process is replaced at a "
    "time.  [default: no limit]",
)]  # fmt: skip


def _size(text: str) -> int:
    try:
        return size_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


MaxMemory = Annotated[int | None, option(
    parser=_size, metavar="SIZE",
    help="Replace a process, as --max-tasks does, when its resident memory reaches this size, "
    'e.g. 500MiB or 1GiB. Child processes for executor="process" do not count.  '
    "[default: no limit]",
)]  # fmt: skip

Timeout = Annotated[float | None, option(
    parser=duration_of, metavar="TIME", help="Time limit for an attempt of a task that sets none, "
    "e.g. 90s, 15m.  [default: no limit]",
)]  # fmt: skip


RetryDelay = Annotated[str | None, option(
    metavar="TIME,...", help="Delays before the next attempts, for tasks that set none, e.g. "
    "1s,30s,5m; the last one repeats.  [default: exponential backoff, from 1 s up to 1 h]",
)]  # fmt: skip


def delays_of(text: str) -> list[float]:
    """Parse `30s` or `1s,30s,5m` into seconds; raise BadParameter for other values."""
    return [duration_of(part) for part in text.split(",")]


MaxCrashes = Annotated[int | None, option(
    metavar="N", help="A task becomes dead after N processes have died while running it.  "
    "[default: 3]",
)]  # fmt: skip

MaxHung = Annotated[int | None, option(
    metavar="N", help="Replace a process when more than N handlers ignore a request to stop.  "
    "[default: same as --concurrency]",
)]  # fmt: skip

ResultLimit = Annotated[int | None, option(
    metavar="BYTES", help="Maximum size of a result; a task with a larger one becomes dead.  "
    "[default: the payload limit of the app, or 1048576]",
)]  # fmt: skip

DeadLimit = Annotated[int | None, option(
    metavar="N", help="Dead tasks to keep per queue; the oldest are deleted first.  [default: "
    "10000]",
)]  # fmt: skip

DeadAge = Annotated[float | None, option(
    parser=duration_of, metavar="AGE", help="Time to keep dead tasks, e.g. 36h, 30d.  [default: "
    "90d]",
)]  # fmt: skip

Sweep = Annotated[float | None, option(
    parser=duration_of, metavar="TIME", help="Maximum time between two maintenance runs of a "
    "queue.  [default: 5s]",
)]  # fmt: skip

LogErrorsOption = Annotated[LogErrors | None, option(
    help="How much to log about a failed attempt. Messages and tracebacks may contain task "
    "arguments.  [default: traceback]",
)]  # fmt: skip

Target = Annotated[str, argument(
    metavar="MODULE:APP", envvar=APP, help="The app: module:attribute, e.g. shop.tasks:app. "
    f"Python searches the working directory first. Or set {APP}.",
)]  # fmt: skip

Queues = Annotated[str | None, option(
    metavar="NAME=WEIGHT,...", help="Queues to serve, e.g. critical=5,default=3. Free slots "
    "are shared by weight; the default weight is 1. Tasks of other queues wait for another "
    "worker.  [default: those of Qsync(queues=...), or only the queue default]",
)]  # fmt: skip

Strict = Annotated[bool | None, option(
    "--strict/--no-strict", help="Serve a queue only while all queues of greater weight are empty. "
    " "
    "[default: as in the app]",
)]  # fmt: skip

Processes = Annotated[int, typer.Option(
    "--processes", "-n", metavar="N", min=1,
    help="Number of worker processes (e.g. one per CPU core).",
)]  # fmt: skip

Concurrency = Annotated[int | None, option(
    "--concurrency", "-c", metavar="N", help="Tasks that a process runs concurrently.  [default: "
    "100]",
)]  # fmt: skip

Prefetch = Annotated[int | None, option(
    metavar="N", help="Maximum number of tasks to fetch ahead of free slots.  [default: as many as "
    "can start within 100 ms]",
)]  # fmt: skip

Lease = Annotated[float | None, option(
    metavar="SECONDS", help="Lease in seconds: tasks of a lost machine restart elsewhere after "
    "this.  [default: 30]",
)]  # fmt: skip

ShutdownTimeout = Annotated[float | None, option(
    metavar="SECONDS", help="Time for running tasks to end after a stop; tasks that need more "
    "time restart elsewhere.  [default: 30]",
)]  # fmt: skip

AllowEviction = Annotated[bool | None, option(
    "--allow-eviction/--no-allow-eviction", help="Start even if the store's maxmemory-policy may "
    "evict tasks.  [default: as in the app]",
)]  # fmt: skip

Uvloop = Annotated[bool | None, option(
    "--uvloop/--no-uvloop", help="Use uvloop.  [default: if it is installed]",
)]  # fmt: skip

Reload = Annotated[bool, typer.Option(
    "--reload",
    help="For development: restart when a source file in the working directory changes.",
)]  # fmt: skip

LogLevel = Annotated[Level | None, option(help="Lowest level to log.  [default: info]")]

LogFormat = Annotated[logs.Form | None, option(
    help="Format of log lines: text, or JSON objects with the task's data as fields.  "
    "[default: text]",
)]  # fmt: skip

HealthPort = Annotated[int | None, option(
    metavar="PORT", min=0, max=65535, help="Serve /live, /ready, /startup, /metrics and /scale on "
    "this port (0 = pick a free one).  [default: no port]",
)]  # fmt: skip

HealthHost = Annotated[str | None, option(
    metavar="HOST", help="Address of the health port; use 0.0.0.0 for probes from a cluster. "
    "The port shows names and metrics of queues and task types without a token.  "
    "[default: 127.0.0.1]",
)]  # fmt: skip

HealthName = Annotated[list[str] | None, option(
    metavar="NAME", help="Extra Host header that the health port accepts, e.g. "
    "workers.example.com. IP addresses, localhost and private names are always accepted. "
    "Repeatable.",
)]  # fmt: skip

LiveLimit = Annotated[float | None, option(
    metavar="SECONDS", min=1.0, help="How long the event loop may be blocked before /live fails.  "
    "[default: 60]",
)]  # fmt: skip


AppVersion = Annotated[str | None, option(
    metavar="TEXT", help="Version of the program, e.g. a git commit, to mark in the dashboard's "
    "charts; or set QSYNC_VERSION.",
)]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """The options that override settings of the app's servers; None keeps the app's setting."""

    strict: Strict = None
    concurrency: Concurrency = None
    threads: Threads = None
    task_processes: TaskProcesses = None
    prefetch: Prefetch = None
    lease: Lease = None
    shutdown_timeout: ShutdownTimeout = None
    timeout: Timeout = None
    retry_delay: RetryDelay = None
    max_crashes: MaxCrashes = None
    max_hung: MaxHung = None
    result_limit: ResultLimit = None
    dead_limit: DeadLimit = None
    dead_age: DeadAge = None
    sweep: Sweep = None
    allow_eviction: AllowEviction = None
    log_errors: LogErrorsOption = None
    app_version: AppVersion = None

    def config(self) -> dict[str, Any]:
        """Return the options that are set, by setting name."""
        settings = asdict(self)
        settings["processes"] = settings.pop("task_processes")
        settings["version"] = settings.pop("app_version")
        return {name: value for name, value in settings.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessOptions:
    """The options of the worker's processes."""

    processes: Processes = 1
    max_tasks: MaxTasks = None
    max_memory: MaxMemory = None
    uvloop: Uvloop = None
    reload: Reload = False
    log_level: LogLevel = None
    log_format: LogFormat = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthOptions:
    """The options of the health port."""

    health_port: HealthPort = None
    health_host: HealthHost = None
    health_name: HealthName = None
    live_limit: LiveLimit = None
