"""Runs a server in its own process and answers questions about it.

    python -m benchmarks.server_main

The first line of its input is a JSON object that specifies the server (see `ServerProcess`). The
process answers "ready". Each further line is a question, which the process answers with one line of
JSON. The process ends when its input ends, so that it never outlives its parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import resource
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import handlers
from benchmarks.baseline import read_messages, run_baseline
from qsync.app import Qsync
from qsync.broker import redis_clients
from qsync.broker.aio import AsyncBroker
from qsync.keys import QueueKeys
from qsync.task import DEFAULT


def main() -> None:
    """Serve until the input ends."""
    spec = json.loads(sys.stdin.readline() or "null")
    if spec is None:
        return
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    make_loop: Callable[[], asyncio.AbstractEventLoop] | None = None
    if spec["uvloop"]:
        import uvloop

        make_loop = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(_serve(spec))


async def _serve(spec: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    async with _server(spec):
        # A process of `qsync worker` does the same once it is ready.
        gc.collect()
        gc.freeze()
        _answer("ready")
        while question := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
            match question:
                case "first":
                    _answer(min(handlers.first_starts_ns, default=None))
                    handlers.first_starts_ns.clear()
                case "delays":
                    _answer(handlers.delays_ns)
                    handlers.delays_ns.clear()
                case "starts":
                    _answer(handlers.starts_ns)
                    handlers.starts_ns.clear()
                case "usage":
                    _answer({"cpu_s": time.process_time(), "rss": _rss(), "peak": _peak_rss()})
                case "baseline":
                    _answer(await _baseline(spec))
                case _:
                    raise ValueError(f"no such question: {question!r}")


@contextlib.asynccontextmanager
async def _server(spec: dict[str, Any]) -> AsyncIterator[None]:
    """Run the specified server, if any."""
    if spec["server"] is None:
        yield
        return
    async with (
        Qsync(spec["url"], prefix=spec["prefix"]) as app,
        app.server(handlers.mux, **spec["server"]),
    ):
        yield


async def _baseline(spec: dict[str, Any]) -> dict[str, Any]:
    broker = AsyncBroker(redis_clients.parse(spec["url"]), connections=1)
    try:
        messages = await read_messages(broker, QueueKeys(spec["prefix"], DEFAULT))
    finally:
        await broker.aclose()
    return asdict(await run_baseline(messages, spec["concurrency"]))


def _rss() -> int:
    """Return the resident memory of this process in bytes, or its peak where only the peak is
    available."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return _peak_rss()
    return pages * resource.getpagesize()


def _peak_rss() -> int:
    """Return the peak of the resident memory of this process in bytes."""
    with contextlib.suppress(OSError, ValueError):
        # Unlike ru_maxrss, this leaves out the memory that the process had before its exec.
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _answer(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
