"""The command `qsync demo`."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast
from urllib.parse import quote

import typer

from qsync.cli.demo.worker import DemoError
from qsync.errors import QsyncError

if TYPE_CHECKING:
    from rich.console import Console

    from qsync.cli.demo.check import Summary


def demo(
    tasks: Annotated[
        int,
        typer.Option(
            "--tasks",
            metavar="N",
            min=500,
            max=100_000,
            help="Blocks of files to hash; the other kinds are scaled with it.",
        ),
    ] = 30_000,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A store to run it on; the demo's tasks are deleted from it at the end.  "
            "[default: a store of its own, in a temporary folder]",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the folder: history, manifest, log, store.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the account as JSON.")] = False,
) -> None:
    """Watch tasks of every kind run, fail, retry and survive a kill -9, and be accounted for.

    A client, a `qsync worker` of two processes and a store are started. The files of this Python
    are hashed by tasks; one server is killed in the middle; at the end every task is accounted for.
    Exit code 1 when one is not.
    """
    # Rich takes long to import, and the other commands do without.
    from rich.console import Console

    from qsync.cli.demo import report

    console = Console(stderr=as_json)
    if not console.is_terminal:
        console.width = 100
    with _folder(keep=keep) as folder:
        # The tasks read this when they are imported, here and by the worker.
        os.environ["QSYNC_URL"] = url or f"embedded://{quote(str(folder / 'store'))}"
        os.environ["QSYNC_PREFIX"] = f"qsync-demo-{secrets.token_hex(4)}"
        os.environ["QSYNC_DEMO"] = str(folder)
        summary = _play(console, folder, tasks=tasks, clear=url is not None)
        report.show(summary, console)
        if keep:
            console.print(f"\nkept: {folder}", highlight=False)
    if as_json:
        typer.echo(report.as_json(summary))
    raise typer.Exit(0 if summary.ok else 1)


@contextlib.contextmanager
def _folder(*, keep: bool) -> Iterator[Path]:
    """A temporary folder; when it is removed, the store that was in it has ended."""
    folder = Path(tempfile.mkdtemp(prefix="qsync-demo-"))
    try:
        yield folder
    finally:
        with contextlib.suppress(FileNotFoundError), (folder / "store/users.lock").open() as lock:
            # Held by each user of the store, and by its guardian until the store has ended.
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not keep:
            shutil.rmtree(folder)


def _play(console: Console, folder: Path, *, tasks: int, clear: bool) -> Summary:
    """Run it and show it; exits with a line when it cannot go on, or is told to stop."""

    async def play() -> Summary:
        # What these import reads the environment.
        from qsync.cli.demo.run import Options, Run
        from qsync.cli.demo.screen import Screen

        loop, here = asyncio.get_running_loop(), asyncio.current_task()
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, cast("asyncio.Task[Any]", here).cancel)
        run = Run(Options(folder=folder, tasks=tasks, processes=2, clear=clear))
        async with Screen(run.scene, console):
            return await run.play()

    summary, trouble, code = None, "", 1
    try:
        summary = asyncio.run(play())
    except* (DemoError, QsyncError, OSError) as group:
        trouble = str(_first(group))
    except* (KeyboardInterrupt, asyncio.CancelledError):
        trouble, code = "stopped; nothing is left running", 130
    if summary is None:
        console.print(
            f"qsync demo: {trouble}", style="bold red",
            highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
        raise typer.Exit(code)
    return summary


def _first(group: BaseException) -> BaseException:
    """The first of the errors in a group."""
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group
