"""The operations behind handles: wait for a result, read a status, cancel and reschedule a task."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from enum import Enum
from functools import partial
from typing import Any, Final, Literal

from qsync import codec, queue_servers
from qsync.broker import operator_ops, ops, registry_ops, views
from qsync.broker.aio import AsyncBroker
from qsync.broker.base import ONE_TRY_S, ends_in
from qsync.broker.blocking import Broker
from qsync.broker.call import Call
from qsync.broker.operator_ops import Rescheduled
from qsync.broker.stored_task import StoredTask
from qsync.enqueue_batching import Batcher, InFlight
from qsync.errors import ConfigError, QsyncError, StoreUnavailable
from qsync.idempotency import CallSequences
from qsync.keys import GlobalKeys, QueueKeys, server_of_token
from qsync.loop_internals import running_loop
from qsync.message import Result
from qsync.queue_servers import NEXT_LOOK, serves, unserved
from qsync.result_listener import AsyncListeners, Listeners
from qsync.results import Deadline, poll_intervals, result_if_finished, retention_of

log: Final = logging.getLogger("qsync.client")

RESULT_GRACE_S: Final = 1.0
"""How long, in seconds, `result` may take beyond its timeout if the store does not answer."""

ORDER_TTL_MS: Final = 60_000
"""Lifetime, in milliseconds, of an order in the inbox of a server, since the server may be dead."""

ORDER_S: Final = 0.5
"""Maximum time that `cancel` spends on sending the order, in seconds. Without the order, the server
learns of the cancellation when it renews the lease."""

SERVERS_S: Final = 0.5
"""Maximum time, in seconds, that a waiting caller spends on reading which servers are live."""

MESSAGE_ROOM: Final = 512 * 1024
"""Estimated size, in bytes, of a task with its message in a reply; limits the size of a batch."""

RESULT_ROOM: Final = 64 * 1024
"""Estimated size, in bytes, of a task in a reply without its message but with any result."""


class _Unknown(Enum):
    RETENTION = "retention"


RETENTION_UNKNOWN: Final = _Unknown.RETENTION
"""Marks a task that this client did not enqueue, so that only the store knows its retention."""

Retention = int | None | Literal[_Unknown.RETENTION]
"""Retention in microseconds; None if the task has none."""


class _TaskQueriesBase:
    """Base class of `TaskQueries` and `AsyncTaskQueries`."""

    def __init__(self, prefix: str) -> None:
        self._global_keys = GlobalKeys(prefix)
        self._prefix = prefix
        self._call_sequences = CallSequences()
        self._closed = False
        self._unserved: set[str] = set()
        """Queues about which a warning was logged because no server serves them."""
        self._checking: set[str] = set()
        """Queues whose servers are being checked by one caller for all waiting callers."""

    def check_open(self) -> None:
        """Raise QsyncError when the client has been closed."""
        if self._closed:
            raise QsyncError("the client is closed; create another one")

    @contextmanager
    def _call_id(self) -> Iterator[tuple[str, int]]:
        """Yield an id by which the store recognizes a repeated call.

        If the reply is lost, repeating the call with the same id returns the same answer.
        """
        call_id = self._call_sequences.take()
        try:
            yield call_id
        finally:
            self._call_sequences.give_back(call_id)

    @contextmanager
    def _checked_once(self, queue: str) -> Iterator[None]:
        """Make other callers skip the check of the queue's servers during the block."""
        self._checking.add(queue)
        try:
            with suppress(QsyncError):
                yield
        finally:
            self._checking.discard(queue)

    def _keys(self, queue: str) -> QueueKeys:
        return QueueKeys(self._prefix, queue)

    def _note_servers(self, id: str, queue: str, records: Sequence[Any]) -> None:
        """Warn, once per queue, if no live server serves the queue."""
        readable = [record for record in records if not isinstance(record, QsyncError)]
        if len(readable) == len(records) and not any(serves(record, queue) for record in readable):
            self._unserved.add(queue)
            log.warning("%s", unserved(id, queue, self._prefix))

    def _order(self, id: str, queue: str, token: str) -> Call[int]:
        """Return the call that tells the server with the task's lease to stop the task.

        If the order is lost, the server learns of the cancellation when it renews the lease.
        """
        server = server_of_token(token)
        order = codec.encode(["cancel", queue, id])
        return registry_ops.send_order(self._global_keys, server, order, ttl_ms=ORDER_TTL_MS)


class TaskQueries(_TaskQueriesBase):
    """Reads and cancels tasks, and waits for their results; every call blocks."""

    def __init__(self, broker: Broker, prefix: str) -> None:
        super().__init__(prefix)
        self._broker = broker
        self._listeners: dict[int, Listeners] = {}
        """Listeners by process id.

        A forked child needs its own, since it inherits no threads, and the locks that it inherits
        may be held.
        """
        self._warned = False

    def check_open(self) -> None:
        """Raise QsyncError if the client has been closed; warn if it blocks an event loop."""
        if self._closed:
            super().check_open()
        if not self._warned and running_loop() is not None:
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
        """Return the task as stored; None when it is not in the queue."""
        self.check_open()
        call = views.get_tasks(self._keys(queue), [id], messages=messages)
        [shown] = self._broker.run(call, ends=ends)
        return shown

    def wait(self, id: str, queue: str, seconds: float | None, *, known: bool) -> Result | None:
        """Wait until the task ends; return its result, or None after `seconds`."""
        deadline = Deadline(seconds)
        looks = 0

        def poll(*, messages: bool = False) -> Result | None:
            ends = ends_in(
                min(self._broker.patience or ONE_TRY_S, deadline.left() + RESULT_GRACE_S)
            )
            shown = self.show(id, queue, messages=messages, ends=ends)
            return result_if_finished(id, queue, shown)

        try:
            record = poll(messages=not known)
            if record is None and deadline.left():
                with self._listening(queue, id) as woken:
                    for pause in poll_intervals():
                        woken.wait(min(pause, deadline.left()))
                        woken.clear()
                        record = poll()
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
        if queue in self._unserved or queue in self._checking:
            return
        with self._checked_once(queue):
            ends = ends_in(SERVERS_S)
            _, servers = self._broker.run(queue_servers.live(self._global_keys), ends=ends)
            calls = queue_servers.records(self._global_keys, servers)
            records = self._broker.run_many(calls, ends=ends)
            self._note_servers(id, queue, records)

    def cancel(self, id: str, queue: str, retention_us: Retention) -> bool:
        """Cancel a task; return True if it is cancelled, or active and marked for cancellation."""
        self.check_open()
        ends = ends_in(self._broker.patience)
        if retention_us is RETENTION_UNKNOWN:
            shown = self.show(id, queue, ends=ends)
            if shown is None:
                return False
            retention_us = retention_of(shown)
        with self._call_id() as call_id:
            call = ops.cancel(self._keys(queue), id, retention_us=retention_us, call_id=call_id)
            outcome, token = self._broker.run(call, ends=ends)
        if outcome == "active":
            order = self._order(id, queue, token)
            self._broker.run_many([order], ends=min(ends, ends_in(ORDER_S)))
        return outcome in ("cancelled", "active")

    def reschedule(self, id: str, queue: str, due: str) -> Rescheduled:
        """Change the due time of a waiting task; `due_text` builds the new value."""
        self.check_open()
        with self._call_id() as call_id:
            call = operator_ops.reschedule(self._keys(queue), id, due, call_id=call_id)
            return self._broker.run(call)

    def close(self) -> None:
        """Wake all waiting callers, whose calls then raise an error."""
        self._closed = True
        if (listeners := self._listeners.get(os.getpid())) is not None:
            listeners.close()

    def _listening(self, queue: str, id: str) -> AbstractContextManager[threading.Event]:
        process = os.getpid()
        listeners = self._listeners.get(process)
        if listeners is None:
            listeners = self._listeners.setdefault(process, Listeners(self._broker))
        return listeners.waiting(self._keys(queue).done, id)


class AsyncTaskQueries(_TaskQueriesBase):
    """Reads and cancels tasks, and waits for their results; concurrent reads share round trips."""

    def __init__(self, broker: AsyncBroker, prefix: str) -> None:
        super().__init__(prefix)
        self._broker = broker
        self._loop: asyncio.AbstractEventLoop | None = None
        self._readers: dict[tuple[str, bool], Batcher[str, StoredTask | None]] = {}
        self._listeners = AsyncListeners(broker)
        self._in_flight = InFlight()

    def check_open(self) -> None:
        """Raise QsyncError if the client has been closed, or belongs to another event loop."""
        if self._closed:
            super().check_open()
        self._loop = self.check_loop()

    def check_loop(self) -> asyncio.AbstractEventLoop:
        """Return the running event loop.

        Raise ConfigError if no loop is running, as under trio, or if the client belongs to another
        loop.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigError(
                "an AsyncClient needs a running asyncio event loop, and there is none in this "
                "thread; use Client"
            ) from None
        if self._loop is not None and self._loop is not loop:
            raise ConfigError(
                "an AsyncClient belongs to the event loop that used it first, and this is another "
                "loop; create a client for each loop and close it there, or enqueue with task "
                "functions"
            )
        return loop

    async def show(self, id: str, queue: str, *, messages: bool = True) -> StoredTask | None:
        """Return the task as stored; None when it is not in the queue."""
        self.check_open()
        reader = self._readers.get((queue, messages))
        if reader is None:
            room = MESSAGE_ROOM if messages else RESULT_ROOM
            read = partial(self._read, self._keys(queue), messages)
            reader = self._readers[queue, messages] = Batcher(
                read, lambda _: room,
                patience=self._broker.patience or ONE_TRY_S, too_late=self._broker.too_late,
            )  # fmt: skip
        return await reader.submit(id)

    async def wait(
        self, id: str, queue: str, seconds: float | None, *, known: bool
    ) -> Result | None:
        """Wait until the task ends; return its result, or None after `seconds`."""
        deadline = Deadline(seconds)
        looks = 0

        async def poll(*, messages: bool = False) -> Result | None:
            return result_if_finished(id, queue, await self.show(id, queue, messages=messages))

        record = None
        with suppress(TimeoutError):
            async with asyncio.timeout(None if seconds is None else seconds + RESULT_GRACE_S):
                record = await poll(messages=not known)
                if record is None and deadline.left():
                    with self._listening(queue, id) as woken:
                        for pause in poll_intervals():
                            await _set_within(woken, min(pause, deadline.left()))
                            woken.clear()
                            record = await poll()
                            if record is not None or not deadline.left():
                                break
                            if seconds is None and looks % NEXT_LOOK == 0:
                                await self._warn_if_unserved(id, queue)
                            looks += 1
        return record

    async def _warn_if_unserved(self, id: str, queue: str) -> None:
        if queue in self._unserved or queue in self._checking:
            return
        with self._checked_once(queue):
            ends = ends_in(SERVERS_S)
            _, servers = await self._broker.run(queue_servers.live(self._global_keys), ends=ends)
            calls = queue_servers.records(self._global_keys, servers)
            records = await self._broker.run_many(calls, ends=ends)
            self._note_servers(id, queue, records)

    async def cancel(self, id: str, queue: str, retention_us: Retention) -> bool:
        """Cancel a task; return True if it is cancelled, or active and marked for cancellation."""
        self.check_open()
        with self._in_flight:
            ends = ends_in(self._broker.patience)
            if retention_us is RETENTION_UNKNOWN:
                shown = await self.show(id, queue)
                if shown is None:
                    return False
                retention_us = retention_of(shown)
            with self._call_id() as call_id:
                call = ops.cancel(self._keys(queue), id, retention_us=retention_us, call_id=call_id)
                outcome, token = await self._broker.run(call, ends=ends)
            if outcome == "active":
                order = self._order(id, queue, token)
                await self._broker.run_many([order], ends=min(ends, ends_in(ORDER_S)))
            return outcome in ("cancelled", "active")

    async def reschedule(self, id: str, queue: str, due: str) -> Rescheduled:
        """Change the due time of a waiting task; `due_text` builds the new value."""
        self.check_open()
        with self._in_flight, self._call_id() as call_id:
            call = operator_ops.reschedule(self._keys(queue), id, due, call_id=call_id)
            return await self._broker.run(call)

    def close(self) -> None:
        """Refuse further calls."""
        self._closed = True

    async def aclose(self) -> None:
        """Complete the calls in flight, wake waiting callers with an error, and stop listening."""
        self.close()
        for reader in self._readers.values():
            await reader.drain()
        await self._in_flight.wait_idle()
        await self._listeners.aclose()

    async def _read(
        self, keys: QueueKeys, messages: bool, ids: Sequence[str], remaining_s: float
    ) -> list[StoredTask | None]:
        call = views.get_tasks(keys, ids, messages=messages)
        return await self._broker.run(call, ends=ends_in(remaining_s))

    def _listening(self, queue: str, id: str) -> AbstractContextManager[asyncio.Event]:
        return self._listeners.waiting(self._keys(queue).done, id)


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event, but for at most `seconds`."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
