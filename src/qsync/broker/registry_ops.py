"""The operations on the sets of queues and of servers, one pure function per script."""

from __future__ import annotations

from collections.abc import Iterable

from qsync.broker.call import Call, now_argument
from qsync.broker.script import load
from qsync.keys import GlobalKeys


def register(keys: GlobalKeys, queues: Iterable[str], *, in_full_store: bool = True) -> Call[int]:
    """Add queues to the set of queues in use; return how many are new.

    Unless `in_full_store` is true, a store that is out of memory refuses the call. Clients do not
    pass `in_full_store`, since their programs may name any number of queues.
    """
    script = load("register", allow_oom=None if in_full_store else False)
    return Call(script, (keys.queues,), tuple(queues), int)


def unregister(keys: GlobalKeys, queues: Iterable[str]) -> Call[int]:
    """Remove queues from the set of queues in use; return how many were in it."""
    return Call(load("unregister"), (keys.queues,), tuple(queues), int)


def server_heartbeat(
    keys: GlobalKeys, server: str, *, ttl_us: int, now_us: int | None = None
) -> Call[int]:
    """Record a server as live for `ttl_us` (0 removes it); return the number of live servers."""
    return Call(
        load("server_heartbeat"), (keys.servers,), (now_argument(now_us), server, ttl_us), int
    )


def set_server_info(
    keys: GlobalKeys, server: str, fields: dict[str, bytes | str | int], *, ttl_ms: int
) -> Call[int]:
    """Store a server's description for `ttl_ms`; 0 deletes it.

    Each call for a server must store the same set of fields, since fields that an earlier call
    stored are not removed.
    """
    pairs = [value for pair in fields.items() for value in pair]
    return Call(load("set_server_info"), (keys.server(server),), (ttl_ms, *pairs), int)


def send_order(keys: GlobalKeys, server: str, order: bytes, *, ttl_ms: int) -> Call[int]:
    """Put an order into the inbox of a server."""
    return Call(load("send_order"), (keys.inbox(server),), (ttl_ms, order), int)
