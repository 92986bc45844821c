"""Keeps database connections fresh around each attempt, in the thread that runs it.

At the start and end of each request, Django closes connections that are broken or older than
CONN_MAX_AGE. Handlers have no requests, so a connection that the database has closed would fail
every later task of its thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from asgiref.sync import sync_to_async
from django.db import close_old_connections, reset_queries
from django.db.backends.signals import connection_created

from qsync.mux import CallNext, CallNextInThread
from qsync.server.server import Server
from qsync.task import TaskInfo

_opened = False
"""True once this process has opened a connection to a database."""


def _on_open(**_: Any) -> None:
    global _opened
    _opened = True


connection_created.connect(_on_open, dispatch_uid="qsync.database")


def keep_connections_fresh(server: Server) -> None:
    """Call `close_old_connections` before and after each attempt on this server."""

    async def on_loop(task: TaskInfo, call_next: CallNext) -> Any:
        handler = server.mux.find(task.type)
        if handler is None or handler.place != "loop":
            return await call_next(task)
        await _refresh_beside()
        try:
            return await call_next(task)
        finally:
            await _refresh_beside()

    server.add_outer_middleware(_in_thread)
    server.add_outer_middleware(on_loop)


def _refresh() -> None:
    reset_queries()
    close_old_connections()


async def _refresh_beside() -> None:
    """Refresh the connections of the thread through which `async def` code uses the database."""
    if _opened:
        await sync_to_async(_refresh, thread_sensitive=True)()


def _in_thread(task: TaskInfo, call_next: CallNextInThread) -> Any:
    with fresh_connections(task):
        return call_next(task)


@contextlib.contextmanager
def fresh_connections(task: TaskInfo) -> Iterator[None]:
    """Call `close_old_connections` before and after the block, in this thread."""
    _refresh()
    try:
        yield
    finally:
        _refresh()
