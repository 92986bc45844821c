"""SIGTERM and SIGINT reach every server in an event loop, and the program that runs the servers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qsync.server.signals import signals
from tests.support.server import until
from tests.support.stores import Store, free_port, wait_until

ROOT = Path(__file__).parents[2]

HEAD = """
import asyncio, os, signal, sys
from qsync import Mux, Qsync
mux = Mux()
@mux.handle("stay")
async def stay(task): await asyncio.sleep(60)
def server(number):
    app = Qsync(sys.argv[1], prefix=sys.argv[2])
    return app.server(mux, queues=[f"q{number}"], shutdown_timeout=0)
async def serve(number):
    async def say():
        print("running", number, flush=True)
    running = server(number)
    starting = running.start
    async def start():
        await starting()
        await say()
    running.start = start
    await running.run()
    print("stopped", number, flush=True)
"""


class Program:
    """A program that runs servers, and its output."""

    def __init__(self, body: str, *arguments: str, folder: Path) -> None:
        script, self._output = folder / "program.py", folder / "output"
        script.write_text(HEAD + textwrap.dedent(body))
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(script), *arguments], cwd=ROOT, stdout=output,
                stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip

    def output(self) -> str:
        return self._output.read_text()

    def says(self, *words: str) -> None:
        wait_until(
            lambda: all(one in self.output() for one in words), timeout=30, message=self.output()
        )

    def ends(self) -> int:
        try:
            return self.process.wait(timeout=30)
        finally:
            self.process.kill()


LOOPS = ["asyncio.run(main())", "import uvloop; uvloop.run(main())"]


@pytest.mark.faults(102)
@pytest.mark.parametrize("run", LOOPS, ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_servers_of_a_loop_stop(
    valkey: Store, prefix: str, tmp_path: Path, run: str, number: signal.Signals
) -> None:
    if "uvloop" in run:
        pytest.importorskip("uvloop")
    body = f"""
    async def main():
        await asyncio.gather(*[serve(n) for n in range(3)])
        print("all", flush=True)
    {run}
    """
    program = Program(body, valkey.url, prefix, folder=tmp_path)
    program.says("running 0", "running 1", "running 2")
    program.process.send_signal(number)
    assert program.ends() == 0, program.output()
    program.says("stopped 0", "stopped 1", "stopped 2", "all")


def test_a_server_that_ends_first_leaves_the_others_their_handler(
    valkey: Store, prefix: str, tmp_path: Path
) -> None:
    body = """
    async def main():
        short = server(9)
        other = asyncio.create_task(short.run())
        rest = asyncio.gather(serve(0), serve(1))
        while not short.condition().started: await asyncio.sleep(0.01)
        await short.stop()
        await other
        print("short has ended", flush=True)
        await rest
    asyncio.run(main())
    """
    program = Program(body, valkey.url, prefix, folder=tmp_path)
    program.says("running 0", "running 1", "short has ended")
    program.process.send_signal(signal.SIGTERM)
    assert program.ends() == 0, program.output()
    program.says("stopped 0", "stopped 1")


@pytest.mark.parametrize("run", LOOPS, ids=["asyncio", "uvloop"])
def test_signal_handler_of_the_program_is_called_and_restored(
    valkey: Store, prefix: str, tmp_path: Path, run: str
) -> None:
    if "uvloop" in run:
        pytest.importorskip("uvloop")
    body = f"""
    def heard(number, frame): print("heard", number, flush=True)
    async def main():
        signal.signal(signal.SIGTERM, heard)
        await asyncio.gather(serve(0), serve(1))
        print("back" if signal.getsignal(signal.SIGTERM) is heard else "gone", flush=True)
    {run}
    """
    program = Program(body, valkey.url, prefix, folder=tmp_path)
    program.says("running 0", "running 1")
    program.process.send_signal(signal.SIGTERM)
    assert program.ends() == 0, program.output()
    program.says("stopped 0", "stopped 1", "heard 15", "back")


UVICORN = """
import contextlib, uvicorn
from starlette.applications import Starlette
@contextlib.asynccontextmanager
async def lifespan(app):
    task = asyncio.create_task(serve(0))
    yield
    await task
    print("lifespan over", flush=True)
uvicorn.run(Starlette(lifespan=lifespan), port=int(sys.argv[3]), loop="asyncio")
"""


@pytest.mark.faults(102)
def test_server_and_uvicorn_stop_at_the_first_sigterm(
    valkey: Store, prefix: str, tmp_path: Path
) -> None:
    pytest.importorskip("uvicorn")
    program = Program(UVICORN, valkey.url, prefix, str(free_port()), folder=tmp_path)
    program.says("running 0", "Uvicorn running")
    program.process.send_signal(signal.SIGTERM)
    assert program.ends() in (0, -signal.SIGTERM), program.output()
    program.says("stopped 0", "lifespan over")


# In this process.


@pytest.fixture
def at_sigterm() -> Iterator[list[str]]:
    """Yield a list of the handlers that a SIGTERM reaches, in order."""
    heard: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("program"))
    yield heard
    signal.signal(signal.SIGTERM, before)


def send() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


async def test_signal_handler_of_the_loop_is_called_and_restored(
    at_sigterm: list[str],
) -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, at_sigterm.append, "loop")
    with signals(lambda count: at_sigterm.append(f"server {count}")):
        send()
        await until(lambda: len(at_sigterm) == 2)
    assert at_sigterm == ["server 1", "loop"]
    send()
    await until(lambda: len(at_sigterm) == 3)
    assert at_sigterm[2] == "loop"
    loop.remove_signal_handler(signal.SIGTERM)


async def test_signal_handler_installed_later_stays(at_sigterm: list[str]) -> None:
    def later(*_: Any) -> None:
        at_sigterm.append("later")

    with signals(lambda count: at_sigterm.append(f"server {count}")):
        signal.signal(signal.SIGTERM, later)
        send()
        await until(lambda: {"later", "server 1"} <= {*at_sigterm})
    assert signal.getsignal(signal.SIGTERM) is later


async def test_servers_that_begin_and_end_in_any_order_each_count_their_signals(
    at_sigterm: list[str],
) -> None:
    first = signals(lambda count: at_sigterm.append(f"first {count}"))
    second = signals(lambda count: at_sigterm.append(f"second {count}"))
    first.__enter__()
    send()
    await until(lambda: len(at_sigterm) == 2)
    second.__enter__()
    first.__exit__(None, None, None)
    at_sigterm.clear()
    send()
    await until(lambda: len(at_sigterm) == 2)
    assert at_sigterm == ["second 1", "program"]
    second.__exit__(None, None, None)
    at_sigterm.clear()
    send()
    await until(lambda: bool(at_sigterm))
    assert at_sigterm == ["program"]
