"""A blocking and an async client that enqueue during a chaos run and record the outcomes."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from typing import Any, Final

from qsync.broker import redis_clients
from qsync.broker.aio import AsyncBroker
from qsync.broker.blocking import Broker
from qsync.client import AsyncClient, Client
from qsync.errors import DuplicateTask, QsyncError, QueueFull, StoreUnavailable
from qsync.task import Task
from tests.chaos.evidence import Evidence, Wanted

READ_TIMEOUT: Final = 1.0
PATIENCE: Final = 3.0
LOCKS: Final = 5


class Users:
    """Enqueues from two threads until stopped."""

    def __init__(self, url: str, prefix: str, evidence: Evidence, seed: int) -> None:
        self._address = redis_clients.parse(url)
        self._prefix = prefix
        self._evidence = evidence
        self._over = threading.Event()
        self.errors: list[BaseException] = []
        self.unavailable = 0
        works = (self._block, lambda chance: asyncio.run(self._await(chance)))
        self._threads = [
            threading.Thread(target=self._run, args=(work, random.Random(f"{seed} user {at}")))
            for at, work in enumerate(works)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop enqueueing; return when both threads have ended."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, work: Any, chance: random.Random) -> None:
        try:
            work(chance)
        except BaseException as error:
            self.errors.append(error)

    def _task(self, chance: random.Random, id: str) -> tuple[Task, Wanted]:
        options: dict[str, Any] = {"id": id, "retry": 2, "retry_delay": 0.05}
        plan: dict[str, Any] = {"sleep": chance.choice((0.0, 0.005, 0.02, 0.1))}
        if chance.random() < 0.05:  # give every frozen server some long tasks
            plan["sleep"] = chance.choice((0.5, 1.5))
        kind = chance.random()
        if kind < 0.15:
            plan["fail"] = chance.randrange(1, 3)
        elif kind < 0.18:
            plan["fail"] = 99
        elif kind < 0.25:
            options["delay"] = chance.uniform(0, 2)
        elif kind < 0.35:
            options |= {"unique": True, "unique_key": f"lock-{chance.randrange(LOCKS)}"}
        if chance.random() < 0.5:
            options["retention"] = 3600
        type = "work-in-thread" if chance.random() < 0.2 else "work"
        wanted = Wanted(
            id, options["retry"], plan.get("fail", 0), "retention" in options, time.monotonic()
        )
        return Task(type, plan, **options), wanted

    def _accept(self, wanted: Wanted) -> None:
        self._evidence.accepted[wanted.id] = wanted

    def _refuse(self, wanted: Wanted, error: QsyncError) -> None:
        if isinstance(error, DuplicateTask):
            self._evidence.refused[wanted.id] = error.id
        elif isinstance(error, StoreUnavailable | QueueFull):
            # QueueFull may also come from a repeated call whose first attempt was written.
            self.unavailable += 1
            self._evidence.perhaps[wanted.id] = wanted
        else:
            raise error

    def _block(self, chance: random.Random) -> None:
        broker = Broker(self._address, read_timeout=READ_TIMEOUT, patience=PATIENCE)
        with Client(broker, prefix=self._prefix) as client:
            number = 0
            while not self._over.wait(chance.uniform(0, 0.04)):
                number += 1
                task, wanted = self._task(chance, f"b{number}")
                try:
                    client.enqueue(task)
                    self._accept(wanted)
                except QsyncError as error:
                    self._refuse(wanted, error)

    async def _await(self, chance: random.Random) -> None:
        broker = AsyncBroker(self._address, read_timeout=READ_TIMEOUT, patience=PATIENCE)
        under_way: set[asyncio.Task[None]] = set()
        async with AsyncClient(broker, prefix=self._prefix) as client:
            number = 0
            while not self._over.is_set():
                for _ in range(chance.randrange(1, 6)):
                    number += 1
                    work = self._one(client, *self._task(chance, f"a{number}"))
                    under_way.add(asyncio.create_task(work))
                await asyncio.sleep(chance.uniform(0, 0.1))
                for done in [one for one in under_way if one.done()]:
                    under_way.discard(done)
                    done.result()
            for one in under_way:
                await one

    async def _one(self, client: AsyncClient, task: Task, wanted: Wanted) -> None:
        try:
            await client.enqueue(task)
            self._accept(wanted)
        except QsyncError as error:
            self._refuse(wanted, error)
