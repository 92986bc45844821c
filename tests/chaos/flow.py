"""A client that enqueues tasks in a thread and records the outcomes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, Self

from qsync.broker import redis_clients
from qsync.broker.aio import AsyncBroker
from qsync.broker.blocking import Broker
from qsync.client import AsyncClient, Client
from qsync.errors import QsyncError
from qsync.task import Task
from tests.support.processes import task


def plain(number: int) -> Task:
    return task()


class Flow:
    """A client in a thread. Until the block ends, each of its callers enqueues a task about every
    `every` seconds."""

    def __init__(
        self,
        url: str,
        prefix: str,
        *,
        make: Callable[[int], Task] = plain,
        every: float = 0.005,
        blocking: bool = False,
        callers: int = 1,
        patience: float = 30.0,
        **client: Any,
    ) -> None:
        self._address, self._prefix, self._client = redis_clients.parse(url), prefix, client
        self._make, self._every, self._callers = make, every, 1 if blocking else callers
        self._patience = patience
        self._over = threading.Event()
        work = self._block if blocking else lambda: asyncio.run(self._await())
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._number = 0
        self.accepted: list[tuple[float, str]] = []
        """Time of return (by the monotonic clock) and task id of each call that returned."""
        self.confirmed: dict[str, bool | None] = {}
        self.asked: dict[str, float] = {}
        """Time at which each task was sent, by id."""
        self.errors: list[BaseException] = []

    @property
    def ids(self) -> set[str]:
        return {id for _, id in self.accepted}

    def since(self, at: float) -> list[str]:
        """Return the ids of the tasks that were accepted after this time, in order."""
        return [id for accepted_at, id in self.accepted if accepted_at > at]

    def longest_gap(self, since: float) -> float:
        """Return the longest time between two accepted tasks after this time."""
        times = [since, *(at for at, _ in self.accepted if at > since)]
        return max(b - a for a, b in zip(times, [*times[1:], times[-1]], strict=True))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self.errors.append(error)

    def _next(self) -> Task:
        self._number += 1
        return self._make(self._number)

    def _note(self, asked_at: float, handle: Any) -> None:
        self.asked[handle.id] = asked_at
        self.confirmed[handle.id] = handle.confirmed
        self.accepted.append((time.monotonic(), handle.id))

    def _block(self) -> None:
        broker = Broker(self._address, patience=self._patience)
        with Client(broker, prefix=self._prefix, **self._client) as client:
            while not self._over.wait(self._every):
                asked_at = time.monotonic()
                try:
                    self._note(asked_at, client.enqueue(self._next()))
                except QsyncError as error:
                    self.errors.append(error)

    async def _await(self) -> None:
        broker = AsyncBroker(self._address, patience=self._patience)
        async with AsyncClient(broker, prefix=self._prefix, **self._client) as client:
            await asyncio.gather(*[self._call(client) for _ in range(self._callers)])

    async def _call(self, client: AsyncClient) -> None:
        while not self._over.is_set():
            asked_at = time.monotonic()
            try:
                self._note(asked_at, await client.enqueue(self._next()))
            except QsyncError as error:
                self.errors.append(error)
            await asyncio.sleep(self._every)
