"""The parts that the whole inspector shares: broker, queue names, cursors and rates."""

from __future__ import annotations

import base64
import binascii
import copy
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Final, Self, TypeVar

import msgspec

from qsync import codec
from qsync.broker import event_ops, ops, views
from qsync.broker.aio import AsyncBroker
from qsync.broker.base import check_broker, ends_in
from qsync.broker.call import Call
from qsync.broker.event_ops import KEY_BYTES
from qsync.broker.op_values import Enqueued
from qsync.broker.views import PageKey
from qsync.declared_limits import DeclaredLimits
from qsync.errors import InvalidTask, QsyncError, SchemaMismatch
from qsync.inspector.event_values import Actor, new_key
from qsync.keys import GlobalKeys, QueueKeys
from qsync.new_task import NewTask, new_nonce
from qsync.phrase import Phrase, phrase
from qsync.state import TaskState
from qsync.task import DEFAULT, Task
from qsync.task_builder import TaskBuilder
from qsync.times import from_us
from qsync.value_text import shorten

T = TypeVar("T")

CALLS_PER_TRIP: Final = 100
"""Number of calls sent in one round trip."""

QUEUES_READ: Final = 1000
"""Number of queue names per page."""

QUEUE_SCANS: Final = 10
"""Maximum number of calls to read a page of names."""

MAX_RATE_WINDOW_S: Final = 60.0
MIN_RATE_WINDOW_S: Final = 0.2
"""Longest and shortest time, in seconds, between the two readings that a rate is computed from."""

RECORD_S: Final = 1.0
"""Time limit for recording an action, in seconds."""

_SCORE: Final = re.compile(r"-?(inf|\d[\d.e+-]{0,40})")


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """The position where a page ended. Bulk changes skip tasks that entered the state after
    `until_us`.

    `action` is the key of the action whose steps a bulk change records.
    """

    score: str
    id: bytes
    until_us: int = 0
    action: bytes = b""

    @property
    def place(self) -> PageKey:
        """Position among the tasks in the same state."""
        return self.score, self.id.decode(errors="surrogateescape")

    def __str__(self) -> str:
        return base64.urlsafe_b64encode(codec.encode(self)).decode().rstrip("=")


def cursor_at(place: PageKey, *, until_us: int = 0, action: bytes = b"") -> str:
    """Return the cursor for the tasks after a position."""
    score, id = place
    return str(Cursor(score, id.encode(errors="surrogateescape"), until_us, action))


def enqueue_once(keys: QueueKeys, tasks: Sequence[NewTask]) -> Call[list[Enqueued]]:
    """Return a call that enqueues tasks and can be repeated after a lost reply.

    Repeating the call does nothing, even if the tasks have left the queue.
    """
    return ops.enqueue(keys, tasks, sender=new_nonce().hex(), number=1)


def no_cursor(text: object) -> Phrase:
    """Return the error message for a text that is not a cursor."""
    return phrase("cursor: %(value)s is not a cursor of an earlier page", value=shorten(text))


def read_cursor(text: str | None) -> Cursor | None:
    """Decode a cursor. Raise InvalidTask if the text is not a cursor."""
    if text is None:
        return None
    try:
        data = base64.urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4))
        cursor: Cursor = codec.decode(data, Cursor)
        good = bool(_SCORE.fullmatch(cursor.score)) and float(cursor.score) is not None
        good = good and len(cursor.action) in (0, KEY_BYTES)
    except (codec.CodecError, binascii.Error, ValueError, AttributeError):
        good = False
    if not good:
        raise InvalidTask(no_cursor(text))
    return cursor


def check_state(state: str) -> TaskState:
    """Return the state with this name. Raise InvalidTask if there is no such state."""
    try:
        return TaskState(state)
    except ValueError:
        raise InvalidTask(
            phrase(
                "state: %(state)s is not one of %(states)s",
                state=shorten(state), states=", ".join(TaskState),
            )
        ) from None  # fmt: skip


class Base:
    """The store access that all parts of the inspector share."""

    def __init__(
        self,
        broker: AsyncBroker,
        *,
        prefix: str = "qsync",
        builders: Sequence[TaskBuilder] = (),
        declared: DeclaredLimits | None = None,
    ) -> None:
        check_broker(broker, "Qsync(url, prefix=...).inspector()")
        self._broker = broker
        self._globals = GlobalKeys(prefix)
        self._readings: dict[str, deque[tuple[float, int]]] = {}
        self._actor = Actor()
        self._builders = builders
        self._declared = declared

    def acting(self, by: str, *, as_one: bool = False) -> Self:
        """Return a copy whose changes appear in the record of actions under this name.

        With `as_one`, equal changes to several tasks are recorded as one action, with their number.
        The copy and the original share connections; closing one closes the other.
        """
        copied = copy.copy(self)
        copied._actor = Actor(by, new_key() if as_one else b"")
        return copied

    def build_task(self, type: str, arguments: Any = b"", *, queue: str = "") -> Task[Any]:
        """Build a task, to enqueue or to put into a schedule, from arguments decoded from JSON.

        For a django.tasks task of the app, the arguments (a list or an object) are checked and
        encoded in the same way as in the program. For any other type, the arguments are the
        payload. Raises InvalidTask if the arguments do not match the task's parameters. The default
        of `queue` is the task's own queue.
        """
        for builder in self._builders:
            task = builder.build(type, arguments)
            if task is not None:
                return task.replace(queue=queue) if queue else task
        return Task(type, arguments, queue=queue or DEFAULT)

    def _check_payload(self, type: str, payload: Any) -> None:
        """Raise InvalidTask if tasks of this type cannot have the payload."""
        for builder in self._builders:
            builder.check(type, payload)

    @property
    def prefix(self) -> str:
        """Prefix of all keys in the store."""
        return self._globals.prefix

    async def store_time(self) -> datetime:
        """Return the time by the store's clock, from which all times of tasks come."""
        now_us, _ = await self._broker.run(views.servers(self._globals, count=1))
        return from_us(now_us)

    def _keys(self, queue: str) -> QueueKeys:
        return QueueKeys(self.prefix, queue)

    async def queue_names(self) -> list[str]:
        """Return the names of about the first thousand queues in use, sorted."""
        names, _, _ = await self._queue_page(None)
        return names

    async def _queue_page(self, cursor: str | None) -> tuple[list[str], int, str | None]:
        """Return a page of sorted queue names, the total number of queues, and the next cursor."""
        after, names, total = _check_page(cursor), set[str](), 0
        for _ in range(QUEUE_SCANS):
            page = await self._broker.run(
                views.queues(self._globals, count=QUEUES_READ, cursor=after)
            )
            names, total, after = names | set(page.names), page.total, page.cursor
            if after == "0" or len(names) >= QUEUES_READ:
                break
        return sorted(filter(_is_name, names)), total, None if after == "0" else after

    async def queue_pages(self) -> AsyncIterator[list[str]]:
        """Yield the names of all queues in use, about a thousand at a time; some may repeat."""
        cursor: str | None = None
        while True:
            names, _, cursor = await self._queue_page(cursor)
            yield names
            if cursor is None:
                return

    async def _is_queue(self, name: str) -> bool:
        """Return whether a queue with this name is in use."""
        return await self._broker.run(views.registered(self._globals, name))

    async def _run_all(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """Run all calls in batches and return the replies; raise the first error that persists."""
        results = await self._replies(calls)
        for result in results:
            if isinstance(result, SchemaMismatch):
                raise result
        return results

    async def _read_each(
        self, queues: Iterable[str], read: Callable[[str], Call[T]]
    ) -> tuple[dict[str, T], list[str]]:
        """Run a call for each queue; return the replies by queue, and the unreadable queues.

        A queue is unreadable if its data have the layout of a later version of qsync.
        """
        names = list(queues)
        return readable(names, await self._replies([read(name) for name in names]))

    async def _replies(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """Run all calls in batches; the reply to a refused call is a SchemaMismatch."""
        results: list[Any] = []
        for start in range(0, len(calls), CALLS_PER_TRIP):
            part = calls[start : start + CALLS_PER_TRIP]
            ends = ends_in(self._broker.patience)
            replies = await self._broker.run_many(part, ends=ends)
            for call, reply in zip(part, replies, strict=True):
                # Retry a failed call until the broker's time limit for retries has passed.
                is_final = isinstance(reply, SchemaMismatch) or not isinstance(reply, QsyncError)
                results.append(reply if is_final else await self._broker.run(call, ends=ends))
        return results

    def _note_rate(self, queue: str, ended: int) -> float | None:
        """Record the number of ended attempts; return how many ended per second, if known."""
        now, readings = time.monotonic(), self._readings.setdefault(queue, deque(maxlen=120))
        while readings and now - readings[0][0] > MAX_RATE_WINDOW_S:
            readings.popleft()
        if readings and ended < readings[0][1]:  # the counters restarted
            readings.clear()
        rate = None
        if readings and now - readings[0][0] >= MIN_RATE_WINDOW_S:
            rate = (ended - readings[0][1]) / (now - readings[0][0])
        if not readings or now - readings[-1][0] >= MIN_RATE_WINDOW_S:
            readings.append((now, ended))
        return rate

    async def _record(
        self,
        action: str,
        subject: str = "",
        *,
        queue: str | None = None,
        number: int = 1,
        ids: Sequence[str] = (),
    ) -> None:
        """Record an action that no script has recorded; do nothing if `number` is 0.

        The action itself has succeeded even if recording it fails, so the error is ignored.
        """
        if number:
            keys = self._globals if queue is None else self._keys(queue)
            event = self._actor.event(action, subject)
            call = event_ops.record_event(keys, event, number=number, ids=ids)
            await self._broker.run_many([call], ends=ends_in(RECORD_S))

    async def ping(self) -> float:
        """Return the duration of a round trip to the store, in seconds.

        Raises StoreUnavailable if the round trip fails.
        """
        return await self._broker.ping()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._broker.aclose()


def readable(queues: Sequence[str], replies: Sequence[Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the replies by queue, and the queues that only a later version of qsync can read."""
    pairs = list(zip(queues, replies, strict=True))
    found = {queue: reply for queue, reply in pairs if not isinstance(reply, SchemaMismatch)}
    return found, [queue for queue in queues if queue not in found]


def _check_page(cursor: str | None) -> str:
    if cursor is None:
        return "0"
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 20 and int(cursor) < 2**64):
        raise InvalidTask(no_cursor(cursor))
    return cursor


def _is_name(text: str) -> bool:
    """Return whether this is a valid queue name; other members of the set of queues are ignored."""
    try:
        QueueKeys("p", text)
    except InvalidTask:
        return False
    return True
