"""Shell completion of the names of queues, servers and schedules.

Completion reads the store for at most a second, and offers nothing if the read fails.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

import typer

from qsync.connections import Connections
from qsync.errors import QsyncError
from qsync.inspector import Inspector
from qsync.task import PAYLOAD_LIMIT

STORE_TIMEOUT_S: Final = 1.0


def queues(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the queue names that begin with the text."""
    return _names(ctx, incomplete, lambda inspector: inspector.queue_names())


def servers(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the ids of running servers that begin with the text."""

    async def read(inspector: Inspector) -> list[str]:
        return (await inspector.overview(names=())).servers

    return _names(ctx, incomplete, read)


def schedules(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the schedule names that begin with the text."""

    async def read(inspector: Inspector) -> list[str]:
        return [info.name for info in await inspector.schedules()]

    return _names(ctx, incomplete, read)


def _names(
    ctx: typer.Context, incomplete: str, read: Callable[[Inspector], Awaitable[list[str]]]
) -> list[str]:
    url, prefix = ctx.params.get("url"), ctx.params.get("prefix") or "qsync"
    if not url or url.startswith("embedded://"):  # do not start an embedded store
        return []

    async def read_in_time(connections: Connections) -> list[str]:
        inspector = connections.inspector()  # imports redis-py
        async with asyncio.timeout(STORE_TIMEOUT_S), inspector:
            return await read(inspector)

    names: list[str] = []
    with contextlib.suppress(QsyncError, OSError, TimeoutError):
        connections = Connections(
            url, prefix=prefix, payload_limit=PAYLOAD_LIMIT, patience=STORE_TIMEOUT_S
        )
        with contextlib.closing(connections):
            names = asyncio.run(read_in_time(connections))
    # Leave out names with unprintable characters, because the shell would insert them as they are.
    return sorted({name for name in names if name.startswith(incomplete) and name.isprintable()})
