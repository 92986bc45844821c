"""One server in a process of its own, and answers about it.

    python -m qsync.cli.bench.serve

The first line of its input is what to do, as JSON (`Order`); it answers "ready". Each line after
that is a question, answered by a line of JSON. It ends with its input, so that it never outlives
who started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import resource
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qsync.app import Qsync
from qsync.broker import connect
from qsync.broker.shell import AsyncBroker
from qsync.cli.bench import handlers
from qsync.cli.bench.floor import floor, read_messages
from qsync.keys import QueueKeys
from qsync.task import DEFAULT


def main() -> None:
    """Serve until the input ends."""
    order = json.loads(sys.stdin.readline() or "null")
    if order is None:
        return
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    make_loop: Callable[[], asyncio.AbstractEventLoop] | None = None
    if order["uvloop"]:
        import uvloop

        make_loop = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(_answer(order))


async def _answer(order: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    async with _server(order):
        _tell("ready")
        while question := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
            match question:
                case "first":
                    _tell(min(handlers.firsts, default=None))
                    handlers.firsts.clear()
                case "delays":
                    _tell(handlers.delays)
                    handlers.delays.clear()
                case "usage":
                    _tell({"cpu_s": time.process_time(), "rss": _rss(), "peak": _peak()})
                case "floor":
                    _tell(await _floor(order))
                case _:
                    msg = f"no such question: {question!r}"
                    raise ValueError(msg)


@contextlib.asynccontextmanager
async def _server(order: dict[str, Any]) -> AsyncIterator[None]:
    """The server that is asked for, if any."""
    if order["server"] is None:
        yield
        return
    async with Qsync(order["url"], prefix=order["prefix"]) as app:  # noqa: SIM117 - in this order
        async with app.server(handlers.mux, **order["server"]):
            yield


async def _floor(order: dict[str, Any]) -> dict[str, Any]:
    broker = AsyncBroker(connect.parse(order["url"]), connections=1)
    try:
        messages = await read_messages(broker, QueueKeys(order["prefix"], DEFAULT))
    finally:
        await broker.aclose()
    return asdict(await floor(messages, order["concurrency"]))


def _rss() -> int:
    """Bytes of memory that this process has now; its peak where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return _peak()
    return pages * resource.getpagesize()


def _peak() -> int:
    """The most bytes of memory that this process has had."""
    with contextlib.suppress(OSError, ValueError):
        # What a process has on its way to its own program does not count here as it does below.
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _tell(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
