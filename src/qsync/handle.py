"""What became of a task: handles of both colours, and what they ask the store.

The two colours have the same names and docstrings, and change together.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from enum import Enum
from functools import partial
from typing import Any, Final, Generic, Literal, TypeVar

import msgspec

from qsync import codec, queue_servers
from qsync.broker import ops, views
from qsync.broker.call import Call
from qsync.broker.shell import ONE_TRY_S, AsyncBroker, Broker, ends_in
from qsync.broker.views import StoredTask
from qsync.errors import ConfigError, QsyncError, ResultTimeout, StoreUnavailable
from qsync.keys import GlobalKeys, QueueKeys, server_of_token
from qsync.queue_servers import NEXT_LOOK, serves, unserved
from qsync.result_listener import AsyncListeners, Listeners
from qsync.results import (
    Deadline,
    decode_result,
    not_found,
    poll_intervals,
    result_if_finished,
    retention_of,
    without_retention,
)
from qsync.running_task import waiting_for
from qsync.sending import Batcher, InFlight
from qsync.task import Duration, Result, TaskStatus, duration_us

log = logging.getLogger("qsync.client")

K = TypeVar("K")
R = TypeVar("R")
S = TypeVar("S")

GRACE: Final = 1.0
"""How much later than asked for `result` may give up when the store does not answer, seconds."""

ORDER_TTL_MS: Final = 60_000
"""How long an order waits in the inbox of a server that may be dead."""


ORDER_S: Final = 0.5
"""How long `cancel` waits for the inbox to take the order, seconds: without it the server learns of
the cancellation when it renews the lease."""

SERVERS_S: Final = 0.5
"""How long a wait may stop to read which servers are live, seconds: they may be at another node."""

MESSAGE_ROOM: Final = 512 * 1024
"""What a task with its message is reckoned to take of a reply, bytes; it may be more, or little."""

RESULT_ROOM: Final = 64 * 1024
"""The same for one without, which has a result when it is done."""


class _Unknown(Enum):
    RETENTION = "retention"


UNKNOWN: Final = _Unknown.RETENTION
"""The retention of a task that this client did not enqueue: the store has to be asked."""

Retention = int | None | Literal[_Unknown.RETENTION]
"""Microseconds; None: the task has none."""


class _AnyHandle(msgspec.Struct, Generic[K, R], eq=False, gc=False):
    """What the handles of both colours have in common."""

    _tracker: K
    id: str
    queue: str
    created: bool = False
    confirmed: bool | None = None
    _retention_us: Retention = UNKNOWN
    _decode: Callable[[Result], R] = decode_result

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"<{name} id={self.id!r} queue={self.queue!r} created={self.created}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _AnyHandle):
            return NotImplemented
        return self.id == other.id and self.queue == other.queue

    def __hash__(self) -> int:
        return hash((self.id, self.queue))

    @property
    def _known(self) -> bool:
        """Whether the retention need not be read from the task's message."""
        return self._retention_us is not UNKNOWN

    def _seconds(self, timeout: Duration | None) -> float | None:
        """The timeout that `result` was given; InvalidTask when no result will be kept."""
        if self._retention_us is None:
            raise without_retention(self.id, self.queue)
        return None if timeout is None else duration_us("timeout", timeout) / 1_000_000

    def _value(self, record: Result | None, seconds: float | None) -> R:
        if record is None:
            msg = f"task {self.id!r} in queue {self.queue!r} did not end within {seconds:g} s"
            raise ResultTimeout(msg)
        return self._decode(record)

    def _status(self, shown: StoredTask | None) -> TaskStatus:
        if shown is None:
            raise not_found(self.id, self.queue)
        return views.status(self.id, self.queue, shown)


class Handle(_AnyHandle["TaskQueries", R], eq=False, gc=False):
    """A task that was enqueued: where it is, and what became of it.

    `created` is True when the call that returned the handle created the task. It is False when
    another task held its id or its unique lock: the handle is then that one's. And it is False for
    a handle that `client.handle` made. Handles are equal when id and queue are.

    `confirmed` is None unless the call asked for `durability`. True: the store has the task on
    disk, or on a replica. False: it did not say so in time; the task is in the store, and may be
    lost with it.
    """

    def info(self) -> TaskStatus:
        """The task as it stands now; TaskNotFound when it has left the queue."""
        return self._status(self._tracker.show(self.id, self.queue))

    def result(self, timeout: Duration | None = None) -> R:
        """What the handler returned, as soon as it has: bytes as bytes, else the decoded value.

        `timeout` is in seconds or a timedelta; None waits for as long as it takes.
        Raises InvalidTask at once when the task has no retention, for then no result is kept;
        ResultTimeout when it has not ended in time, and it goes on; TaskFailed with its last error
        when it is dead, for a result over the limit too; TaskCancelled; TaskNotFound when it has
        left the queue, its retention being over, say; StoreUnavailable; and QsyncError when it is
        done but the store had no memory for its result.
        """
        seconds = self._seconds(timeout)
        with waiting_for(self.queue, self.id):
            found = self._tracker.wait(self.id, self.queue, seconds, known=self._known)
        return self._value(found, seconds)

    def cancel(self) -> bool:
        """The task is cancelled, or the server that runs it has been told to stop it.

        False when it is done or dead, or not there. One that waits ends at once; one that runs
        ends as soon as its handler does, and is not run again.
        """
        return self._tracker.cancel(self.id, self.queue, self._retention_us)

    def with_decoder(self, decode: Callable[[Result], S]) -> Handle[S]:
        """The same task, whose `result()` is what `decode` makes of the record of its result."""
        return Handle(
            self._tracker, self.id, self.queue,
            created=self.created, confirmed=self.confirmed,
            _retention_us=self._retention_us, _decode=decode,
        )  # fmt: skip


class AsyncHandle(_AnyHandle["AsyncTaskQueries", R], eq=False, gc=False):
    """A task that was enqueued: where it is, and what became of it.

    `created` is True when the call that returned the handle created the task. It is False when
    another task held its id or its unique lock: the handle is then that one's. And it is False for
    a handle that `client.handle` made. Handles are equal when id and queue are.

    `confirmed` is None unless the call asked for `durability`. True: the store has the task on
    disk, or on a replica. False: it did not say so in time; the task is in the store, and may be
    lost with it.
    """

    async def info(self) -> TaskStatus:
        """The task as it stands now; TaskNotFound when it has left the queue."""
        return self._status(await self._tracker.show(self.id, self.queue))

    async def result(
        self,
        timeout: Duration | None = None,  # noqa: ASYNC109 - the same signature as Handle's
    ) -> R:
        """What the handler returned, as soon as it has: bytes as bytes, else the decoded value.

        `timeout` is in seconds or a timedelta; None waits for as long as it takes.
        Raises InvalidTask at once when the task has no retention, for then no result is kept;
        ResultTimeout when it has not ended in time, and it goes on; TaskFailed with its last error
        when it is dead, for a result over the limit too; TaskCancelled; TaskNotFound when it has
        left the queue, its retention being over, say; StoreUnavailable; and QsyncError when it is
        done but the store had no memory for its result.
        """
        seconds = self._seconds(timeout)
        with waiting_for(self.queue, self.id):
            found = await self._tracker.wait(self.id, self.queue, seconds, known=self._known)
        return self._value(found, seconds)

    async def cancel(self) -> bool:
        """The task is cancelled, or the server that runs it has been told to stop it.

        False when it is done or dead, or not there. One that waits ends at once; one that runs
        ends as soon as its handler does, and is not run again.
        """
        return await self._tracker.cancel(self.id, self.queue, self._retention_us)

    def with_decoder(self, decode: Callable[[Result], S]) -> AsyncHandle[S]:
        """The same task, whose `result()` is what `decode` makes of the record of its result."""
        return AsyncHandle(
            self._tracker, self.id, self.queue,
            created=self.created, confirmed=self.confirmed,
            _retention_us=self._retention_us, _decode=decode,
        )  # fmt: skip


class _AnyTracker:
    """What the trackers of both colours have in common."""

    def __init__(self, prefix: str) -> None:
        self._global_keys = GlobalKeys(prefix)
        self._prefix = prefix
        self._closed = False
        self._unserved: set[str] = set()
        """Queues of which it was logged that nobody serves them."""

    def check_open(self) -> None:
        """Raise QsyncError when the client has been closed."""
        if self._closed:
            msg = "the client is closed; make another"
            raise QsyncError(msg)

    def _keys(self, queue: str) -> QueueKeys:
        return QueueKeys(self._prefix, queue)

    def _note_servers(self, id: str, queue: str, records: Sequence[Any]) -> None:
        """Warn when none of the live servers serves the queue; once for each queue."""
        known = [record for record in records if not isinstance(record, QsyncError)]
        if len(known) == len(records) and not any(serves(one, queue) for one in known):
            self._unserved.add(queue)
            log.warning("%s", unserved(id, queue, self._prefix))

    def _order(self, id: str, queue: str, token: str) -> Call[int]:
        """The order to stop a task, to the server that holds its lease.

        One that is lost costs time only: the server learns of it when it renews the lease.
        """
        server = server_of_token(token)
        order = codec.encode(["cancel", queue, id])
        return ops.send(self._global_keys, server, order, ttl_ms=ORDER_TTL_MS)


class TaskQueries(_AnyTracker):
    """Asks the store what became of tasks, and blocks meanwhile."""

    def __init__(self, broker: Broker, prefix: str) -> None:
        super().__init__(prefix)
        self._broker = broker
        self._listeners: dict[int, Listeners] = {}
        """By process: a forked child has none of the threads, and maybe locks that nobody frees."""
        self._warned = False

    def check_open(self) -> None:
        """Raise QsyncError when the client has been closed; warn when it blocks an event loop."""
        super().check_open()
        if not self._warned and _in_event_loop():
            self._warned = True
            log.warning(
                "a blocking Client of prefix %r is used in a thread whose event loop is running: "
                "nothing else in that loop runs during a call; use an AsyncClient there "
                "(app.async_client(), await task.enqueue()), or asyncio.to_thread",
                self._prefix, stack_info=True,
            )  # fmt: skip

    def show(
        self, id: str, queue: str, *, messages: bool = True, ends: float | None = None
    ) -> StoredTask | None:
        """The task as it stands; None when it is not in the queue."""
        self.check_open()
        call = views.show(self._keys(queue), [id], messages=messages)
        [shown] = self._broker.run(call, ends=ends)
        return shown

    def wait(self, id: str, queue: str, seconds: float | None, *, known: bool) -> Result | None:
        """The record of the result, or None when the task did not end in time."""
        deadline = Deadline(seconds)
        looks = 0

        def look(*, messages: bool = False) -> Result | None:
            ends = ends_in(min(self._broker.patience or ONE_TRY_S, deadline.left() + GRACE))
            shown = self.show(id, queue, messages=messages, ends=ends)
            return result_if_finished(id, queue, shown)

        try:
            record = look(messages=not known)
            if record is None and deadline.left():
                with self._listening(queue, id) as woken:
                    for pause in poll_intervals():
                        woken.wait(min(pause, deadline.left()))
                        woken.clear()
                        record = look()
                        if record is not None or not deadline.left():
                            break
                        if seconds is None and looks % NEXT_LOOK == 0:
                            self._warn_if_unserved(id, queue)
                        looks += 1
        except StoreUnavailable:
            if deadline.left():
                raise
            return None
        return record

    def _warn_if_unserved(self, id: str, queue: str) -> None:
        if queue in self._unserved:
            return
        with suppress(QsyncError):
            ends = ends_in(SERVERS_S)
            _, servers = self._broker.run(queue_servers.live(self._global_keys), ends=ends)
            calls = queue_servers.records(self._global_keys, servers)
            records = self._broker.run_many(calls, ends=ends)
            self._note_servers(id, queue, records)

    def cancel(self, id: str, queue: str, retention_us: Retention) -> bool:
        """Cancel a task; whether it is cancelled, or its server was told."""
        self.check_open()
        ends = ends_in(self._broker.patience)
        if retention_us is UNKNOWN:
            shown = self.show(id, queue, ends=ends)
            if shown is None:
                return False
            retention_us = retention_of(shown)
        call = ops.cancel(self._keys(queue), id, retention_us=retention_us)
        outcome, token = self._broker.run(call, ends=ends)
        if outcome == "active":
            order = self._order(id, queue, token)
            self._broker.run_many([order], ends=min(ends, ends_in(ORDER_S)))
        return outcome in ("cancelled", "active")

    def close(self) -> None:
        """Wake whoever waits, to an error."""
        self._closed = True
        if (listeners := self._listeners.get(os.getpid())) is not None:
            listeners.close()

    def _listening(self, queue: str, id: str) -> AbstractContextManager[threading.Event]:
        process = os.getpid()
        listeners = self._listeners.get(process)
        if listeners is None:
            listeners = self._listeners.setdefault(process, Listeners(self._broker))
        return listeners.waiting(self._keys(queue).done, id)


class AsyncTaskQueries(_AnyTracker):
    """Asks the store what became of tasks; questions asked at the same time go together."""

    def __init__(self, broker: AsyncBroker, prefix: str) -> None:
        super().__init__(prefix)
        self._broker = broker
        self._loop: asyncio.AbstractEventLoop | None = None
        self._readers: dict[tuple[str, bool], Batcher[str, StoredTask | None]] = {}
        self._listeners = AsyncListeners(broker)
        self._under_way = InFlight()

    def check_open(self) -> None:
        """Raise QsyncError when the client has been closed, or belongs to another event loop."""
        if self._closed:
            super().check_open()
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                msg = (
                    "an AsyncClient belongs to the event loop that used it first, and this is "
                    "another; make one for each loop, or enqueue by functions that are tasks"
                )
                raise ConfigError(msg)
            self._loop = loop

    async def show(self, id: str, queue: str, *, messages: bool = True) -> StoredTask | None:
        """The task as it stands; None when it is not in the queue."""
        self.check_open()
        reader = self._readers.get((queue, messages))
        if reader is None:
            room = MESSAGE_ROOM if messages else RESULT_ROOM
            read = partial(self._read, self._keys(queue), messages)
            reader = self._readers[queue, messages] = Batcher(
                read, lambda _: room,
                patience=self._broker.patience or ONE_TRY_S, too_late=self._broker.too_late,
            )  # fmt: skip
        return await reader.ask(id)

    async def wait(
        self, id: str, queue: str, seconds: float | None, *, known: bool
    ) -> Result | None:
        """The record of the result, or None when the task did not end in time."""
        deadline = Deadline(seconds)
        looks = 0

        async def look(*, messages: bool = False) -> Result | None:
            return result_if_finished(id, queue, await self.show(id, queue, messages=messages))

        record = None
        with suppress(TimeoutError):
            async with asyncio.timeout(None if seconds is None else seconds + GRACE):
                record = await look(messages=not known)
                if record is None and deadline.left():
                    with self._listening(queue, id) as woken:
                        for pause in poll_intervals():
                            await _set_within(woken, min(pause, deadline.left()))
                            woken.clear()
                            record = await look()
                            if record is not None or not deadline.left():
                                break
                            if seconds is None and looks % NEXT_LOOK == 0:
                                await self._warn_if_unserved(id, queue)
                            looks += 1
        return record

    async def _warn_if_unserved(self, id: str, queue: str) -> None:
        if queue in self._unserved:
            return
        with suppress(QsyncError):
            ends = ends_in(SERVERS_S)
            _, servers = await self._broker.run(queue_servers.live(self._global_keys), ends=ends)
            calls = queue_servers.records(self._global_keys, servers)
            records = await self._broker.run_many(calls, ends=ends)
            self._note_servers(id, queue, records)

    async def cancel(self, id: str, queue: str, retention_us: Retention) -> bool:
        """Cancel a task; whether it is cancelled, or its server was told."""
        self.check_open()
        with self._under_way:
            ends = ends_in(self._broker.patience)
            if retention_us is UNKNOWN:
                shown = await self.show(id, queue)
                if shown is None:
                    return False
                retention_us = retention_of(shown)
            call = ops.cancel(self._keys(queue), id, retention_us=retention_us)
            outcome, token = await self._broker.run(call, ends=ends)
            if outcome == "active":
                order = self._order(id, queue, token)
                await self._broker.run_many([order], ends=min(ends, ends_in(ORDER_S)))
            return outcome in ("cancelled", "active")

    def close(self) -> None:
        """Take no more questions."""
        self._closed = True

    async def aclose(self) -> None:
        """Nothing is under way any more; who waits is woken to an error, and nobody listens."""
        self.close()
        for reader in self._readers.values():
            await reader.drain()
        await self._under_way.none()
        await self._listeners.aclose()

    async def _read(
        self, keys: QueueKeys, messages: bool, ids: Sequence[str], left: float
    ) -> list[StoredTask | None]:
        call = views.show(keys, ids, messages=messages)
        return await self._broker.run(call, ends=ends_in(left))

    def _listening(self, queue: str, id: str) -> AbstractContextManager[asyncio.Event]:
        return self._listeners.waiting(self._keys(queue).done, id)


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event, or for so long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def _in_event_loop() -> bool:
    """Whether an event loop is running in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
