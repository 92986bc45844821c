"""A dashboard for a live system, for tests that drive a browser or send HTTP requests."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, Final, TypeVar

import httpx
import uvicorn
from starlette.types import ASGIApp

from qsync import Mux, Qsync, Task, TaskInfo, current
from qsync.inspector import Inspector
from qsync.server.server import Server
from qsync.web import create_app
from tests.support.stores import HOST

T = TypeVar("T")

SAME: Final = {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"}
"""Headers that a browser sends with a form of a dashboard page."""

TRACE: Final = "\n".join(
    ["ValueError: order 4711 has no address", "", *(f" at {n}" for n in range(210))]
)
"""An error of over 200 lines."""


@contextlib.asynccontextmanager
async def visiting(
    app: ASGIApp,
    *,
    headers: dict[str, str] | None = None,
    base: str = "http://localhost",
    client: tuple[str, int] = ("127.0.0.1", 5000),
) -> AsyncIterator[httpx.AsyncClient]:
    """Yield an HTTP client of an ASGI app in this event loop."""
    transport = httpx.ASGITransport(app=app, client=client)
    async with httpx.AsyncClient(transport=transport, base_url=base, headers=headers) as made:
        yield made


class Live:
    """A qsync app with servers and dashboards, in an event loop that runs in a thread."""

    def __init__(self, url: str, prefix: str) -> None:
        self.url, self.prefix = url, prefix
        self.fixed = False
        self.gate = threading.Event()
        self.app = Qsync(url, prefix=prefix, mux=self._mux())
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._stack = contextlib.AsyncExitStack()
        self._thread.start()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop; return its result."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(60)

    def enqueue(self, *tasks: Task) -> None:
        """Enqueue tasks, in order."""
        with self.app.client() as client:
            client.enqueue_many(tasks)

    def serve(self, **config: Any) -> Server:
        """Start a server that runs until the end of the test."""
        server = self.app.server(**{"lease": 5, "sweep": 0.2, "shutdown_timeout": 1, **config})
        return self.do(self.enter(server))

    async def enter(self, context: contextlib.AbstractAsyncContextManager[T]) -> T:
        """Enter a context manager that is exited at the end of the test."""
        return await self._stack.enter_async_context(context)

    def inspect(self, ask: Callable[[Inspector], Coroutine[Any, Any, T]]) -> T:
        """Return the result of a call to the inspector."""

        async def work() -> T:
            async with self.app.inspector() as inspector:
                return await ask(inspector)

        return self.do(work())

    def open(self, **options: Any) -> str:
        """Start a dashboard; return its URL."""
        options = {"auth": None if "token" in options else "host", "read_only": False, **options}
        return self.do(self._open(options))

    async def _open(self, options: dict[str, Any]) -> str:
        inspector = await self.enter(self.app.inspector())
        app = create_app(inspector, **options)
        app.site.sampler.interval_s = 0.2
        app.site.environment.globals["refresh"] = 2
        return await self.enter(serving(app))

    def close(self) -> None:
        """Stop the servers and dashboards, and close the app."""
        self.gate.set()
        try:
            self.do(self._stack.aclose())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self.app.close()

    def _mux(self) -> Mux:
        mux = Mux()

        @mux.handle("order")
        async def order(task: TaskInfo) -> str:
            if not self.fixed:
                raise ValueError(TRACE.partition(": ")[2])
            return "delivered"

        @mux.handle("long")
        async def long(task: TaskInfo) -> None:
            current().progress(3, 10)
            while not self.gate.is_set():  # noqa: ASYNC110 - set from another thread
                await asyncio.sleep(0.02)

        return mux


@contextlib.asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[str]:
    """Serve the app over HTTP on a free port; yield its URL."""
    config = uvicorn.Config(
        app, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=1
    )
    async with quiet_server(config) as port:
        yield f"http://localhost:{port}"


@contextlib.asynccontextmanager
async def quiet_server(config: uvicorn.Config) -> AsyncIterator[int]:
    """Run uvicorn on a free port, without its signal handlers; yield the port."""
    bound = socket.socket()
    bound.bind((HOST, 0))
    server = _Server(config)
    running = asyncio.create_task(server.serve(sockets=[bound]))
    while not server.started:
        if running.done():
            running.result()
        await asyncio.sleep(0.01)
    try:
        yield bound.getsockname()[1]
    finally:
        server.should_exit = True
        await running
        bound.close()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no signal handlers, because the server runs in a thread."""
        yield


@contextlib.contextmanager
def live(url: str, prefix: str) -> Iterator[Live]:
    """Yield a Live that is closed at the end."""
    made = Live(url, prefix)
    try:
        yield made
    finally:
        made.close()
