"""Stored schedules: every server enqueues all due ticks, and the store accepts each tick once.

There is no leader and no lock. A server reads the due schedules, computes the next ticks, and sends
both to a script, which ignores a schedule that has changed since then. So if several servers read
the same tick, only one of them enqueues it. If a server dies before it has enqueued the tick,
another server enqueues it. Servers sleep until the next tick that they know of. Once per second,
servers read one hash, in which clients announce schedules that are due soon. Every minute, servers
check all queues that have schedules.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from qsync import codec
from qsync.backoff import AWAY_CAP_S, Backoff, spread
from qsync.broker import schedule_ops, views
from qsync.broker.aio import AsyncBroker
from qsync.broker.error_mapping import lacks_command
from qsync.broker.schedule_ops import SCHEDULES_PER_CALL, TickRow
from qsync.broker.schedule_run_ops import Note, missed, tick_of
from qsync.broker.stored_schedules import StoredScheduleRow, decode_record, next_tick, ticks_of
from qsync.errors import InvalidTask, QsyncError, SchemaMismatch
from qsync.keys import GlobalKeys, QueueKeys
from qsync.new_task import NewTask
from qsync.schedule import tick_id
from qsync.server.hook_calls import OnCreated
from qsync.server.outage_log import Outage
from qsync.server.schedule_notes import send_notes
from qsync.value_text import shorten

log: Final = logging.getLogger("qsync.server")

QUEUES_INTERVAL_S: Final = 1.0
"""Interval at which a server reads which queues have schedules to check, in seconds."""

MAX_CHECK_INTERVAL_S: Final = 60.0
"""Longest time between two checks of a queue's schedules, in seconds."""

MIN_CHECK_INTERVAL_S: Final = 0.01
"""Shortest time between two checks that found few schedules, in seconds."""

APART_S: Final = 0.005
"""Maximum random delay of a server's check after a tick, in seconds. Because of this delay, most
servers find that another server has already enqueued the tick."""


MOST_QUEUES: Final = 2000
"""Maximum number of queues whose stored schedules a server enqueues. Each queue takes 5 KiB and a
call every few seconds, and a hostile program can name any number of queues."""

MOST_UNREAD: Final = 10 * SCHEDULES_PER_CALL
"""Maximum number of schedules that a check tries to read again after the last check could not read
them."""


class TickCheck(NamedTuple):
    """Outcome of one check of a queue's schedules."""

    now_us: int
    next_us: int | None
    """Earliest next tick of all schedules, in microseconds; None if there are no schedules."""
    rows: int
    """Number of due schedules that were read."""
    refused: list[str]
    """Schedules that enqueued no task because a program's periodic task has the same name."""
    unread: list[tuple[str, str]]
    """Schedules whose record could not be read, and why."""
    unread_count: int
    """Number of due schedules that cannot be read, including those that this check skipped."""
    more: bool
    """Whether other schedules, which this check did not read, may be due."""
    tasks: Sequence[NewTask] = ()
    """Tasks of the ticks, including those that are not in the store because another task has their
    lock."""


async def tick_due(
    broker: AsyncBroker, keys: QueueKeys, *, unread: int = 0, now_us: int | None = None
) -> TickCheck:
    """Enqueue the due ticks of up to SCHEDULES_PER_CALL stored schedules of a queue.

    `unread` is the `unread_count` of the last check. Unreadable schedules stay due and come first,
    so the check skips all but MOST_UNREAD of them and reads other schedules instead.
    """
    again = min(unread, MOST_UNREAD)
    offset, count = unread - again, SCHEDULES_PER_CALL + 2 * again
    call = schedule_ops.due_schedules(keys, count=count, offset=offset, now_us=now_us)
    due = await broker.run(call)
    if due.wrong:
        await _plan_again(broker, keys, due.now_us)
        due = await broker.run(call)
    rows, unreadable, skipped = [], [], dict[str, Note]()
    for row in due.rows:
        try:
            rows.append(_ticks(row, keys.queue, due.now_us))
            if (note := _missed(row, rows[-1], due.now_us)) is not None:
                skipped[row.name] = note
        except (codec.CodecError, InvalidTask) as error:
            unreadable.append((row.name, str(error)))
    outcomes = []
    if rows:
        outcomes = await broker.run(schedule_ops.tick_schedules(keys, rows, now_us=now_us))
    nexts = [tick.next_us for tick in rows if tick.row.record]
    if due.next_us is not None:
        nexts.append(due.next_us)
    pairs = list(zip(rows, outcomes, strict=True))
    refused = [tick.row.name for tick, outcome in pairs if outcome == "program"]
    ticked = [tick for tick, outcome in pairs if outcome == "ticked"]
    tasks = [task for tick in ticked for task in tick.tasks]
    notes = [skipped[tick.row.name] for tick in ticked if tick.row.name in skipped]
    await send_notes(broker, keys, notes)
    unread_count = offset + len(unreadable)
    more = len(due.rows) == count and (bool(rows) or unread_count > unread)
    if offset and len(unreadable) < again:  # some of the skipped schedules may be readable
        unread_count, more = 0, True
    next_us = min(nexts, default=None)
    return TickCheck(due.now_us, next_us, len(rows), refused, unreadable, unread_count, more, tasks)


async def _plan_again(broker: AsyncBroker, keys: QueueKeys, now_us: int) -> None:
    """Plan the next ticks of all schedules again, after the store's clock was ahead and was set
    back.

    If this server dies before the last call, another server starts over.
    """
    log.warning(
        "the store's clock was set back by over an hour, so the stored schedules of queue %s are "
        "planned again", keys.queue,
    )  # fmt: skip
    cursor: str | None = "0"
    while cursor is not None:
        page = await broker.run(
            schedule_ops.stored_page(keys, cursor=cursor, count=SCHEDULES_PER_CALL)
        )
        rows = [tick for row in page.rows if (tick := _earlier(row, now_us)) is not None]
        for start in range(0, len(rows), SCHEDULES_PER_CALL):
            part = rows[start : start + SCHEDULES_PER_CALL]
            await broker.run(schedule_ops.tick_schedules(keys, part, now_us=now_us))
        cursor = page.cursor if page.cursor != "0" else None
    await broker.run(schedule_ops.tick_schedules(keys, [], now_us=now_us))


def _earlier(row: StoredScheduleRow, now_us: int) -> TickRow | None:
    """Return a row that moves a schedule's next tick to an earlier tick; None if no move is
    needed."""
    try:
        content = decode_record(row.record)
    except (codec.CodecError, InvalidTask):
        return None
    next_us = next_tick(content.schedule, now_us)
    if row.next_us is None or next_us >= row.next_us:
        return None
    return TickRow(row, next_us, [])


def _ticks(row: StoredScheduleRow, queue: str, now_us: int) -> TickRow:
    """Return the due ticks of a schedule as tasks.

    Raises CodecError or InvalidTask for a bad record.
    """
    if not row.record:  # the script deletes the entry
        return TickRow(row, 0, [])
    content = decode_record(row.record)
    ticks = ticks_of(row, content, now_us)
    tasks = [content.task(tick_id(row.name, tick), queue) for tick in ticks.due]
    return TickRow(row, ticks.next_us, tasks)


def _missed(row: StoredScheduleRow, ticks: TickRow, now_us: int) -> Note | None:
    """Return a note about the ticks that are too late to be enqueued; None if there are none."""
    if not row.record or row.next_us is None:
        return None
    first = ticks.tasks[0].id if ticks.tasks else None
    if first == tick_id(row.name, row.next_us):  # nearly always
        return None
    tick = None if first is None else tick_of(first)
    until_us = now_us if tick is None else tick[1] - 1
    content, first_us = decode_record(row.record), max(row.next_us, row.since_us + 1)
    if content.missed != "skip" or until_us < first_us:
        return None
    last_us = content.schedule.previous(until_us)
    return None if last_us is None or last_us < first_us else missed(row.name, last_us, first_us)


class StoredTicks:
    """Enqueues the ticks of all stored schedules of a prefix when they are due, until cancelled.

    The loop continues after store errors. Queues are handled separately, since they may be on
    several nodes.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        prefix: str,
        outage: Outage,
        on_created: OnCreated | None = None,
    ) -> None:
        self._broker = broker
        self._on_created = on_created
        self._globals = GlobalKeys(prefix)
        self._outage = outage
        self._queues: dict[str, _ScheduledQueue] = {}
        self._denied = False
        self._is_over = False
        """Whether a log record has reported that there are too many queues."""
        self._backoff = Backoff(cap=AWAY_CAP_S)

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                pause = await self._poll(group)
                await asyncio.sleep(pause)

    async def _poll(self, group: asyncio.TaskGroup) -> float:
        """Start a loop for each new queue, and wake the loops of announced queues.

        Returns the time until the next poll, in seconds.
        """
        part = "read the stored schedules"
        try:
            numbers = await self._broker.run(schedule_ops.schedule_queues(self._globals))
        except QsyncError as error:
            if lacks_command(error):  # the user has the permissions of an older version
                if not self._denied:
                    log.warning("stored schedules do not run on this server: %s", error)
                self._denied = True
                return MAX_CHECK_INTERVAL_S
            self._outage.failed(part, error)
            return self._backoff.next()
        self._outage.worked(part)
        self._backoff.reset()
        for name, number in numbers.items():
            queue = self._queues.get(name)
            if queue is None and len(self._queues) >= MOST_QUEUES:
                self._log_excess(len(numbers))
                continue
            if queue is None:
                keys = QueueKeys(self._globals.prefix, name)
                queue = self._queues[name] = _ScheduledQueue(
                    self._broker, keys, self._outage, self._on_created
                )
                group.create_task(queue.run())
            queue.announced(number)
        return QUEUES_INTERVAL_S

    def _log_excess(self, number: int) -> None:
        """Log that there are too many queues, but only once."""
        if not self._is_over:
            self._is_over = True
            log.error(
                "%d queues have stored schedules; this server enqueues those of the first %d only",
                number, MOST_QUEUES,
            )  # fmt: skip


class _ScheduledQueue:
    """The stored schedules of one queue."""

    def __init__(
        self,
        broker: AsyncBroker,
        keys: QueueKeys,
        outage: Outage,
        on_created: OnCreated | None,
    ) -> None:
        self._broker = broker
        self._on_created = on_created
        self._keys = keys
        self._outage = outage
        self._part = f"enqueue the stored schedules of queue {keys.queue}"
        self._backoff = Backoff(cap=AWAY_CAP_S)
        self._number: bytes | None = None
        self._look = asyncio.Event()
        self._apart_s = spread(0, APART_S)
        self._named: set[str] = set()
        self._unread = 0
        """Number of due schedules that cannot be read, as counted by the last check."""
        self._whole_at = 0.0
        """Time of the last check that skipped no unreadable schedule, by the loop's clock."""

    def announced(self, number: bytes) -> None:
        """Check the schedules now if this number, which clients change, has changed."""
        if number != self._number:
            self._number = number
            self._look.set()

    async def run(self) -> None:
        while True:
            self._look.clear()
            try:
                pause = await self._tick()
            except SchemaMismatch as error:
                log.info("stored schedules of queue %s are stopped: %s", self._keys.queue, error)
                return
            except QsyncError as error:
                self._outage.failed(self._part, error)
                denied = lacks_command(error)
                await asyncio.sleep(MAX_CHECK_INTERVAL_S if denied else self._backoff.next())
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._look.wait()

    async def _tick(self) -> float:
        """Enqueue the due ticks; return the time until the next check, in seconds."""
        now = asyncio.get_running_loop().time()
        if self._unread > MOST_UNREAD and now - self._whole_at > MAX_CHECK_INTERVAL_S:
            self._unread = 0  # some of the skipped schedules may be readable
        if self._unread <= MOST_UNREAD:
            self._whole_at = now
        ticked = await tick_due(self._broker, self._keys, unread=self._unread)
        self._unread = ticked.unread_count
        self._outage.worked(self._part)
        self._backoff.reset()
        if self._on_created is not None:
            self._on_created(await self._created(ticked.tasks), ticked.now_us)
        for name in ticked.refused:
            self._log_once(name, "a periodic task of a program has the same name")
        for name, why in ticked.unread:
            self._log_once(name, f"its record cannot be read: {why}")
        if ticked.more:
            return 0
        if ticked.next_us is None:
            return MAX_CHECK_INTERVAL_S
        until_s = (ticked.next_us - ticked.now_us) / 1_000_000 + self._apart_s
        return min(max(until_s, MIN_CHECK_INTERVAL_S), MAX_CHECK_INTERVAL_S)

    async def _created(self, tasks: Sequence[NewTask]) -> list[NewTask]:
        """Return the tasks that were stored, i.e. not refused because of a unique lock."""
        locked = [task.id for task in tasks if task.lock]
        shown = []
        if locked:
            call = views.get_tasks(self._keys, locked, messages=False)
            shown = await self._broker.run(call)
        missing = {id for id, task in zip(locked, shown, strict=True) if task is None}
        return [task for task in tasks if task.id not in missing]

    def _log_once(self, name: str, why: str) -> None:
        """Log why a stored schedule enqueues no tasks, once per schedule."""
        if name not in self._named:
            self._named.add(name)
            log.error(
                "stored schedule %s of queue %s enqueues no tasks: %s",
                shorten(name), self._keys.queue, why,
            )  # fmt: skip
