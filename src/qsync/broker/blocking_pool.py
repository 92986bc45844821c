"""A connection pool of a blocking broker, shared by its threads.

The timeouts of redis-py's pools are fixed at creation, but each caller has its own deadline. So
this pool keeps the connections and uses redis-py only to open them.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any, Final
from weakref import WeakSet

import redis
import redis.exceptions as failures

from qsync.broker import redis_clients, redis_internals

MIN_TIMEOUT_S: Final = 0.001
"""Shortest timeout of a socket, in seconds: 0 would make it non-blocking."""


class Pool:
    """A pool of at most `connections` connections to one node. Safe for threads and forks."""

    def __init__(self, client: redis.Redis, *, connections: int, read_timeout: float) -> None:
        self._client = client
        self._connections = connections
        self._read_timeout = read_timeout
        self._forget()
        _POOLS.add(self)

    def acquire(self, ends: float) -> tuple[Any, bool]:
        """Return a connection for one exchange, and whether it has served others before.

        Raises redis-py's error if it cannot connect, and TimeoutError if no connection becomes free
        by `ends` or within the read timeout.
        """
        left = min(self._read_timeout, ends - time.monotonic())
        if not self._slots.acquire(timeout=max(left, 0.0)):
            raise failures.TimeoutError("all connections to the store are in use")
        try:
            while self._free:
                connection = self._free.pop()
                if _is_usable(connection):
                    return connection, True
                connection.disconnect()
            return self._connect(ends), False
        except BaseException:
            self._slots.release()
            raise

    def release(self, connection: Any) -> None:
        """Return a connection to the pool; all its replies must have been read."""
        self._free.append(connection)
        self._slots.release()

    def discard(self, connection: Any) -> None:
        """Close a broken connection, and the idle ones, which may be broken as well."""
        connection.disconnect()
        self._slots.release()
        self.discard_idle()

    def discard_idle(self) -> None:
        """Close the idle connections."""
        while self._free:
            try:
                self._free.pop().disconnect()
            except IndexError:  # another thread took the last one
                break

    def close(self) -> None:
        """Close the idle connections. The next exchange connects again."""
        self.discard_idle()
        redis_clients.close(self._client)

    def _connect(self, ends: float) -> Any:
        left = max(ends - time.monotonic(), MIN_TIMEOUT_S)
        pool: Any = self._client.connection_pool
        connection = pool.connection_class(**pool.connection_kwargs)
        usual = connection.socket_timeout
        # The socket timeout limits each step of the handshake: TLS, credentials, database.
        connection.socket_connect_timeout = min(connection.socket_connect_timeout, left)
        connection.socket_timeout = min(usual, left)
        try:
            connection.connect()
        except BaseException:
            connection.disconnect()
            raise
        connection.socket_timeout = usual
        limit_socket(connection, usual)
        return connection

    def _forget(self) -> None:
        """Start empty; after a fork the parent's connections and locks must not be used."""
        self._free: list[Any] = []
        self._slots = threading.Semaphore(self._connections)


def limit_socket(connection: Any, seconds: float) -> None:
    """Limit each write and read of a connection to `seconds`."""
    redis_internals.limit_socket(connection, max(seconds, MIN_TIMEOUT_S))


def _is_usable(connection: Any) -> bool:
    """Return whether an idle connection is open and has received no unexpected data."""
    try:
        return not connection.can_read()
    except (failures.ConnectionError, failures.TimeoutError, OSError):
        return False


def _forget_all() -> None:
    for pool in _POOLS:
        pool._forget()


_POOLS: Final[WeakSet[Pool]] = WeakSet()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
