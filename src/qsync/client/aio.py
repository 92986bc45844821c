"""The client for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, Self, TypeVar, overload

from qsync.broker import ops, views
from qsync.broker.aio import AsyncBroker
from qsync.broker.base import check_broker, ends_in, noop
from qsync.broker.call import Call, Durability, Wait
from qsync.broker.enqueue_packet import CREATED_REPLY
from qsync.broker.op_values import Enqueued
from qsync.bulk_enqueue import CALL_BYTES, BulkEnqueue, fitting, size_of
from qsync.client.base import ClientBase
from qsync.context_hints import AsyncOnly
from qsync.enqueue_batching import Batcher, InFlight, copy_for_caller
from qsync.enqueue_parts import in_parts
from qsync.enqueueing import CONFIRM_TIMEOUT, duplicate, is_refused
from qsync.errors import QsyncError, QueueFull, StoreUnavailable
from qsync.handle import AsyncHandle
from qsync.idempotency import duplicate_client_error
from qsync.keys import QueueKeys, check_id, check_name
from qsync.new_task import NewTask
from qsync.queue_announcer import AsyncRegistrations
from qsync.results import decode_result, decoder_of
from qsync.schedules import AsyncSchedules
from qsync.task import DEFAULT, PAYLOAD_LIMIT, REMEMBER_IDS, Task
from qsync.task_lookup import QUEUES_LIMIT
from qsync.task_queries import AsyncTaskQueries
from qsync.times import Duration

R = TypeVar("R")
T = TypeVar("T")

QUEUES_AT_ONCE: Final = 16
"""Number of queues to which `AsyncClient.enqueue_many` sends at the same time. The client has eight
connections per node; calls for other queues wait for a free connection, within the client's
patience."""


class AsyncClient(ClientBase, AsyncOnly):
    """Enqueues tasks and returns handles that give their status and results.

    A client belongs to one event loop. Close a client, or use it in `async with`; closing it also
    closes its broker.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        *,
        prefix: str = "qsync",
        payload_limit: int = PAYLOAD_LIMIT,
        durability: Durability | None = None,
        confirm_timeout: float = CONFIRM_TIMEOUT,
        remember_ids: Duration = REMEMBER_IDS,
    ) -> None:
        check_broker(broker, "Qsync(url, prefix=...).async_client()")
        super().__init__(broker, prefix, payload_limit, durability, confirm_timeout, remember_ids)
        self._durable_broker = broker.with_longer_timeout(self._confirm_timeout)
        self._queries = AsyncTaskQueries(broker, prefix)
        self._registrations = AsyncRegistrations(broker.run_many, self._note_registered)
        self.schedules: Final = AsyncSchedules(
            broker, prefix, payload_limit, self._queries.check_open, lambda: self.declared
        )
        self._outboxes: dict[Durability | None, dict[str, Batcher[NewTask, Enqueued]]] = {
            None: {}, "fsync": {}, "replica": {}
        }  # fmt: skip
        self._in_flight = InFlight()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def enqueue(
        self, task: Task[R], *, queue: str | None = None, durability: Durability | None = None
    ) -> AsyncHandle[R]:
        """Store the task and return its handle; the task will run at least once.

        `queue` overrides the queue of the task.

        With `durability` the call also waits until the task is on the store's disk ("fsync") or on
        at least one replica ("replica"). None means the client's own setting. The wait ends after
        the client's `confirm_timeout`. The handle's `confirmed` tells whether the store confirmed
        in time; even if it did not, the task is in the store.

        Concurrent calls of an AsyncClient share round trips and waits. A cancelled call may have
        enqueued its task.

        Raises:

        InvalidTask       the task or one of its options is invalid
        DuplicateTask     another task holds the id or the unique lock; the error has its id
        QueueFull         the queue has reached a bound, or the store has no memory for the task;
                          nothing was written
        ConfigError       the store cannot provide this `durability`; nothing was written
        StoreUnavailable  the store did not answer within the client's patience, by default 10 s.
                          The task may be in the store; to repeat the call safely, give the task an
                          id.
        """
        self._queries.check_open()
        outgoing = self._ready(task, queue)
        durability = self._durability_of(durability)
        outbox = self._outboxes[durability].get(outgoing.queue) or self._outbox(
            outgoing.queue, durability
        )
        reply = await outbox.submit(outgoing)
        if reply.outcome != "created" and is_refused(outgoing, reply):
            raise duplicate(outgoing, reply)
        return self._handle(outgoing, reply)

    async def enqueue_many(
        self, tasks: Iterable[Task[R]], *, durability: Durability | None = None
    ) -> list[AsyncHandle[R]]:
        """Store all tasks and return one handle per task, in the same order.

        The call checks every task before it sends the first one, so after InvalidTask nothing was
        sent. A task whose id or unique lock is taken is not an error. The handle then has `created`
        False and refers to the task that holds the id or lock. One call to the store carries at
        most 250 tasks or 1 MiB. `durability` is as for `enqueue`; tasks in one round trip share one
        wait for the confirmation.

        A bounded queue accepts tasks up to its bound; then the call raises QueueFull. An error's
        `handles` are the handles of the tasks for which the store replied. To repeat the call
        without running a task twice, give the tasks ids. The store remembers an id for an hour, or
        for the app's `remember_ids`. Until then, enqueueing the id again returns a handle with
        `created` False, even if the task has completed.
        """
        self._queries.check_open()
        durability = self._durability_of(durability)
        bulk = BulkEnqueue(
            tasks,
            payload_limit=self._payload_limit,
            remember_us=self._remember_us,
            declared=self.declared,
            handle=self._handle,
        )
        with self._in_flight:
            queues = deque(bulk.indices_by_queue().items())
            count = min(len(queues), QUEUES_AT_ONCE)
            senders = [self._send_queues(bulk, durability, queues) for _ in range(count)]
            for error in await asyncio.gather(*senders, return_exceptions=True):
                if isinstance(error, QsyncError):
                    bulk.complete_error(error)
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

        `type` is the type that `result()` returns, e.g. `type=Invoice`; without it, a dataclass or
        model is returned as a dict. Use `find` when the queue is unknown. Raises InvalidTask when
        the id or queue is not a valid name, and ConfigError if no result can have the type.
        """
        decode = decode_result if type is None else decoder_of(type)
        return AsyncHandle(self._queries, check_id(id), check_name("queue", queue), _decode=decode)

    @overload
    async def find(self, id: str) -> AsyncHandle[Any]: ...

    @overload
    async def find(self, id: str, *, type: type[T]) -> AsyncHandle[T]: ...

    @overload
    async def find(self, id: str, *, type: Any) -> AsyncHandle[Any]: ...

    async def find(self, id: str, *, type: Any = None) -> AsyncHandle[Any]:
        """Search all queues of the prefix for a task, and return its handle.

        When several queues have the id, a task that has not ended is preferred. A search takes one
        round trip per 100 queues (in a cluster, one per queue) and covers the first 5,000 queues.
        If the queue is known, `handle` needs no round trip. `type` is as for `handle`. Raises
        TaskNotFound, whose message names the searched queues, and StoreUnavailable.
        """
        self._queries.check_open()
        names = await self._broker.run(views.queues(self._global_keys, count=QUEUES_LIMIT))
        search = self._search(id, names)
        for calls in search.calls():
            ends = ends_in(self._broker.patience)
            replies: list[Any] = await self._broker.run_many(calls, ends=ends)
            for index, reply in enumerate(replies):
                if isinstance(reply, QsyncError):
                    replies[index] = await self._broker.run(calls[index], ends=ends)
            search.note(replies)
        return self.handle(id, queue=search.queue(), type=type)

    async def aclose(self) -> None:
        """Close the connections. Calls that wait for a result, and later calls, raise QsyncError.

        An AsyncClient first completes the calls in flight. Close a Client only when no other thread
        is calling it, unless that thread waits for a result. On `current().client` this method does
        nothing, since the server closes that client.
        """
        if self.borrowed:
            return
        self._queries.check_loop()
        self._queries.close()
        try:
            for outboxes in self._outboxes.values():
                for outbox in outboxes.values():
                    await outbox.drain()
            await self._in_flight.wait_idle()
        finally:
            await self._registrations.aclose()
            await self._queries.aclose()
            await self._durable_broker.aclose()
            await self._broker.aclose()

    def _handle(self, task: NewTask, reply: Enqueued) -> AsyncHandle[Any]:
        if reply.outcome != "created":
            return AsyncHandle(
                self._queries, reply.id, task.queue,
                confirmed=reply.confirmed, _decode=task.decode or decode_result,
            )  # fmt: skip
        return AsyncHandle(
            self._queries, task.id, task.queue,
            created=True, confirmed=reply.confirmed, _retention_us=task.retention_us,
            _decode=task.decode or decode_result,
        )  # fmt: skip

    def _outbox(self, queue: str, durability: Durability | None) -> Batcher[NewTask, Enqueued]:
        keys = self._keys(queue)
        wait = self._wait(keys, durability)
        # A wait for a confirmation may take a second, so calls in one batch share it.
        calls = 1 if wait is None else self._calls(wait)
        outbox = Batcher(
            partial(self._enqueue, keys, wait), size_of,
            patience=self._allowance(wait), too_late=self._broker.too_late,
            calls=calls, max_bytes=CALL_BYTES,
            run_one=partial(self._enqueue_one, keys) if wait is None else None,
        )  # fmt: skip
        self._outboxes[durability][queue] = outbox
        return outbox

    async def _enqueue(
        self, keys: QueueKeys, wait: Wait | None, tasks: Sequence[NewTask], seconds: float
    ) -> list[Enqueued | Exception]:
        ends, chunks = ends_in(seconds), [tasks]
        replies: list[list[Enqueued] | QsyncError] = []
        if wait is None:
            replies.append(await self._reply_to(keys, tasks, wait, ends))
        else:
            chunks = list(ops.batches(tasks, size_of, CALL_BYTES))
            replies += await self._replies_to(keys, chunks, wait, ends)
        answers: list[Enqueued | Exception] = []
        for chunk, reply in zip(chunks, replies, strict=True):
            if isinstance(reply, QueueFull) and reply.bound is not None and len(chunk) > 1:
                answers += await self._enqueue_in_parts(keys, wait, chunk, reply, ends)
            elif isinstance(reply, QsyncError):
                answers += [copy_for_caller(reply) for _ in chunk]
            else:
                answers += reply
        return answers

    async def _enqueue_in_parts(
        self,
        keys: QueueKeys,
        wait: Wait | None,
        tasks: Sequence[NewTask],
        full: QueueFull,
        ends: float,
    ) -> list[Enqueued | Exception]:
        """Store as many of the tasks as fit into a bounded queue; see `in_parts`."""
        parts = in_parts(tasks, full)
        reply: list[Enqueued] | QsyncError | None = None
        while True:
            try:
                part = parts.send(reply)
            except StopIteration as end:
                answers: list[Enqueued | Exception] = end.value
                return answers
            reply = await self._reply_to(keys, part, wait, ends)

    async def _enqueue_one(self, keys: QueueKeys, task: NewTask, remaining_s: float) -> Enqueued:
        """Send a task in its own call; raise the error if the call fails.

        A task without options is first sent in an encoded call, which is faster. Unless the store
        replies that it has created the task, the call is sent again in the usual form, with the
        same id.
        """
        call_id = self._call_sequences.take()
        try:
            packet = self._packet(keys, task, call_id)
            if packet is not None and await self._broker.converse(
                packet, CREATED_REPLY, seconds=remaining_s
            ):
                return Enqueued("created", task.id)
            reply = await self._reply_as(call_id, keys, (task,), None, ends_in(remaining_s))
        finally:
            self._call_sequences.give_back(call_id)
        if isinstance(reply, QsyncError):
            raise reply
        return reply[0]

    async def _replies_to(
        self, keys: QueueKeys, chunks: Sequence[Sequence[NewTask]], wait: Wait | None, ends: float
    ) -> list[list[Enqueued] | QsyncError]:
        """Send each chunk in one call, and all calls in one round trip."""
        with self._call_sequences.acquire(len(chunks)) as call_ids:
            calls = [
                ops.enqueue(keys, chunk, sender=sender, number=number, wait=wait)
                for chunk, (sender, number) in zip(chunks, call_ids, strict=True)
            ]
            return await self._send(keys, calls, ends)

    async def _reply_to(
        self, keys: QueueKeys, tasks: Sequence[NewTask], wait: Wait | None, ends: float
    ) -> list[Enqueued] | QsyncError:
        """Send tasks of a queue in one call."""
        call_id = self._call_sequences.take()
        try:
            return await self._reply_as(call_id, keys, tasks, wait, ends)
        finally:
            self._call_sequences.give_back(call_id)

    async def _reply_as(
        self,
        call_id: tuple[str, int],
        keys: QueueKeys,
        tasks: Sequence[NewTask],
        wait: Wait | None,
        ends: float,
    ) -> list[Enqueued] | QsyncError:
        """Send tasks of a queue in a call with this call id."""
        sender, number = call_id
        call = ops.enqueue(keys, tasks, sender=sender, number=number, wait=wait)
        if wait is not None or self._announcer.is_due(keys.queue):
            [reply] = await self._send(keys, [call], ends)
            return reply
        reply = await self._broker.run_once(call, ends=ends)
        if isinstance(reply, StoreUnavailable):
            try:
                reply = await self._broker.run(call, ends=ends)
            except QsyncError as error:
                reply = error
        return reply or duplicate_client_error(keys)

    async def _send_queues(
        self,
        bulk: BulkEnqueue[AsyncHandle[Any]],
        durability: Durability | None,
        queues: deque[tuple[str, list[int]]],
    ) -> None:
        """Send the tasks, one queue after another; stop all senders when a queue fails."""
        while queues:
            try:
                await self._send_all(bulk, durability, *queues.popleft())
            except BaseException:
                queues.clear()
                raise

    async def _send_call(
        self, queue: str, tasks: Sequence[NewTask], durability: Durability | None
    ) -> list[Enqueued]:
        """Send tasks of a queue in one call; raise the error if the call fails."""
        keys = self._keys(queue)
        wait = self._wait(keys, durability)
        reply = await self._reply_to(keys, tasks, wait, ends_in(self._allowance(wait)))
        if isinstance(reply, QsyncError):
            raise reply
        return reply

    async def _send_all(
        self,
        bulk: BulkEnqueue[AsyncHandle[Any]],
        durability: Durability | None,
        queue: str,
        indices: Sequence[int],
    ) -> None:
        with self._round_trips(bulk, durability, queue, indices) as (keys, trips):
            for trip in trips:
                ends = ends_in(self._allowance(trip.calls[0].wait))
                replies = await self._send(keys, trip.calls, ends, trips.prepare)
                try:
                    bulk.record(trip, replies)
                except QueueFull:
                    if (retried := fitting(trip, replies)) is not None:
                        with contextlib.suppress(QueueFull):
                            bulk.note(
                                retried, await self._send_call(queue, retried.tasks, durability)
                            )
                    raise

    async def _send(
        self,
        keys: QueueKeys,
        calls: Sequence[Call[list[Enqueued]]],
        ends: float,
        overlap: Callable[[], None] = noop,
    ) -> list[list[Enqueued] | QsyncError]:
        """Send calls of a queue in one round trip; retry calls that fail with StoreUnavailable, one
        by one."""
        wait = calls[0].wait
        broker = self._broker if wait is None else await self._broker_for(wait, ends)
        registration = self._registration(keys.queue)
        sent = calls if registration is None else [registration, *calls]
        replies: list[Any] = await broker.run_many(sent, ends=ends, overlap=overlap)
        if registration is not None:
            self._note_registered(keys.queue, replies.pop(0))
        for index, reply in enumerate(replies):
            if isinstance(reply, StoreUnavailable):
                try:
                    replies[index] = await broker.run(calls[index], ends=ends)
                except QsyncError as error:
                    replies[index] = error
                    break
        return [reply if reply else duplicate_client_error(keys) for reply in replies]

    async def _broker_for(self, wait: Wait, ends: float) -> AsyncBroker:
        """Return the broker for calls that wait for this durability.

        Raises ConfigError if the store cannot confirm that a task is durable.
        """
        durability, key = store = self._store(wait)
        broker = self._durable_broker
        if store in self._confirmed_stores:
            return broker
        if await broker.can_confirm(durability, key, ends=ends):
            self._confirmed_stores.add(store)
        return broker
