"""Read the address and settings of a redis-py or valkey-py client object.

qsync never uses or closes the client, and leaves its pool alone. Each setting is copied, replaced
with qsync's own value, or refused by name; none is dropped silently.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

from qsync.broker import redis_internals
from qsync.broker.address import Address
from qsync.broker.address_options import OPTIONS, check, check_tls
from qsync.broker.credentials import CheckedProvider
from qsync.errors import ConfigError

if TYPE_CHECKING:
    import redis.asyncio.cluster
    import redis.cluster

    AnyClient = (
        redis.Redis
        | redis.asyncio.Redis
        | redis.cluster.RedisCluster
        | redis.asyncio.cluster.RedisCluster
    )
else:  # not imported here: whoever created the client has imported its library
    AnyClient = Any

_LIBRARIES: Final = ("redis", "valkey")
_KINDS: Final[Mapping[str, Literal["node", "cluster"]]] = {
    "Redis": "node", "Valkey": "node", "RedisCluster": "cluster", "ValkeyCluster": "cluster",
}  # fmt: skip

_WHERE: Final = ("host", "port", "path", "connection_class", "connection_pool", "ssl")
"""Settings that are read separately."""

_OURS: Final = (
    "socket_timeout", "socket_read_size", "retry", "retry_on_error", "retry_on_timeout",
    "health_check_interval", "max_connections", "encoding", "encoding_errors", "encoder_class",
    "decode_responses", "parser_class", "protocol", "legacy_responses", "response_callbacks",
    "command_packer", "event_dispatcher", "lib_name", "lib_version", "driver_info", "client_cache",
    "single_connection_client",
)  # fmt: skip
"""Settings that qsync replaces with its own: timeouts, retries and the format of replies."""

_OURS_TOO: Final = ("cache_", "maint_notifications_", "oss_cluster_", "orig_", "himport_")
"""Prefixes of the names of other settings that qsync replaces."""


def address_of(client: Any) -> Address:
    """Return the address of a client; raise ConfigError if qsync cannot connect in the same way."""
    kind = _kind(client)
    if kind is None:
        shown = f"{type(client).__module__}.{type(client).__qualname__}"
        raise ConfigError(
            "url: pass a URL, or a client of redis-py or valkey-py (Redis, RedisCluster, Valkey, "
            f"ValkeyCluster, blocking or asyncio; Sentinel.master_for makes one), not {shown}"
        )
    try:
        return _cluster(client) if kind == "cluster" else _node(client)
    except (AttributeError, TypeError, ValueError) as error:
        shown = str(error) if type(error) is ValueError else f"it cannot be read ({error!r})"
        raise ConfigError(f"url: the client: {shown}; pass a URL instead") from None


def _kind(client: Any) -> Literal["node", "cluster"] | None:
    for base in type(client).__mro__:
        if base.__module__.partition(".")[0] in _LIBRARIES and base.__name__ in _KINDS:
            return _KINDS[base.__name__]
    return None


def _cluster(client: Any) -> Address:
    kwargs = client.get_connection_kwargs()
    if getattr(client, "user_on_connect_func", None) is not None:
        raise ValueError("redis_connect_func: not supported, since qsync cannot tell what it does")
    tls = _tls(kwargs.get("connection_class"), kwargs)
    settings = _settings(client, kwargs, tls=tls)
    settings.pop("db", None)
    remap = redis_internals.address_remap(client)
    nodes = redis_internals.names_of(redis_internals.start_nodes(client))
    finder = {} if remap is None else {"address_remap": remap}
    return Address("cluster", tuple(nodes), settings=settings, finder=finder, tls=tls)


def _node(client: Any) -> Address:
    pool = client.connection_pool
    kwargs = pool.connection_kwargs
    tls = _tls(pool.connection_class, kwargs)
    settings = _settings(client, kwargs, tls=tls)
    if hasattr(pool, "sentinel_manager"):
        return _sentinel(client, pool, settings, tls=tls)
    if kwargs.get("path"):
        return Address("node", settings={**settings, "path": kwargs["path"]})
    return Address("node", (_place(kwargs),), settings=settings, tls=tls)


def _sentinel(client: Any, pool: Any, settings: Mapping[str, Any], *, tls: bool) -> Address:
    if not pool.is_master:
        raise ValueError("it connects to a replica, which accepts no writes; use master_for")
    manager = pool.sentinel_manager
    finder: dict[str, Any] = {}
    for sentinel in manager.sentinels[:1]:
        asked = sentinel.connection_pool
        ssl = _tls(asked.connection_class, asked.connection_kwargs)
        finder = {**_settings(client, asked.connection_kwargs, tls=ssl), "ssl": ssl}
        finder.pop("db", None)
        finder.pop("socket_connect_timeout", None)
    if manager.min_other_sentinels:
        finder["min_other_sentinels"] = manager.min_other_sentinels
    if (host := redis_internals.forced_host(manager)) is not None:
        finder["force_master_ip"] = host
    nodes = tuple(_place(node.connection_pool.connection_kwargs) for node in manager.sentinels)
    return Address("sentinel", nodes, str(pool.service_name), settings, finder, tls)


def _place(kwargs: Mapping[str, Any]) -> tuple[str, int]:
    host, port = kwargs.get("host") or "localhost", kwargs.get("port") or 6379
    if not isinstance(host, str):
        raise ValueError("host: must be text")
    if not str(port).isdecimal() or int(port) > 65535:
        raise ValueError("port: must be a number from 0 to 65535")
    return host, int(port)


def _tls(kind: Any, kwargs: Mapping[str, Any]) -> bool:
    """Return whether the client uses TLS; raise ValueError for an unknown connection class."""
    if kind is not None and kind.__module__.partition(".")[0] not in _LIBRARIES:
        raise ValueError(
            f"it has its own connection class, {kind.__module__}.{kind.__qualname__}, "
            "but qsync opens its own connections, to a real store (in tests, use embedded://)"
        )
    return "SSL" in getattr(kind, "__name__", "") or bool(kwargs.get("ssl"))


def _settings(client: Any, kwargs: Mapping[str, Any], *, tls: bool) -> dict[str, Any]:
    """Return the settings to copy; raise ValueError for a setting that qsync cannot copy or
    replace."""
    settings: dict[str, Any] = {}
    usual = _usual(client)
    for name, value in kwargs.items():
        if name == "ssl_cert_reqs" and value is None:
            settings[name] = "none"
        elif value in (None, "") or name in (*_WHERE, *_OURS) or name.startswith(_OURS_TOO):
            continue
        elif name == "socket_keepalive" and not value:
            continue  # default of redis-py before 7; qsync needs keepalive to notice dead peers
        elif name in OPTIONS:
            settings[name] = check(name, value)
        elif name == "credential_provider":
            settings[name] = CheckedProvider(value)
        elif name == "socket_keepalive_options":
            if isinstance(value, Mapping):  # any other value means redis-py's defaults
                settings[name] = value
        elif name == "socket_type":
            if value:
                settings[name] = value
        elif getattr(value, "__self__", None) is not client and not _same(name, value, usual):
            raise ValueError(f"{name}: qsync does not know this option of a client")
    if not tls:
        return {name: value for name, value in settings.items() if not name.startswith("ssl_")}
    if settings.get("ssl_cert_reqs") == "none":
        settings.pop("ssl_check_hostname", None)
    check_tls(settings)
    return settings


def _usual(client: Any) -> Mapping[str, Any]:
    """Return the default settings of the client's library."""
    library = next(
        module
        for base in type(client).__mro__
        if (module := base.__module__.partition(".")[0]) in _LIBRARIES
    )
    plain = getattr(sys.modules[library], library.capitalize())()  # Redis or Valkey
    settings: dict[str, Any] = plain.connection_pool.connection_kwargs
    return settings


def _same(name: str, value: Any, usual: Mapping[str, Any]) -> bool:
    """Return whether a value is equivalent to the default."""
    if not value:
        return True
    if name not in usual:
        return False
    simple = isinstance(value, bool | int | float | str | bytes | list | tuple | dict)
    return bool(usual[name] == value) if simple else type(usual[name]) is type(value)
