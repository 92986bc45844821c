"""Sends rows right after their commit, in the process that wrote them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Final

from qsync.client import Client
from qsync.connections import Connections
from qsync.contrib.outbox.database import AsyncCommittedRows, CommittedRows
from qsync.contrib.outbox.retry_log import RetryLog
from qsync.contrib.outbox.rows import UnsentRow, replacing_lock
from qsync.contrib.outbox.sending import Sent, call_hooks, call_hooks_async, send, send_async

STORE_TIMEOUT_S: Final = 1.0
"""Time limit for sending rows after their commit, in seconds; a relay sends the remaining rows."""

RELAY_ONLY_S: Final = 5.0
"""Time after an error during which only relays send rows, in seconds. If the store was unavailable,
this applies to all rows; if the store refused a row, only to the rows of its queue."""

MAX_ROWS: Final = 1000
"""Maximum number of rows that a process sends after each transaction; relays send the other
rows."""

_SEND: Final = "send rows of the outbox after their commit"


class AfterCommit:
    """Sends and deletes committed rows. Never raises an error, because a relay sends the remaining
    rows."""

    def __init__(self, connections: Connections) -> None:
        self._app = connections
        self._made: Connections | None = None
        self._away_until = 0.0
        self._queues_until: dict[str, float] = {}
        """Time until which only relays send the rows of a queue, by queue."""
        self._retries = RetryLog()
        self._tasks: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """Close the connections of this process."""
        if self._made is not None:
            self._made.close()

    @property
    def _quick(self) -> Connections:
        """Connections to the app's store with a short time limit; replaced if a test replaces the
        store."""
        if self._made is None or not self._made.is_alike(self._app):
            self.close()
            self._made = self._app.copy(prefix=self._app.prefix, patience=STORE_TIMEOUT_S)
        return self._made

    def send(self, rows: Sequence[UnsentRow], database: CommittedRows) -> None:
        """Send the rows that are in the table after the commit, and delete those that the store
        acknowledged. The method blocks until both are done."""
        if not (rows := self._own(rows)):
            return
        try:
            client: Client = self._quick.shared()
            rows = database.kept(rows[:MAX_ROWS])
            if locks := _replacing_locks(rows):
                earlier = [database.earlier(row) for row in locks]
                rows = _without_late(rows, locks, earlier)
            sent = send(client, rows)
            self._note(sent)
            if sent.ids:
                database.delete(sent.ids)
            call_hooks(client, sent)
        except Exception as error:
            # Ignore any error of the driver, because the commit itself has succeeded.
            self._leave(error)

    def begin(self, rows: Sequence[UnsentRow], database: AsyncCommittedRows) -> None:
        """Start sending the rows on the running event loop."""
        if not (rows := self._own(rows)):
            return
        task = asyncio.get_running_loop().create_task(self.send_async(rows, database))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def send_async(self, rows: Sequence[UnsentRow], database: AsyncCommittedRows) -> None:
        """Send the rows that are in the table after the commit, and delete those that the store
        acknowledged."""
        if not (rows := self._own(rows)):
            return
        try:
            client = self._quick.here()
            rows = await database.kept(rows[:MAX_ROWS])
            if locks := _replacing_locks(rows):
                earlier = [await database.earlier(row) for row in locks]
                rows = _without_late(rows, locks, earlier)
            sent = await send_async(client, rows)
            self._note(sent)
            if sent.ids:
                await database.delete(sent.ids)
            await call_hooks_async(client, sent)
        except Exception as error:
            # Ignore any error of the driver, because the commit itself has succeeded.
            self._leave(error)

    async def drain(self) -> None:
        """Wait until all rows in flight on this loop are sent."""
        loop = asyncio.get_running_loop()
        waiting = [task for task in self._tasks if task.get_loop() is loop]
        with contextlib.suppress(Exception):
            await asyncio.gather(*waiting)

    def _own(self, rows: Sequence[UnsentRow]) -> Sequence[UnsentRow]:
        """Return the rows that this process sends now, without those left to relays."""
        now = time.monotonic()
        if now < self._away_until:
            return ()
        if not self._queues_until:
            return rows
        return [row for row in rows if now >= self._queues_until.get(row.queue, 0.0)]

    def _note(self, sent: Sent) -> None:
        """Record the outcome; for a while, leave the rows of failed queues to relays."""
        if sent.error is not None:
            self._leave(sent.error)
        elif sent.worked:
            self._retries.worked(_SEND)
        for queue in sent.worked - sent.failed.keys():
            if self._queues_until.pop(queue, None) is not None:
                self._retries.worked(_send_rows_of(queue))
        for queue, error in sent.failed.items():
            self._queues_until[queue] = time.monotonic() + RELAY_ONLY_S
            self._retries.failed(_send_rows_of(queue), error, then="leaving them to relays")

    def _leave(self, error: Exception) -> None:
        self._away_until = time.monotonic() + RELAY_ONLY_S
        self._retries.failed(_SEND, error, then="leaving them to relays")


def _replacing_locks(rows: Sequence[UnsentRow]) -> dict[UnsentRow, str]:
    """Return the unique locks of rows whose tasks replace the task that holds the lock."""
    return {row: lock for row in rows if (lock := replacing_lock(row))}


def _without_late(
    rows: Sequence[UnsentRow],
    locks: Mapping[UnsentRow, str],
    earlier: Sequence[Sequence[UnsentRow] | None],
) -> list[UnsentRow]:
    """Return the rows that have no earlier unsent row for the same unique lock. A relay sends the
    remaining rows in order, so that an earlier payload does not replace a later one."""
    own = {row.id for row in rows}
    late = set[UnsentRow]()
    for lock, others in zip(locks.values(), earlier, strict=True):
        if others is None or lock in {
            replacing_lock(other) for other in others if other.id not in own
        }:
            late |= {each for each, held in locks.items() if held == lock}
    return [row for row in rows if row not in late]


def _send_rows_of(queue: str) -> str:
    return f"send rows of queue {queue} after their commit"
