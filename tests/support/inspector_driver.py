"""An inspector, and a queue that the tests fill without a server."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from qsync import codec
from qsync.broker import ops, redis_clients, registry_ops
from qsync.broker.aio import AsyncBroker
from qsync.broker.op_values import Completion, FetchPolicy, HandedBack, Killed, LeaseRef, Retried
from qsync.fingerprint import mark_of
from qsync.inspector import Inspector
from qsync.keys import GlobalKeys, QueueKeys
from qsync.message import FailedAttempt, Failure
from qsync.new_task import new_nonce, new_task
from qsync.task import Task

S = 1_000_000
POLICY = FetchPolicy(lease_us=60 * S, max_crashes=3, dead_limit=1_000_000, dead_age_us=10**15)


class Bed:
    """A store, its inspector, and the actions of clients and servers as methods."""

    def __init__(self, broker: AsyncBroker, prefix: str) -> None:
        self.broker, self.prefix = broker, prefix
        self.inspector = Inspector(broker, prefix=prefix)
        self._number = 0

    def keys(self, queue: str = "default") -> QueueKeys:
        return QueueKeys(self.prefix, queue)

    async def enqueue(self, *tasks: Task, queue: str = "default") -> None:
        """Enqueue tasks in order, in one call, and register their queue."""
        await self.broker.run(registry_ops.register(GlobalKeys(self.prefix), [queue]))
        made = [new_task(task, new_nonce(), queue=queue) for task in tasks]
        for part in ops.batches(made, lambda task: len(task.message)):
            await self.broker.run(ops.enqueue(self.keys(queue), part))

    async def lease(
        self, wanted: int = 500, *, server: str = "s", queue: str = "default", free: int = 0
    ) -> list[LeaseRef]:
        self._number += 1
        call = ops.fetch(
            self.keys(queue), server=server, number=self._number, wanted=wanted, policy=POLICY,
            free=free,
        )  # fmt: skip
        found = await self.broker.run(call)
        return [LeaseRef(id, f"{server}/{self._number}") for id in found.ids]

    async def kill(
        self,
        held: Sequence[LeaseRef],
        error: str = "boom",
        *,
        queue: str = "default",
        mark: str = "",
    ) -> None:
        record = failure(error, mark=mark)
        rows = [Killed(*one, True, record) for one in held]
        await self.broker.run(ops.kill(self.keys(queue), rows))

    async def hand_back(
        self, held: LeaseRef, *, limit: str, closed_us: int, queue: str = "default"
    ) -> None:
        """Hand back a task and close a limit, as a server does after a handler has raised
        RateLimited."""
        row = HandedBack(*held, None, started=True, limit=limit, closed_us=closed_us)
        await self.broker.run(ops.hand_back(self.keys(queue), [row]))

    async def dead(self, *tasks: Task, error: str = "boom", queue: str = "default") -> None:
        """Enqueue tasks and let them die; the queue must have no other pending tasks.

        If all tasks have the same type and fairness key, their records carry the mark that servers
        write.
        """
        await self.enqueue(*tasks, queue=queue)
        kinds = {(task.type, task.fairness_key) for task in tasks}
        mark = ""
        if len(kinds) == 1:
            type, key = kinds.pop()
            mark = mark_of(type, error, key)
        for _ in range(len(tasks) // 500 + 1):
            if held := await self.lease(queue=queue):
                await self.kill(held, error, queue=queue, mark=mark)

    async def retry(
        self, held: Sequence[LeaseRef], error: str, delay: float, *, mark: str = ""
    ) -> None:
        rows = [Retried(*one, int(delay * S), failure(error, mark=mark)) for one in held]
        await self.broker.run(ops.retry(self.keys(), rows))

    async def complete(self, held: Sequence[LeaseRef], retention: float, result: bytes) -> None:
        rows = [Completion(*one, int(retention * S), result) for one in held]
        await self.broker.run(ops.complete(self.keys(), rows))

    async def serve(
        self, server: str, *, queues: Sequence[str] = ("default",), types: Sequence[str] = ("t",),
        **fields: Any,
    ) -> None:  # fmt: skip
        """Register a live server."""
        keys = GlobalKeys(self.prefix)
        record = {
            "host": "h", "pid": 1, "concurrency": 10, "running": 0, "quiet": 0,
            "queues": codec.encode(dict.fromkeys(queues, 1)), "types": codec.encode(list(types)),
            **fields,
        }  # fmt: skip
        await self.broker.run(registry_ops.server_heartbeat(keys, server, ttl_us=60 * S))
        await self.broker.run(registry_ops.set_server_info(keys, server, record, ttl_ms=60_000))


def failure(error: str, attempts: int = 1, *, mark: str = "") -> bytes:
    history = (FailedAttempt(attempts, 1_700_000_000 * S, "s", error.partition("\n")[0]),)
    record = Failure(attempts, error, 1_700_000_000 * S, history=history, mark=mark)
    return codec.encode(record)


@contextlib.asynccontextmanager
async def bed(url: str, prefix: str) -> AsyncIterator[Bed]:
    """Yield a Bed whose connections are closed at the end."""
    broker = AsyncBroker(redis_clients.parse(url))
    made = Bed(broker, prefix)
    try:
        async with made.inspector:
            yield made
    finally:
        await broker.aclose()
