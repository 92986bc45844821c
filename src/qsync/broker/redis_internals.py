"""All uses of undocumented names of redis-py, in one place.

Each function has a fallback for releases of redis-py that lack the name. qsync then uses only
public names, which is slower or less precise.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Final

log: Final = logging.getLogger("qsync.broker")


def streams(
    connection: Any,
) -> tuple[asyncio.Transport, asyncio.BaseProtocol, Callable[[Any], Exception]] | None:
    """Return an open asyncio connection's transport, protocol and parser of error replies.

    Return None if qsync does not know the internals of this redis-py release.
    """
    try:
        transport = connection._writer.transport
        protocol = transport.get_protocol()
        parse_error = connection._parser.parse_error
        transport.set_protocol(protocol)
    except (AttributeError, NotImplementedError):
        warn_once("the streams of its connections were not found, so exchanges take longer")
        return None
    return transport, protocol, parse_error


def socket_and_parser(connection: Any) -> tuple[socket.socket, Callable[[Any], Exception]] | None:
    """Return the socket of an open blocking connection, and its parser of error replies.

    Return None if qsync does not know the internals of this redis-py release.
    """
    sock = getattr(connection, "_sock", None)
    if not isinstance(sock, socket.socket):
        return None  # limit_socket logs it
    try:
        return sock, connection._parser.parse_error
    except AttributeError:
        warn_once("the streams of its connections were not found, so exchanges take longer")
        return None


def forced_host(sentinel: Any) -> str | None:
    """Return the host that a Sentinel object returns for every primary if it is set to do so; else
    None."""
    return getattr(sentinel, "_force_master_ip", None)


def start_nodes(cluster: Any) -> list[Any]:
    """Return the startup nodes of a cluster client; as a fallback, all nodes that it knows."""
    manager = getattr(cluster, "nodes_manager", None)
    nodes = getattr(manager, "startup_nodes", None)
    return list(nodes.values()) if isinstance(nodes, dict) else list(cluster.get_nodes())


def address_remap(cluster: Any) -> Any:
    """Return the function that a cluster client uses to translate addresses, or None."""
    return getattr(getattr(cluster, "nodes_manager", None), "address_remap", None)


def limit_socket(connection: Any, seconds: float) -> None:
    """Limit each write and read of an open connection to `seconds`.

    As a fallback, the connection keeps the timeout with which it was created.
    """
    try:
        sock = connection._sock
    except AttributeError:
        warn_once("the sockets of its connections were not found, so a call may end late")
        return
    if sock is not None:
        sock.settimeout(seconds)


def socket_of(connection: Any) -> socket.socket | None:
    """Return the socket of an open connection, for use in a selector; None if it is unknown."""
    sock = getattr(connection, "_sock", None)
    if not isinstance(sock, socket.socket):
        warn_once("the sockets of its connections were not found, so subscriptions begin late")
        return None
    return sock


@cache
def warn_once(difference: str) -> None:
    """Log a warning once per process."""
    import redis  # here: see redis_errors.py

    log.warning(
        "redis-py %s has internals that this version of qsync does not know: %s",
        redis.__version__,
        difference,
    )


def names_of(nodes: Iterable[Any]) -> list[tuple[str, int]]:
    """Return the hosts and ports of cluster nodes."""
    return [(str(node.host), int(node.port)) for node in nodes]
