"""Reads, pauses, resumes, purges and forgets queues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Final

import msgspec

from qsync.broker import operator_ops, registry_ops, views
from qsync.broker.aio import AsyncBroker
from qsync.broker.event_ops import recorded
from qsync.errors import InvalidTask
from qsync.inspector.base import check_state, cursor_at, read_cursor, readable
from qsync.inspector.event_values import new_key
from qsync.inspector.live_servers import _LiveServersMixin
from qsync.inspector.task_rows import message_in, note_of, pause_of, waiting_since_us
from qsync.inspector.values import Change, Day, Died, Forgotten, QueueInfo, Step
from qsync.keys import COUNTERS, NAME
from qsync.message import decode_failure
from qsync.phrase import phrase
from qsync.state import TaskState
from qsync.times import DAY_US, from_us
from qsync.value_text import shorten

COUNTER_DAYS: Final = 90
"""Number of days for which counters are kept."""

TASKS_PER_FORGET: Final = 500
"""Approximate number of tasks that one call of `forget` deletes."""

KEY_SCANS: Final = 100
"""Maximum number of SCAN calls for key names; each call returns about 1,000 names."""

PURGED: Final = (
    TaskState.PENDING, TaskState.LIMITED, TaskState.SCHEDULED, TaskState.RETRY,
    TaskState.COMPLETED, TaskState.DEAD,
)  # fmt: skip
"""States that can be purged; active tasks have to be cancelled instead."""


def purged_with(state: TaskState, states: Mapping[TaskState, int]) -> tuple[str, int]:
    """Return what a purge of a state deletes: the names of the states, and the number of tasks.

    Cancelled tasks are stored with the completed ones and are deleted with them.
    """
    cancelled = states.get(TaskState.CANCELLED, 0) if state is TaskState.COMPLETED else 0
    name = f"{state} and {TaskState.CANCELLED}" if cancelled else str(state)
    return name, states.get(state, 0) + cancelled


def check_purged(state: str) -> TaskState:
    """Return the state if its tasks can be purged. Raise InvalidTask otherwise."""
    checked = check_state(state)
    if checked is TaskState.CANCELLED:
        raise InvalidTask(
            phrase(
                "state: %(state)s tasks cannot be purged separately, since they are stored "
                "with completed ones; purge 'completed' to delete both",
                state=str(state),
            )
        )
    if checked not in PURGED:
        raise InvalidTask(
            phrase("state: %(state)s tasks are running; cancel them instead", state=str(state))
        )
    return checked


class _QueuesMixin(_LiveServersMixin):
    """Operations on queues."""

    async def overview(
        self, *, names: Sequence[str] | None = None, cursor: str | None = None
    ) -> Overview:
        """Return the queues and the ids of the live servers at this moment, in two round trips.

        If there are more than about a thousand queues, the result has only some of them; pass its
        `cursor` to read the next part. With `names`, only these queues are read.
        """
        total, after = 0, None
        if names is None:
            names, total, after = await self._queue_page(cursor)
        calls = [views.overview(self._keys(name)) for name in names]
        (now_us, live), *replies = await self._replies([views.servers(self._globals), *calls])
        found, later = readable(names, replies)
        return Overview(
            at=from_us(now_us),
            queues=[self._queue_info(name, snapshot) for name, snapshot in found.items()],
            later=later,
            servers=sorted(live),
            total=max(total, len(names)),
            cursor=after,
        )

    async def prefixes(self) -> list[str]:
        """Return the prefixes under which a bounded scan of the store finds queues.

        Reads at most about 100,000 key names per primary. The result is empty if the store user may
        not run SCAN.
        """
        prefixes: set[str] = set()
        for address in await self._broker.primaries():
            node = AsyncBroker(address, connections=1)
            try:
                prefixes |= await _prefixes_at(node)
            finally:
                await node.aclose()
        return sorted(prefixes)

    async def queue(self, name: str, *, days: int = 0) -> QueueInfo | None:
        """Return a queue with the counters of the last `days` days; None if it does not exist.

        Raises InvalidTask unless `days` is from 0 to 90.
        """
        if type(days) is not int or not 0 <= days <= COUNTER_DAYS:
            raise InvalidTask(
                f"days: {shorten(days)} is not a whole number from 0 to {COUNTER_DAYS}"
            )
        shown = await self._broker.run(views.overview(self._keys(name), days=max(1, days)))
        exists = any(shown.states.values()) or await self._is_queue(name)
        return self._queue_info(name, shown, days) if exists else None

    def _queue_info(self, name: str, shown: views.QueueSnapshot, days: int = 0) -> QueueInfo:
        counters = {counter: shown.stats.get(counter, 0) for counter in COUNTERS}
        today = shown.now_us // DAY_US
        return QueueInfo(
            name=name,
            states=shown.states,
            latency=latency_of(shown),
            bytes=shown.memory,
            paused=pause_of(shown.pause_note, shown.paused_at_us),
            counters=counters,
            today=_of_day(shown.stats, today),
            days=_days(shown.stats, today, days),
            rate=self._note_rate(name, counters["completed"] + counters["failed"]),
            bounds=shown.bounds,
            latency_target=(
                None if shown.latency_target_us is None else shown.latency_target_us / 1_000_000
            ),
            died=_died(shown),
        )

    async def pause(self, queue: str, *, by: str = "", why: str = "") -> Change:
        """Pause a queue: start no more of its tasks until `resume`, even after restarts.

        Running tasks continue, and tasks that a server has already fetched may still start within a
        second. If the queue is already paused, the outcome is `done` too: the pause keeps its start
        time, and `by` and `why` are replaced unless `why` is empty.
        """
        keys = self._keys(queue)
        if not await self._is_queue(queue):
            return Change(outcome="not_found")
        event = self._actor.event("queue.pause", detail=why, by=by)
        note = note_of(by or self._actor.by, why)
        if not why:
            note = (await self._broker.run(views.overview(keys))).pause_note or note
        call = operator_ops.pause(keys, note)
        await self._broker.run(recorded(call, event))
        return Change(outcome="done")

    async def resume(self, queue: str) -> Change:
        """Resume the queue, so that its tasks start again; `not_found` if it was not paused."""
        call = recorded(operator_ops.resume(self._keys(queue)), self._actor.event("queue.resume"))
        changed = await self._broker.run(call)
        return Change(outcome="done" if changed else "not_found")

    async def purge(self, queue: str, state: str, *, cursor: str | None = None) -> Step:
        """Delete up to 100 tasks in a state: one step of a purge.

        Pass the returned cursor to the next step, or use `steps` for all steps. Tasks that enter
        the state after the first step are not deleted. A step blocks the store for at most a few
        milliseconds. Raises InvalidTask for `active`; cancel running tasks instead.
        """
        checked, place = check_purged(state), read_cursor(cursor)
        last = None if place is None else place.place
        key = place.action if place is not None and place.action else new_key()
        event = self._actor.event("queue.purge", detail=checked, key=key)
        call = operator_ops.purge(self._keys(queue), checked, last=last)
        purged = await self._broker.run(recorded(call, event))
        return Step(
            scanned=purged.deleted,
            done=purged.deleted,
            cursor=None if purged.last is None else cursor_at(purged.last, action=key),
        )

    async def forget(self, queue: str, *, force: bool = False) -> Forgotten:
        """Remove a queue without tasks, with its counters, its pause and its schedules.

        With `force`, delete its tasks first, about 500 per call; repeat the call while the outcome
        is `more`. The queue's unique locks are released even if their windows have not ended. A
        later enqueue creates the queue again. But a client that already used the queue does not
        register it again, so `overview` shows it only once a server takes tasks from it.
        """
        _, servers = await self._live()
        serving = next((server.id for server in servers if server.takes(queue)), None)
        if serving is not None:
            return Forgotten(outcome="served", server=serving)
        existed = await self._is_queue(queue)
        deleted = await self._purge_any(queue) if force else 0
        remaining = await self._broker.run(
            operator_ops.delete_queue(self._keys(queue), force=force)
        )
        gone = not remaining and (existed or deleted > 0)
        # Record these actions outside of the queue, because its own record is deleted with it.
        await self._record("queue.purge", queue, number=deleted)
        await self._record("queue.delete", queue, number=int(gone))
        if remaining:
            return await self._not_forgotten(queue, force, deleted, remaining)
        await self._broker.run(registry_ops.unregister(self._globals, [queue]))
        return Forgotten(outcome="done" if gone else "not_found", deleted=deleted)

    async def _not_forgotten(
        self, queue: str, force: bool, deleted: int, remaining: int
    ) -> Forgotten:
        if not force:
            return Forgotten(outcome="not_empty", left=remaining)
        if deleted:
            return Forgotten(outcome="more", deleted=deleted, left=remaining)
        counts = await self._broker.run(views.counts(self._keys(queue)))
        running = counts.states[TaskState.ACTIVE]
        if any(count for state, count in counts.states.items() if state in PURGED):
            return Forgotten(outcome="more", left=remaining)  # new tasks arrived in the meantime
        if running:
            return Forgotten(outcome="running", left=running)
        # The queue is damaged: it has messages of tasks that are in no state.
        return Forgotten(outcome="not_empty", left=remaining)

    async def _purge_any(self, queue: str) -> int:
        """Delete about 500 tasks in any state, including active ones with an expired lease."""
        deleted = 0
        for state in (*PURGED, TaskState.ACTIVE):
            more = True
            while more and deleted < TASKS_PER_FORGET:
                purged = await self._broker.run(operator_ops.purge(self._keys(queue), state))
                deleted += purged.deleted
                more = purged.last is not None
        return deleted


async def _prefixes_at(node: AsyncBroker) -> set[str]:
    prefixes, cursor = set[str](), "0"
    for _ in range(KEY_SCANS):
        reply = await node.ask("SCAN", cursor, "MATCH", "*:queues", "COUNT", 1000)
        if reply is None:
            break
        cursor = reply[0].decode()
        names = [key.decode(errors="replace").removesuffix(":queues") for key in reply[1]]
        prefixes |= {name for name in names if NAME.fullmatch(name)}
        if cursor == "0":
            break
    return prefixes


def latency_of(shown: views.QueueSnapshot) -> float:
    """Return the longest time that one of the first pending tasks has waited, in seconds."""
    waiting = [] if shown.since_us is None else [shown.since_us]
    waiting += [
        since
        for cut, failure in shown.first
        if (since := waiting_since_us(message_in(cut), decode_failure(failure))) is not None
    ]
    return max(0, shown.now_us - min(waiting)) / 1_000_000 if waiting else 0.0


def _died(shown: views.QueueSnapshot) -> Died | None:
    number, first_us, last_us = shown.died
    if not number:
        return None
    return Died(number=number, first_at=from_us(first_us), last_at=from_us(last_us))


def _of_day(stats: dict[str, int], day: int) -> dict[str, int]:
    return {counter: stats.get(f"{counter}:{day}", 0) for counter in COUNTERS}


def _days(stats: dict[str, int], today: int, count: int) -> list[Day]:
    days = []
    for number in range(today, today - count, -1):
        counters = _of_day(stats, number)
        if any(counters.values()):
            day = date(1970, 1, 1) + timedelta(days=number)
            days.append(Day(day=day, counters=counters))
    return days


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """The queues, sorted by name, and the ids of the live servers; `at` is the store's time.

    `total` is the number of queues in use. If there are more than about a thousand, `queues` holds
    some of them, and `overview(cursor=...)` reads the next part. `later` lists the queues that are
    left out because a later version of qsync wrote their data.
    """

    at: datetime
    queues: list[QueueInfo]
    servers: list[str]
    total: int = 0
    cursor: str | None = None
    later: list[str] = []

    @property
    def more(self) -> int:
        """Number of queues in other parts."""
        return max(0, self.total - len(self.queues) - len(self.later))
