"""`qsync worker`: servers of an app in processes of their own, kept running."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import sys
from typing import Annotated, Any, Literal, NoReturn

import typer

from qsync.app import Qsync
from qsync.broker.blocking import Broker
from qsync.broker.credentials import without_provider
from qsync.cli import server_options as options
from qsync.cli.early_stop import early_stop
from qsync.cli.options import AppPrefix, AppUrl
from qsync.connections import PREFIX, URL
from qsync.errors import ConfigError, QsyncError
from qsync.server.config import seconds
from qsync.server.error_text import message_of
from qsync.server.health import LIVE_LIMIT_S
from qsync.server.server import Server
from qsync.version import __version__
from qsync.worker import logs
from qsync.worker.health_server import HealthPort, counts_tasks
from qsync.worker.lease_abandoner import LeaseAbandoner
from qsync.worker.load_app import TargetError, load
from qsync.worker.process import Plan
from qsync.worker.supervisor import Supervisor

log = logging.getLogger("qsync.worker")

Level = Literal["debug", "info", "warning", "error"]


def worker(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:APP",
            help="A Qsync, or a function that makes one: shop.tasks:app. The module is looked for "
            "in the working directory first.",
            show_default=False,
        ),
    ],
    queues: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=WEIGHT,...",
            help="Queues to take tasks from: critical=5,default=3. Free slots are shared by "
            "weight, which is 1 unless it is given.  [default: default]",
            show_default=False,
        ),
    ] = None,
    strict: Annotated[
        bool | None,
        typer.Option(
            "--strict/--no-strict",
            help="Drain the queues in order of weight instead.  [default: as the app says]",
            show_default=False,
        ),
    ] = None,
    url: AppUrl = None,
    prefix: AppPrefix = None,
    processes: Annotated[
        int,
        typer.Option(
            "--processes",
            "-n",
            metavar="N",
            min=1,
            help="Server processes, one for each core say.",
        ),
    ] = 1,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency",
            "-c",
            metavar="N",
            help="Tasks that one process runs at the same time.  [default: 100]",
            show_default=False,
        ),
    ] = None,
    threads: options.Threads = None,
    task_processes: options.TaskProcesses = None,
    prefetch: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Most tasks taken ahead of a free slot.  [default: what starts within 100 ms]",
            show_default=False,
        ),
    ] = None,
    lease: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="How long after the death of a whole machine its tasks start elsewhere.  "
            "[default: 30]",
            show_default=False,
        ),
    ] = None,
    shutdown_timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="How long running tasks may go on after a stop; then they start elsewhere.  "
            "[default: 30]",
            show_default=False,
        ),
    ] = None,
    timeout: options.Timeout = None,
    retry_delay: options.RetryDelay = None,
    max_crashes: options.MaxCrashes = None,
    max_hung: options.MaxHung = None,
    result_limit: options.ResultLimit = None,
    dead_limit: options.DeadLimit = None,
    dead_age: options.DeadAge = None,
    sweep: options.Sweep = None,
    allow_eviction: Annotated[
        bool | None,
        typer.Option(
            "--allow-eviction/--no-allow-eviction",
            help="Start though the store's maxmemory-policy may delete tasks when memory is full.  "
            "[default: as the app says]",
            show_default=False,
        ),
    ] = None,
    uvloop: Annotated[
        bool | None,
        typer.Option(
            "--uvloop/--no-uvloop",
            help="Use uvloop.  [default: when it is installed]",
            show_default=False,
        ),
    ] = None,
    reload: Annotated[
        bool,
        typer.Option(
            "--reload",
            help="Start anew when a source file in the working directory changes: for development.",
        ),
    ] = False,
    log_level: Annotated[
        Level | None,
        typer.Option(
            help="How much to log.  [default: info]",
            show_default=False,
        ),
    ] = None,
    log_errors: options.LogErrorsOption = None,
    log_format: Annotated[
        logs.Form | None,
        typer.Option(
            help="Lines for people, or JSON objects with the task as fields.  [default: text]",
            show_default=False,
        ),
    ] = None,
    health_port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            min=0,
            max=65535,
            help="Answer /live, /ready, /startup, /metrics and /scale over HTTP on this port; 0: "
            "on any that is free.  [default: none]",
            show_default=False,
        ),
    ] = None,
    health_host: Annotated[
        str | None,
        typer.Option(
            metavar="HOST",
            help="The address of that port; 0.0.0.0 for the probes of a cluster. Whoever reaches "
            "it can read the names of queues and task types, and their figures.  "
            "[default: 127.0.0.1]",
            show_default=False,
        ),
    ] = None,
    health_name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A public name by which that port may be asked, as in the Host header: "
            "workers.example.com. Addresses, localhost and names of a private network need none. "
            "May be given again.",
            show_default=False,
        ),
    ] = None,
    live_limit: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=1.0,
            help="How long the event loop may be blocked until /live says that the worker is "
            "dead.  [default: 60]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run the tasks of an app until told to stop.

    For example: qsync worker shop.tasks:app --processes 4 --queues critical=5,default=3

    A process that dies is replaced, and its tasks are back in the queue within a second. A task
    that was there when two processes died is a suspect: it starts alone in its process, after at
    most 2 s for running tasks to end, and holds up the others for at most 1 s more. Then they go
    on beside it.

    Ctrl-C or SIGTERM stops: running tasks may go on for the shutdown timeout; a second one stops at
    once. SIGHUP replaces the processes one after another, by ones with the code as it is by then.

    Options override those that the app gives its servers, as `Qsync(timeout=60)`.
    """
    logs.hold_standard_files()
    given: dict[str, Any] = {
        "queues": None if queues is None else _weights(queues),
        "strict": strict,
        "concurrency": concurrency,
        "threads": threads,
        "processes": task_processes,
        "prefetch": prefetch,
        "lease": lease,
        "shutdown_timeout": shutdown_timeout,
        "timeout": timeout,
        "retry_delay": None if retry_delay is None else _delays(retry_delay),
        "max_crashes": max_crashes,
        "max_hung": max_hung,
        "result_limit": result_limit,
        "dead_limit": dead_limit,
        "dead_age": dead_age,
        "sweep": sweep,
        "allow_eviction": allow_eviction,
        "log_errors": log_errors,
    }
    config = {name: value for name, value in given.items() if value is not None}
    if reload:
        # A compiled file is told from its source by whole seconds, and edits come faster.
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    with early_stop(f"{target} was being imported") as check:
        app, server = _load(target, config, url, prefix, verbose=log_level == "debug")
        check()
        order = {
            "target": target,
            "config": config,
            "log_level": log_level,
            "reload": reload,
            "uvloop": _choose_loop(uvloop),
            "log_format": log_format,
            "tally": health_port is not None and counts_tasks(),
        }
        queues_served = list(server.config.weights)
        port = _health_port(
            app, queues_served, processes, health_host, health_port, live_limit, health_name or []
        )
        logs.configure(log_level, tag="main", form=log_format)
        logs.catch_uncaught()
        _banner(target, server, processes)
        if port is not None:
            log.info("health: http://%s:%d/ready", port.host, port.port)
        plan = Plan(
            processes=processes,
            command=[sys.executable, "-P", "-m", "qsync.worker.child"],
            order=order,
            queues=queues_served,
            shutdown_timeout=seconds(server.config.shutdown_timeout),
            reload=reload,
        )
        with app:  # one of embedded:// runs for as long as the parent does
            abandoner = LeaseAbandoner(Broker(server.address, connections=1), server.prefix)
            code = asyncio.run(_supervise(plan, abandoner, port))
    raise typer.Exit(code)


async def _supervise(plan: Plan, abandoner: LeaseAbandoner, port: HealthPort | None) -> int:
    supervisor = Supervisor(plan, abandoner)
    if port is None:
        return await supervisor.run()
    port.start(supervisor)
    try:
        return await supervisor.run()
    finally:
        await asyncio.to_thread(port.close)


def _health_port(
    app: Qsync,
    queues: list[str],
    processes: int,
    host: str | None,
    port: int | None,
    live_limit: float | None,
    names: list[str],
) -> HealthPort | None:
    """The port, listening and not answering yet; None when none is asked for."""
    if port is None:
        for name, value in (
            ("--health-host", host), ("--health-name", names or None), ("--live-limit", live_limit),
        ):  # fmt: skip
            if value is not None:
                _refuse(f"{name}: it goes with --health-port")
        return None
    try:
        return HealthPort(
            host or "127.0.0.1", port, app,
            queues=queues, processes=processes, live_limit=live_limit or LIVE_LIMIT_S,
            names=names,
        )  # fmt: skip
    except ConfigError as error:
        _refuse(f"--health-port: {error}")


def _weights(text: str) -> dict[str, int]:
    weights: dict[str, int] = {}
    for part in text.split(","):
        name, sign, weight = part.strip().partition("=")
        if not name or (sign and not weight.isdecimal()):
            _refuse(f"--queues: {part.strip()!r} is not of the form NAME or NAME=WEIGHT")
        if name in weights:
            _refuse(f"--queues: {name!r} is there twice")
        weights[name] = int(weight) if sign else 1
    return weights


def _delays(text: str) -> list[float]:
    try:
        return options.delays_of(text)
    except typer.BadParameter as error:
        _refuse(f"--retry-delay: {error}")


def _load(
    target: str, config: dict[str, Any], url: str | None, prefix: str | None, *, verbose: bool
) -> tuple[Qsync, Server]:
    """The app, and a server of it that is only asked about its settings."""
    if url is not None:
        os.environ[URL] = url
    if prefix is not None:
        os.environ[PREFIX] = prefix
    try:
        app = load(target)
        server = app.server(**config)
        if prefix is not None and server.prefix != prefix:
            msg = f"--prefix: the app has one of its own, {server.prefix!r}"
            raise ConfigError(msg)
        if url is not None:
            with Qsync(url) as asked:
                if without_provider(server.address) != asked.server().address:
                    msg = f"--url: the app names its store itself, {server.address}"
                    raise ConfigError(msg)
    except Exception as error:
        if verbose:
            logs.configure("debug", tag="main")
            log.error("%s", error, exc_info=True)
        ours = isinstance(error, TargetError | QsyncError)
        _refuse(str(error) if ours else f"making a server of {target}: {message_of(error)}")
    return app, server


def _choose_loop(wanted: bool | None) -> bool:
    installed = importlib.util.find_spec("uvloop") is not None
    if wanted and not installed:
        _refuse("--uvloop: it is not installed: pip install 'qsync-py[fast]'")
    return installed if wanted is None else wanted


def _refuse(reason: str) -> NoReturn:
    """One line and exit code 2: it was asked wrongly."""
    typer.echo(f"qsync worker: {logs.escape(reason)}", err=True)
    raise typer.Exit(2)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _banner(target: str, server: Server, processes: int) -> None:
    config, types = server.config.fitted(server.mux), server.mux.types
    shares = ", ".join(f"{name}={weight}" for name, weight in config.weights.items())
    shown = ", ".join(map(logs.escape, types[:20])) + (", ..." if len(types) > 20 else "")
    log.info(
        "qsync %s serves %s; the store is %s, prefix %s",
        __version__, target, server.address, server.prefix,
    )  # fmt: skip
    log.info(
        "queues %s%s; %s of concurrency %d; %s%s; %s for `def` handlers in each",
        shares, " strictly in this order" if config.strict else "",
        _count(processes, "process", "processes"), config.concurrency,
        _count(len(types), "type", "types"), f": {shown}" if types else "",
        _count(config.thread_count, "thread", "threads"),
    )  # fmt: skip
    if not types:
        log.warning("the app knows no tasks: those that are fetched will wait for another server")
