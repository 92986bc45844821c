"""Finds the live servers of a queue: builds the calls and reads the replies. Without I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from qsync import codec
from qsync.broker import views
from qsync.broker.call import Call
from qsync.keys import GlobalKeys

SERVERS_LIMIT: Final = 100
"""Maximum number of servers whose records one check reads."""

NEXT_LOOK: Final = 12
"""A wait without a timeout checks for live servers at its first poll, and then every 12 polls."""


def live(keys: GlobalKeys) -> Call[tuple[int, dict[str, int]]]:
    """Return the call that lists the live servers."""
    return views.servers(keys, count=SERVERS_LIMIT)


def records(keys: GlobalKeys, servers: Iterable[str]) -> list[Call[dict[str, bytes]]]:
    """Return the calls that read the records of servers."""
    return [views.server_info(keys, server) for server in servers]


def serves(record: Mapping[str, bytes], queue: str) -> bool:
    """Return whether a server with this record serves the queue; True if the record cannot be
    read."""
    try:
        return queue in codec.decode(record.get("queues", b""), dict[str, int])
    except codec.CodecError:
        return True


def knows(record: Mapping[str, bytes], type: str) -> bool:
    """Return whether a server with this record has a handler for the type."""
    try:
        return type in codec.decode(record.get("types", b""), list[str])
    except codec.CodecError:
        return False


def unserved(id: str, queue: str, prefix: str) -> str:
    """Return the warning for a caller that might wait forever."""
    return (
        f"result() of task {id} waits without a timeout, and no live server serves queue "
        f"{queue!r} of prefix {prefix!r}; start one, or call result(timeout=seconds)"
    )
