"""Enqueue tasks and get their results: `Client` blocks, `AsyncClient` is for asyncio.

Both have the same methods and docstrings; change them together.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, Self, TypeVar, overload

from qsync.broker import ops, views
from qsync.broker.aio import AsyncBroker
from qsync.broker.base import ONE_TRY_S, ends_in
from qsync.broker.blocking import Broker
from qsync.broker.call import Call, Durability, Wait
from qsync.broker.ops import Enqueued
from qsync.broker.protocol import noop
from qsync.errors import ConfigError, QsyncError, StoreUnavailable
from qsync.handle import AsyncHandle, AsyncTaskQueries, Handle, TaskQueries
from qsync.keys import GlobalKeys, QueueKeys, check_id, check_name, queue_keys, shorten
from qsync.new_task import NewTask
from qsync.queue_announcer import AsyncRegistrations, QueueAnnouncer, Registrations
from qsync.results import decode_result, decoder_of
from qsync.schedules import AsyncSchedules, Schedules
from qsync.sending import (
    CALL_BYTES,
    CONFIRM_TIMEOUT,
    Batcher,
    BulkEnqueue,
    CallSequences,
    InFlight,
    Lookahead,
    RoundTrip,
    check_confirm_timeout,
    check_durability,
    check_remember_ids,
    copy_for_caller,
    duplicate,
    duplicate_client_error,
    is_refused,
    ready,
    size_of,
)  # fmt: skip
from qsync.task import DEFAULT, PAYLOAD_LIMIT, REMEMBER_IDS, Task
from qsync.task_lookup import QUEUES_LIMIT, Search
from qsync.times import Duration

R = TypeVar("R")
T = TypeVar("T")

__all__ = ["AsyncClient", "AsyncHandle", "Client", "Handle"]

QUEUES_AT_ONCE: Final = 16
"""Queues to which `enqueue_many` of an AsyncClient sends at the same time, over 8 connections."""

CALLS_AT_ONCE: Final = 8
CALLS_A_WAIT: Final = 16
"""Calls in one round trip to a store of one node, without and with a wait for confirmation. Eight
let client and store work at the same time; a wait takes far longer, so more calls share it."""


class _AnyClient:
    """The part that `Client` and `AsyncClient` share."""

    def __init__(
        self,
        broker: Broker | AsyncBroker,
        prefix: str,
        payload_limit: int,
        durability: Durability | None,
        confirm_timeout: float,
        remember_ids: Duration,
    ) -> None:
        if type(payload_limit) is not int or payload_limit < 1:
            msg = f"payload_limit: {shorten(payload_limit)} is not a positive number of bytes"
            raise ConfigError(msg)
        self._broker: Any = broker
        self._address = broker.address
        self._global_keys = GlobalKeys(prefix)
        self._payload_limit = payload_limit
        self._remember_us = check_remember_ids(remember_ids)
        self._durability = check_durability(durability)
        self._confirm_timeout = check_confirm_timeout(confirm_timeout)
        self._able: set[tuple[Durability, str]] = set()
        self._registry = QueueAnnouncer()
        self._senders = CallSequences()
        self.lent = False
        """True while the client belongs to a server, which closes it; `close` then does nothing."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} prefix={self._global_keys.prefix!r} at {self._address}>"

    def _keys(self, queue: str) -> QueueKeys:
        return queue_keys(self._global_keys.prefix, queue)

    def _wait(self, keys: QueueKeys, durability: Durability | None) -> Wait | None:
        """Return what an enqueue to the queue waits for; None without durability."""
        if durability is None:
            return None
        return ops.wait(keys, durability, timeout_ms=round(self._confirm_timeout * 1000))

    def _allowance(self, wait: Wait | None) -> float:
        """Return the longest wait of a caller, for its call and the one before it, in seconds."""
        patience = self._broker.patience or ONE_TRY_S
        return patience if wait is None else patience + 2 * self._confirm_timeout

    def _calls(self, wait: Wait | None) -> int:
        """Return how many calls go in one round trip."""
        if self._address.kind == "cluster":
            return 1
        return CALLS_AT_ONCE if wait is None else CALLS_A_WAIT

    @contextmanager
    def _trips(
        self, bulk: BulkEnqueue[T], durability: Durability | None, queue: str, places: Sequence[int]
    ) -> Iterator[tuple[QueueKeys, Lookahead[RoundTrip]]]:
        """Yield key names and round trips for tasks of a queue; call ids are valid in the block."""
        keys = self._keys(queue)
        wait = self._wait(keys, durability)
        lent = self._senders.lend(0)
        with lent:
            yield keys, Lookahead(bulk.trips(keys, places, lent, wait, calls=self._calls(wait)))

    def _store(self, wait: Wait) -> tuple[Durability, str]:
        """Return a key for the store that confirms; in a cluster it depends on the queue."""
        [key] = wait.mark.keys
        return wait.durability, key if self._address.kind == "cluster" else ""

    def _ready(self, task: object, queue: str | None) -> NewTask:
        return ready(
            task,
            queue=queue,
            payload_limit=self._payload_limit,
            remember_us=self._remember_us,
        )

    def _registering(self, queue: str) -> Call[Any] | None:
        """Return the call that registers the queue in the store; None when it is not due."""
        if not self._registry.due(queue):
            return None
        return ops.register(self._global_keys, [queue])

    def _note_registered(self, queue: str, reply: Any) -> None:
        """Note a failed registration, which is retried later; the enqueue itself goes on."""
        if isinstance(reply, QsyncError):
            self._registry.failed(queue)


class Client(_AnyClient):
    """Enqueues tasks and returns handles that give their status and results. Every call blocks.

    Threads may share a client, and a forked child may go on using it. Close it, or use `with`;
    closing the client closes its broker.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        prefix: str,
        payload_limit: int = PAYLOAD_LIMIT,
        durability: Durability | None = None,
        confirm_timeout: float = CONFIRM_TIMEOUT,
        remember_ids: Duration = REMEMBER_IDS,
    ) -> None:
        super().__init__(broker, prefix, payload_limit, durability, confirm_timeout, remember_ids)
        self._waiter = broker.with_longer_timeout(self._confirm_timeout)
        self._tracker = TaskQueries(broker, prefix)
        self._registrations = Registrations(broker.run_many, self._note_registered)
        self.schedules = Schedules(broker, prefix, payload_limit, self._tracker.check_open)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def enqueue(
        self, task: Task[R], *, queue: str | None = None, durability: Durability | None = None
    ) -> Handle[R]:
        """Store the task and return its handle; the task will run at least once.

        `queue` overrides the queue of the task.

        With `durability` the call also waits until the task is on the disk of the store ("fsync")
        or on at least one replica ("replica"); None means the client's own setting. The wait ends
        after the `confirm_timeout` of the client. The handle's `confirmed` says whether the store
        confirmed in time; if it did not, the task is in the store all the same.

        Calls that an AsyncClient gets at the same time share round trips and waits. A cancelled
        call may have enqueued its task.

        Raises:

        InvalidTask       the task or an option of it cannot be accepted
        DuplicateTask     another task holds the id or the unique lock; the error has its id
        QueueFull         the store has no memory for the task; nothing was written
        ConfigError       the store cannot give this `durability`; nothing was written
        StoreUnavailable  the store did not answer within the client's patience, by default 10 s.
                          The task may be in the store: give it an id to repeat the call safely.
        """
        self._tracker.check_open()
        outgoing = self._ready(task, queue)
        keys = self._keys(outgoing.queue)
        asked = self._durability if durability is None else check_durability(durability)
        wait = self._wait(keys, asked)
        with self._senders.lend(1) as [(sender, number)]:
            call = ops.enqueue(keys, [outgoing], sender=sender, number=number, wait=wait)
            [reply] = self._send(keys, [call])
        if isinstance(reply, QsyncError):
            raise reply
        [outcome] = reply
        if is_refused(outcome):
            raise duplicate(outgoing, outcome)
        return self._handle(outgoing, outcome)

    def enqueue_many(
        self, tasks: Iterable[Task[R]], *, durability: Durability | None = None
    ) -> list[Handle[R]]:
        """Store all tasks and return one handle per task, in the same order.

        The call checks every task before it sends the first: on InvalidTask nothing was sent. A
        task whose id or unique lock is taken is no error: its handle has `created` False and the id
        of the holder. One call to the store carries at most 250 tasks or 1 MiB. `durability` is as
        for `enqueue`; tasks of a round trip share a wait.

        When the store fails halfway, `handles` of the error has the handles of the tasks that the
        store answered for. To repeat the call without running a task twice, give the tasks ids. For
        an hour, or the app's `remember_ids`, tasks enqueued before come back with `created` False,
        even when they have completed.
        """
        self._tracker.check_open()
        asked = self._durability if durability is None else check_durability(durability)
        bulk = BulkEnqueue(
            tasks,
            payload_limit=self._payload_limit,
            remember_us=self._remember_us,
            handle=self._handle,
        )
        try:
            for queue, places in bulk.places().items():
                self._send_all(bulk, asked, queue, places)
        except QsyncError as error:
            error.handles = bulk.handles()
            raise
        return bulk.handles()

    @overload
    def handle(self, id: str, *, queue: str = DEFAULT) -> Handle[Any]: ...

    @overload
    def handle(self, id: str, *, queue: str = DEFAULT, type: type[T]) -> Handle[T]: ...

    @overload
    def handle(self, id: str, *, queue: str = DEFAULT, type: Any) -> Handle[Any]: ...

    def handle(self, id: str, *, queue: str = DEFAULT, type: Any = None) -> Handle[Any]:
        """Return a handle for an id and a queue, without a round trip; the task need not exist.

        `type` is the type that `result()` returns, e.g. `type=Invoice`; without it a dataclass or
        model comes as a dict. Use `find` when the queue is unknown. Raises InvalidTask when the id
        or queue is no valid name, ConfigError when no result can have the type.
        """
        decode = decode_result if type is None else decoder_of(type)
        return Handle(self._tracker, check_id(id), check_name("queue", queue), _decode=decode)

    @overload
    def find(self, id: str) -> Handle[Any]: ...

    @overload
    def find(self, id: str, *, type: type[T]) -> Handle[T]: ...

    @overload
    def find(self, id: str, *, type: Any) -> Handle[Any]: ...

    def find(self, id: str, *, type: Any = None) -> Handle[Any]:
        """Search all queues of the prefix for a task, and return a handle of it.

        When several queues have the id, a task that has not ended is preferred. A search takes one
        round trip per 100 queues, in a cluster one per queue, and covers the first 5,000 queues; if
        the queue is known, `handle` needs none. `type` is as for `handle`. Raises TaskNotFound,
        which names the queues searched, and StoreUnavailable.
        """
        self._tracker.check_open()
        found = self._broker.run(views.queues(self._global_keys, count=QUEUES_LIMIT))
        search = Search(check_id(id), self._global_keys.prefix, found.names, total=found.more)
        for calls in search.calls():
            ends = ends_in(self._broker.patience)
            replies: list[Any] = self._broker.run_many(calls, ends=ends)
            for at, reply in enumerate(replies):
                if isinstance(reply, QsyncError):
                    replies[at] = self._broker.run(calls[at], ends=ends)
            search.note(replies)
        return self.handle(id, queue=search.queue(), type=type)

    def close(self) -> None:
        """Close the connections. Callers that wait for a result, and later calls, get a QsyncError.

        An AsyncClient first completes the calls in flight. No other thread may be in a call of a
        Client, except one that waits for a result. On `current().client` this does nothing: the
        server closes that client.
        """
        if self.lent:
            return
        self._tracker.close()
        self._registrations.close()
        self._waiter.close()
        self._broker.close()

    def _handle(self, task: NewTask, reply: Enqueued) -> Handle[Any]:
        if reply.outcome != "created":
            return Handle(
                self._tracker, reply.id, task.queue,
                confirmed=reply.confirmed, _decode=task.decode or decode_result,
            )  # fmt: skip
        return Handle(
            self._tracker, task.id, task.queue,
            created=True, confirmed=reply.confirmed, _retention_us=task.retention_us,
            _decode=task.decode or decode_result,
        )  # fmt: skip

    def _send_all(
        self,
        bulk: BulkEnqueue[Handle[Any]],
        durability: Durability | None,
        queue: str,
        places: Sequence[int],
    ) -> None:
        with self._trips(bulk, durability, queue, places) as (keys, trips):
            for trip in trips:
                bulk.note(trip, self._send(keys, trip.calls, trips.make))

    def _send(
        self,
        keys: QueueKeys,
        calls: Sequence[Call[list[Enqueued]]],
        overlap: Callable[[], None] = noop,
    ) -> list[list[Enqueued] | QsyncError]:
        """Send calls of a queue in one round trip; retry those with StoreUnavailable one by one."""
        wait = calls[0].wait
        ends = ends_in(self._allowance(wait))
        broker = self._broker if wait is None else self._broker_for(wait, ends)
        told = self._registering(keys.queue)
        if told is not None and self._address.kind == "cluster":  # maybe on another node
            self._registrations.add(keys.queue, told)
            told = None
        sent = calls if told is None else [told, *calls]
        replies: list[Any] = broker.run_many(sent, ends=ends, overlap=overlap)
        if told is not None:
            self._note_registered(keys.queue, replies.pop(0))
        for at, reply in enumerate(replies):
            if isinstance(reply, StoreUnavailable):
                try:
                    replies[at] = broker.run(calls[at], ends=ends)
                except QsyncError as error:
                    replies[at] = error
                    break
        return [reply if reply else duplicate_client_error(keys) for reply in replies]

    def _broker_for(self, wait: Wait, ends: float) -> Broker:
        """Return the broker for calls with this wait; ConfigError if the store cannot confirm."""
        durability, key = store = self._store(wait)
        if store not in self._able and self._waiter.can_confirm(durability, key, ends=ends):
            self._able.add(store)
        return self._waiter


class AsyncClient(_AnyClient):
    """Enqueues tasks and returns handles that give their status and results.

    A client belongs to one event loop. Close it, or use `async with`; closing the client closes
    its broker.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        *,
        prefix: str,
        payload_limit: int = PAYLOAD_LIMIT,
        durability: Durability | None = None,
        confirm_timeout: float = CONFIRM_TIMEOUT,
        remember_ids: Duration = REMEMBER_IDS,
    ) -> None:
        super().__init__(broker, prefix, payload_limit, durability, confirm_timeout, remember_ids)
        self._waiter = broker.with_longer_timeout(self._confirm_timeout)
        self._tracker = AsyncTaskQueries(broker, prefix)
        self._registrations = AsyncRegistrations(broker.run_many, self._note_registered)
        self.schedules = AsyncSchedules(broker, prefix, payload_limit, self._tracker.check_open)
        self._outboxes: dict[Durability | None, dict[str, Batcher[NewTask, Enqueued]]] = {
            None: {}, "fsync": {}, "replica": {}
        }  # fmt: skip
        self._under_way = InFlight()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def enqueue(
        self, task: Task[R], *, queue: str | None = None, durability: Durability | None = None
    ) -> AsyncHandle[R]:
        """Store the task and return its handle; the task will run at least once.

        `queue` overrides the queue of the task.

        With `durability` the call also waits until the task is on the disk of the store ("fsync")
        or on at least one replica ("replica"); None means the client's own setting. The wait ends
        after the `confirm_timeout` of the client. The handle's `confirmed` says whether the store
        confirmed in time; if it did not, the task is in the store all the same.

        Calls that an AsyncClient gets at the same time share round trips and waits. A cancelled
        call may have enqueued its task.

        Raises:

        InvalidTask       the task or an option of it cannot be accepted
        DuplicateTask     another task holds the id or the unique lock; the error has its id
        QueueFull         the store has no memory for the task; nothing was written
        ConfigError       the store cannot give this `durability`; nothing was written
        StoreUnavailable  the store did not answer within the client's patience, by default 10 s.
                          The task may be in the store: give it an id to repeat the call safely.
        """
        self._tracker.check_open()
        outgoing = self._ready(task, queue)
        asked = self._durability if durability is None else check_durability(durability)
        outbox = self._outboxes[asked].get(outgoing.queue) or self._outbox(outgoing.queue, asked)
        reply = await outbox.ask(outgoing)
        if is_refused(reply):
            raise duplicate(outgoing, reply)
        return self._handle(outgoing, reply)

    async def enqueue_many(
        self, tasks: Iterable[Task[R]], *, durability: Durability | None = None
    ) -> list[AsyncHandle[R]]:
        """Store all tasks and return one handle per task, in the same order.

        The call checks every task before it sends the first: on InvalidTask nothing was sent. A
        task whose id or unique lock is taken is no error: its handle has `created` False and the id
        of the holder. One call to the store carries at most 250 tasks or 1 MiB. `durability` is as
        for `enqueue`; tasks of a round trip share a wait.

        When the store fails halfway, `handles` of the error has the handles of the tasks that the
        store answered for. To repeat the call without running a task twice, give the tasks ids. For
        an hour, or the app's `remember_ids`, tasks enqueued before come back with `created` False,
        even when they have completed.
        """
        self._tracker.check_open()
        asked = self._durability if durability is None else check_durability(durability)
        bulk = BulkEnqueue(
            tasks,
            payload_limit=self._payload_limit,
            remember_us=self._remember_us,
            handle=self._handle,
        )
        with self._under_way:
            queues = deque(bulk.places().items())
            count = min(len(queues), QUEUES_AT_ONCE)
            senders = [self._send_queues(bulk, asked, queues) for _ in range(count)]
            for error in await asyncio.gather(*senders, return_exceptions=True):
                if isinstance(error, QsyncError):
                    error.handles = bulk.handles()
                if error is not None:
                    raise error
        return bulk.handles()

    @overload
    def handle(self, id: str, *, queue: str = DEFAULT) -> AsyncHandle[Any]: ...

    @overload
    def handle(self, id: str, *, queue: str = DEFAULT, type: type[T]) -> AsyncHandle[T]: ...

    @overload
    def handle(self, id: str, *, queue: str = DEFAULT, type: Any) -> AsyncHandle[Any]: ...

    def handle(self, id: str, *, queue: str = DEFAULT, type: Any = None) -> AsyncHandle[Any]:
        """Return a handle for an id and a queue, without a round trip; the task need not exist.

        `type` is the type that `result()` returns, e.g. `type=Invoice`; without it a dataclass or
        model comes as a dict. Use `find` when the queue is unknown. Raises InvalidTask when the id
        or queue is no valid name, ConfigError when no result can have the type.
        """
        decode = decode_result if type is None else decoder_of(type)
        return AsyncHandle(self._tracker, check_id(id), check_name("queue", queue), _decode=decode)

    @overload
    async def find(self, id: str) -> AsyncHandle[Any]: ...

    @overload
    async def find(self, id: str, *, type: type[T]) -> AsyncHandle[T]: ...

    @overload
    async def find(self, id: str, *, type: Any) -> AsyncHandle[Any]: ...

    async def find(self, id: str, *, type: Any = None) -> AsyncHandle[Any]:
        """Search all queues of the prefix for a task, and return a handle of it.

        When several queues have the id, a task that has not ended is preferred. A search takes one
        round trip per 100 queues, in a cluster one per queue, and covers the first 5,000 queues; if
        the queue is known, `handle` needs none. `type` is as for `handle`. Raises TaskNotFound,
        which names the queues searched, and StoreUnavailable.
        """
        self._tracker.check_open()
        found = await self._broker.run(views.queues(self._global_keys, count=QUEUES_LIMIT))
        search = Search(check_id(id), self._global_keys.prefix, found.names, total=found.more)
        for calls in search.calls():
            ends = ends_in(self._broker.patience)
            replies: list[Any] = await self._broker.run_many(calls, ends=ends)
            for at, reply in enumerate(replies):
                if isinstance(reply, QsyncError):
                    replies[at] = await self._broker.run(calls[at], ends=ends)
            search.note(replies)
        return self.handle(id, queue=search.queue(), type=type)

    async def aclose(self) -> None:
        """Close the connections. Callers that wait for a result, and later calls, get a QsyncError.

        An AsyncClient first completes the calls in flight. No other thread may be in a call of a
        Client, except one that waits for a result. On `current().client` this does nothing: the
        server closes that client.
        """
        if self.lent:
            return
        self._tracker.close()
        try:
            for outboxes in self._outboxes.values():
                for outbox in outboxes.values():
                    await outbox.drain()
            await self._under_way.none()
        finally:
            await self._registrations.aclose()
            await self._tracker.aclose()
            await self._waiter.aclose()
            await self._broker.aclose()

    def _handle(self, task: NewTask, reply: Enqueued) -> AsyncHandle[Any]:
        if reply.outcome != "created":
            return AsyncHandle(
                self._tracker, reply.id, task.queue,
                confirmed=reply.confirmed, _decode=task.decode or decode_result,
            )  # fmt: skip
        return AsyncHandle(
            self._tracker, task.id, task.queue,
            created=True, confirmed=reply.confirmed, _retention_us=task.retention_us,
            _decode=task.decode or decode_result,
        )  # fmt: skip

    def _outbox(self, queue: str, durability: Durability | None) -> Batcher[NewTask, Enqueued]:
        keys = self._keys(queue)
        wait = self._wait(keys, durability)
        calls = 1 if wait is None else self._calls(wait)
        outbox = Batcher(
            partial(self._enqueue, keys, wait), size_of,
            patience=self._allowance(wait), too_late=self._broker.too_late,
            calls=calls, most=CALL_BYTES,
        )  # fmt: skip
        self._outboxes[durability][queue] = outbox
        return outbox

    async def _enqueue(
        self, keys: QueueKeys, wait: Wait | None, tasks: Sequence[NewTask], left: float
    ) -> list[Enqueued | Exception]:
        parts = [tasks] if wait is None else list(ops.batches(tasks, size_of, CALL_BYTES))
        with self._senders.lend(len(parts)) as numbers:
            calls = [
                ops.enqueue(keys, part, sender=sender, number=number, wait=wait)
                for part, (sender, number) in zip(parts, numbers, strict=True)
            ]
            replies = await self._send(keys, calls, ends_in(left))
        answers: list[Enqueued | Exception] = []
        for part, reply in zip(parts, replies, strict=True):
            if isinstance(reply, QsyncError):
                answers += [copy_for_caller(reply) for _ in part]
            else:
                answers += reply
        return answers

    async def _send_queues(
        self,
        bulk: BulkEnqueue[AsyncHandle[Any]],
        durability: Durability | None,
        queues: deque[tuple[str, list[int]]],
    ) -> None:
        """Send the tasks of one queue after another; stop all senders when a queue fails."""
        while queues:
            try:
                await self._send_all(bulk, durability, *queues.popleft())
            except BaseException:
                queues.clear()
                raise

    async def _send_all(
        self,
        bulk: BulkEnqueue[AsyncHandle[Any]],
        durability: Durability | None,
        queue: str,
        places: Sequence[int],
    ) -> None:
        with self._trips(bulk, durability, queue, places) as (keys, trips):
            for trip in trips:
                ends = ends_in(self._allowance(trip.calls[0].wait))
                bulk.note(trip, await self._send(keys, trip.calls, ends, trips.make))

    async def _send(
        self,
        keys: QueueKeys,
        calls: Sequence[Call[list[Enqueued]]],
        ends: float,
        overlap: Callable[[], None] = noop,
    ) -> list[list[Enqueued] | QsyncError]:
        """Send calls of a queue in one round trip; retry those with StoreUnavailable one by one."""
        wait = calls[0].wait
        broker = self._broker if wait is None else await self._broker_for(wait, ends)
        told = self._registering(keys.queue)
        if told is not None and self._address.kind == "cluster":  # maybe on another node
            self._registrations.add(keys.queue, told)
            told = None
        sent = calls if told is None else [told, *calls]
        replies: list[Any] = await broker.run_many(sent, ends=ends, overlap=overlap)
        if told is not None:
            self._note_registered(keys.queue, replies.pop(0))
        for at, reply in enumerate(replies):
            if isinstance(reply, StoreUnavailable):
                try:
                    replies[at] = await broker.run(calls[at], ends=ends)
                except QsyncError as error:
                    replies[at] = error
                    break
        return [reply if reply else duplicate_client_error(keys) for reply in replies]

    async def _broker_for(self, wait: Wait, ends: float) -> AsyncBroker:
        """Return the broker for calls with this wait; ConfigError if the store cannot confirm."""
        durability, key = store = self._store(wait)
        if store not in self._able and await self._waiter.can_confirm(durability, key, ends=ends):
            self._able.add(store)
        return self._waiter
