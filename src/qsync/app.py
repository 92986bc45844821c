"""The app: one object with the store, the tasks and the periodic tasks of a program."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Self, Unpack

from qsync.broker.base import DEFAULT_PATIENCE_S
from qsync.broker.call import Durability
from qsync.broker.client_objects import AnyClient
from qsync.broker.credentials import CredentialProvider
from qsync.client import AsyncClient, Client
from qsync.connections import PREFIX, Connections
from qsync.enqueueing import CONFIRM_TIMEOUT
from qsync.errors import ConfigError, at_definition
from qsync.hooks import Event, F, check_event
from qsync.instrumentation import Extension
from qsync.keys import check_name
from qsync.mux import Mux, check_mux
from qsync.registry import Registry
from qsync.server.config import APP_OPTIONS, ServerOptions, config_of
from qsync.task import PAYLOAD_LIMIT, REMEMBER_IDS
from qsync.times import Duration

if TYPE_CHECKING:
    from qsync.inspector import Inspector
    from qsync.server.server import Server


class Qsync(Registry):
    """Holds the store, tasks and periodic tasks of a program; creates clients and servers.

    `url` is the address of the store:

        redis://[user:password@]host[:port][/db]     one node; rediss:// for TLS
        unix:///path/to/socket
        redis+cluster://host:port,host:port          any nodes of a cluster; rediss+cluster://
        redis+sentinel://host:port,host:port/name    the Sentinels and the service that they monitor
        embedded://[folder]                          a private Valkey, by default in `.qsync`

    Options go in the query of the URL. `url` may also be a client of redis-py or valkey-py (Redis
    or RedisCluster, blocking or asyncio, created through Sentinel or not). The app copies the
    client's settings, and neither uses nor closes the client; a setting that qsync does not support
    raises ConfigError. See docs/addresses.md. By default, the address is the value of the
    environment variable QSYNC_URL.

    prefix          prefix of all keys in the store; by default QSYNC_PREFIX, or else "qsync"
    mux             handlers for the servers, in addition to those of `@app.task`
    payload_limit   maximum size of an encoded payload, in bytes, and of an encoded result, unless
                    `result_limit` is set
    patience        how long clients retry before they raise StoreUnavailable, in seconds;
                    `math.inf` means no limit
    durability      default durability of enqueues: "fsync", "replica" or None (no wait); see
                    `Client.enqueue`
    confirm_timeout longest wait for the confirmation, in seconds; after that, the `confirmed` of
                    the handle is False
    remember_ids    how long the store refuses a second task with an id that a caller chose, counted
                    from the first enqueue, even if the first task has left the queue; by default an
                    hour. With 0, the store refuses it only while the first task is in the queue
    credential_provider
                    object whose `get_credentials()` returns user and password for each connection,
                    e.g. an IAM token, as in redis-py; see docs/managed-stores.md

    All other options are defaults for the servers of the app and of `qsync worker`: `concurrency`,
    `timeout`, `middleware`, `on_error`, `lifespan` and so on; see `qsync.server.config.Config`.

    Creating an app does no I/O. embedded:// starts a Valkey on first use, in about 0.1 s; the
    Valkey stops when the last process that uses it closes its app or exits. An app may be used
    again after `close`. Raises ConfigError when a value is wrong.
    """

    def __init__(
        self,
        url: str | AnyClient | None = None,
        *,
        prefix: str | None = None,
        mux: Mux | None = None,
        payload_limit: int = PAYLOAD_LIMIT,
        patience: float = DEFAULT_PATIENCE_S,
        durability: Durability | None = None,
        confirm_timeout: float = CONFIRM_TIMEOUT,
        remember_ids: Duration = REMEMBER_IDS,
        credential_provider: CredentialProvider | None = None,
        **server: Unpack[ServerOptions],
    ) -> None:
        config = config_of(server, *APP_OPTIONS)
        if prefix is None:
            prefix = os.environ.get(PREFIX) or "qsync"
        with at_definition():
            check_name("prefix", prefix)
        connections = Connections(
            url,
            prefix=prefix,
            payload_limit=payload_limit,
            patience=patience,
            durability=durability,
            confirm_timeout=confirm_timeout,
            remember_ids=remember_ids,
            credential_provider=credential_provider,
        )
        super().__init__(connections)
        self._given_mux = None if mux is None else check_mux(mux)
        self._server_options = {name: getattr(config, name) for name in server}

    def __repr__(self) -> str:
        return f"<Qsync {self.prefix} at {self._connections}>"

    @property
    def prefix(self) -> str:
        """Prefix of all keys in the store."""
        return self._connections.prefix

    # Clients and servers.

    def client(self) -> Client:
        """Return a new blocking client; the caller closes it, or uses it in a `with` block."""
        return self._connections.client()

    def async_client(self) -> AsyncClient:
        """Return a new client for the event loop that first uses it.

        The caller closes the client, or uses it in `async with`.
        """
        return self._connections.async_client()

    def server(self, mux: Mux | None = None, **config: Unpack[ServerOptions]) -> Server:
        """Return a new server for the app's tasks and periodic tasks, and the handlers of `mux`.

        Accepts the options of `qsync.server.config.Config`; the app's options are the defaults. The
        server has no handlers for tasks that are defined after this call. Raises ConfigError when
        two handlers have the same type, or an option is wrong.
        """
        # Imported here, so that programs that only enqueue start sooner.
        from qsync.server.child_context import ChildSetup
        from qsync.server.server import Server

        self._declared.check()
        handlers = Mux()
        for source in (self._mux, self._given_mux, mux):
            if source is not None:
                handlers.include(check_mux(source))
        server = Server(
            self._connections.address,
            prefix=self.prefix,
            mux=handlers,
            periodic=self.periodics,
            **self._options(config),
        )
        connections = self._connections
        nested = connections.nested
        server.client_type = partial(connections.client_of, **nested)
        server.async_client_type = partial(connections.async_client_of, **nested)
        lifespan = server.config.lifespan
        server.child_setup = ChildSetup.of(server.address, server.prefix, nested, lifespan)
        server.hooks = connections.hooks.copy()
        server.limits = dict(self._declared.rules)
        server.bounds = dict(self.bounds)
        for extension in connections.extensions:
            extension.server(server)
        return server

    def _options(self, config: ServerOptions) -> dict[str, Any]:
        options: dict[str, Any] = {**self._server_options, **config}
        if options.get("result_limit") is None:
            options["result_limit"] = self._connections.nested["payload_limit"]
        return options

    def extend(self, extension: Extension) -> None:
        """Add an extension to all clients and servers that the app creates from now on.

        Raises ConfigError if the app already has an extension with this name, or if this extension
        and an earlier one both have a sender. Also raises ConfigError if the extension acts on
        enqueues and the app has already enqueued a task.
        """
        self._connections.extend(extension)

    def on(self, event: Event) -> Callable[[F], F]:
        """Register the decorated function, `def` or `async def`, as a hook for an event.

        enqueued   (task)         a client of the app has stored a task
        started    (task)         the handler is about to run; it waits until the function returns
        completed  (task)         the store has recorded that the task is done
        snoozed    (task, error)  the handler raised Snooze, and the task is back in the store
        failed     (task, error)  an attempt failed, and the store has recorded it; `task.final` is
                                  True if no retry follows
        dead       (task, error)  the task is dead; it runs again only if an operator re-runs it

        Neither SkipRetry nor a Retry with attempts left counts as a failure. `async def` functions
        run on the event loop of the client or server. `def` functions for "enqueued" run in the
        thread that enqueues. For the other events, `def` functions run in the thread pool if the
        handler does, and on the event loop otherwise. An exception in the function, even
        SystemExit, is logged and has no other effect; only a KeyboardInterrupt during "enqueued"
        reaches the caller. Servers created before the registration do not call the function.
        Raises ConfigError for an unknown event, and for "enqueued" after the first enqueue.
        """
        if check_event(event) == "enqueued" and self._connections.in_use:
            raise ConfigError(
                "on: the app has already enqueued a task; add hooks before the first enqueue"
            )
        return partial(self._connections.hooks.add, event)

    def inspector(self) -> Inspector:
        """Return a new inspector of the queues, for one event loop.

        The caller closes the inspector, or uses it in `async with`.
        """
        return self._connections.inspector()

    def ping(self) -> float:
        """Return the round-trip time to the store, in seconds, or raise StoreUnavailable."""
        return self._connections.ping()

    async def aping(self) -> float:
        """Return the round-trip time to the store, in seconds, or raise StoreUnavailable."""
        return await self._connections.aping()

    def close(self) -> None:
        """Close the shared blocking client of this process, and stop using an embedded:// store.

        The shared client of an event loop closes when the loop ends. The caller closes the clients,
        inspectors and servers that the app returned.
        """
        self._connections.close()

    async def aclose(self) -> None:
        """Do what `close` does, and also close the app's shared client of the running event
        loop."""
        await self._connections.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
