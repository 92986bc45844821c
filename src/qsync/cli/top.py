"""`qsync top`: a live view of queues, rates, servers and the longest-running tasks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Final

import typer

from qsync.cli.command import USAGE, exit_with
from qsync.cli.listing import MAX_PAUSE_S
from qsync.cli.options import Json, StoreOptions, column_of
from qsync.cli.output import console, print_json, print_raw, render
from qsync.cli.store import StoreSession, open_store
from qsync.cli.top_view import SORTS, TopModel
from qsync.errors import StoreUnavailable

if TYPE_CHECKING:  # rich is slow to import
    from rich.console import Console

RATE_INTERVAL_S: Final = 0.5
"""Time between the two reads from which --once computes rates, in seconds."""

WIDTH: Final = 120
"""Width of a frame that is not printed to a terminal, in characters."""


def top(
    *,
    interval: Annotated[
        float,
        typer.Option(
            "--interval", "-i", metavar="SECONDS", min=0.2, max=MAX_PAUSE_S,
            help="Time between two refreshes.",
        ),
    ] = 2.0,
    sort: Annotated[
        str,
        typer.Option(
            parser=column_of(SORTS), metavar="COLUMN",
            autocompletion=lambda: list(SORTS),
            help=f"Sort queues by this column, the largest first: {', '.join(SORTS)}.",
        ),
    ] = "queue",
    once: Annotated[bool, typer.Option("--once", help="Print one frame and exit.")] = False,
    store: StoreOptions,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Watch queues, rates, servers and the longest-running tasks; q or Ctrl-C quits.

    The key > sorts queues by the next column, and < by the previous one; a v marks the column.

    If standard output is not a terminal, the command prints one frame and exits.
    """
    out = console()
    live = out.is_terminal and not out.is_dumb_terminal and not once
    if as_json and live:
        exit_with("--json needs --once", USAGE)
    with open_store(store) as session:
        model = TopModel(session.inspector, session.address, sort=sort)
        if live:
            with contextlib.suppress(KeyboardInterrupt):
                _watch(session, model, out, interval)
        else:
            session.run(_read_twice(model))
            if as_json:
                print_json(model.as_dict())
            else:
                if not out.is_terminal:
                    out.width = WIDTH
                print_raw(render(out, model.frame(None, out.width)))


async def _read_twice(model: TopModel) -> None:
    await model.read()
    await asyncio.sleep(RATE_INTERVAL_S)
    await model.read()


def _watch(session: StoreSession, model: TopModel, out: Console, interval: float) -> None:
    from rich.live import Live

    async def show() -> None:
        keys = Keys(model)
        with keys.read(), Live(console=out, screen=True, auto_refresh=False) as live:
            while not keys.quit:
                try:
                    await model.read()
                except StoreUnavailable as error:  # show the error until the store is back
                    model.trouble = str(error)
                live.update(model.frame(out.height, out.width), refresh=True)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(interval):
                        await keys.pressed.wait()
                keys.pressed.clear()

    session.run(show())


class Keys:
    """Reads the keys that the user presses in the live view."""

    def __init__(self, model: TopModel) -> None:
        self.quit: bool = False
        self.pressed: asyncio.Event = asyncio.Event()
        """Set when the user presses a key that changes the view."""
        self._model = model

    @contextlib.contextmanager
    def read(self) -> Iterator[None]:
        """Read keys within the context, and then restore the terminal's settings."""
        try:
            import termios
            import tty
        except ImportError:  # without termios, only Ctrl-C quits
            yield
            return
        if not sys.stdin.isatty():
            yield
            return
        before, loop = termios.tcgetattr(sys.stdin), asyncio.get_running_loop()
        tty.setcbreak(sys.stdin)
        loop.add_reader(sys.stdin, self._take)
        try:
            yield
        finally:
            loop.remove_reader(sys.stdin)
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)

    def _take(self) -> None:
        keys = os.read(sys.stdin.fileno(), 64)
        self.quit = self.quit or not keys or b"q" in keys.lower()  # no keys: closed
        for key in keys.decode(errors="replace"):
            if key in "<>":
                self._model.sort_by_next(1 if key == ">" else -1)
        self.pressed.set()
