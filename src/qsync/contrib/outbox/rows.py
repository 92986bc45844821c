"""The rows of an outbox. Each row has a task in the store's format and the other data that an
enqueue needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from qsync import codec
from qsync.connections import Connections
from qsync.enqueueing import validated
from qsync.new_task import FlowOptions, NewTask, new_id
from qsync.task import Task
from qsync.wrapped_client import entered

VERSION: Final = 1
FLOW_VERSION: Final = 2
"""Version of rows with flow-control options; relays of older qsync versions must not send them."""

ID_LENGTH: Final = 128
QUEUE_LENGTH: Final = 128


class UnreadableRow(Exception):
    """Raised if this version cannot read the message of a row."""


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    """The content of the column `message`, in msgpack.

    The message has a nonce, which stays the same each time the row is sent.
    """

    version: int
    message: bytes
    due: str
    fairness_key: str
    lock: str
    window_us: int
    retention_us: int | None
    remember_us: int
    flow: FlowOptions | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsentRow:
    """A row of an outbox, with a task that has not been sent yet."""

    id: str
    queue: str
    message: bytes
    created_at: datetime


def make_row(task: Task[Any], connections: Connections) -> UnsentRow:
    """Return the row of a task, with an id and the headers of the app's extensions.

    Raises InvalidTask if the task is invalid.
    """
    if isinstance(task, Task) and task.id is None:
        task = task.replace(id=new_id())
    with entered(connections.around_enqueue, [task], None) as outgoing:
        [task] = outgoing.tasks
        new = validated(
            task,
            queue=None,
            payload_limit=connections.nested["payload_limit"],
            remember_us=round(connections.nested["remember_ids"] * 1_000_000),
            declared=connections.declared,
        )
    version = VERSION if new.flow is None else FLOW_VERSION
    stored = _Stored(
        version, new.message, new.due, new.fairness_key, new.lock, new.window_us, new.retention_us,
        new.remember_us, new.flow,
    )  # fmt: skip
    return UnsentRow(
        id=new.id, queue=new.queue, message=codec.encode(stored), created_at=datetime.now(UTC)
    )


def new_task_of(row: UnsentRow) -> NewTask:
    """Return the task of a row; raise UnreadableRow if the row is invalid."""
    try:
        stored = codec.decode(bytes(row.message), _Stored)
    except codec.CodecError as error:
        raise UnreadableRow(f"row {row.id}: {error}") from error
    if stored.version not in (VERSION, FLOW_VERSION):
        raise UnreadableRow(f"row {row.id}: version {stored.version} is not {VERSION} or 2")
    return NewTask(
        row.id, row.queue, stored.message, stored.due, stored.fairness_key, stored.lock,
        stored.window_us, stored.retention_us, None, stored.remember_us, stored.flow,
    )  # fmt: skip


def replacing_lock(row: UnsentRow) -> str:
    """Return the row's unique lock if its task replaces the lock's holder, as with `debounce`;
    otherwise ""."""
    try:
        new = new_task_of(row)
    except UnreadableRow:
        return ""
    return new.lock if new.flow is not None and new.flow.on_duplicate == "replace" else ""


def by_queue(rows: Iterable[UnsentRow]) -> tuple[dict[str, list[NewTask]], list[str]]:
    """Return the tasks by queue, in the order of the rows, and the ids of unreadable rows."""
    queues: dict[str, list[NewTask]] = {}
    unreadable: list[str] = []
    for row in rows:
        try:
            queues.setdefault(row.queue, []).append(new_task_of(row))
        except UnreadableRow:
            unreadable.append(row.id)
    return {queue: tasks for queue, tasks in queues.items() if tasks}, unreadable
