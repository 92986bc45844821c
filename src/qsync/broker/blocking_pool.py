"""Connections of a blocking broker to one node, taken and given back by its threads.

redis-py's pools wait and connect for as long as they were told when they were made. A caller that
has a deadline needs less than that, so connections are kept here and only made by redis-py.
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

LEAST_S: Final = 0.001
"""The shortest limit of a socket: none at all would make it one that does not block."""


class Pool:
    """At most so many connections to one node. Threads may share it, and a process may fork."""

    def __init__(self, client: redis.Redis, *, connections: int, read_timeout: float) -> None:
        self._client = client
        self._connections = connections
        self._read_timeout = read_timeout
        self._forget()
        _POOLS.add(self)

    def take(self, ends: float) -> tuple[Any, bool]:
        """A connection for one exchange, and whether it has served others before.

        Raises what redis-py does when it cannot connect, or TimeoutError when none becomes free
        until `ends`, or within a read timeout.
        """
        left = min(self._read_timeout, ends - time.monotonic())
        if not self._room.acquire(timeout=max(left, 0.0)):
            raise failures.TimeoutError("all connections to the store are in use")
        try:
            while self._free:
                connection = self._free.pop()
                if _is_usable(connection):
                    return connection, True
                connection.disconnect()
            return self._connect(ends), False
        except BaseException:
            self._room.release()
            raise

    def give_back(self, connection: Any) -> None:
        """Every reply was read: the connection may serve the next exchange."""
        self._free.append(connection)
        self._room.release()

    def drop(self, connection: Any) -> None:
        """Close a connection that broke, and those that are idle: they went the same way."""
        connection.disconnect()
        self._room.release()
        self.drop_idle()

    def drop_idle(self) -> None:
        """Close the connections that are not in use."""
        while self._free:
            try:
                self._free.pop().disconnect()
            except IndexError:  # another thread took the last
                break

    def close(self) -> None:
        """Close what is not in use. The pool may be used again and connects anew."""
        self.drop_idle()
        redis_clients.close(self._client)

    def _connect(self, ends: float) -> Any:
        left = max(ends - time.monotonic(), LEAST_S)
        pool: Any = self._client.connection_pool
        connection = pool.connection_class(**pool.connection_kwargs)
        usual = connection.socket_timeout
        # The second bounds each step of what is said first: credentials, database, TLS.
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
        """A forked child uses no connection of its parent's, nor a lock that one of them holds."""
        self._free: list[Any] = []
        self._room = threading.Semaphore(self._connections)


def limit_socket(connection: Any, seconds: float) -> None:
    """Each write and read of a connection ends in so many seconds."""
    redis_internals.limit_socket(connection, max(seconds, LEAST_S))


def _is_usable(connection: Any) -> bool:
    """Whether a connection that was idle is open, and nothing came that nobody waits for."""
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
