"""What the shell completes from the store: names of queues, servers and schedules.

A second at most; with anything wrong there is nothing to complete.
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

PATIENCE_S: Final = 1.0


def queues(ctx: typer.Context, incomplete: str) -> list[str]:
    """The queues whose names begin so."""
    return _ask(ctx, incomplete, lambda inspector: inspector.queue_names())


def servers(ctx: typer.Context, incomplete: str) -> list[str]:
    """The live servers whose ids begin so."""

    async def ask(inspector: Inspector) -> list[str]:
        return (await inspector.overview(names=())).servers

    return _ask(ctx, incomplete, ask)


def schedules(ctx: typer.Context, incomplete: str) -> list[str]:
    """The schedules whose names begin so."""

    async def ask(inspector: Inspector) -> list[str]:
        return [info.name for info in await inspector.schedules()]

    return _ask(ctx, incomplete, ask)


def _ask(
    ctx: typer.Context, incomplete: str, ask: Callable[[Inspector], Awaitable[list[str]]]
) -> list[str]:
    url, prefix = ctx.params.get("url"), ctx.params.get("prefix") or "qsync"
    if not url or url.startswith("embedded://"):  # a key does not start a store
        return []

    async def bounded(connections: Connections) -> list[str]:
        async with asyncio.timeout(PATIENCE_S), connections.inspector() as inspector:
            return await ask(inspector)

    found: list[str] = []
    with contextlib.suppress(QsyncError, OSError, TimeoutError):
        connections = Connections(
            url, prefix=prefix, payload_limit=PAYLOAD_LIMIT, patience=PATIENCE_S
        )
        with contextlib.closing(connections):
            found = asyncio.run(bounded(connections))
    # What is not printable would be typed into the user's shell.
    return sorted({name for name in found if name.startswith(incomplete) and name.isprintable()})
