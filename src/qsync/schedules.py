"""The schedules in the store, which clients put, read and delete while servers are running.

Each method is a generator of round trips, without I/O, which both the blocking and the asyncio
class drive. `Schedules` and `AsyncSchedules` have the same methods and docstrings; change them
together.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

from qsync import codec
from qsync.broker import registry_ops, schedule_ops
from qsync.broker.aio import AsyncBroker
from qsync.broker.base import ends_in
from qsync.broker.blocking import Broker
from qsync.broker.call import Call
from qsync.broker.event_ops import recorded
from qsync.broker.schedule_records import read_record
from qsync.broker.stored_schedules import (
    NEVER_US,
    Content,
    StoredSchedule,
    StoredScheduleRow,
    encode_record,
    next_tick,
    stored_schedule,
)
from qsync.declared_limits import DeclaredLimits
from qsync.enqueueing import validated
from qsync.errors import InvalidTask, QsyncError
from qsync.keys import GlobalKeys, QueueKeys, queue_keys
from qsync.new_task import new_nonce
from qsync.phrase import phrase
from qsync.schedule import Missed, Periodic, check_schedule_name, schedule_of
from qsync.task import Task
from qsync.value_text import shorten

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

T = TypeVar("T")

Trips = Generator[Sequence[Call[Any]], list[Any], T]
"""A generator of round trips.

The driver of the generator sends the calls of each round trip and passes back the replies in order.
"""

LOOK_US: Final = 120_000_000
"""A schedule that is due within this time, in microseconds, is announced to the servers, which
otherwise check all stored schedules once a minute."""

SCHEDULES_PER_CALL: Final = 1000
"""Number of schedules that one call lists."""

CALLS_PER_ROUND_TRIP: Final = 100
"""Number of calls sent in one round trip."""

_FIXED: Final = ("id", "delay", "process_at", "deadline", "debounce")
"""Task options that a schedule's task cannot have, since they would be the same at each tick."""


class _AnySchedules:
    """Base class of `Schedules` and `AsyncSchedules`."""

    def __init__(
        self,
        broker: Broker | AsyncBroker,
        prefix: str,
        payload_limit: int,
        check_open: Callable[[], None],
        declared: Callable[[], DeclaredLimits | None] = lambda: None,
    ) -> None:
        self._broker: Any = broker
        self._globals = GlobalKeys(prefix)
        self._payload_limit = payload_limit
        self._check_open = check_open
        self._declared = declared

    def _keys(self, queue: str) -> QueueKeys:
        return queue_keys(self._globals.prefix, queue)

    def _content(
        self,
        name: str,
        task: Task[Any],
        cron: str | None,
        every: float | timedelta | None,
        tz: str | ZoneInfo | None,
        missed: Missed,
    ) -> Content:
        """Check and return the content of a schedule. Raise InvalidTask if a value is wrong."""
        return checked_content(
            name, task, cron, every, tz, missed, self._payload_limit, self._declared()
        )

    def _put(
        self, name: str, queue: str, content: Content, event: bytes = b""
    ) -> Trips[StoredSchedule]:
        keys, schedule = self._keys(queue), content.schedule
        [queues, (now_us, [before])] = yield [
            schedule_ops.schedule_queues(self._globals),
            schedule_ops.stored_schedules(keys, [name]),
        ]
        next_us = next_tick(schedule, now_us)
        if next_us == NEVER_US:
            raise InvalidTask(
                phrase(
                    "schedule %(name)s: %(schedule)s is never due again",
                    name=repr(name), schedule=str(schedule),
                )
            )  # fmt: skip
        number = int.from_bytes(new_nonce()[:6], "big")
        announce = schedule_ops.announce_schedules(self._globals, queue, number)
        others = [self._keys(other) for other in queues if other != queue]
        elsewhere = yield [schedule_ops.stored_schedules(other, [name]) for other in others]
        if queue not in queues:
            new = schedule_ops.announce_schedules(self._globals, queue, number, in_full_store=False)
            yield [new, registry_ops.register(self._globals, [queue], in_full_store=False)]
        record = encode_record(*content)
        [put] = yield [recorded(schedule_ops.put_schedule(keys, name, next_us, record), event)]
        if put.of_program is not None:
            raise _of_program(name, queue, content, put.of_program)
        yield [
            schedule_ops.delete_schedule(other, name, stamp=row.stamp)
            for other, (_, [row]) in zip(others, elsewhere, strict=True)
            if row is not None
        ]
        if next_us - now_us < LOOK_US:
            yield [announce]
        if before and before.stamp == put.stamp:  # nothing was changed
            next_us = before.next_us or next_us
        row = StoredScheduleRow(name, put.stamp + record, next_us, before and before.pause_note)
        return stored_schedule(row, queue)

    def _get(self, name: str) -> Trips[StoredSchedule | None]:
        [queues] = yield [schedule_ops.schedule_queues(self._globals)]
        replies = yield [
            schedule_ops.stored_schedules(self._keys(name_of_queue), [name])
            for name_of_queue in queues
        ]
        rows = [
            (row, queue)
            for queue, (_, [row]) in zip(queues, replies, strict=True)
            if row is not None
        ]
        if not rows:
            return None
        return _shown(*max(rows, key=lambda pair: pair[0].since_us))

    def _list(self, prefix: str) -> Trips[list[StoredSchedule]]:
        [queues] = yield [schedule_ops.schedule_queues(self._globals)]
        rows: dict[tuple[str, str], StoredScheduleRow] = {}
        for queue in queues:
            cursor = ""
            while cursor != "0":
                [page] = yield [
                    schedule_ops.stored_page(
                        self._keys(queue),
                        cursor=cursor or "0",
                        count=SCHEDULES_PER_CALL,
                        prefix=prefix,
                    )
                ]
                cursor = page.cursor
                rows |= {(row.name, queue): row for row in page.rows}
        return [_shown(rows[key], key[1]) for key in sorted(rows)]

    def _delete(self, name: str) -> Trips[bool]:
        [queues] = yield [schedule_ops.schedule_queues(self._globals)]
        keys = [self._keys(queue) for queue in queues]
        # Read the schedules first: if the reply to a delete is lost, the repeated delete finds
        # nothing, but the return value must still be True.
        stored = yield [schedule_ops.stored_schedules(of_queue, [name]) for of_queue in keys]
        deleted = yield [schedule_ops.delete_schedule(of_queue, name) for of_queue in keys]
        return any(deleted) or any(row is not None for _, [row] in stored)


class Schedules(_AnySchedules):
    """The schedules in the store, available as `client.schedules`. Every call blocks."""

    def put(
        self,
        name: str,
        task: Task[Any],
        *,
        cron: str | None = None,
        every: float | timedelta | None = None,
        tz: str | ZoneInfo | None = None,
        missed: Missed = "skip",
    ) -> StoredSchedule:
        """Store a schedule: servers enqueue the task at each tick. Replaces a schedule of the same
        name.

        cron       expression of five fields, or of six with seconds first, in the time zone `tz`
        tz         name of an IANA time zone, or a ZoneInfo; UTC by default; only with `cron`
        every      period, seconds or a timedelta; ticks are at its multiples since 1970, in UTC
        missed     tasks to enqueue for ticks that are over 30 s late because no server was running:
                   none ("skip"), one for all of them ("once") or one for each ("all")

        Any server of the prefix enqueues the ticks, even for queues that it does not serve. Each
        tick is enqueued once. Once the call has returned, a replaced schedule no longer ticks,
        even if it was in another queue. A new schedule does not enqueue ticks from before the call.
        If the call changes nothing, ticks that are already due are still enqueued. A paused
        schedule stays paused.

        Two concurrent calls for the same name in two queues may leave a schedule in each queue; the
        next call for the name leaves only one.

        Raises InvalidTask if a value is invalid, or if a running server has a periodic task with
        this name for this queue. Also raises InvalidTask if the task has an option that would be
        the same at each tick (`id`, `delay`, `process_at`, `deadline`, `debounce`), or a limit that
        the app declares for another queue. The call can be repeated after StoreUnavailable.
        """
        self._check_open()
        content = self._content(name, task, cron, every, tz, missed)
        return self._do(self._put(name, task.queue, content))

    def get(self, name: str) -> StoredSchedule | None:
        """Return a schedule; None if there is no schedule with this name."""
        self._check_open()
        return self._do(self._get(check_schedule_name(name)))

    def list(self, prefix: str = "") -> list[StoredSchedule]:
        """Return the schedules whose names begin with `prefix`, sorted by name.

        Takes one round trip per 1,000 schedules in all queues.
        """
        self._check_open()
        return self._do(self._list(_checked_prefix(prefix)))

    def delete(self, name: str) -> bool:
        """Delete a schedule; return whether it existed.

        The schedule no longer ticks, but tasks of earlier ticks stay in their queue.
        """
        self._check_open()
        return self._do(self._delete(check_schedule_name(name)))

    def _do(self, trips: Trips[T]) -> T:
        replies = None
        while True:
            try:
                calls = next(trips) if replies is None else trips.send(replies)
            except StopIteration as end:
                result: T = end.value
                return result
            replies = []
            for start in range(0, len(calls), CALLS_PER_ROUND_TRIP):
                part, ends = (
                    calls[start : start + CALLS_PER_ROUND_TRIP],
                    ends_in(self._broker.patience),
                )
                answers = self._broker.run_many(part, ends=ends)
                for call, reply in zip(part, answers, strict=True):
                    again = isinstance(reply, QsyncError)
                    replies.append(self._broker.run(call, ends=ends) if again else reply)


class AsyncSchedules(_AnySchedules):
    """The schedules in the store, available as `client.schedules`."""

    async def put(
        self,
        name: str,
        task: Task[Any],
        *,
        cron: str | None = None,
        every: float | timedelta | None = None,
        tz: str | ZoneInfo | None = None,
        missed: Missed = "skip",
    ) -> StoredSchedule:
        """Store a schedule: servers enqueue the task at each tick. Replaces a schedule of the same
        name.

        cron       expression of five fields, or of six with seconds first, in the time zone `tz`
        tz         name of an IANA time zone, or a ZoneInfo; UTC by default; only with `cron`
        every      period, seconds or a timedelta; ticks are at its multiples since 1970, in UTC
        missed     tasks to enqueue for ticks that are over 30 s late because no server was running:
                   none ("skip"), one for all of them ("once") or one for each ("all")

        Any server of the prefix enqueues the ticks, even for queues that it does not serve. Each
        tick is enqueued once. Once the call has returned, a replaced schedule no longer ticks,
        even if it was in another queue. A new schedule does not enqueue ticks from before the call.
        If the call changes nothing, ticks that are already due are still enqueued. A paused
        schedule stays paused.

        Two concurrent calls for the same name in two queues may leave a schedule in each queue; the
        next call for the name leaves only one.

        Raises InvalidTask if a value is invalid, or if a running server has a periodic task with
        this name for this queue. Also raises InvalidTask if the task has an option that would be
        the same at each tick (`id`, `delay`, `process_at`, `deadline`, `debounce`), or a limit that
        the app declares for another queue. The call can be repeated after StoreUnavailable.
        """
        self._check_open()
        content = self._content(name, task, cron, every, tz, missed)
        return await self.put_content(name, task.queue, content)

    async def put_content(
        self, name: str, queue: str, content: Content, *, event: bytes = b""
    ) -> StoredSchedule:
        """Put a checked schedule, and record the operator's action if one is passed."""
        return await self._do(self._put(name, queue, content, event))

    async def get(self, name: str) -> StoredSchedule | None:
        """Return a schedule; None if there is no schedule with this name."""
        self._check_open()
        return await self._do(self._get(check_schedule_name(name)))

    async def list(self, prefix: str = "") -> list[StoredSchedule]:
        """Return the schedules whose names begin with `prefix`, sorted by name.

        Takes one round trip per 1,000 schedules in all queues.
        """
        self._check_open()
        return await self._do(self._list(_checked_prefix(prefix)))

    async def delete(self, name: str) -> bool:
        """Delete a schedule; return whether it existed.

        The schedule no longer ticks, but tasks of earlier ticks stay in their queue.
        """
        self._check_open()
        return await self._do(self._delete(check_schedule_name(name)))

    async def _do(self, trips: Trips[T]) -> T:
        replies = None
        while True:
            try:
                calls = next(trips) if replies is None else trips.send(replies)
            except StopIteration as end:
                result: T = end.value
                return result
            replies = []
            for start in range(0, len(calls), CALLS_PER_ROUND_TRIP):
                part, ends = (
                    calls[start : start + CALLS_PER_ROUND_TRIP],
                    ends_in(self._broker.patience),
                )
                answers = await self._broker.run_many(part, ends=ends)
                for call, reply in zip(part, answers, strict=True):
                    again = isinstance(reply, QsyncError)
                    replies.append(await self._broker.run(call, ends=ends) if again else reply)


def checked_content(
    name: str,
    task: Task[Any],
    cron: str | None,
    every: float | timedelta | None,
    tz: str | ZoneInfo | None,
    missed: Missed,
    payload_limit: int,
    declared: DeclaredLimits | None = None,
) -> Content:
    """Check and return the content of a schedule. Raise InvalidTask if a value is wrong, or if the
    app declares one of the task's limits for another queue."""
    schedule = schedule_of(cron, every, tz)
    Periodic(name, schedule, missed)  # checks `name` and `missed`
    new_task = validated(
        task, queue=None, payload_limit=payload_limit, remember_us=0, declared=declared
    )
    for option in _FIXED:
        value = getattr(task, option)
        if value is not None:
            msg = f"{option}: {shorten(value)} would be the same at every tick of {name!r}"
            raise InvalidTask(f"{msg}; omit it")
    encode_record(schedule, missed, new_task.message)  # checks the size of the record
    return Content(schedule, missed, new_task.message)


def _checked_prefix(prefix: object) -> str:
    return "" if prefix == "" else check_schedule_name(prefix, "prefix")


def _shown(row: StoredScheduleRow, queue: str) -> StoredSchedule:
    try:
        return stored_schedule(row, queue)
    except (codec.CodecError, InvalidTask) as error:
        msg = f"schedule {row.name!r} of queue {queue!r} cannot be read: {error}"
        raise QsyncError(msg) from None


def _of_program(name: str, queue: str, content: Content, published: bytes) -> InvalidTask:
    theirs = read_record(published)
    return InvalidTask(
        phrase(
            "name=%(name)s: a program has a periodic task of this name for queue %(queue)s "
            "(%(theirs)s, task %(their_type)s), so %(schedule)s, task %(type)s, cannot be stored "
            "under it; choose another name",
            name=repr(name), queue=repr(queue), theirs=theirs.text, their_type=repr(theirs.type),
            schedule=str(content.schedule), type=repr(content.details().type),
        )
    )  # fmt: skip
