"""Closes the shared clients of an app after a test."""

from __future__ import annotations

import asyncio

from qsync.app import Qsync

CLOSE_S = 10.0
"""Time limit for closing a client of an event loop in another thread, in seconds."""


def close_clients(app: Qsync) -> None:
    """Close the app's shared clients of this process and of all event loops."""
    try:
        here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    for loop, client in app._connections.by_loop.items():
        if loop is here:
            task = loop.create_task(client.aclose())
            _closing.add(task)
            task.add_done_callback(_closing.discard)
        elif loop.is_running():
            asyncio.run_coroutine_threadsafe(client.aclose(), loop).result(CLOSE_S)
        elif not loop.is_closed() and here is None:
            loop.run_until_complete(client.aclose())
    app.close()


_closing: set[asyncio.Task[None]] = set()
