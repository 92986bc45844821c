"""`qsync top`: a live view of queues, rates, servers and what takes long."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Final

import typer

from qsync.cli.options import (
    App,
    Json,
    Prefix,
    Url,
)
from qsync.cli.store import WRONG, StoreSession, exit_with, open_store
from qsync.cli.tables import console
from qsync.cli.text import print_json, print_out
from qsync.cli.top_view import TopModel
from qsync.errors import StoreUnavailable

if TYPE_CHECKING:  # rich takes long to import
    from rich.console import Console

MEASURE_S: Final = 0.5
"""Between the two looks that one frame takes, since it shows rates."""

WIDE: Final = 120
"""How wide a frame is that goes into no terminal."""


def top(
    interval: Annotated[
        float, typer.Option("--interval", "-i", metavar="SECONDS", min=0.2, help="Between looks.")
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
    url: Url = None,
    prefix: Prefix = None,
    app: App = None,
    as_json: Json = False,
) -> None:
    """Watch queues, rates, servers and the tasks that run longest; q or Ctrl-C ends.

    Where standard output is no terminal, one frame is printed.
    """
    out = console()
    live = out.is_terminal and not out.is_dumb_terminal and not once
    if as_json and live:
        exit_with("--json goes with --once", WRONG)
    with open_store(url, prefix, app) as store:
        watch = TopModel(store.inspector, store.where)
        if live:
            with contextlib.suppress(KeyboardInterrupt):
                _watch(store, watch, out, interval)
        else:
            store.do(_look_twice(watch))
            if as_json:
                print_json(watch.as_dict())
            else:
                _print(watch, out)


async def _look_twice(watch: TopModel) -> None:
    await watch.look()
    await asyncio.sleep(MEASURE_S)
    await watch.look()


def _print(watch: TopModel, out: Console) -> None:
    if not out.is_terminal:
        out.width = WIDE
    with out.capture() as captured:
        out.print(watch.picture(out.width, None))
    print_out("\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n")))


def _watch(store: StoreSession, watch: TopModel, out: Console, interval: float) -> None:
    from rich.live import Live

    async def show() -> None:
        with _keys() as quit, Live(console=out, screen=True, auto_refresh=False) as live:
            while not quit.is_set():
                try:
                    await watch.look()
                except StoreUnavailable as error:  # it goes on when the store is back
                    watch.trouble = str(error)
                live.update(watch.picture(out.width, out.height), refresh=True)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(quit.wait(), interval)

    store.do(show())


@contextlib.contextmanager
def _keys() -> Iterator[asyncio.Event]:
    """An event that is set once q is pressed; the terminal is as it was afterwards."""
    pressed = asyncio.Event()
    try:
        import termios
        import tty
    except ImportError:  # there Ctrl-C ends it
        yield pressed
        return
    if not sys.stdin.isatty():
        yield pressed
        return
    before, loop = termios.tcgetattr(sys.stdin), asyncio.get_running_loop()

    def read() -> None:
        keys = os.read(sys.stdin.fileno(), 64)
        if not keys or b"q" in keys.lower():  # nothing: the terminal is gone
            pressed.set()

    tty.setcbreak(sys.stdin)
    loop.add_reader(sys.stdin, read)
    try:
        yield pressed
    finally:
        loop.remove_reader(sys.stdin)
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
