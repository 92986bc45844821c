"""Enqueue tasks, and ask what became of them: `Client` blocks, `AsyncClient` is awaited.

The two have the same names and docstrings, and change together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final, Self

from qsync.broker import ops
from qsync.broker.call import Call
from qsync.broker.ops import Enqueued
from qsync.broker.shell import AsyncBroker, Broker
from qsync.errors import ConfigError, QsyncError, StoreUnavailable
from qsync.handle import AsyncHandle, AsyncTracker, Handle, Tracker
from qsync.keys import GlobalKeys, QueueKeys, check_id, check_name, shorten
from qsync.sending import Batcher, Bulk, Registry, UnderWay, duplicate, ready, ready_all, size_of
from qsync.task import DEFAULT, PAYLOAD_LIMIT, Outgoing, Task

__all__ = ["AsyncClient", "AsyncHandle", "Client", "Handle"]

CALLS_AT_ONCE: Final = 8
"""How many calls `enqueue_many` sends in one round trip to a store of one node."""


class _AnyClient:
    """What the clients of both colours have in common."""

    def __init__(self, broker: Broker | AsyncBroker, prefix: str, payload_limit: int) -> None:
        if type(payload_limit) is not int or payload_limit < 1:
            msg = f"payload_limit: {shorten(payload_limit)} is not a positive number of bytes"
            raise ConfigError(msg)
        self._address = broker.address
        self._calls_at_once = 1 if broker.address.kind == "cluster" else CALLS_AT_ONCE
        self._global_keys = GlobalKeys(prefix)
        self._payload_limit = payload_limit
        self._registry = Registry()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} prefix={self._global_keys.prefix!r} at {self._address}>"

    def _keys(self, queue: str) -> QueueKeys:
        return QueueKeys(self._global_keys.prefix, queue)

    def _registering(self, queue: str) -> list[Call[Any]]:
        """The call that goes before others when the store is to be told of the queue."""
        return [ops.register(self._global_keys, [queue])] if self._registry.due(queue) else []

    def _registered(self, queue: str, replies: list[Any]) -> None:
        """Take the reply to it; that it failed is no reason for what comes after to fail."""
        if isinstance(replies.pop(0), QsyncError):
            self._registry.failed(queue)


class Client(_AnyClient):
    """Enqueues tasks, and tells what became of them.

    It blocks, and may be shared by threads and used on in a forked child. Close it, or use `with`.
    The client closes the broker when it is closed itself.
    """

    def __init__(self, broker: Broker, *, prefix: str, payload_limit: int = PAYLOAD_LIMIT) -> None:
        super().__init__(broker, prefix, payload_limit)
        self._broker = broker
        self._tracker = Tracker(broker, prefix)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def enqueue(self, task: Task, *, queue: str | None = None) -> Handle[Any]:
        """The task is in the store, and will be run at least once; InvalidTask when it cannot be.

        `queue` takes the place of the task's own. Raises DuplicateTask, with the holder's id, when
        the id or the unique lock of the task is taken; QueueFull when the store has no memory for
        it, and nothing was written; StoreUnavailable when the store did not answer for as long as
        the broker's patience lasts, 10 s if not told otherwise, and then the task may be in it all
        the same. Calls that an AsyncClient is asked for at the same time share round trips; one
        that is cancelled may have enqueued its task.
        """
        self._tracker.check_open()
        outgoing = ready(task, queue=queue, payload_limit=self._payload_limit)
        keys = self._keys(outgoing.queue)
        [reply] = self._send(keys, [ops.enqueue(keys, [outgoing])])
        if isinstance(reply, QsyncError):
            raise reply
        [outcome] = reply
        if outcome.outcome != "created":
            raise duplicate(outgoing, outcome)
        return self._handle(outgoing, outcome)

    def enqueue_many(self, tasks: Iterable[Task]) -> list[Handle[Any]]:
        """All tasks are in the store; one handle for each, in their order.

        Every task is checked before the first is sent: InvalidTask, and nothing was sent. A task
        whose id or unique lock is taken is no error: its handle has `created` False and the id of
        the holder. They go 500 at a time, or 4 MiB. When the store fails halfway, the error has
        `handles`, those of the tasks that it has answered for. To repeat the call without running
        any task twice, give the tasks ids: those that are there already come back with `created`
        False.
        """
        self._tracker.check_open()
        bulk = Bulk(ready_all(tasks, payload_limit=self._payload_limit))
        try:
            for queue, places in bulk.places().items():
                keys = self._keys(queue)
                for trip in bulk.trips(places, calls=self._calls_at_once):
                    bulk.note(trip, self._send(keys, [bulk.call(keys, part) for part in trip]))
        except QsyncError as error:
            error.handles = self._handles(bulk)
            raise
        return self._handles(bulk)

    def handle(self, id: str, *, queue: str = DEFAULT) -> Handle[Any]:
        """A handle of a task that somebody enqueued, made without a round trip."""
        return Handle(self._tracker, check_id(id), check_name("queue", queue))

    def close(self) -> None:
        """Close the connections. Whoever waits for a result, or uses the client, gets an error.

        An AsyncClient first waits for what is under way; a Client must not be in the midst of a
        call in another thread, but for one that waits for a result.
        """
        self._tracker.close()
        self._broker.close()

    def _handle(self, task: Outgoing, reply: Enqueued) -> Handle[Any]:
        if reply.outcome != "created":
            return Handle(self._tracker, reply.id, task.queue)
        return Handle(
            self._tracker, task.id, task.queue, created=True, retention_us=task.retention_us
        )

    def _handles(self, bulk: Bulk) -> list[Handle[Any]]:
        return [self._handle(task, reply) for task, reply in bulk.answered()]

    def _send(
        self, keys: QueueKeys, calls: Sequence[Call[list[Enqueued]]]
    ) -> list[list[Enqueued] | QsyncError]:
        """Make calls of a queue in one round trip; one that fails for now is repeated by itself."""
        told = self._registering(keys.queue)
        replies: list[Any] = self._broker.run_many([*told, *calls])
        if told:
            self._registered(keys.queue, replies)
        for at, reply in enumerate(replies):
            if isinstance(reply, StoreUnavailable):
                try:
                    replies[at] = self._broker.run(calls[at])
                except QsyncError as error:
                    replies[at] = error
                    break
        return replies


class AsyncClient(_AnyClient):
    """Enqueues tasks, and tells what became of them.

    It belongs to one event loop. Close it, or use `async with`.
    The client closes the broker when it is closed itself.
    """

    def __init__(
        self, broker: AsyncBroker, *, prefix: str, payload_limit: int = PAYLOAD_LIMIT
    ) -> None:
        super().__init__(broker, prefix, payload_limit)
        self._broker = broker
        self._tracker = AsyncTracker(broker, prefix)
        self._outboxes: dict[str, Batcher[Outgoing, Enqueued]] = {}
        self._under_way = UnderWay()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def enqueue(self, task: Task, *, queue: str | None = None) -> AsyncHandle[Any]:
        """The task is in the store, and will be run at least once; InvalidTask when it cannot be.

        `queue` takes the place of the task's own. Raises DuplicateTask, with the holder's id, when
        the id or the unique lock of the task is taken; QueueFull when the store has no memory for
        it, and nothing was written; StoreUnavailable when the store did not answer for as long as
        the broker's patience lasts, 10 s if not told otherwise, and then the task may be in it all
        the same. Calls that an AsyncClient is asked for at the same time share round trips; one
        that is cancelled may have enqueued its task.
        """
        self._tracker.check_open()
        outgoing = ready(task, queue=queue, payload_limit=self._payload_limit)
        outbox = self._outboxes.get(outgoing.queue) or self._outbox(outgoing.queue)
        reply = await outbox.put(outgoing)
        if reply.outcome != "created":
            raise duplicate(outgoing, reply)
        return self._handle(outgoing, reply)

    async def enqueue_many(self, tasks: Iterable[Task]) -> list[AsyncHandle[Any]]:
        """All tasks are in the store; one handle for each, in their order.

        Every task is checked before the first is sent: InvalidTask, and nothing was sent. A task
        whose id or unique lock is taken is no error: its handle has `created` False and the id of
        the holder. They go 500 at a time, or 4 MiB. When the store fails halfway, the error has
        `handles`, those of the tasks that it has answered for. To repeat the call without running
        any task twice, give the tasks ids: those that are there already come back with `created`
        False.
        """
        self._tracker.check_open()
        bulk = Bulk(ready_all(tasks, payload_limit=self._payload_limit))
        with self._under_way:
            queues = [self._send_all(bulk, *one) for one in bulk.places().items()]
            for error in await asyncio.gather(*queues, return_exceptions=True):
                if isinstance(error, QsyncError):
                    error.handles = self._handles(bulk)
                if error is not None:
                    raise error
        return self._handles(bulk)

    def handle(self, id: str, *, queue: str = DEFAULT) -> AsyncHandle[Any]:
        """A handle of a task that somebody enqueued, made without a round trip."""
        return AsyncHandle(self._tracker, check_id(id), check_name("queue", queue))

    async def aclose(self) -> None:
        """Close the connections. Whoever waits for a result, or uses the client, gets an error.

        An AsyncClient first waits for what is under way; a Client must not be in the midst of a
        call in another thread, but for one that waits for a result.
        """
        self._tracker.close()
        try:
            for outbox in self._outboxes.values():
                await outbox.drain()
            await self._under_way.none()
        finally:
            await self._tracker.aclose()
            await self._broker.aclose()

    def _handle(self, task: Outgoing, reply: Enqueued) -> AsyncHandle[Any]:
        if reply.outcome != "created":
            return AsyncHandle(self._tracker, reply.id, task.queue)
        return AsyncHandle(
            self._tracker, task.id, task.queue, created=True, retention_us=task.retention_us
        )

    def _handles(self, bulk: Bulk) -> list[AsyncHandle[Any]]:
        return [self._handle(task, reply) for task, reply in bulk.answered()]

    def _outbox(self, queue: str) -> Batcher[Outgoing, Enqueued]:
        outbox = Batcher(partial(self._enqueue, self._keys(queue)), size_of)
        self._outboxes[queue] = outbox
        return outbox

    async def _enqueue(self, keys: QueueKeys, tasks: Sequence[Outgoing]) -> list[Enqueued]:
        [reply] = await self._send(keys, [ops.enqueue(keys, tasks)])
        if isinstance(reply, QsyncError):
            raise reply
        return reply

    async def _send_all(self, bulk: Bulk, queue: str, places: Sequence[int]) -> None:
        keys = self._keys(queue)
        for trip in bulk.trips(places, calls=self._calls_at_once):
            bulk.note(trip, await self._send(keys, [bulk.call(keys, part) for part in trip]))

    async def _send(
        self, keys: QueueKeys, calls: Sequence[Call[list[Enqueued]]]
    ) -> list[list[Enqueued] | QsyncError]:
        """Make calls of a queue in one round trip; one that fails for now is repeated by itself."""
        told = self._registering(keys.queue)
        replies: list[Any] = await self._broker.run_many([*told, *calls])
        if told:
            self._registered(keys.queue, replies)
        for at, reply in enumerate(replies):
            if isinstance(reply, StoreUnavailable):
                try:
                    replies[at] = await self._broker.run(calls[at])
                except QsyncError as error:
                    replies[at] = error
                    break
        return replies
