"""Acts as the server of a queue, for tests of clients."""

from __future__ import annotations

import itertools
from typing import Any, Final, Self

from qsync import codec
from qsync.broker import operator_ops, ops, redis_clients, views
from qsync.broker.blocking import Broker
from qsync.broker.op_values import Completion, Enqueued, FetchPolicy, Killed, LeaseRef, Retried
from qsync.keys import GlobalKeys, QueueKeys
from qsync.message import Failure, Result
from qsync.new_task import new_nonce, new_task
from qsync.state import TaskState
from qsync.task import Task
from tests.support.acl import unlimited

SERVER: Final = "host/1/hand"
"""Id of this server. The id contains slashes, as tokens do."""

RETENTION_US: Final = 60_000_000

POLICY: Final = FetchPolicy(lease_us=30_000_000, max_crashes=3, dead_limit=1000, dead_age_us=10**12)

_numbers = itertools.count(1)


class Hand:
    """Leases tasks from a queue and ends them in different ways."""

    def __init__(self, url: str, prefix: str, queue: str = "default") -> None:
        self.broker = Broker(redis_clients.parse(unlimited(url)))
        self.keys, self.globals = QueueKeys(prefix, queue), GlobalKeys(prefix)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.broker.close()

    def enqueue(self, task: Task, *, now_us: int) -> Enqueued:
        """Enqueue a task at a time that the test sets."""
        call = ops.enqueue(self.keys, [new_task(task, new_nonce())], now_us=now_us)
        [enqueued] = self.broker.run(call)
        return enqueued

    def take(self, wanted: int = 1) -> list[LeaseRef]:
        """Lease exactly this many tasks."""
        number = next(_numbers)
        fetched = self.broker.run(
            ops.fetch(self.keys, server=SERVER, number=number, wanted=wanted, policy=POLICY)
        )
        assert len(fetched.ids) == wanted
        return [LeaseRef(id, f"{SERVER}/{number}") for id in fetched.ids]

    def one(self) -> LeaseRef:
        """Lease a task."""
        return self.take()[0]

    def complete(self, *held: LeaseRef, record: bytes, retention_us: int = RETENTION_US) -> None:
        rows = [Completion(*one, retention_us, record) for one in held]
        outcomes = self.broker.run(ops.complete(self.keys, rows))
        assert set(outcomes) == {"ok"}

    def succeed(self, *held: LeaseRef, value: Any = None) -> None:
        """Complete tasks with results, as if their handlers had returned."""
        raw = isinstance(value, bytes)
        record = Result(value if raw else codec.encode(value), is_value=not raw)
        self.complete(*held, record=codec.encode(record))

    def finish(self, held: LeaseRef) -> None:
        """Complete a task without retention."""
        assert self.broker.run(ops.complete(self.keys, [Completion(*held)])) == ["ok"]

    def kill(self, held: LeaseRef, error: str) -> None:
        row = Killed(*held, failed=True, failure=codec.encode(Failure(1, error)))
        assert self.broker.run(ops.kill(self.keys, [row])) == ["ok"]

    def retry(self, held: LeaseRef) -> None:
        row = Retried(*held, 60_000_000, codec.encode(Failure(1, "again")))
        assert self.broker.run(ops.retry(self.keys, [row])) == ["ok"]

    def stop(self, held: LeaseRef) -> None:
        """End a task whose handler was stopped by a cancel request."""
        assert self.broker.run(ops.end_cancelled(self.keys, [held])) == ["ok"]

    def delete(self, id: str, state: str) -> None:
        assert self.broker.run(operator_ops.delete(self.keys, [id], state)) == 1

    def state(self, id: str) -> TaskState | None:
        [shown] = self.broker.run(views.get_tasks(self.keys, [id]))
        return None if shown is None else shown.state
