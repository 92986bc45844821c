"""Relays send the rows that the process that wrote them has not sent.

A relay reads rows in batches, sends them, and deletes those that the store has acknowledged. If the
relay dies before it deletes the rows, they are sent again. No task runs twice, because the store
remembers the ids of tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from dataclasses import dataclass
from typing import Any, Final, Self

from qsync.client import AsyncClient, Client
from qsync.connections import Connections
from qsync.contrib.outbox.database import (
    AsyncDatabase,
    Backlog,
    Database,
    DueRows,
    due_rows,
)
from qsync.contrib.outbox.retry_log import RetryLog
from qsync.contrib.outbox.sending import Sent, call_hooks, call_hooks_async, send, send_async
from qsync.errors import QsyncError, QueueFull
from qsync.formatting import plural
from qsync.server.outbox_backlog import OutboxBacklog, relays

log: Final = logging.getLogger("qsync.outbox")

PAUSE_S: Final = 1.0
"""Time between two reads of the database when there are no rows to send, in seconds."""

LONGEST_PAUSE_S: Final = 10.0
"""Maximum time between two attempts while the store, the database or a queue is unavailable, in
seconds."""

STORE_TIMEOUT_S: Final = 5.0
"""Time limit for the store while the rows of a batch are locked, in seconds."""

BACKLOG_INTERVAL_S: Final = 5.0
"""Time between two measurements of the backlog, in seconds."""

OLD_S: Final = 60.0
"""Age of a row above which a warning is logged, and time between two such warnings, in seconds."""

UNREADABLE: Final = 1000
"""Maximum number of unreadable rows that a relay skips."""

FAILING_QUEUES: Final = 1000
"""Maximum number of queues whose rows a relay temporarily skips."""

_SEND: Final = "send rows of the outbox"
_READ: Final = "read or delete rows of the outbox"


@dataclass(slots=True)
class _FailingQueue:
    """A queue whose rows the store has refused."""

    until: float
    """Time until which the relay skips the queue's rows, by time.monotonic."""
    pause_s: float
    """Length of the next pause, in seconds."""


class _Progress:
    """State that both kinds of relay keep: backlog, unreadable rows, failing queues and pauses."""

    def __init__(self) -> None:
        self.sent: int = 0
        """Number of rows that this relay has sent."""
        self.backlog: Backlog | None = None
        """Backlog at the last count; None before the first count."""
        self.unreadable: dict[str, None] = {}
        self._failing: dict[str, _FailingQueue] = {}
        self._pause_s = PAUSE_S
        self._retries = RetryLog()
        self._measured = -BACKLOG_INTERVAL_S
        self._warned = -OLD_S

    def selection(self) -> DueRows:
        """Return which rows to read next, and forget failing queues that have no more rows."""
        now = time.monotonic()
        for queue in [name for name, each in self._failing.items() if each.until < now - OLD_S]:
            del self._failing[queue]
            self._retries.forget(_send_rows_of(queue))
        queues = [queue for queue, failing in self._failing.items() if failing.until > now]
        return due_rows(ids=self.unreadable, queues=queues)

    def note_sent(self, sent: Sent) -> None:
        """Record the outcome of a batch, and which queues failed."""
        self.sent += len(sent.ids)
        for id in sent.unreadable:
            if len(self.unreadable) < UNREADABLE:
                self.unreadable[id] = None
            log.error("this version cannot read row %s of the outbox and leaves it there", id)
        for queue in sent.worked - sent.failed.keys():
            if self._failing.pop(queue, None) is not None:
                self._retries.worked(_send_rows_of(queue))
        for queue, error in sent.failed.items():
            self._leave(queue, error)

    def _leave(self, queue: str, error: QsyncError) -> None:
        """Skip the rows of a queue for a while, so that they do not delay other rows."""
        if queue not in self._failing and len(self._failing) >= FAILING_QUEUES:
            return
        self._retries.failed(_send_rows_of(queue), error)
        failing = self._failing.setdefault(queue, _FailingQueue(0.0, PAUSE_S))
        failing.until = time.monotonic() + failing.pause_s
        if not isinstance(error, QueueFull):  # a full queue may accept tasks again at any moment
            failing.pause_s = min(failing.pause_s * 2, LONGEST_PAUSE_S)

    def pause_after(self, more: bool, sent: Sent) -> float:
        """Return how long to wait after a batch, in seconds; `more` is true if more rows may be
        due."""
        self._retries.worked(_READ)
        if sent.error is not None:
            return self.pause_after_error(sent.error, _SEND)
        if sent.worked:
            self._retries.worked(_SEND)
        self._pause_s = PAUSE_S
        if len(self._failing) >= FAILING_QUEUES and not sent.ids:
            return PAUSE_S
        return 0.0 if sent.stopped or (more and (sent.ids or sent.failed)) else PAUSE_S

    def pause_after_error(self, error: BaseException, action: str = _READ) -> float:
        """Return how long to wait after an error, in seconds; the wait doubles each time."""
        pause, self._pause_s = self._pause_s, min(self._pause_s * 2, LONGEST_PAUSE_S)
        self._retries.failed(action, error)
        return pause

    def _last_count(self) -> OutboxBacklog | None:
        """Return the backlog in the form that the health port of a worker reports."""
        backlog = self.backlog
        return None if backlog is None else OutboxBacklog(backlog.rows, backlog.oldest_s)

    def is_due(self) -> bool:
        """Return whether it is time to measure the backlog."""
        return time.monotonic() - self._measured >= BACKLOG_INTERVAL_S

    def note(self, backlog: Backlog) -> None:
        """Store a measurement, and log a warning about old rows."""
        self.backlog = backlog
        now = self._measured = time.monotonic()
        if backlog.oldest_s >= OLD_S and now - self._warned >= OLD_S:
            self._warned = now
            log.warning(
                "waiting in the outbox: %s, the oldest for %.0f s",
                plural(backlog.rows, "row"), backlog.oldest_s,
            )  # fmt: skip


def _send_rows_of(queue: str) -> str:
    return f"send rows of queue {queue}"


class Relay(_Progress):
    """A relay in a separate thread: `with relay:` or `async with relay:`."""

    def __init__(self, connections: Connections, database: Database) -> None:
        super().__init__()
        self._connections = connections.copy(prefix=connections.prefix, patience=STORE_TIMEOUT_S)
        self._database = database
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._stopping.clear()
        relays.append(self._last_count)
        self._thread = threading.Thread(target=self._run, name="qsync-outbox", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        with contextlib.suppress(ValueError):
            relays.remove(self._last_count)
        if self._thread is not None:
            self._thread.join()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.__exit__)

    def _run(self) -> None:
        client: Client | None = None
        try:
            while not self._stopping.is_set():
                try:
                    client = client or self._connections.client()
                    pause = self._step(client)
                except Exception as error:  # each driver raises its own errors
                    pause = self.pause_after_error(error)
                self._stopping.wait(pause)
        finally:
            with contextlib.suppress(Exception):  # each driver raises its own errors
                self._database.close()
            if client is not None:
                client.close()

    def _step(self, client: Client) -> float:
        if self.is_due():
            self.note(self._database.backlog())
        sent = Sent()
        try:
            with self._database.take(self.selection()) as batch:
                sent = send(client, batch.rows, last=self._failing)
                if sent.ids:
                    batch.delete(sent.ids)
        finally:  # count sent rows even if they cannot be deleted
            self.note_sent(sent)
        call_hooks(client, sent)
        return self.pause_after(batch.more, sent)


class AsyncRelay(_Progress):
    """A relay on the running event loop: `async with relay:`."""

    def __init__(self, connections: Connections, database: AsyncDatabase) -> None:
        super().__init__()
        self._connections = connections.copy(prefix=connections.prefix, patience=STORE_TIMEOUT_S)
        self._database = database
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        relays.append(self._last_count)
        self._task = asyncio.get_running_loop().create_task(self._run(), name="qsync-outbox")
        return self

    async def __aexit__(self, *_: Any) -> None:
        with contextlib.suppress(ValueError):
            relays.remove(self._last_count)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        client = self._connections.async_client()
        try:
            while True:
                try:
                    pause = await self._step(client)
                except Exception as error:  # each driver raises its own errors
                    pause = self.pause_after_error(error)
                await asyncio.sleep(pause)
        finally:
            with contextlib.suppress(QsyncError):
                await client.aclose()
            with contextlib.suppress(Exception):  # each driver raises its own errors
                await self._database.close()

    async def _step(self, client: AsyncClient) -> float:
        if self.is_due():
            self.note(await self._database.backlog())
        sent = Sent()
        try:
            async with self._database.take(self.selection()) as batch:
                sent = await send_async(client, batch.rows, last=self._failing)
                if sent.ids:
                    await batch.delete(sent.ids)
        finally:  # count sent rows even if they cannot be deleted
            self.note_sent(sent)
        await call_hooks_async(client, sent)
        return self.pause_after(batch.more, sent)
