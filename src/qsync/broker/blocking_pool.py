"""The connection pool of a blocking broker, shared by all threads.

The timeouts of redis-py's pools are fixed at creation, but each caller has its own deadline. So
this pool keeps the connections and uses redis-py only to open them.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Final
from weakref import WeakSet

import redis
import redis.exceptions as failures

from qsync import forks
from qsync.broker import redis_clients
from qsync.broker.blocking_connection import (
    MIN_TIMEOUT_S,
    LibraryConnection,
    SocketConnection,
    wrap_connection,
)
from qsync.broker.error_mapping import opening


class Pool:
    """A pool of at most `connections` connections to one node.

    Threads may share a pool, and a forked child may use its parent's pool.
    """

    def __init__(self, client: redis.Redis, *, connections: int, read_timeout: float) -> None:
        self._client = client
        self._connections = connections
        self._read_timeout = read_timeout
        self._forget()
        _POOLS.add(self)

    def acquire(self, ends: float) -> SocketConnection | LibraryConnection:
        """Return a connection for one exchange.

        Raises redis-py's error if it cannot connect, and TimeoutError if no connection becomes free
        by `ends` or within the read timeout.
        """
        while True:
            try:
                connection = self._free.pop()
            except IndexError:
                connection = self._wait_for_free(ends)
            try:
                if connection is None:
                    return self._connect(ends)
                if connection.is_usable():
                    return connection
            except BaseException:
                self._put_back()
                raise
            self.drop(connection)

    def take_warm(self) -> SocketConnection | None:
        """Return an idle connection that got a reply within the last WARM_S, or None."""
        try:
            connection = self._free.pop()
        except IndexError:
            return None
        if isinstance(connection, SocketConnection) and connection.warm_until > time.monotonic():
            return connection
        self._free.append(connection)
        return None

    def release(self, connection: SocketConnection | LibraryConnection) -> None:
        """Return a connection to the pool; all its replies must have been read."""
        self._free.append(connection)
        if self._waiting:
            self._call_next()

    def discard(self, connection: SocketConnection | LibraryConnection) -> None:
        """Close a broken connection. Also close the idle connections, which may be broken too."""
        self.drop(connection)
        self.discard_idle()

    def discard_idle(self) -> None:
        """Close the idle connections."""
        for _ in range(self._connections):
            try:
                connection = self._free.pop()
            except IndexError:
                break  # other threads are using the remaining connections
            if connection is None:
                self._put_back()
            else:
                self.drop(connection)

    def close(self) -> None:
        """Close the idle connections. The next exchange connects again."""
        self.discard_idle()
        redis_clients.close(self._client)

    def _wait_for_free(self, ends: float) -> SocketConnection | LibraryConnection | None:
        """Wait for a connection that another thread returns; return None if a new connection may be
        opened."""
        until = min(ends, time.monotonic() + self._read_timeout)
        in_time = True
        with self._freed:
            # From here on, a thread that returns a connection wakes the next waiting thread.
            self._waiting += 1
            try:
                while True:
                    try:
                        return self._free.pop()
                    except IndexError:
                        if not in_time:
                            break
                    in_time = self._freed.wait(max(until - time.monotonic(), 0.0))
            finally:
                self._waiting -= 1
        raise failures.TimeoutError("all connections to the store are in use")

    def drop(self, connection: SocketConnection | LibraryConnection) -> None:
        """Close a connection and return its place to the pool."""
        connection.raw.disconnect()
        self._put_back()

    def _put_back(self) -> None:
        """Put the place of a closed connection back into the pool, below the open connections."""
        self._free.insert(0, None)
        if self._waiting:
            self._call_next()

    def _call_next(self) -> None:
        with self._freed:
            self._freed.notify()

    def _connect(self, ends: float) -> SocketConnection | LibraryConnection:
        remaining_s = max(ends - time.monotonic(), MIN_TIMEOUT_S)
        pool: Any = self._client.connection_pool
        connection = pool.connection_class(**pool.connection_kwargs)
        usual = connection.socket_timeout
        # The socket timeout limits each step of the handshake: TLS, credentials, database.
        connection.socket_connect_timeout = min(connection.socket_connect_timeout, remaining_s)
        connection.socket_timeout = min(usual, remaining_s)
        try:
            with opening():
                connection.connect()
        except BaseException:
            connection.disconnect()
            raise
        connection.socket_timeout = usual
        return wrap_connection(connection, usual)

    def _forget(self) -> None:
        """Empty the pool; a forked child must not use its parent's connections and locks."""
        self._free: list[SocketConnection | LibraryConnection | None] = [None] * self._connections
        """One None per connection that may still be opened, followed by the idle connections. The
        most recently used connection is at the end. Threads take and return entries without a
        lock."""
        self._freed = threading.Condition()
        self._waiting = 0
        """Number of threads that wait for a connection; it is changed only while the condition is
        held."""


def _forget_all() -> None:
    for pool in _POOLS:
        pool._forget()


_POOLS: Final[WeakSet[Pool]] = WeakSet()

forks.on_fork(_forget_all)
