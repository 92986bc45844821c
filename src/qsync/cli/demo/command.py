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

from qsync.errors import QsyncError

if TYPE_CHECKING:
    from rich.console import Console

    from qsync.cli.demo.account import Summary


def demo(
    tasks: Annotated[int, typer.Option(
        "--tasks", metavar="N", min=500, max=100_000, help="Number of tasks that hash a block.",
    )] = 30_000,
    url: Annotated[str | None, typer.Option(
        metavar="URL", show_default=False, help="Store to use; the demo deletes its tasks at the "
        "end.  [default: a store of its own, in a temporary folder]",
    )] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the demo's files and store.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the account as JSON.")] = False,
) -> None:  # fmt: skip
    """Watch tasks of every kind run, fail, retry and survive a kill -9.

    The demo starts a store, a client and a `qsync worker` of two processes. The tasks hash blocks
    of qsync's source code. In the middle of the run, the demo kills a server. At the end, the demo
    accounts for every task, and exits with 1 if it cannot.
    """
    from rich.console import Console  # slow to import, and other commands do not need it

    from qsync.cli.demo.account import print_summary
    from qsync.cli.output import print_json

    console = Console(stderr=as_json)
    if not console.is_terminal:
        console.width = 100
    with _folder(keep=keep) as folder:
        # Set these variables before this process and the worker import the module `tasks`, which
        # reads them.
        os.environ["QSYNC_URL"] = url or f"embedded://{quote(str(folder / 'store'))}"
        os.environ["QSYNC_PREFIX"] = f"qsync-demo-{secrets.token_hex(4)}"
        os.environ["QSYNC_DEMO"] = str(folder)
        summary = _run(console, folder, tasks, clean_up=url is not None)
        print_summary(summary, console)
        if keep:
            console.print(f"\nkept: {folder}", highlight=False)
    if as_json:
        print_json(summary)
    raise typer.Exit(0 if summary.ok else 1)


@contextlib.contextmanager
def _folder(*, keep: bool) -> Iterator[Path]:
    """Create a temporary folder; before removing it, wait until the store in it has stopped."""
    folder = Path(tempfile.mkdtemp(prefix="qsync-demo-"))
    try:
        yield folder
    finally:
        with contextlib.suppress(FileNotFoundError), (folder / "store/users.lock").open() as lock:
            # Every process that uses the store holds this lock. After the last such process has
            # ended, the store's guardian process holds the lock until the store has stopped.
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not keep:
            shutil.rmtree(folder)


def _run(console: Console, folder: Path, tasks: int, *, clean_up: bool) -> Summary:
    """Run the demo and print its progress; exit with one line if it cannot continue or is
    stopped."""
    from qsync.cli.demo.account import DemoError

    async def play() -> Summary:
        from qsync.cli.demo.run import Run  # imports `tasks`

        loop, task = asyncio.get_running_loop(), cast("asyncio.Task[Any]", asyncio.current_task())
        for stop_signal in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(stop_signal, task.cancel)
        return await Run(folder, tasks, console).play(clean_up=clean_up)

    try:
        return asyncio.run(play())
    except (KeyboardInterrupt, asyncio.CancelledError):
        trouble, code = "stopped; nothing is left running", 130
    except (DemoError, QsyncError, OSError) as error:
        trouble, code = str(error), 1
    line = f"qsync demo: {trouble}"
    console.print(line, style="bold red", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(code)
