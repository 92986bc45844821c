"""Enqueue tasks, and ask what became of them: `Client` blocks, `AsyncClient` is awaited.

The two have the same names and docstrings, and change together.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, Self, TypeVar, overload

from qsync.broker import ops, views
from qsync.broker.call import Call, Durability, Wait
from qsync.broker.ops import Enqueued
from qsync.broker.protocol import nothing
from qsync.broker.shell import ONE_TRY_S, AsyncBroker, Broker, ends_in
from qsync.errors import ConfigError, QsyncError, StoreUnavailable
from qsync.handle import AsyncHandle, AsyncTaskQueries, Handle, TaskQueries
from qsync.keys import GlobalKeys, QueueKeys, check_id, check_name, queue_keys, shorten
from qsync.queue_announcer import AsyncRegistrations, QueueAnnouncer, Registrations
from qsync.results import decode_result, decoder_of
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
from qsync.task import DEFAULT, PAYLOAD_LIMIT, REMEMBER_IDS, Duration, NewTask, Task
from qsync.task_lookup import QUEUES_LIMIT, Search

R = TypeVar("R")
T = TypeVar("T")

__all__ = ["AsyncClient", "AsyncHandle", "Client", "Handle"]

QUEUES_AT_ONCE: Final = 16
"""To how many queues `enqueue_many` of an AsyncClient sends at a time: it has eight connections to
a node, and the others wait for one, within their patience."""

CALLS_AT_ONCE: Final = 8
CALLS_A_WAIT: Final = 16
"""How many calls go in one round trip to a store of one node: so many that client and store work at
the same time; and as many as may share a wait, which takes far longer."""


class _AnyClient:
    """What the clients of both colours have in common."""

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
        """Whoever lent it closes it: until then, closing it does nothing."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} prefix={self._global_keys.prefix!r} at {self._address}>"

    def _keys(self, queue: str) -> QueueKeys:
        return queue_keys(self._global_keys.prefix, queue)

    def _wait(self, keys: QueueKeys, durability: Durability | None) -> Wait | None:
        """What an enqueue to a queue waits for."""
        if durability is None:
            return None
        return ops.wait(keys, durability, timeout_ms=round(self._confirm_timeout * 1000))

    def _allowance(self, wait: Wait | None) -> float:
        """Most seconds that a caller waits: for its own call, and for one that goes first."""
        patience = self._broker.patience or ONE_TRY_S
        return patience if wait is None else patience + 2 * self._confirm_timeout

    def _calls(self, wait: Wait | None) -> int:
        """How many calls go in one round trip."""
        if self._address.kind == "cluster":
            return 1
        return CALLS_AT_ONCE if wait is None else CALLS_A_WAIT

    @contextmanager
    def _trips(
        self, bulk: BulkEnqueue[T], durability: Durability | None, queue: str, places: Sequence[int]
    ) -> Iterator[tuple[QueueKeys, Lookahead[RoundTrip]]]:
        """The round trips for the places of a queue; within the block their numbers are in use."""
        keys = self._keys(queue)
        wait = self._wait(keys, durability)
        lent = self._senders.lend(0)
        with lent:
            yield keys, Lookahead(bulk.trips(keys, places, lent, wait, calls=self._calls(wait)))

    def _store(self, wait: Wait) -> tuple[Durability, str]:
        """The store that is to confirm: in a cluster each queue may have one of its own."""
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
        """The call that tells the store of the queue, when that is due."""
        if not self._registry.due(queue):
            return None
        return ops.register(self._global_keys, [queue])

    def _note_registered(self, queue: str, reply: Any) -> None:
        """Take the reply to it; that it failed is no reason for an enqueue to fail, or to wait."""
        if isinstance(reply, QsyncError):
            self._registry.failed(queue)


class Client(_AnyClient):
    """Enqueues tasks, and tells what became of them.

    It blocks, and may be shared by threads and used on in a forked child. Close it, or use `with`.
    The client closes the broker when it is closed itself.
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
        self._waiter = broker.waiter(self._confirm_timeout)
        self._tracker = TaskQueries(broker, prefix)
        self._registrations = Registrations(broker.run_many, self._note_registered)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def enqueue(
        self, task: Task[R], *, queue: str | None = None, durability: Durability | None = None
    ) -> Handle[R]:
        """The task is in the store, and will be run at least once; InvalidTask when it cannot be.

        `queue` takes the place of the task's own. Raises DuplicateTask, with the holder's id, when
        the id or the unique lock of the task is taken; QueueFull when the store has no memory for
        it, and nothing was written; StoreUnavailable when the store did not answer for as long as
        the broker's patience lasts, 10 s if not told otherwise, and then the task may be in it all
        the same: to repeat the call safely, give the task an id. Calls that an AsyncClient is asked
        for at the same time share round trips; one that is cancelled may have enqueued its task.

        With `durability` the call waits until the store has the task "fsync": on its disk, or
        "replica": on one replica at least, for the client's `confirm_timeout` at most, and the
        handle's `confirmed` says whether it has; None is as the client was made. That it has not
        is no error: the task is in the store. ConfigError when the store cannot do that: nothing
        was written. Calls at the same time share a wait.
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
        """All tasks are in the store; one handle for each, in their order.

        Every task is checked before the first is sent: InvalidTask, and nothing was sent. A task
        whose id or unique lock is taken is no error: its handle has `created` False and the id of
        the holder. They go 250 at a time, or 1 MiB. When the store fails halfway, the error has
        `handles`, those of the tasks that it has answered for. To repeat the call without running
        any task twice, give the tasks ids: within an hour, or the app's `remember_ids`, those that
        were enqueued come back with `created` False, even if they are done. `durability` is as for
        `enqueue`; tasks of a round trip share a wait.
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
        """Return a handle of a task that somebody enqueued to the queue, without a round trip.

        `type` is that of its result, e.g. `type=Invoice`, and what `result()` returns then; without
        it a dataclass or model comes as a dict. `find` is for a task of which the queue is unknown.
        ConfigError when no result can have the type.
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
        """Look for a task through all queues of the prefix, and return a handle of it.

        Of several tasks with this id, one that has not ended comes first. TaskNotFound, which says
        where it looked, when there is none. It costs one round trip for each 100 queues, and one
        for each queue of a cluster; the first 5,000 queues are looked through. `type` is as for
        `handle`, which needs no round trip where the queue is known.
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
        """Close the connections. Whoever waits for a result, or uses the client, gets an error.

        An AsyncClient first waits for what is under way; a Client must not be in the midst of a
        call in another thread, but for one that waits for a result. That of `current().client` is
        the server's to close, and stays open.
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
        meanwhile: Callable[[], None] = nothing,
    ) -> list[list[Enqueued] | QsyncError]:
        """Make calls of a queue in one round trip; one that fails for now is repeated by itself."""
        wait = calls[0].wait
        ends = ends_in(self._allowance(wait))
        broker = self._broker if wait is None else self._broker_for(wait, ends)
        told = self._registering(keys.queue)
        if told is not None and self._address.kind == "cluster":  # its node may be another
            self._registrations.add(keys.queue, told)
            told = None
        sent = calls if told is None else [told, *calls]
        replies: list[Any] = broker.run_many(sent, ends=ends, meanwhile=meanwhile)
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
        """The broker for calls that wait so; ConfigError when the store cannot confirm that."""
        durability, key = store = self._store(wait)
        if store not in self._able and self._waiter.can_confirm(durability, key, ends=ends):
            self._able.add(store)
        return self._waiter


class AsyncClient(_AnyClient):
    """Enqueues tasks, and tells what became of them.

    It belongs to one event loop. Close it, or use `async with`.
    The client closes the broker when it is closed itself.
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
        self._waiter = broker.waiter(self._confirm_timeout)
        self._tracker = AsyncTaskQueries(broker, prefix)
        self._registrations = AsyncRegistrations(broker.run_many, self._note_registered)
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
        """The task is in the store, and will be run at least once; InvalidTask when it cannot be.

        `queue` takes the place of the task's own. Raises DuplicateTask, with the holder's id, when
        the id or the unique lock of the task is taken; QueueFull when the store has no memory for
        it, and nothing was written; StoreUnavailable when the store did not answer for as long as
        the broker's patience lasts, 10 s if not told otherwise, and then the task may be in it all
        the same: to repeat the call safely, give the task an id. Calls that an AsyncClient is asked
        for at the same time share round trips; one that is cancelled may have enqueued its task.

        With `durability` the call waits until the store has the task "fsync": on its disk, or
        "replica": on one replica at least, for the client's `confirm_timeout` at most, and the
        handle's `confirmed` says whether it has; None is as the client was made. That it has not
        is no error: the task is in the store. ConfigError when the store cannot do that: nothing
        was written. Calls at the same time share a wait.
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
        """All tasks are in the store; one handle for each, in their order.

        Every task is checked before the first is sent: InvalidTask, and nothing was sent. A task
        whose id or unique lock is taken is no error: its handle has `created` False and the id of
        the holder. They go 250 at a time, or 1 MiB. When the store fails halfway, the error has
        `handles`, those of the tasks that it has answered for. To repeat the call without running
        any task twice, give the tasks ids: within an hour, or the app's `remember_ids`, those that
        were enqueued come back with `created` False, even if they are done. `durability` is as for
        `enqueue`; tasks of a round trip share a wait.
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
        """Return a handle of a task that somebody enqueued to the queue, without a round trip.

        `type` is that of its result, e.g. `type=Invoice`, and what `result()` returns then; without
        it a dataclass or model comes as a dict. `find` is for a task of which the queue is unknown.
        ConfigError when no result can have the type.
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
        """Look for a task through all queues of the prefix, and return a handle of it.

        Of several tasks with this id, one that has not ended comes first. TaskNotFound, which says
        where it looked, when there is none. It costs one round trip for each 100 queues, and one
        for each queue of a cluster; the first 5,000 queues are looked through. `type` is as for
        `handle`, which needs no round trip where the queue is known.
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
        """Close the connections. Whoever waits for a result, or uses the client, gets an error.

        An AsyncClient first waits for what is under way; a Client must not be in the midst of a
        call in another thread, but for one that waits for a result. That of `current().client` is
        the server's to close, and stays open.
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
        # A wait may take a second, so what comes meanwhile goes together as far as it can.
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
        """Send the tasks of one queue after another, as long as there are any and none fails."""
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
        meanwhile: Callable[[], None] = nothing,
    ) -> list[list[Enqueued] | QsyncError]:
        """Make calls of a queue in one round trip; one that fails for now is repeated by itself."""
        wait = calls[0].wait
        broker = self._broker if wait is None else await self._broker_for(wait, ends)
        told = self._registering(keys.queue)
        if told is not None and self._address.kind == "cluster":  # its node may be another
            self._registrations.add(keys.queue, told)
            told = None
        sent = calls if told is None else [told, *calls]
        replies: list[Any] = await broker.run_many(sent, ends=ends, meanwhile=meanwhile)
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
        """The broker for calls that wait so; ConfigError when the store cannot confirm that."""
        durability, key = store = self._store(wait)
        if store not in self._able and await self._waiter.can_confirm(durability, key, ends=ends):
            self._able.add(store)
        return self._waiter
