"""Sends rows right after their commit, in the process that wrote them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from qsync.client import Client
from qsync.connections import Connections
from qsync.contrib.outbox.rows import UnsentRow
from qsync.contrib.outbox.sending import call_hooks, call_hooks_async, send, send_async

log: Final = logging.getLogger("qsync.outbox")

STORE_TIMEOUT_S: Final = 1.0
"""Time limit for the store after a commit, in seconds; after that a relay sends the row."""

RELAY_ONLY_S: Final = 5.0
"""Time during which relays send all rows after the store was unavailable, in seconds."""

MAX_ROWS: Final = 1000
"""Maximum number of rows per transaction that its process sends; relays send the others."""


class AfterCommit:
    """Sends and deletes committed rows. Never raises: a relay sends the rows that are left."""

    def __init__(self, connections: Connections) -> None:
        self._app = connections
        self._made: Connections | None = None
        self._away_until = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """Close the connections of this process."""
        if self._made is not None:
            self._made.close()

    @property
    def _quick(self) -> Connections:
        """Connections with a short patience to the app's store, which tests may replace."""
        if self._made is None or not self._made.is_alike(self._app):
            self.close()
            self._made = self._app.copy(prefix=self._app.prefix, patience=STORE_TIMEOUT_S)
        return self._made

    def send(
        self,
        rows: Sequence[UnsentRow],
        delete: Callable[[list[str]], object],
        committed: Callable[[Sequence[UnsentRow]], Sequence[UnsentRow]] = lambda rows: rows,
    ) -> None:
        """Send the rows and delete those that the store acknowledged; blocks.

        `committed` returns the rows that the commit has kept: only these are sent.
        """
        if not rows or time.monotonic() < self._away_until:
            return
        try:
            client: Client = self._quick.shared()
            sent = send(client, committed(rows[:MAX_ROWS]))
            if sent.error is not None:
                self._leave(sent.error)
            if sent.ids:
                delete(sent.ids)
            call_hooks(client, sent)
        except Exception as error:  # any error of the driver: the transaction is committed
            self._leave(error)

    def begin(
        self,
        rows: Sequence[UnsentRow],
        delete: Callable[[list[str]], Awaitable[object]],
        committed: Callable[[Sequence[UnsentRow]], Awaitable[Sequence[UnsentRow]]],
    ) -> None:
        """Start sending the rows on the running event loop."""
        if not rows or time.monotonic() < self._away_until:
            return
        task = asyncio.get_running_loop().create_task(self.send_async(rows, delete, committed))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def send_async(
        self,
        rows: Sequence[UnsentRow],
        delete: Callable[[list[str]], Awaitable[object]],
        committed: Callable[[Sequence[UnsentRow]], Awaitable[Sequence[UnsentRow]]] | None = None,
    ) -> None:
        """Send the rows and delete those that the store acknowledged."""
        try:
            client = self._quick.here()
            rows = rows[:MAX_ROWS] if committed is None else await committed(rows[:MAX_ROWS])
            sent = await send_async(client, rows)
            if sent.error is not None:
                self._leave(sent.error)
            if sent.ids:
                await delete(sent.ids)
            await call_hooks_async(client, sent)
        except Exception as error:  # any error of the driver: the transaction is committed
            self._leave(error)

    async def drain(self) -> None:
        """Wait until all rows in flight on this loop are sent."""
        loop = asyncio.get_running_loop()
        waiting = [task for task in self._tasks if task.get_loop() is loop]
        with contextlib.suppress(Exception):
            await asyncio.gather(*waiting)

    def _leave(self, error: Exception) -> None:
        self._away_until = time.monotonic() + RELAY_ONLY_S
        log.warning(
            "for %g s only relays send rows of the outbox: %s: %s",
            RELAY_ONLY_S, type(error).__name__, error,
        )  # fmt: skip
