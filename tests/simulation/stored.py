"""Stored schedules: a client that creates and changes schedules, and checks of their ticks."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from qsync.broker.stored_schedules import GRACE_US
from qsync.client import AsyncClient
from qsync.errors import QsyncError
from qsync.task import Task
from qsync.times import datetime_us
from tests.simulation.entries import US

NAMES: Final = ("stored", "stored-fast")
PERIODS_S: Final = (1.0, 2.0)
EARLY_US: Final = 10_000


@dataclass
class Version:
    """A version of a stored schedule: when it was stored, its period, and its ticks so far."""

    stamp: bytes
    since_us: int
    period_us: int
    ticks: dict[int, int] = field(default_factory=dict)
    """Time at which each tick was enqueued, by the due time of the tick; both times are in
    microseconds by the store's clock."""

    def left_out(self) -> int:
        """Return how many ticks between the first and the last are missing, except ticks that were
        more than GRACE_US late when the next tick was enqueued."""
        count, times = 0, sorted(self.ticks)
        for before, after in itertools.pairwise(times):
            missing = range(before + self.period_us, after, self.period_us)
            count += sum(self.ticks[after] - tick_us <= GRACE_US for tick_us in missing)
        return count


class StoredBook:
    """Records the store's replies about stored schedules."""

    def __init__(self, find: Callable[[str], None]) -> None:
        self._find = find
        self.versions: dict[tuple[str, str], list[Version]] = {}
        """Versions by queue and name. The last version is in force unless it is in `deleted`."""
        self.deleted: set[tuple[str, str]] = set()

    def see_put(self, queue: str, now: int, args: Sequence[Any], reply: Any) -> None:
        """Record a put and the reply to it."""
        _, _, name, _, record = args
        stamp, of_program = reply
        known = self.versions.setdefault((queue, name), [])
        if of_program:
            self._find(f"put of {name} was refused for {of_program!r}")
        elif (queue, name) in self.deleted or not known or known[-1].stamp != stamp:
            size = int.from_bytes(record[1:3], "big")
            known.append(Version(stamp, now, int(record[3 : 3 + size])))
            self.deleted.discard((queue, name))

    def see_delete(self, queue: str, args: Sequence[Any], reply: Any) -> None:
        """Record a delete and the reply to it."""
        if reply:
            self.deleted.add((queue, args[1]))

    def see_ticks(
        self, queue: str, now: int, args: Sequence[Any], reply: Any, back_us: int
    ) -> Iterator[tuple[str, bytes]]:
        """Record ticks; yield the id and options of each task that was enqueued."""
        at = 2
        for outcome in reply:
            name, stamp, _, _, count = args[at : at + 5]
            tasks = args[at + 5 : at + 5 + 3 * int(count)]
            at += 5 + 3 * int(count)
            if outcome != b"ticked":
                continue
            version = self._version(queue, name, stamp)
            for id, options in zip(tasks[::3], tasks[2::3], strict=True):
                tick_us = datetime_us("tick", datetime.fromisoformat(id.partition("@")[2]))
                if version is not None:
                    self._check(version, id, tick_us, now, back_us)
                yield id, options

    def _version(self, queue: str, name: str, stamp: bytes) -> Version | None:
        known = self.versions.get((queue, name), [])
        if (queue, name) in self.deleted or not known or known[-1].stamp != stamp:
            self._find(f"{name} ticked in a version that is no longer current")
            return None
        return known[-1]

    def _check(self, version: Version, id: str, tick_us: int, now: int, back_us: int) -> None:
        if tick_us > now + EARLY_US + back_us:
            self._find(f"tick {id} was enqueued {(tick_us - now) / US} s early")
        if tick_us <= version.since_us - back_us:
            self._find(f"tick {id} dates from before its schedule was stored")
        if tick_us in version.ticks:
            self._find(f"tick {id} was enqueued twice")
        version.ticks[tick_us] = now

    def check_complete(self) -> None:
        """Check that no version missed a tick between its first and its last."""
        for (_, name), versions in self.versions.items():
            for version in versions:
                if left_out := version.left_out():
                    self._find(f"{name} missed {left_out} of its ticks")


class Scheduler:
    """A process that stores schedules and changes them while servers run."""

    def __init__(self, rng: random.Random, queue: str, now_us: Callable[[], int]) -> None:
        self._random = rng
        self._queue = queue
        self._now_us = now_us
        self._version = 0

    async def run(self, client: AsyncClient, seconds: float) -> None:
        """Change schedules within some seconds; ignore changes that the store does not answer."""
        async with client:
            for name in NAMES:
                await self._put(client, name)
            for _ in range(6):
                await asyncio.sleep(self._random.uniform(0.2, seconds / 4))
                await self._near_a_tick()
                name = self._random.choice(NAMES)
                if self._random.random() < 0.2:
                    await self._delete(client, name)
                await self._put(client, name)

    async def _near_a_tick(self) -> None:
        """Wait until a tick is about to be enqueued, so that the change happens at that moment."""
        left_s = 1.0 - self._now_us() % US / US
        await asyncio.sleep(max(0.0, left_s - self._random.uniform(-0.03, 0.03)))

    async def _put(self, client: AsyncClient, name: str) -> None:
        self._version += 1
        plan = {"kind": "ok", "n": 0, "seconds": 0.0, "version": self._version}
        task = Task[Any]("work", plan, queue=self._queue)
        with contextlib.suppress(QsyncError):
            await client.schedules.put(name, task, every=self._random.choice(PERIODS_S))

    async def _delete(self, client: AsyncClient, name: str) -> None:
        with contextlib.suppress(QsyncError):
            await client.schedules.delete(name)
