"""All names of redis-py that are not documented, in one place.

Each function has an answer when a release of redis-py no longer has the name: the queue then works
by public names alone, more slowly or with less foresight.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import redis

log = logging.getLogger("qsync.broker")


def streams(
    connection: Any,
) -> tuple[asyncio.Transport, asyncio.BaseProtocol, Callable[[Any], Exception]] | None:
    """What an open asyncio connection reads and writes by: its transport, the protocol that it has
    given to it, and the function that turns an error reply into an exception; None: not known."""
    try:
        transport = connection._writer.transport
        protocol = transport.get_protocol()
        parse_error = connection._parser.parse_error
        transport.set_protocol(protocol)
    except (AttributeError, NotImplementedError):
        warn_once("its connections' streams are not found, exchanges take longer")
        return None
    return transport, protocol, parse_error


def forced_host(sentinel: Any) -> str | None:
    """The address that a Sentinel object gives for any primary, if it was told to."""
    return getattr(sentinel, "_force_master_ip", None)


def start_nodes(cluster: Any) -> list[Any]:
    """The nodes by which a client of a cluster finds the others; those that it knows, otherwise."""
    manager = getattr(cluster, "nodes_manager", None)
    found = getattr(manager, "startup_nodes", None)
    return list(found.values()) if isinstance(found, dict) else list(cluster.get_nodes())


def address_remap(cluster: Any) -> Any:
    """The function by which a client of a cluster translates addresses, if it was given one."""
    return getattr(getattr(cluster, "nodes_manager", None), "address_remap", None)


def limit_socket(connection: Any, seconds: float) -> None:
    """Each write and read of an open connection ends in so many seconds; otherwise as it was told
    when it was made."""
    try:
        sock = connection._sock
    except AttributeError:
        warn_once("its connections' sockets are not found, a call may end later than asked")
        return
    if sock is not None:
        sock.settimeout(seconds)


def socket_of(connection: Any) -> socket.socket | None:
    """The socket of an open connection, to wait for it together with others; None: not known."""
    sock = getattr(connection, "_sock", None)
    if not isinstance(sock, socket.socket):
        warn_once("its connections' sockets are not found, subscriptions begin later")
        return None
    return sock


@cache
def warn_once(what: str) -> None:
    """One line in the log a process."""
    log.warning("redis-py %s differs from those that this qsync knows: %s", redis.__version__, what)


def names_of(nodes: Iterable[Any]) -> list[tuple[str, int]]:
    """The hosts and ports of nodes of a cluster."""
    return [(str(node.host), int(node.port)) for node in nodes]
