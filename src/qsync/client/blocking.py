"""The client that blocks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Self, TypeVar, overload

from qsync.broker import ops, views
from qsync.broker.base import check_broker, ends_in, noop
from qsync.broker.blocking import Broker
from qsync.broker.call import Call, Durability, Wait
from qsync.broker.enqueue_packet import CREATED_REPLY
from qsync.broker.op_values import Enqueued
from qsync.bulk_enqueue import BulkEnqueue, fitting
from qsync.client.base import ClientBase
from qsync.context_hints import BlockingOnly
from qsync.enqueueing import CONFIRM_TIMEOUT, duplicate, is_refused
from qsync.errors import QsyncError, QueueFull, StoreUnavailable
from qsync.handle import Handle
from qsync.idempotency import duplicate_client_error
from qsync.keys import QueueKeys, check_id, check_name
from qsync.new_task import NewTask
from qsync.queue_announcer import Registrations
from qsync.results import decode_result, decoder_of
from qsync.schedules import Schedules
from qsync.task import DEFAULT, PAYLOAD_LIMIT, REMEMBER_IDS, Task
from qsync.task_lookup import QUEUES_LIMIT
from qsync.task_queries import TaskQueries
from qsync.times import Duration

R = TypeVar("R")
T = TypeVar("T")


class Client(ClientBase, BlockingOnly):
    """Enqueues tasks and returns handles that give their status and results. Every call blocks.

    Threads may share a client, and a forked child may keep using it. Close a client, or use it in
    `with`; closing it also closes its broker.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        prefix: str = "qsync",
        payload_limit: int = PAYLOAD_LIMIT,
        durability: Durability | None = None,
        confirm_timeout: float = CONFIRM_TIMEOUT,
        remember_ids: Duration = REMEMBER_IDS,
    ) -> None:
        check_broker(broker, "Qsync(url, prefix=...).client()")
        super().__init__(broker, prefix, payload_limit, durability, confirm_timeout, remember_ids)
        self._durable_broker = broker.with_longer_timeout(self._confirm_timeout)
        self._queries = TaskQueries(broker, prefix)
        self._registrations = Registrations(broker.run_many, self._note_registered)
        self.schedules: Final = Schedules(
            broker, prefix, payload_limit, self._queries.check_open, lambda: self.declared
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def enqueue(
        self, task: Task[R], *, queue: str | None = None, durability: Durability | None = None
    ) -> Handle[R]:
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
        call_id = self._call_sequences.take()
        try:
            if durability is None and self._stores_at_once(outgoing, call_id):
                outcome = Enqueued("created", outgoing.id)
            else:
                [outcome] = self._send_as(call_id, outgoing.queue, (outgoing,), durability)
        finally:
            self._call_sequences.give_back(call_id)
        if outcome.outcome != "created" and is_refused(outgoing, outcome):
            raise duplicate(outgoing, outcome)
        return self._handle(outgoing, outcome)

    def enqueue_many(
        self, tasks: Iterable[Task[R]], *, durability: Durability | None = None
    ) -> list[Handle[R]]:
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
        try:
            for queue, indices in bulk.indices_by_queue().items():
                self._send_all(bulk, durability, queue, indices)
        except QsyncError as error:
            bulk.complete_error(error)
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

        `type` is the type that `result()` returns, e.g. `type=Invoice`; without it, a dataclass or
        model is returned as a dict. Use `find` when the queue is unknown. Raises InvalidTask when
        the id or queue is not a valid name, and ConfigError if no result can have the type.
        """
        decode = decode_result if type is None else decoder_of(type)
        return Handle(self._queries, check_id(id), check_name("queue", queue), _decode=decode)

    @overload
    def find(self, id: str) -> Handle[Any]: ...

    @overload
    def find(self, id: str, *, type: type[T]) -> Handle[T]: ...

    @overload
    def find(self, id: str, *, type: Any) -> Handle[Any]: ...

    def find(self, id: str, *, type: Any = None) -> Handle[Any]:
        """Search all queues of the prefix for a task, and return its handle.

        When several queues have the id, a task that has not ended is preferred. A search takes one
        round trip per 100 queues (in a cluster, one per queue) and covers the first 5,000 queues.
        If the queue is known, `handle` needs no round trip. `type` is as for `handle`. Raises
        TaskNotFound, whose message names the searched queues, and StoreUnavailable.
        """
        self._queries.check_open()
        names = self._broker.run(views.queues(self._global_keys, count=QUEUES_LIMIT))
        search = self._search(id, names)
        for calls in search.calls():
            ends = ends_in(self._broker.patience)
            replies: list[Any] = self._broker.run_many(calls, ends=ends)
            for index, reply in enumerate(replies):
                if isinstance(reply, QsyncError):
                    replies[index] = self._broker.run(calls[index], ends=ends)
            search.note(replies)
        return self.handle(id, queue=search.queue(), type=type)

    def close(self) -> None:
        """Close the connections. Calls that wait for a result, and later calls, raise QsyncError.

        An AsyncClient first completes the calls in flight. Close a Client only when no other thread
        is calling it, unless that thread waits for a result. On `current().client` this method does
        nothing, since the server closes that client.
        """
        if self.borrowed:
            return
        self._queries.close()
        self._registrations.close()
        self._durable_broker.close()
        self._broker.close()

    def _handle(self, task: NewTask, reply: Enqueued) -> Handle[Any]:
        if reply.outcome != "created":
            return Handle(
                self._queries, reply.id, task.queue,
                confirmed=reply.confirmed, _decode=task.decode or decode_result,
            )  # fmt: skip
        return Handle(
            self._queries, task.id, task.queue,
            created=True, confirmed=reply.confirmed, _retention_us=task.retention_us,
            _decode=task.decode or decode_result,
        )  # fmt: skip

    def _stores_at_once(self, task: NewTask, call_id: tuple[str, int]) -> bool:
        """Try to store a task with an encoded call; return whether the store has created it.

        If the method returns False, repeat the call as usual, with the same id.
        """
        packet = self._packet(self._keys(task.queue), task, call_id)
        return packet is not None and self._broker.converse(packet, CREATED_REPLY)

    def _send_call(
        self, queue: str, tasks: Sequence[NewTask], durability: Durability | None
    ) -> list[Enqueued]:
        """Send tasks of a queue in one call; raise the error if the call fails."""
        call_id = self._call_sequences.take()
        try:
            return self._send_as(call_id, queue, tasks, durability)
        finally:
            self._call_sequences.give_back(call_id)

    def _send_as(
        self,
        call_id: tuple[str, int],
        queue: str,
        tasks: Sequence[NewTask],
        durability: Durability | None,
    ) -> list[Enqueued]:
        """Send tasks of a queue in the call with this id; raise the error if the call fails."""
        keys = self._keys(queue)
        wait = self._wait(keys, durability)
        sender, number = call_id
        call = ops.enqueue(keys, tasks, sender=sender, number=number, wait=wait)
        reply = self._send_one(keys, call)
        if isinstance(reply, QsyncError):
            raise reply
        return reply

    def _send_all(
        self,
        bulk: BulkEnqueue[Handle[Any]],
        durability: Durability | None,
        queue: str,
        indices: Sequence[int],
    ) -> None:
        with self._round_trips(bulk, durability, queue, indices) as (keys, trips):
            for trip in trips:
                replies = self._send(keys, trip.calls, trips.prepare)
                try:
                    bulk.record(trip, replies)
                except QueueFull:
                    if (retried := fitting(trip, replies)) is not None:
                        with contextlib.suppress(QueueFull):
                            bulk.note(retried, self._send_call(queue, retried.tasks, durability))
                    raise

    def _send_one(self, keys: QueueKeys, call: Call[list[Enqueued]]) -> list[Enqueued] | QsyncError:
        """Send one call; retry it if it fails with StoreUnavailable."""
        if call.wait is not None or self._announcer.is_due(keys.queue):
            [reply] = self._send(keys, [call])
            return reply
        ends = ends_in(self._allowance(None))
        reply = self._broker.run_once(call, ends=ends)
        if isinstance(reply, StoreUnavailable):
            reply = self._broker.run(call, ends=ends)
        return reply or duplicate_client_error(keys)

    def _send(
        self,
        keys: QueueKeys,
        calls: Sequence[Call[list[Enqueued]]],
        overlap: Callable[[], None] = noop,
    ) -> list[list[Enqueued] | QsyncError]:
        """Send calls of a queue in one round trip; retry calls that fail with StoreUnavailable, one
        by one."""
        wait = calls[0].wait
        ends = ends_in(self._allowance(wait))
        broker = self._broker if wait is None else self._broker_for(wait, ends)
        registration = self._registration(keys.queue)
        sent = calls if registration is None else [registration, *calls]
        replies: list[Any] = broker.run_many(sent, ends=ends, overlap=overlap)
        if registration is not None:
            self._note_registered(keys.queue, replies.pop(0))
        for index, reply in enumerate(replies):
            if isinstance(reply, StoreUnavailable):
                try:
                    replies[index] = broker.run(calls[index], ends=ends)
                except QsyncError as error:
                    replies[index] = error
                    break
        return [reply if reply else duplicate_client_error(keys) for reply in replies]

    def _broker_for(self, wait: Wait, ends: float) -> Broker:
        """Return the broker for calls that wait for this durability.

        Raises ConfigError if the store cannot confirm that a task is durable.
        """
        durability, key = store = self._store(wait)
        broker = self._durable_broker
        if store in self._confirmed_stores:
            return broker
        if broker.can_confirm(durability, key, ends=ends):
            self._confirmed_stores.add(store)
        return broker
