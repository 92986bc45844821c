"""The command `qsync bench`."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn, cast

import typer

from qsync.cli.logs import escape
from qsync.errors import QsyncError

if TYPE_CHECKING:
    from rich.console import Console

    from qsync.cli.bench.report import Report

NAMES: Final = (
    "enqueue", "callers", "bulk", "drain", "executors", "waiting", "latency", "load", "scheduled",
    "store", "bytes", "idle", "memory", "backlog",
)  # fmt: skip
"""Of the measures; in `measures`, which takes long to import, they are the keys."""


def bench(
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A store to measure; what is put into it is deleted at the end.  "
            "[default: a Valkey of its own, in a temporary folder, without AOF]",
            show_default=False,
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write the figures there, too; - for the output.",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Draw charts there, as SVG.", show_default=False, file_okay=False
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure little: to see it run, not to quote it.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME,...",
            help=f"Take these measures alone, of {', '.join(NAMES)}.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Measure what this machine makes of qsync, beside the floor that it stands on.

    The server under test has a process of its own, and so has the store. Of three rounds the
    middle one counts. Nothing else should run meanwhile: it takes about five minutes.
    """  # fmt: skip
    # Rich takes long to import, and the other commands do without.
    from rich.console import Console

    from qsync.cli.bench import plot as charts
    from qsync.cli.bench import report as reports

    names = _names(only)
    _prepare(json_file, plot)
    console = Console(stderr=str(json_file) == "-")
    if not console.is_terminal:
        console.width = 120
    report = _measure(console, url, names, quick=quick)
    reports.show(report, console)
    if json_file is not None and str(json_file) != "-":
        json_file.write_text(reports.as_json(report) + "\n", "utf-8")
    elif json_file is not None:
        typer.echo(reports.as_json(report))
    if plot is not None:
        for path in charts.draw(report, plot):
            console.print(f"drawn: {path}", highlight=False, markup=False)


def _prepare(json_file: Path | None, plot: Path | None) -> None:
    """What will be written can be; it would be a pity to learn that at the end."""
    try:
        if json_file is not None and str(json_file) != "-":
            json_file.parent.mkdir(parents=True, exist_ok=True)
            json_file.touch()
        if plot is not None:
            plot.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _fail(str(error), code=2)


def _names(only: list[str] | None) -> list[str]:
    """The measures that are asked for, in their order; exits with 2 when one is not known."""
    if not only:
        return list(NAMES)
    asked = [name for text in only for name in text.split(",") if name]
    for name in asked:
        if name not in NAMES:
            _fail(f"--only: no measure {name!r}; there are {', '.join(NAMES)}", code=2)
    return [name for name in NAMES if name in asked]


def _measure(console: Console, url: str | None, names: list[str], *, quick: bool) -> Report:
    """Take the measures; exits with a line when it cannot go on."""
    from qsync.cli.bench.served import BenchError

    report, trouble, code = None, "", 1
    try:
        report = asyncio.run(_take(console, url, names, quick=quick))
    except* (BenchError, QsyncError, OSError) as group:
        trouble = str(_first(group))
    except* (KeyboardInterrupt, asyncio.CancelledError):
        trouble, code = "stopped; nothing is left running", 130
    return report or _fail(trouble, code=code)


async def _take(console: Console, url: str | None, names: list[str], *, quick: bool) -> Report:
    from qsync.cli.bench.machine import describe
    from qsync.cli.bench.measures import MEASURES
    from qsync.cli.bench.report import Report
    from qsync.cli.bench.rig import Rig
    from qsync.cli.bench.scale import FULL, QUICK

    loop, here = asyncio.get_running_loop(), asyncio.current_task()
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, cast("asyncio.Task[Any]", here).cancel)
    async with _store(url) as address, Rig(address, QUICK if quick else FULL) as rig:
        facts = await rig.broker.facts()
        where = str(rig.address) if url else "a unix socket, without AOF, started for this run"
        command = shlex.join(["qsync", *sys.argv[1:]]) if not url else "qsync bench --url ..."
        report = Report(describe(facts, where, command))
        with console.status("") as status:
            for at, name in enumerate(names, 1):
                status.update(f"measuring {name} ({at} of {len(names)})")
                report.found[name] = await MEASURES[name](rig)
        return report


@contextlib.asynccontextmanager
async def _store(url: str | None) -> AsyncIterator[str]:
    from qsync.cli.bench.store import private_store

    if url is not None:
        yield url
        return
    async with private_store() as address:
        yield address


def _first(group: BaseException) -> BaseException:
    """The first of the errors in a group."""
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def _fail(message: str, *, code: int = 1) -> NoReturn:
    typer.echo(f"qsync bench: {escape(message)}", err=True)
    raise typer.Exit(code)
