"""`qsync worker`: runs an app's servers in child processes and keeps them running."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, Final, NoReturn

import typer

from qsync.app import Qsync
from qsync.broker.blocking import Broker
from qsync.broker.credentials import without_provider
from qsync.cli import server_options as options
from qsync.cli.command import with_options
from qsync.cli.options import AppPrefix, AppUrl
from qsync.connections import PREFIX, URL
from qsync.errors import ConfigError, QsyncError
from qsync.formatting import install_command, plural
from qsync.server.config import seconds
from qsync.server.error_text import message_of
from qsync.server.health import LIVE_LIMIT_S
from qsync.server.server import Server
from qsync.task import DEFAULT
from qsync.url_masking import hide_credentials
from qsync.version import __version__
from qsync.worker import logs
from qsync.worker.health_server import HealthPort, counts_tasks
from qsync.worker.lease_abandoner import LeaseAbandoner
from qsync.worker.load_app import TargetError, load
from qsync.worker.process import Plan
from qsync.worker.supervisor import Supervisor

log: Final = logging.getLogger("qsync.worker")

NAMES_LOGGED: Final = 10
"""Maximum number of unserved queues, and of types per queue, that the log names."""


@with_options
def worker(
    *,
    target: options.Target,
    queues: options.Queues = None,
    url: AppUrl = None,
    prefix: AppPrefix = None,
    settings: options.ServerSettings,
    process: options.ProcessOptions,
    health: options.HealthOptions,
) -> None:
    """Run the tasks of an app until stopped.

    For example: qsync worker shop.tasks:app --processes 4 --queues critical=5,default=3

    A process that dies is replaced, and its tasks return to the queue within a second. If two
    processes have died while running the same task, the task then runs alone in its process. Such a
    task first waits at most 2 s for running tasks to end, and then delays other tasks for at most
    1 s.

    Ctrl-C or SIGTERM stops the worker gracefully: running tasks have the shutdown timeout to end. A
    second signal stops the worker immediately. SIGHUP restarts the processes one after another, so
    that they load the current code. Under nohup, the worker ignores SIGHUP: use a supervisor or
    setsid instead.

    Options override the server settings of the app, e.g. `Qsync(timeout=60)`.
    """
    logs.hold_standard_files()
    config = settings.config()
    if queues is not None:
        config["queues"] = _weights(queues)
    if settings.retry_delay is not None:
        config["retry_delay"] = _delays(settings.retry_delay)
    if process.reload:
        _write_no_bytecode()
    with early_stop(f"{target} was being imported") as check:
        app, server = _load(target, config, url, prefix, verbose=process.log_level == "debug")
        check()
        plan = _plan(target, config, server, process, health)
        port = _health_port(app, plan, health)
        logs.configure(process.log_level, tag="main", form=process.log_format)
        logs.catch_uncaught()
        _banner(target, app, server, plan.processes, chosen=queues is not None)
        if port is not None:
            log.info("health: http://%s:%d/ready", port.host, port.port)
        with app:  # keeps an embedded store running while this process runs
            code = asyncio.run(_supervise(plan, server, port))
    raise typer.Exit(code)


def _plan(
    target: str,
    config: dict[str, Any],
    server: Server,
    process: options.ProcessOptions,
    health: options.HealthOptions,
) -> Plan:
    return Plan(
        processes=process.processes,
        command=[sys.executable, "-P", "-m", "qsync.worker.child"],
        order={
            "target": target,
            "config": config,
            "log_level": process.log_level,
            "reload": process.reload,
            "limits": [process.max_tasks, process.max_memory],
            "uvloop": _choose_loop(process.uvloop),
            "log_format": process.log_format,
            "tally": health.health_port is not None and counts_tasks(),
        },
        queues=list(server.config.weights),
        shutdown_timeout=seconds(server.config.shutdown_timeout),
        reload=process.reload,
    )


def _write_no_bytecode() -> None:
    """Write no .pyc files: Python compares their timestamps with those of the sources in whole
    seconds, so it could miss an edit."""
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


async def _supervise(plan: Plan, server: Server, port: HealthPort | None) -> int:
    abandoner = LeaseAbandoner(Broker(server.address, connections=1), server.prefix)
    supervisor = Supervisor(plan, abandoner)
    if port is None:
        return await supervisor.run()
    port.start(supervisor)
    try:
        return await supervisor.run()
    finally:
        await asyncio.to_thread(port.close)


def _health_port(app: Qsync, plan: Plan, health: options.HealthOptions) -> HealthPort | None:
    """Return the health port, which listens but does not answer yet; None without --health-port."""
    if health.health_port is None:
        for name in ("health_host", "health_name", "live_limit"):
            if getattr(health, name) not in (None, []):
                _refuse(f"--{name.replace('_', '-')} needs --health-port")
        return None
    try:
        return HealthPort(
            health.health_host or "127.0.0.1", health.health_port, app,
            queues=plan.queues, processes=plan.processes,
            live_limit=health.live_limit or LIVE_LIMIT_S, names=health.health_name or [],
        )  # fmt: skip
    except ConfigError as error:
        _refuse(f"--health-port: {error}")


def _weights(text: str) -> dict[str, int]:
    weights: dict[str, int] = {}
    for part in text.split(","):
        name, sign, weight = part.strip().partition("=")
        if not name or ":" in name or (sign and not weight.isdecimal()):
            _refuse(
                f"--queues: {part.strip()!r} is not of the form NAME or NAME=WEIGHT, "
                "e.g. critical=5,default=3"
            )
        if name in weights:
            _refuse(f"--queues: {name!r} is listed twice")
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
    """Import the app; return it with a server that is used only to read settings."""
    if url is not None:
        os.environ[URL] = url
    if prefix is not None:
        os.environ[PREFIX] = prefix
    try:
        app = load(target)
        server = app.server(**config)
        if prefix is not None and server.prefix != prefix:
            raise ConfigError(f"--prefix: the app sets its own prefix {server.prefix!r}; omit it")
        if url is not None:
            with Qsync(url) as other:
                if without_provider(server.address) != other.server().address:
                    address = server.address
                    raise ConfigError(f"--url: the app sets its own store {address}; omit it")
    except Exception as error:
        if verbose:
            logs.configure("debug", tag="main")
            log.error("%s", error, exc_info=True)
        is_ours = isinstance(error, TargetError | QsyncError)
        _refuse(str(error) if is_ours else f"cannot serve {target}: {message_of(error)}")
    return app, server


def _choose_loop(uvloop: bool | None) -> bool:
    installed = importlib.util.find_spec("uvloop") is not None
    if uvloop and not installed:
        _refuse(f"--uvloop: uvloop is not installed: {install_command('fast')}")
    return installed if uvloop is None else uvloop


def _refuse(reason: str) -> NoReturn:
    """Print the reason as one line, and exit with 2, the code for a usage error."""
    typer.echo(f"qsync worker: {logs.escape(hide_credentials(reason))}", err=True)
    raise typer.Exit(2)


def _unserved(app: Qsync, served: Sequence[str]) -> str:
    """Return a warning that names the queues of the app's tasks that this worker does not serve;
    "" if it serves all of them."""
    types: dict[str, list[str]] = {}
    for name, function in sorted(app.functions.items()):
        queue = function.defaults.get("queue", DEFAULT)
        if queue not in served:
            types.setdefault(queue, []).append(logs.escape(name))
    if not types:
        return ""
    shown = [
        f"{queue} ({', '.join(names[:NAMES_LOGGED])}{', ...' if len(names) > NAMES_LOGGED else ''})"
        for queue, names in list(types.items())[:NAMES_LOGGED]
    ]
    return (
        f"this worker does not serve {plural(len(types), 'queue')} of the app's tasks: "
        f"{', '.join(shown)}{', ...' if len(types) > NAMES_LOGGED else ''}; add these queues to "
        "--queues, or start another worker for them"
    )


def _banner(target: str, app: Qsync, server: Server, processes: int, *, chosen: bool) -> None:
    """Log what the worker serves; `chosen` is true if --queues names the queues."""
    config, types = server.config.fitted(server.mux), server.mux.types
    weights = ", ".join(f"{name}={weight}" for name, weight in config.weights.items())
    names = ", ".join(map(logs.escape, types[:20])) + (", ..." if len(types) > 20 else "")
    log.info(
        "qsync %s serves %s; store %s, prefix %s",
        __version__, target, server.address, server.prefix,
    )  # fmt: skip
    log.info(
        "queues %s%s; %d process%s, concurrency %d and %s for `def` handlers in each; %s%s",
        weights, " strictly in this order" if config.strict else "",
        processes, "" if processes == 1 else "es", config.concurrency,
        plural(config.thread_count, "thread"),
        plural(len(types), "type"), f": {names}" if types else "",
    )  # fmt: skip
    if not types:
        log.warning(
            "the app has no handlers, so tasks that this worker fetches wait for another server"
        )
    if unserved := _unserved(app, list(config.weights)):
        # With --queues, do not warn, because the operator chose the queues and other workers may
        # serve the rest.
        log.log(logging.INFO if chosen else logging.WARNING, unserved)


class _Stopped(BaseException):
    """Raised when a signal arrives. It is not an Exception, so that imported code does not catch it
    by accident."""


@contextlib.contextmanager
def early_stop(doing: str) -> Iterator[Callable[[], None]]:
    """Handle SIGTERM and SIGINT within the context: print one line and exit with code 0.

    The handlers are also needed because the kernel delivers such a signal to PID 1 only if the
    process handles it. Code that later runs an event loop sets its own handlers. `doing` says what
    the signal interrupts. Call the yielded function at the end of the block, because imported code
    may have swallowed the exception.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    seen: list[str] = []

    def stop(number: int, frame: FrameType | None) -> None:
        seen.append(signal.Signals(number).name)
        raise _Stopped

    def check() -> None:
        if seen:
            raise _Stopped

    numbers = (signal.SIGTERM, signal.SIGINT)
    before: dict[int, Any] = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield check
    except BaseException as error:
        # Look at the signal, not at the exception, which imported code may have replaced.
        if not seen:
            raise
        typer.echo(f"qsync worker: {seen[0]} while {doing}; no task was started", err=True)
        raise typer.Exit(0) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
