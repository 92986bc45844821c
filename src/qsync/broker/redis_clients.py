# mypy: disable-error-code="no-untyped-call"
# (redis-py leaves many of its constructors without types)
"""Make redis-py clients from an address. This module chooses all settings of redis-py: those of the
address, defaults of qsync, and a few that an address cannot change.

The clients never retry, since a blocking read must not run twice. Calls may run twice, so the
broker retries them. redis-py is imported when the first client is made: see redis_errors.py.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Final, cast

from qsync.broker import client_objects, url
from qsync.broker.address import Address
from qsync.errors import ConfigError

if TYPE_CHECKING:
    import redis.asyncio

CONNECT_TIMEOUT: Final = 5.0
READ_TIMEOUT: Final = 5.0

KEEPALIVE: Final = {
    getattr(socket, name): value
    for name, value in (
        ("TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE", 15),
        ("TCP_KEEPINTVL", 5),
        ("TCP_KEEPCNT", 3),
    )
    if hasattr(socket, name)
}
"""TCP keepalive options. The operating system probes a connection after 15 s of silence, up to
three times, and closes it after 30 s."""


def parse(text: str) -> Address:
    """Parse the URL of a store; raise ConfigError if it is invalid."""
    return _supported(url.parse(text))


def address_of(client: client_objects.AnyClient) -> Address:
    """Return the address of a client; raise ConfigError if qsync cannot connect in the same way."""
    return _supported(client_objects.address_of(client))


def _supported(address: Address) -> Address:
    """Return the address. Raise ConfigError if redis-py lacks a TLS option of the address.

    Both blocking and asyncio connections must accept the option.
    """
    names = [name for name in (*address.settings, *address.finder) if name.startswith("ssl_")]
    if not names:
        return address
    import inspect

    import redis.asyncio.connection
    import redis.connection

    classes: list[Any] = [redis.connection.SSLConnection, redis.asyncio.connection.SSLConnection]
    for name in names:
        if any(name not in inspect.signature(kind.__init__).parameters for kind in classes):
            msg = f"url: {name}: redis-py {redis.__version__} does not have this option"
            raise ConfigError(msg)
    return address


@cache
def _driver() -> dict[str, Any]:
    """Return the setting for the library version that connections report.

    By default, redis-py looks this version up in its package metadata for each connection, which
    takes some milliseconds.
    """
    import redis

    if not hasattr(redis, "DriverInfo"):
        return {}
    return {"driver_info": redis.DriverInfo(lib_version=redis.__version__)}


def _common(address: Address, read_timeout: float, retry: Any) -> dict[str, Any]:
    settings = {
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "socket_keepalive": True,
        **address.settings,
        "socket_timeout": read_timeout,
        "protocol": 2,
        "retry": retry,
    }
    if not settings.keys() & {"driver_info", "lib_name", "lib_version"}:
        settings |= _driver()
    if address.tls:
        settings = {"ssl_cert_reqs": "required", "ssl_check_hostname": True, **settings}
    if not isinstance(settings.get("socket_keepalive_options"), Mapping):
        settings["socket_keepalive_options"] = KEEPALIVE  # redis-py's defaults differ
    if "path" in settings:
        settings.pop("socket_keepalive", None)
        settings.pop("socket_keepalive_options", None)
    return settings


def node_client(
    address: Address, *, connections: int, read_timeout: float = READ_TIMEOUT
) -> redis.Redis:
    """Make a blocking client of one node, or of the primary that the Sentinels name."""
    import redis
    import redis.connection
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    settings = _common(address, read_timeout, Retry(NoBackoff(), 0))
    if address.kind == "sentinel":
        from qsync.broker.sentinel import Finder

        settings |= {"max_connections": connections, "ssl": address.tls}
        return cast("redis.Redis", Finder(address).master_for(address.service, **settings))
    kind: Any = redis.connection.SSLConnection if address.tls else redis.connection.Connection
    if "path" in settings:
        kind = redis.connection.UnixDomainSocketConnection
    else:
        settings["host"], settings["port"] = address.nodes[0]
    pool = redis.BlockingConnectionPool(
        connection_class=kind, max_connections=connections, timeout=read_timeout, **settings
    )
    return redis.Redis(connection_pool=pool)


def async_node_client(
    address: Address, *, connections: int, read_timeout: float = READ_TIMEOUT
) -> redis.asyncio.Redis:
    """Make an asyncio client of one node, or of the primary that the Sentinels name.

    The client's reads have no timeout. Instead, the caller limits the time of a whole exchange,
    which costs less than redis-py's timeout on every write and read.
    """
    import redis.asyncio
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    settings = _common(address, read_timeout, Retry(NoBackoff(), 0)) | {"socket_timeout": None}
    if address.kind == "sentinel":
        from qsync.broker.sentinel import AsyncFinder, AsyncSentinelPool

        settings |= {"max_connections": connections, "timeout": read_timeout, "ssl": address.tls}
        client = AsyncFinder(address).master_for(
            address.service, connection_pool_class=AsyncSentinelPool, **settings
        )
        return cast("redis.asyncio.Redis", client)
    connection = redis.asyncio.connection
    kind: Any = connection.SSLConnection if address.tls else connection.Connection
    if "path" in settings:
        kind = connection.UnixDomainSocketConnection
    else:
        settings["host"], settings["port"] = address.nodes[0]
    pool = redis.asyncio.BlockingConnectionPool(
        connection_class=kind, max_connections=connections, timeout=read_timeout, **settings
    )
    return redis.asyncio.Redis(connection_pool=pool)


def close(client: Any) -> None:
    """Close all connections of a client, including those to Sentinels."""
    client.close()
    pool: Any = client.connection_pool
    pool.disconnect()
    for watcher in _watchers(pool):
        watcher.close()


async def aclose(client: Any) -> None:
    """Close all connections of a client, including those to Sentinels."""
    await client.aclose()
    pool: Any = client.connection_pool
    await pool.disconnect()
    for watcher in _watchers(pool):
        await watcher.aclose()


def _watchers(pool: Any) -> list[Any]:
    """Return the clients that a pool uses to ask the Sentinels for the primary."""
    return list(pool.sentinel_manager.sentinels) if hasattr(pool, "sentinel_manager") else []


def at_node(address: Address, host: str, port: int) -> Address:
    """Return the address of one node of a cluster."""
    return Address(
        "node", ((host, port),), settings=address.settings, tls=address.tls, clock=address.clock
    )
