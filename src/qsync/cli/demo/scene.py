"""All that is known of a run at a moment: whoever shows it, or decides by it, reads it here."""

from __future__ import annotations

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Final, NamedTuple

from qsync.broker import ops, views
from qsync.broker.shell import AsyncBroker, Facts
from qsync.broker.views import Counts
from qsync.cli.demo.ledger import Ledger
from qsync.cli.demo.plan import HASHING, KINDS, QUEUES, Plan
from qsync.cli.demo.records import History
from qsync.keys import QueueKeys
from qsync.state import UNFINISHED
from qsync.task import TaskStatus

ENDING: Final = ("hopeless", "late", "cancel", "poison")
"""The kinds whose end is seen in the store, and not in the history."""


class Event(NamedTuple):
    """Something worth a line; `at` in seconds since the beginning."""

    at: float
    text: str
    loud: bool


class Scene:
    """What the client did, what the servers wrote down, and what the store holds."""

    def __init__(self, history: History, prefix: str) -> None:
        self.began = time.monotonic()
        self.ledger = Ledger()
        self.history = history
        self.plan: Plan | None = None
        self.store: Facts | None = None
        self.worker_pid = 0
        self.phase = "starting"
        self.events: list[Event] = []
        self.counts: dict[str, Counts] = {}
        """queue -> what it held when it was last looked at."""
        self.ended: dict[str, TaskStatus] = {}
        """id -> where it came to rest; only of tasks that the store keeps."""
        self.looks = 0
        """How often the store was looked at."""
        self._prefix = prefix
        self._known: set[int] = set()
        self._poisoned = 0

    def tell(self, text: str, *, loud: bool = False) -> None:
        """Add an event."""
        self.events.append(Event(time.monotonic() - self.began, text, loud))

    @property
    def to_hash(self) -> int:
        """How many blocks there are to hash."""
        return sum(map(len, self.plan.blocks.values())) if self.plan else 0

    @property
    def hashed(self) -> int:
        """How many of them have been."""
        return sum(len(self.history.done[kind]) for kind in HASHING)

    @property
    def unfinished(self) -> int:
        """How many tasks the store holds that have not come to an end."""
        return sum(found.states[state] for found in self.counts.values() for state in UNFINISHED)

    @property
    def crashed(self) -> int:
        """How many tasks were held by a server that died, as the store counts them."""
        return sum(found.stats.get("crashed", 0) for found in self.counts.values())

    @property
    def signs_of_life(self) -> int:
        """A number that grows with every server and every task that begins or ends, ticks apart."""
        history = self.history
        begun = sum(kind != "tick" for kind in history.kinds.values())
        done = sum(len(ids) for kind, ids in history.done.items() if kind != "tick")
        failed = sum(map(len, history.failed.values()))
        return begun + done + failed + history.again.total() + len(self.ended) + len(self._known)

    def servers(self) -> list[int]:
        """The pids of the servers that live: children of the demo's own worker."""
        known = self.history.servers.items()
        return [pid for pid, parent in known if parent == self.worker_pid and _alive(pid)]

    def open_ids(self) -> set[str]:
        """What was accepted and has no end yet, as far as is known."""
        ids: set[str] = set()
        for kind, mine in self.ledger.ids.items():
            ids |= set(mine) - self.history.done[kind]
        return ids - self.ended.keys()

    def read_on(self) -> None:
        """Read what the servers have written down since, and tell what is worth it."""
        self.history.poll()
        for pid in self.history.servers.keys() - self._known:
            self.tell(f"server {pid} has started")
            self._known.add(pid)
        for id in self.ledger.ids["poison"]:
            for start in self.history.starts.get(id, [])[self._poisoned :]:
                self._poisoned += 1
                self.tell(f"the poison task kills server {start.pid}", loud=True)

    async def refresh(self, broker: AsyncBroker) -> None:
        """Look again at the history and at the store."""
        self.read_on()
        calls = [views.counts(QueueKeys(self._prefix, queue)) for queue in QUEUES]
        found = await asyncio.gather(*map(broker.run, calls))
        self.counts = dict(zip(QUEUES, found, strict=True))
        await self.look(
            broker, self.open_ids() & {id for kind in ENDING for id in self.ledger.ids[kind]}
        )
        self.looks += 1

    async def look(self, broker: AsyncBroker, ids: Iterable[str]) -> dict[str, TaskStatus]:
        """Where tasks are now; those that are not in the store are left out."""
        found: dict[str, TaskStatus] = {}
        for queue, mine in self._by_queue(ids).items():
            keys = QueueKeys(self._prefix, queue)
            for part in ops.batches(mine, len):
                shown = await broker.run(views.show(keys, part))
                for id, one in zip(part, shown, strict=True):
                    if one is not None:
                        found[id] = views.status(id, queue, one)
        self.ended.update({id: one for id, one in found.items() if one.state not in UNFINISHED})
        return found

    def _by_queue(self, ids: Iterable[str]) -> dict[str, list[str]]:
        kind_of = {id: kind for kind, mine in self.ledger.ids.items() for id in mine}
        by_queue: dict[str, list[str]] = defaultdict(list)
        for id in ids:
            by_queue[KINDS[kind_of.get(id, "tick")].queue].append(id)
        return by_queue


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
