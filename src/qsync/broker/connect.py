# mypy: disable-error-code="no-untyped-call"
# (redis-py leaves many of its constructors without types)
"""Clients of redis-py made from an address; all that knows how redis-py is set up.

A client of the user's is read for its settings and never used: its pool is not touched, and it is
never closed. Our clients never retry by themselves: the broker does, knowing that every call may
be run twice, and a blocking read must not be repeated.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any, Final, cast

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.backoff
import redis.cluster
import redis.exceptions
import redis.retry
import redis.sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.connection import parse_url
from redis.retry import Retry

from qsync.broker.address import (
    SCHEMES,
    Address,
    check_credentials,
    check_node,
    mask,
    split_hosts,
)
from qsync.errors import ConfigError

AnyClient = (
    redis.Redis
    | redis.asyncio.Redis
    | redis.cluster.RedisCluster
    | redis.asyncio.cluster.RedisCluster
)

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
"""The system gives up a connection whose other end is silent for 30 s: it is asked after 15 s of
idleness, and three times in all."""

_COPIED: Final = frozenset({
    "db", "username", "password", "credential_provider", "client_name", "path",
    "socket_connect_timeout", "socket_keepalive", "socket_keepalive_options",
    "ssl_keyfile", "ssl_certfile", "ssl_cert_reqs", "ssl_ca_certs", "ssl_ca_data", "ssl_ca_path",
    "ssl_check_hostname", "ssl_password", "ssl_min_version", "ssl_ciphers",
    "ssl_include_verify_flags", "ssl_exclude_verify_flags",
})  # fmt: skip
"""Settings that say where and who; those that say how are ours."""


def parse(url: str) -> Address:
    """Read a URL; ConfigError when it cannot be one of a store."""
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        msg = f"url: {mask(url) or repr(url)} does not begin with one of {known}"
        raise ConfigError(msg)
    try:
        check_credentials(url)
        if "+" not in scheme:
            check_node(url)
            options = _plain(parse_url(url))
            node = (options.pop("host", "localhost"), options.pop("port", 6379))
            where = () if "path" in options else (node,)
            return Address("node", where, settings=options, tls=scheme == "rediss")
        kind, first, nodes, service = split_hosts(url)
        check_node(first)
        options = _plain(parse_url(first))
        del options["host"], options["port"]
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        msg = f"url: {mask(url)}: {error}"
        raise ConfigError(msg) from None
    if kind == "cluster" and options.pop("db", 0) != 0:
        msg = f"url: {mask(url)} names a database, and a cluster has only number 0"
        raise ConfigError(msg)
    return Address(
        cast("Any", kind), nodes, service, settings=options, tls=scheme.startswith("rediss")
    )


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    kept = {"host", "port", *_COPIED}
    unknown = options.keys() - kept - {"connection_class"}
    if unknown:
        msg = f"unknown option {sorted(unknown)[0]!r} in its query"
        raise ValueError(msg)
    return {name: value for name, value in options.items() if name in kept}


def address_of(client: AnyClient) -> Address:
    """The address that a redis-py client was made with; ConfigError when it is not one."""
    if isinstance(client, redis.cluster.RedisCluster | redis.asyncio.cluster.RedisCluster):
        manager: Any = client.nodes_manager
        nodes = tuple((node.host, int(node.port)) for node in manager.startup_nodes.values())
        return _copy("cluster", nodes, manager.connection_kwargs)
    if not isinstance(client, redis.Redis | redis.asyncio.Redis):
        msg = (
            "url: give a URL, or a client of redis-py (Redis, RedisCluster, sync or asyncio), "
            f"not {type(client).__module__}.{type(client).__qualname__}"
        )
        raise ConfigError(msg)
    pool: Any = client.connection_pool
    settings = pool.connection_kwargs
    tls = "SSL" in pool.connection_class.__name__
    if hasattr(pool, "sentinel_manager"):
        watchers = pool.sentinel_manager.sentinels
        sentinels = [node.connection_pool.connection_kwargs for node in watchers]
        nodes = tuple((node["host"], int(node["port"])) for node in sentinels)
        address = _copy("sentinel", nodes, settings, tls=tls)
        return Address(
            "sentinel", nodes, pool.service_name, address.settings, _copied(sentinels[0]), tls
        )
    if "path" in settings:
        return _copy("node", (), settings)
    node = (settings.get("host", "localhost"), int(settings.get("port", 6379)))
    return _copy("node", (node,), settings, tls=tls)


def _copy(kind: Any, nodes: Any, settings: Mapping[str, Any], *, tls: bool = False) -> Address:
    tls = tls or bool(settings.get("ssl"))
    return Address(kind, tuple(nodes), settings=_copied(settings), tls=tls)


def _copied(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in settings.items()
        if name in _COPIED
        and value is not None
        # What older releases of redis-py set unasked is no setting of the user's.
        and not (name in ("client_name", "socket_keepalive") and not value)
    }


def _common(address: Address, read_timeout: float, retry: Any) -> dict[str, Any]:
    settings = {
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "socket_keepalive": True,
        **address.settings,
        "socket_timeout": read_timeout,
        "protocol": 2,
        "retry": retry(redis.backoff.NoBackoff(), 0),
    }
    if address.tls:
        settings = {"ssl_cert_reqs": "required", "ssl_check_hostname": True, **settings}
    if not isinstance(settings.get("socket_keepalive_options"), Mapping):
        settings["socket_keepalive_options"] = KEEPALIVE  # redis-py has other defaults, or none
    if "path" in settings:
        settings.pop("socket_keepalive", None)
        settings.pop("socket_keepalive_options", None)
    return settings


def node_client(
    address: Address, *, connections: int, read_timeout: float = READ_TIMEOUT
) -> redis.Redis:
    """A blocking client of one node or of the primary that the Sentinels name."""
    settings = _common(address, read_timeout, Retry)
    if address.kind == "sentinel":
        sentinel = redis.sentinel.Sentinel(
            list(address.nodes), sentinel_kwargs=_sentinel(address, read_timeout)
        )
        settings |= {"max_connections": connections, "ssl": address.tls}
        return cast("redis.Redis", sentinel.master_for(address.service, **settings))
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
    """An asyncio client of one node or of the primary that the Sentinels name.

    Its reads do not end by themselves: whoever uses it puts one limit around a whole exchange,
    which costs less than redis-py's around every write and read.
    """
    settings = _common(address, read_timeout, AsyncRetry) | {"socket_timeout": None}
    if address.kind == "sentinel":
        sentinel = redis.asyncio.sentinel.Sentinel(
            list(address.nodes), sentinel_kwargs=_sentinel(address, read_timeout)
        )
        settings |= {"max_connections": connections, "ssl": address.tls}
        return cast("redis.asyncio.Redis", sentinel.master_for(address.service, **settings))
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
    """The client has no connections any more, to Sentinels neither."""
    client.close()
    pool: Any = client.connection_pool
    pool.disconnect()
    for watcher in _watchers(pool):
        watcher.close()


async def aclose(client: Any) -> None:
    """The client has no connections any more, to Sentinels neither."""
    await client.aclose()
    pool: Any = client.connection_pool
    await pool.disconnect()
    for watcher in _watchers(pool):
        await watcher.aclose()


def _watchers(pool: Any) -> list[Any]:
    """The clients by which a pool asks Sentinels for the primary."""
    return list(pool.sentinel_manager.sentinels) if hasattr(pool, "sentinel_manager") else []


def at_node(address: Address, host: str, port: int) -> Address:
    """The address of one node of a cluster."""
    return Address("node", ((host, port),), settings=address.settings, tls=address.tls)


def _sentinel(address: Address, read_timeout: float) -> dict[str, Any]:
    return {
        "socket_timeout": min(read_timeout, 1.0),
        "socket_connect_timeout": 1.0,
        "protocol": 2,
        "ssl": address.tls,
        **address.sentinel_settings,
    }
