"""Runs the command line for tests, with a server in a thread of this process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, Final, TypeVar

from typer.testing import CliRunner

from qsync import Mux, Qsync, RateLimited, Task, TaskInfo, current
from qsync.cli.main import app as command_line
from qsync.client import AsyncClient
from qsync.inspector import Inspector
from qsync.server.server import Server
from tests.support.stores import wait_until

T = TypeVar("T")

KINDS: Final = ("valkey", "redis_store", "cluster")
"""Names of the fixtures that provide the stores for the commands."""


class Ran:
    """A command that has ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def qsync(*words: str, env: dict[str, str | None] | None = None) -> Ran:
    """Run a command in this process, with standard input and output that are not terminals."""
    environment = {"QSYNC_URL": None, "QSYNC_PREFIX": None, "COLUMNS": "80", **(env or {})}
    # If a command raises an exception, users see a traceback, so exceptions fail the test.
    found = CliRunner().invoke(command_line, list(words), env=environment, catch_exceptions=False)
    return Ran(found.exit_code, found.stdout, found.stderr)


class Live:
    """A store with a client, an inspector and, once started, a server."""

    def __init__(self, url: str, prefix: str, loop: asyncio.AbstractEventLoop) -> None:
        self.url, self.prefix, self._loop = url, prefix, loop
        self.app = Qsync(url, prefix=prefix, mux=handlers(self))
        self.broken = True
        self.began: list[str] = []
        self.released = asyncio.Event()
        self.client: AsyncClient = self.app.async_client()
        self.inspector: Inspector = self.app.inspector()
        self._servers: list[Server] = []

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the background loop; return its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def serve(self, **config: Any) -> Server:
        """Start a server and return when it has registered. The server stops at the end of the
        test."""
        options = {"lease": 1.0, "sweep": 0.2, "shutdown_timeout": 0.2, **config}
        made = self.app.server(**options)

        self.do(made.start())
        self._servers.append(made)
        wait_until(lambda: self.do(self.inspector.server(made.id)))
        return made

    def enqueue(self, *tasks: Task) -> list[str]:
        return [handle.id for handle in self.do(self.client.enqueue_many(tasks))]

    def state(self, id: str) -> str | None:
        found = self.do(self.inspector.find(id))
        return str(found[0].state) if found else None

    def reaches(self, id: str, state: str | None) -> None:
        wait_until(lambda: self.state(id) == state, message=f"{id} is not {state}")

    def run(self, *words: str) -> Ran:
        """Run a command on this store."""
        return qsync(*words, env={"QSYNC_URL": self.url, "QSYNC_PREFIX": self.prefix})

    def ok(self, *words: str) -> Ran:
        """Run a command that must succeed."""
        ran = self.run(*words)
        assert ran.code == 0, ran.err
        return ran

    def refused(self, *words: str, code: int = 1) -> str:
        """Run a command that must fail with this exit code; return its one line of output."""
        ran = self.run(*words)
        assert ran.code == code, (ran.code, ran.out, ran.err)
        assert ran.err.endswith("\n")
        assert ran.err.count("\n") == 1
        return ran.err

    def close(self) -> None:
        async def end() -> None:
            self.released.set()
            for server in self._servers:
                await server.stop()
            await self.client.aclose()
            await self.inspector.aclose()
            await self.app.aclose()

        self.do(end())


def handlers(live: Live) -> Mux:
    """Return handlers: `bill` fails with a long traceback while `live.broken` is set, and `hold`
    waits until it is released."""
    mux = Mux()

    @mux.handle("bill")
    async def bill(task: TaskInfo) -> str:
        if live.broken:
            charge_one_way(99, f"no such customer: {task.payload.decode()}\x1b[2J\u202e")
        return f"billed {task.payload.decode()}"

    @mux.handle("hold")
    async def hold(task: TaskInfo) -> None:
        live.began.append(task.id)
        current().progress(3, 10)
        await live.released.wait()

    @mux.handle("close")
    async def close(task: TaskInfo) -> None:
        live.began.append(task.id)
        if live.began.count(task.id) == 1:
            raise RateLimited(retry_after=3600)

    @mux.handle("note")
    async def note(task: TaskInfo) -> None:
        live.began.append(task.id)

    return mux


def charge_one_way(depth: int, text: str) -> None:
    """Raise ValueError after mutual recursion, because Python shortens the traceback of a function
    that calls itself."""
    charge_the_other_way(depth - 1, text)


def charge_the_other_way(depth: int, text: str) -> None:
    if depth <= 0:
        raise ValueError(text)
    charge_one_way(depth - 1, text)


@contextlib.contextmanager
def living(url: str, prefix: str) -> Iterator[Live]:
    """Yield a Live whose parts run in an event loop in another thread."""
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            live = Live(url, prefix, loop)
            try:
                yield live
            finally:
                live.close()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
