"""Measure qsync on this machine: `make bench`, or `python -m benchmarks`.

`python -m benchmarks peers` runs the same work on qsync and on other queues: `make bench-peers`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

from rich.console import Console

from benchmarks import machine, plot, report
from benchmarks.harness import Harness
from benchmarks.measures import MEASURES
from benchmarks.report import Report
from benchmarks.scale import FULL, QUICK, Scale
from benchmarks.server_process import BenchmarkError
from benchmarks.store import private_store
from qsync.errors import QsyncError
from qsync.formatting import printable

PROGRAM: Final = "python -m benchmarks"

STDOUT: Final = "-"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["peers"]:
        from benchmarks.peers.command import main as compare_with_peers

        return compare_with_peers(words[1:])
    options = _parse(words)
    trouble, code = "", 0
    try:
        _run(options, words)
    except* (BenchmarkError, QsyncError, OSError) as group:
        trouble, code = str(_first(group)), 1
    except* (KeyboardInterrupt, asyncio.CancelledError):
        trouble, code = "stopped; nothing is left running", 130
    if trouble:
        sys.stderr.write(f"{PROGRAM}: {printable(trouble)}\n")
    return code


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog=PROGRAM,
        description="Measure qsync on this machine and compare it with the floor: a bare event "
        "loop and bare store calls, without a queue. The server and the store run in their own "
        "processes. A full run takes about five minutes; run nothing else meanwhile. To compare "
        f"qsync with other queues, see `{PROGRAM} peers -h`.",
    )
    parser.add_argument(
        "--url",
        help="store to measure; the benchmark deletes its data at the end (default: a Valkey of "
        "its own in a temporary folder, without AOF)",
    )
    parser.add_argument(
        "--json", metavar="FILE", help="also write the figures to FILE; - for standard output"
    )
    parser.add_argument("--plot", metavar="FOLDER", type=Path, help="write charts to FOLDER as SVG")
    parser.add_argument(
        "--only", metavar="NAME,...", action="append", default=[],
        help=f"take only these measures; the measures are {', '.join(MEASURES)}",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=int, help="rounds; each figure is their median (default: 3)"
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--scale", type=float, default=1.0, help="fraction of the tasks, e.g. 0.1")
    size.add_argument(
        "--quick",
        action="store_true",
        help="run one short round as a trial; do not quote its figures",
    )
    options = parser.parse_args(words)
    if (options.rounds is not None and options.rounds < 1) or not 0 < options.scale <= 1:
        parser.error("--rounds must be at least 1; --scale must be over 0 and at most 1")
    options.only = [name for names in options.only for name in names.split(",") if name]
    for name in options.only:
        if name not in MEASURES:
            parser.error(f"--only: unknown measure {name!r}; use one of {', '.join(MEASURES)}")
    try:
        _prepare_output(options)
    except OSError as error:
        parser.error(str(error))
    return options


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        """Exit with one line, without printing the usage."""
        self.exit(2, f"{PROGRAM}: {message}\n")


def _prepare_output(options: argparse.Namespace) -> None:
    """If the files cannot be written, fail now rather than after the measurements."""
    if options.json not in (None, STDOUT):
        path = Path(options.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    if options.plot is not None:
        options.plot.mkdir(parents=True, exist_ok=True)


def _run(options: argparse.Namespace, words: Sequence[str]) -> None:
    console = Console(stderr=options.json == STDOUT)
    if not console.is_terminal:
        console.width = 120
    result = asyncio.run(_measure(console, options, words))
    report.print_report(result, console)
    if options.json == STDOUT:
        sys.stdout.write(report.as_json(result) + "\n")
    elif options.json is not None:
        Path(options.json).write_text(report.as_json(result) + "\n", "utf-8")
    if options.plot is not None:
        for path in plot.draw(result, options.plot):
            console.print(f"drawn: {path}", highlight=False, markup=False)


async def _measure(console: Console, options: argparse.Namespace, words: Sequence[str]) -> Report:
    """Run the benchmarks."""
    loop, main_task = asyncio.get_running_loop(), asyncio.current_task()
    for stop_signal in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(stop_signal, cast("asyncio.Task[Any]", main_task).cancel)
    names = [name for name in MEASURES if not options.only or name in options.only]
    async with _store(options.url) as url, Harness(url, _scale(options)) as harness:
        where = "a Unix socket, started for this run without AOF"
        if options.url:
            where = str(harness.address)  # hides the password
        command = f"{PROGRAM} --url ..." if options.url else shlex.join([*PROGRAM.split(), *words])
        result = Report(machine.describe(await harness.broker.info(), where, command))
        with console.status("") as status:
            for number, name in enumerate(names, 1):
                status.update(f"measuring {name} ({number} of {len(names)})")
                result.results[name] = await MEASURES[name](harness)
        return result


def _scale(options: argparse.Namespace) -> Scale:
    scale = QUICK if options.quick else FULL.times(options.scale)
    return replace(scale, rounds=options.rounds or scale.rounds)


@contextlib.asynccontextmanager
async def _store(url: str | None) -> AsyncIterator[str]:
    """Yield the URL, or start a private store and yield its URL if `url` is None."""
    if url is not None:
        yield url
        return
    async with private_store() as address:
        yield address


def _first(error: BaseException) -> BaseException:
    """Return the first error in an exception group, at any depth."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    sys.exit(main())
