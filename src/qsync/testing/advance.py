"""Moves the clock of a test's store forward, and does the work that becomes due."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from qsync.app import Qsync
from qsync.broker import ops, program_schedule_ops, registry_ops, views
from qsync.broker.aio import AsyncBroker
from qsync.broker.call import Call
from qsync.broker.schedule_records import digest_of
from qsync.errors import ConfigError, QsyncError
from qsync.keys import GlobalKeys, QueueKeys
from qsync.new_task import new_nonce, new_task
from qsync.schedule import tick_id
from qsync.server.periodic import PeriodicTask
from qsync.server.stored_ticks import tick_due
from qsync.state import TaskState
from qsync.testing.store import Clock

CALLS_PER_ROUND_TRIP: Final = 100
"""Maximum number of calls in one round trip."""

TICKS: Final = 100_000
"""Maximum number of ticks in one move of the clock."""


class Tick(NamedTuple):
    """A tick of a schedule."""

    at_us: int
    number: int
    """Index of the schedule among the app's schedules."""


class Advance:
    """One move of the clock."""

    def __init__(self, app: Qsync, clock: Clock, by_us: int, *, schedules: bool = True) -> None:
        self._app = app
        self._clock = clock
        self._by_us = by_us
        self._schedules = schedules
        self._periodics = app.periodics
        self._policy = app.server().config.policy()
        self._server = f"advance-{secrets.token_hex(8)}"
        self._number = 0

    async def run(self) -> None:
        """Move the clock, enqueue the ticks of schedules, and do the upkeep of all queues."""
        broker = AsyncBroker(self._app._connections.address)
        try:
            ticks = await self._ticks(broker)
            moved_us = await self._expire_leases(broker)
            self._clock.ahead_us += self._by_us - moved_us
            await self._enqueue(broker, ticks)
            if self._schedules:
                await self._tick_stored(broker)
            for queue in await self._queues(broker):
                await self._upkeep(broker, queue)
        finally:
            await broker.aclose()

    async def _queues(self, broker: AsyncBroker) -> list[str]:
        names: list[str] = []
        cursor = "0"
        while True:
            part = await broker.run(views.queues(GlobalKeys(self._app.prefix), cursor=cursor))
            names += part.names
            cursor = part.cursor
            if cursor == "0":
                return names

    # Leases.

    async def _expire_leases(self, broker: AsyncBroker) -> int:
        """Move the clock until the leases of dead servers have expired, or to the end of the move;
        return how far the clock was moved.

        The clock moves a quarter of a lease at a time. A single jump would look like an outage of
        the store, after which expired leases are recovered later.
        """
        queues = []
        for queue in await self._queues(broker):
            counts = await broker.run(views.counts(QueueKeys(self._app.prefix, queue)))
            if counts.states[TaskState.ACTIVE]:
                queues.append(queue)
        moved, step = 0, self._policy.lease_us // 4
        while queues and moved < min(self._by_us, 2 * self._policy.lease_us):
            by_us = min(step, self._by_us - moved)
            self._clock.ahead_us += by_us
            moved += by_us
            for queue in queues:
                await self._upkeep(broker, queue)
        return moved

    async def _upkeep(self, broker: AsyncBroker, queue: str) -> None:
        """Promote due tasks, recover tasks with expired leases, and delete expired data."""
        more = True
        while more:
            self._number += 1
            fetched = await broker.run(
                ops.fetch(
                    QueueKeys(self._app.prefix, queue),
                    server=self._server,
                    number=self._number,
                    wanted=0,
                    policy=self._policy,
                )
            )
            more = fetched.more

    # Ticks.

    async def _ticks(self, broker: AsyncBroker) -> list[Tick]:
        """Return the ticks up to the end of the move, in chronological order, and start new
        schedules."""
        if not self._periodics:
            return []
        until_us = self._clock.now_us() + self._by_us
        ticks: list[Tick] = []
        for number, (task, keys) in enumerate(zip(self._periodics, self._keys(), strict=True)):
            await broker.run(registry_ops.register(GlobalKeys(self._app.prefix), [keys.queue]))
            schedule = task.periodic.schedule
            call = program_schedule_ops.begin_ticks(
                keys, [task.periodic.name], digests=[digest_of(schedule)]
            )
            _, [after_us] = await broker.run(call)
            at_us = schedule.next_after(after_us) if self._schedules else None
            while at_us is not None and at_us <= until_us:
                ticks.append(Tick(at_us, number))
                if len(ticks) > TICKS:
                    raise _too_many_ticks()
                at_us = schedule.next_after(at_us)
        return sorted(ticks)

    async def _tick_stored(self, broker: AsyncBroker) -> None:
        """Enqueue the ticks of the schedules in the store, in order of time in each queue."""
        until_us, remaining = self._clock.now_us(), TICKS
        for queue in await self._queues(broker):
            keys = QueueKeys(self._app.prefix, queue)
            now_us, unread = until_us - self._by_us, 0
            while now_us <= until_us:
                ticked = await tick_due(broker, keys, unread=unread, now_us=now_us)
                unread, remaining = ticked.unread_count, remaining - len(ticked.tasks)
                if remaining < 0:
                    raise _too_many_ticks()
                if ticked.more:
                    continue
                if ticked.next_us is None:
                    break
                now_us = max(now_us, ticked.next_us)

    def _keys(self) -> list[QueueKeys]:
        return [QueueKeys(self._app.prefix, task.build().queue) for task in self._periodics]

    async def _enqueue(self, broker: AsyncBroker, ticks: Sequence[Tick]) -> None:
        keys = self._keys()
        for start in range(0, len(ticks), CALLS_PER_ROUND_TRIP):
            calls = [
                _call(self._periodics[tick.number], keys[tick.number], tick.at_us)
                for tick in ticks[start : start + CALLS_PER_ROUND_TRIP]
            ]
            for answer in await broker.run_many(calls):
                if isinstance(answer, QsyncError):
                    raise answer


def _too_many_ticks() -> ConfigError:
    return ConfigError(f"advance: schedules have over {TICKS} ticks in that time; advance by less")


def _call(task: PeriodicTask, keys: QueueKeys, at_us: int) -> Call[Any]:
    name = task.periodic.name
    built = task.build().replace(id=tick_id(name, at_us))
    new = new_task(built, new_nonce(), queue=keys.queue)
    return program_schedule_ops.tick(keys, name, at_us, new, now_us=at_us)
