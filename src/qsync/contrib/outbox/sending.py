"""Sends rows of an outbox to the store, with a blocking client or with asyncio."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from qsync.broker import ops
from qsync.broker.op_values import Enqueued
from qsync.bulk_enqueue import CALL_BYTES, size_of
from qsync.client import AsyncClient, Client
from qsync.contrib.outbox.rows import UnsentRow, by_queue
from qsync.errors import ConfigError, QsyncError, QueueFull, StoreUnavailable
from qsync.new_task import NewTask, info_of
from qsync.task import TaskInfo
from qsync.wrapped_client import WrappedAsyncClient, WrappedClient

log: Final = logging.getLogger("qsync.outbox")


@dataclass(slots=True)
class Sent:
    """The outcome of sending rows."""

    ids: list[str] = field(default_factory=list)
    """Rows that the store acknowledged; they can be deleted."""

    created: list[NewTask] = field(default_factory=list)
    """Tasks that are new in the store; the hooks have not been called for them yet."""

    unreadable: list[str] = field(default_factory=list)
    error: QsyncError | None = None
    """Error of the store; the rows of the failed call and of all later calls stay in the outbox."""

    failed: dict[str, QsyncError] = field(default_factory=dict)
    """Errors that concern only one queue, by queue; the queue's remaining rows stay in the
    outbox."""

    worked: set[str] = field(default_factory=set)
    """Queues from which the store accepted a row."""

    stopped: bool = False
    """True if a node of a cluster did not answer. The rows of later queues then stay in the outbox,
    because another queue on that node would use up the store's time limit again."""

    def note(self, tasks: Sequence[NewTask], reply: list[Enqueued]) -> None:
        """Record the store's reply to a call that sent these tasks."""
        for task, outcome in zip(tasks, reply, strict=True):
            self.ids.append(task.id)
            self.worked.add(task.queue)
            if outcome.outcome == "created":
                self.created.append(task)
            if outcome.outcome == "repeated":
                log.debug("row %s was sent before", task.id)
            if outcome.outcome in ("exists", "duplicate"):
                log.info(
                    "task %s of queue %s was not enqueued: task %s has its id or its unique lock",
                    task.id, task.queue, outcome.id,
                )  # fmt: skip

    def refused(
        self, queue: str, tasks: Sequence[NewTask], error: QsyncError, *, cluster: bool
    ) -> Sequence[NewTask]:
        """Record the error of a call; return the tasks that still fit into a full queue."""
        if isinstance(error, QueueFull) and error.bound is not None:
            self.failed[queue] = error
            return tasks[: error.room]
        if isinstance(error, ConfigError) or not (cluster or _is_of_queue(error)):
            self.error = error
        else:
            self.failed[queue] = error
            self.stopped = isinstance(error, StoreUnavailable)
        return ()

    def infos(self) -> Iterator[TaskInfo]:
        """Yield the new tasks as hooks see them."""
        now_us = time.time_ns() // 1000
        return (info_of(task, now_us) for task in self.created)


def call_hooks(client: Client, sent: Sent) -> None:
    """Call the "enqueued" hooks. Hooks may be slow, so call this when no rows are locked."""
    if isinstance(client, WrappedClient):
        client.call_hooks(sent.infos())


async def call_hooks_async(client: AsyncClient, sent: Sent) -> None:
    """Call the "enqueued" hooks, as `call_hooks` does."""
    if isinstance(client, WrappedAsyncClient):
        await client.call_hooks(sent.infos())


def _is_of_queue(error: QsyncError) -> bool:
    """Return whether an error concerns only the queue of the call, given that the store is not a
    cluster."""
    return not isinstance(error, StoreUnavailable | QueueFull)


def _calls(
    rows: Sequence[UnsentRow], sent: Sent, last: Collection[str]
) -> Iterator[tuple[str, Sequence[NewTask]]]:
    queues, sent.unreadable = by_queue(rows)
    for queue in sorted(queues, key=lambda queue: queue in last):
        if sent.stopped:
            if queue in last:
                sent.failed[queue] = next(reversed(sent.failed.values()))
            continue
        for part in ops.batches(queues[queue], size_of, CALL_BYTES):
            yield queue, part
            if sent.error is not None:
                return
            if queue in sent.failed:
                break


def send(client: Client, rows: Sequence[UnsentRow], *, last: Collection[str] = ()) -> Sent:
    """Send the rows and return the outcome, which includes errors of the store.

    Rows of the queues in `last` are sent last, because those queues failed before.
    """
    sent, cluster = Sent(), client._address.kind == "cluster"
    for queue, tasks in _calls(rows, sent, last):
        try:
            sent.note(tasks, client._send_call(queue, tasks, client._durability))
        except QsyncError as error:
            if fitting := sent.refused(queue, tasks, error, cluster=cluster):
                with contextlib.suppress(QueueFull):
                    sent.note(fitting, client._send_call(queue, fitting, client._durability))
    return sent


async def send_async(
    client: AsyncClient, rows: Sequence[UnsentRow], *, last: Collection[str] = ()
) -> Sent:
    """Send the rows and return the outcome, as `send` does."""
    sent, cluster = Sent(), client._address.kind == "cluster"
    for queue, tasks in _calls(rows, sent, last):
        try:
            sent.note(tasks, await client._send_call(queue, tasks, client._durability))
        except QsyncError as error:
            if fitting := sent.refused(queue, tasks, error, cluster=cluster):
                with contextlib.suppress(QueueFull):
                    sent.note(fitting, await client._send_call(queue, fitting, client._durability))
    return sent
