"""Which live servers serve a queue: the questions to the store, and what they tell. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from qsync import codec
from qsync.broker import views
from qsync.broker.call import Call
from qsync.keys import GlobalKeys

SERVERS_LIMIT: Final = 100
"""Most servers whose records are read."""

NEXT_LOOK: Final = 12
"""A wait without a timeout looks for servers at its first look for the result and at each 12th."""


def live(keys: GlobalKeys) -> Call[tuple[int, dict[str, int]]]:
    """The call that names live servers."""
    return views.servers(keys, count=SERVERS_LIMIT)


def records(keys: GlobalKeys, servers: Iterable[str]) -> list[Call[dict[str, bytes]]]:
    """The calls that read what servers say of themselves."""
    return [views.record(keys, server) for server in servers]


def serves(record: Mapping[str, bytes], queue: str) -> bool:
    """Whether a server with this record serves the queue; True when it does not say."""
    try:
        return queue in codec.decode(record.get("queues", b""), dict[str, int])
    except codec.CodecError:
        return True


def knows(record: Mapping[str, bytes], type: str) -> bool:
    """Whether a server with this record has a handler for the type."""
    try:
        return type in codec.decode(record.get("types", b""), list[str])
    except codec.CodecError:
        return False


def unserved(id: str, queue: str, prefix: str) -> str:
    """The warning for a caller that may wait for ever."""
    return (
        f"result() of task {id} waits without a timeout, and no live server serves queue "
        f"{queue!r} of prefix {prefix!r}; start one, or give result(timeout=seconds)"
    )
