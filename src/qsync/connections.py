"""The clients of an app.

Clients that the app returns belong to their callers. For task functions, the app keeps shared
clients: one blocking client per process, since connections do not survive a fork, and one
asynchronous client per event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import AsyncGenerator, Callable, Iterator
from copy import copy
from typing import TYPE_CHECKING, Any, cast

from qsync.broker import redis_clients
from qsync.broker.address import Address
from qsync.broker.aio import AsyncBroker
from qsync.broker.blocking import Broker
from qsync.broker.call import Durability
from qsync.broker.client_objects import AnyClient
from qsync.broker.credentials import CredentialProvider, with_provider
from qsync.declared_limits import DeclaredLimits
from qsync.enqueueing import (
    CONFIRM_TIMEOUT,
    check_confirm_timeout,
    check_durability,
    check_payload_limit,
    check_remember_ids,
)
from qsync.errors import ConfigError
from qsync.hooks import Hooks
from qsync.new_task import new_task
from qsync.task import REMEMBER_IDS, Task
from qsync.times import MAX_SECONDS, Duration
from qsync.value_text import shorten

if TYPE_CHECKING:
    from qsync.client import AsyncClient, AsyncHandle, Client, Handle
    from qsync.embedded import Embedded  # imported below, since it needs `fcntl`
    from qsync.inspector import Inspector
    from qsync.instrumentation import Extension, Sender
    from qsync.task_builder import TaskBuilder
    from qsync.wrapped_client import AroundEnqueue

URL = "QSYNC_URL"
PREFIX = "QSYNC_PREFIX"

_NO_URL = (
    "url: missing. Pass Qsync a URL (redis://host:6379, rediss://, unix://, "
    "redis+cluster://h1:p,h2:p, redis+sentinel://h1:p,h2:p/service, or embedded:// for a private "
    f"store in a folder) or a client of redis-py, or set {URL}. In tests, set {URL}=embedded:// "
    "before the import, at the top of conftest.py; the fixtures of qsync replace it"
)


ClientTypes = tuple[Callable[..., "Client"], Callable[..., "AsyncClient"]]

_OF_STORE = ("_where", "prefix", "_options", "_blocking", "_by_loop", "client_types")
"""Names of the attributes that depend on the store; `pointed_at` saves and restores them."""


class Connections:
    """Creates the clients of one store, and keeps the shared ones. The constructor does no I/O."""

    declared: DeclaredLimits | None = None
    """The limits that the app declares; its clients check tasks against them."""

    def __init__(
        self,
        url: str | AnyClient | None,
        *,
        prefix: str,
        payload_limit: int,
        patience: float,
        durability: Durability | None = None,
        confirm_timeout: float = CONFIRM_TIMEOUT,
        remember_ids: Duration = REMEMBER_IDS,
        credential_provider: CredentialProvider | None = None,
    ) -> None:
        if url is None:
            url = os.environ.get(URL) or None
        if url is None:
            raise ConfigError(_NO_URL)
        self.prefix: str = prefix
        self._patience = _checked_patience(patience)
        self._options: dict[str, Any] = {
            "prefix": prefix,
            "payload_limit": check_payload_limit(payload_limit),
            "durability": check_durability(durability),
            "confirm_timeout": check_confirm_timeout(confirm_timeout),
            "remember_ids": check_remember_ids(remember_ids) / 1_000_000,
        }
        self._where: Address | Embedded
        if not isinstance(url, str):
            self._where = redis_clients.address_of(url)
        elif url.startswith("embedded://"):
            from qsync.embedded import Embedded, folder_of

            self._where = Embedded(folder_of(url))
        else:
            self._where = redis_clients.parse(url)
        if credential_provider is not None:
            self._where = self._with_provider(credential_provider)
        self.extensions: list[Extension] = []
        self.around_enqueue: list[AroundEnqueue] = []
        """Contexts that extensions put around each enqueue, the outermost first."""
        self.hooks: Hooks = Hooks()
        self.client_types: ClientTypes | None = None
        """Client classes that run tasks inline, for tests; None means the usual classes."""
        self.sender: Sender | None = None
        """Sender for the tasks of task functions; None means that the shared clients send these
        tasks directly."""
        self._blocking: dict[int, Client] = {}
        self._by_loop: dict[asyncio.AbstractEventLoop, LoopClient] = {}

    def copy(self, *, prefix: str, patience: float) -> Connections:
        """Return a copy for another prefix and patience (seconds), without the shared clients."""
        connections = copy(self)
        connections.prefix, connections._patience = prefix, patience
        connections._options = {**self._options, "prefix": prefix}
        connections._blocking, connections._by_loop = {}, {}
        return connections

    def is_alike(self, other: Connections) -> bool:
        """Return whether the other object has the same store, prefix and kind of clients."""
        mine = (self._where, self.prefix, self.client_types)
        return mine == (other._where, other.prefix, other.client_types)

    def _with_provider(self, provider: CredentialProvider) -> Address:
        if not isinstance(self._where, Address):
            raise ConfigError("credential_provider: an embedded:// store has no users; omit it")
        return with_provider(self._where, provider)

    @contextlib.contextmanager
    def pointed_at(
        self, address: Address, prefix: str, client_types: ClientTypes | None = None
    ) -> Iterator[None]:
        """Use another store and prefix within the block.

        Before the block ends, the caller closes the shared clients that were created in it.
        """
        before = {name: vars(self)[name] for name in _OF_STORE}
        self._where, self.prefix, self.client_types = address, prefix, client_types
        self._options = {**self._options, "prefix": prefix}
        self._blocking, self._by_loop = {}, {}
        try:
            yield
        finally:
            vars(self).update(before)

    @property
    def by_loop(self) -> dict[asyncio.AbstractEventLoop, LoopClient]:
        """Return the shared clients of event loops."""
        return self._by_loop.copy()

    def __str__(self) -> str:
        where = self._where
        return str(where) if isinstance(where, Address) else f"embedded://{where.folder}"

    @property
    def address(self) -> Address:
        """Address of the store.

        Reading the address starts an embedded:// store if needed, which blocks.
        """
        where = self._where
        if isinstance(where, Address):
            return where
        return Address("node", settings={"path": where.start()})

    def client(self) -> Client:
        """Return a new blocking client."""
        return self.client_of(Broker(self.address, patience=self._patience), **self._options)

    def async_client(self) -> AsyncClient:
        """Return a new client for one event loop."""
        broker = AsyncBroker(self.address, patience=self._patience)
        return self.async_client_of(broker, **self._options)

    def extend(self, extension: Extension) -> None:
        """Add an extension. Raise ConfigError in the cases that `Qsync.extend` lists."""
        from qsync.instrumentation import Extension  # imports the clients

        if not isinstance(extension, Extension):
            raise ConfigError(f"extend: {shorten(extension)} is not an Extension")
        if extension.name and any(extension.name == other.name for other in self.extensions):
            raise ConfigError(f"extend: the app already has the extension {extension.name!r}")
        if extension.around_enqueue is not None and self.in_use:
            raise ConfigError(
                "extend: the app has already enqueued a task; extend it before the first enqueue"
            )
        if extension.sender is not None:
            if self.sender is not None:
                raise ConfigError("extend: the app already has an extension with a sender")
            self.sender = extension.sender
        if extension.around_enqueue is not None:
            self.around_enqueue.append(extension.around_enqueue)
        self.extensions.append(extension)

    def client_of(self, broker: Broker, **options: Any) -> Client:
        """Return a new blocking client of a broker, with the app's extensions and hooks."""
        # Imported here and below, so that commands that only inspect a store start sooner.
        from qsync.client import Client
        from qsync.wrapped_client import WrappedClient

        if self.client_types is None and not self._wraps:
            client = Client(broker, **options)
        else:
            kind = self.client_types[0] if self.client_types else WrappedClient
            client = kind(self.around_enqueue, self.hooks, broker, **options)
        client.declared = self.declared
        return client

    def async_client_of(self, broker: AsyncBroker, **options: Any) -> AsyncClient:
        """Return a new asynchronous client of a broker, with the app's extensions and hooks."""
        from qsync.client import AsyncClient
        from qsync.wrapped_client import WrappedAsyncClient

        if self.client_types is None and not self._wraps:
            client = AsyncClient(broker, **options)
        else:
            kind = self.client_types[1] if self.client_types else WrappedAsyncClient
            client = kind(self.around_enqueue, self.hooks, broker, **options)
        client.declared = self.declared
        return client

    @property
    def _wraps(self) -> bool:
        return bool(self.around_enqueue or self.hooks.of("enqueued"))

    @property
    def nested(self) -> dict[str, Any]:
        """Options of the clients that servers pass to their handlers."""
        return {name: self._options[name] for name in ("payload_limit", "remember_ids")}

    @property
    def builders(self) -> list[TaskBuilder]:
        """Builders of the extensions, in the order in which they are tried."""
        return [each.builder for each in self.extensions if each.builder is not None]

    @property
    def in_use(self) -> bool:
        """True when the app has shared clients."""
        return bool(self._blocking or self._by_loop)

    def inspector(self) -> Inspector:
        """Return a new inspector for one event loop."""
        # Imported here, so that programs that only enqueue start sooner.
        from qsync.inspector import Inspector

        broker = AsyncBroker(self.address, patience=self._patience)
        return Inspector(broker, prefix=self.prefix, builders=self.builders, declared=self.declared)

    def shared(self) -> Client:
        """Return the shared blocking client of this process."""
        pid = os.getpid()
        client = self._blocking.get(pid)
        if client is None:
            # setdefault: if two threads arrive at the same time, both get the client of the first
            # thread.
            client = self._blocking.setdefault(pid, self.client())
        return client

    def here(self) -> AsyncClient:
        """Return the shared client of the running event loop; the client closes when the loop
        ends."""
        loop = asyncio.get_running_loop()
        loop_client = self._by_loop.get(loop)
        if loop_client is None:
            self._forget_closed_loops()
            loop_client = self._by_loop[loop] = LoopClient(self.async_client(), self._by_loop)
        return loop_client.client

    def enqueue(self, task: Task[Any]) -> Handle[Any]:
        """Enqueue a task of a task function, and return its handle; the call blocks."""
        if self.sender is not None:
            return self.sender.enqueue(task)
        return self.shared().enqueue(task)

    async def aenqueue(self, task: Task[Any]) -> AsyncHandle[Any]:
        """Enqueue a task of a task function, and return its handle."""
        if self.sender is not None:
            return await self.sender.aenqueue(task)
        return await self.here().enqueue(task)

    def check(self, task: Task[Any]) -> None:
        """Check and encode a task that will be sent later.

        Raise InvalidTask if the task is invalid.
        """
        new = new_task(task, b"", payload_limit=self._options["payload_limit"])
        if self.declared is not None and task.limits:
            self.declared.check_task(task, new.queue)

    def ping(self) -> float:
        """Return the time of one round trip, in seconds, or raise StoreUnavailable."""
        broker = Broker(self.address, connections=1, patience=self._patience)
        try:
            broker.ping()  # connects
            return broker.ping()
        finally:
            broker.close()

    async def aping(self) -> float:
        """Return the time of one round trip, in seconds, or raise StoreUnavailable."""
        broker = AsyncBroker(self.address, connections=1, patience=self._patience)
        try:
            await broker.ping()
            return await broker.ping()
        finally:
            await broker.aclose()

    def close(self) -> None:
        """Close the shared blocking client, and stop using an embedded:// store."""
        client = self._blocking.pop(os.getpid(), None)
        if client is not None:
            client.close()
        self._forget_closed_loops()
        if not isinstance(self._where, Address):
            self._where.close()

    async def aclose(self) -> None:
        """Do what `close` does, and close the running loop's client; other loops close their
        own."""
        loop: asyncio.AbstractEventLoop | None = None
        with contextlib.suppress(RuntimeError):  # trio has no asyncio loop
            loop = asyncio.get_running_loop()
        loop_client = None if loop is None else self._by_loop.get(loop)
        if loop_client is not None:
            await loop_client.aclose()
        self.close()

    def _forget_closed_loops(self) -> None:
        for loop in list(self._by_loop):
            if loop.is_closed():
                self._by_loop.pop(loop, None)


def _checked_patience(value: Any) -> float:
    """Return the patience, in seconds. Raise ConfigError if the value is not valid."""
    if type(value) in (int, float) and (0 <= value <= MAX_SECONDS or value == math.inf):
        return cast("float", value)
    raise ConfigError(
        f"patience: {shorten(value)} is not a number of seconds from 0 to 10 years, or math.inf"
    )


class LoopClient:
    """A client that is closed when its event loop shuts down.

    An event loop has only one hook for its end, which is that it closes unfinished asynchronous
    generators. This class therefore starts a generator whose `finally` closes the client.
    """

    def __init__(
        self, client: AsyncClient, shared: dict[asyncio.AbstractEventLoop, LoopClient]
    ) -> None:
        self.client = client
        self._shared = shared
        self._guard = self._until_closed()
        # Run the generator up to its `yield`; it awaits nothing before that.
        with contextlib.suppress(StopIteration):
            self._guard.asend(None).send(None)

    async def _until_closed(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            loop = asyncio.get_running_loop()
            if self._shared.get(loop) is self:
                del self._shared[loop]
            await self.client.aclose()

    async def aclose(self) -> None:
        """Close the client, and remove it from the shared clients."""
        await self._guard.aclose()
