"""The clients of a history. Each client makes requests and checks the replies."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from qsync.client import AsyncClient, Client
from qsync.errors import (
    DuplicateTask,
    QsyncError,
    QueueFull,
    ResultTimeout,
    StoreUnavailable,
    TaskCancelled,
    TaskFailed,
    TaskNotFound,
)
from qsync.task import Task
from tests.simulation.entries import US
from tests.simulation.limits import LIMITED
from tests.simulation.threads import current_thread
from tests.simulation.work import KINDS, QUEUES, Books, Wanted, accept


class Maker:
    """Makes tasks of every kind."""

    def __init__(
        self,
        name: str,
        rng: random.Random,
        books: Books,
        *,
        poison: int,
        unique: float,
        priorities: random.Random | None,
        types: Sequence[str],
        limits: float = 0.0,
    ) -> None:
        self._name = name
        self._random = rng
        self._books = books
        self._poison = poison
        self._unique = unique
        self._priorities = priorities
        self._types = types
        self._limits = limits
        self._made = 0

    def task(self) -> Task:
        rng, now_us = self._random, self._books.store.now_us
        weights = KINDS | {"poison": 3 * KINDS["poison"]} if self._poison > 0 else KINDS
        [kind] = rng.choices(list(weights), list(weights.values()))
        if kind == "poison":
            self._poison -= 1
            if self._poison < 0:
                kind = "ok"
        self._made += 1
        options: dict[str, Any] = {"queue": rng.choice(QUEUES), "retry": rng.randrange(4)}
        if rng.random() < 0.5 or kind == "nested":
            options["id"] = f"{self._name}-{self._made}"
        if rng.random() < 0.2:
            options["delay"] = rng.choice((0.05, 0.5, 2.0))
        if kind in ("hang", "deaf") or rng.random() < 0.1:
            options["timeout"] = rng.uniform(0.3, 1.5)
        if rng.random() < 0.15:
            us = now_us + rng.choice((200_000, 1_000_000, 6_000_000))
            options["deadline"] = datetime.fromtimestamp(us / US, UTC)
        if rng.random() < self._unique:
            options["unique"] = rng.choice((True, True, 4.0))
            options["unique_key"] = f"key{rng.randrange(4)}"
        if rng.random() < 0.4:
            options["retention"] = rng.choice((1.0, 200.0, 200.0))
        if rng.random() < 0.15:
            options["fairness_key"] = rng.choice("abc")
        if self._priorities is not None and self._priorities.random() < 0.4:
            options["priority"] = self._priorities.choice((1, 5, 7, 9))
        options["retry_delay"] = rng.choice((0.01, 0.3, 1.5))
        if self._limits and rng.random() < self._limits:
            options["limits"] = rng.choice(LIMITED)
        seconds = {"ok": 0.0, "slow": rng.choice((0.2, 0.6, 0.6, 1.5, 3.5))}.get(
            kind, rng.uniform(-0.3, 0.3)
        )
        n = len(self._books.asked)
        self._books.asked.add(n)
        plan = {
            "kind": kind,
            "n": n,
            "seconds": max(0.0, round(seconds, 3)),
            "times": 1 if kind in ("hang", "deaf") else rng.randrange(1, 4),
            "stall": rng.choice((0.3, 1.2, 4.0, 8.0)),
        }
        return Task(rng.choice(self._types), plan, **options)


class AsyncUser:
    """A process that enqueues, cancels and waits for results concurrently."""

    def __init__(self, books: Books, rng: random.Random, maker: Maker) -> None:
        self._books = books
        self._random = rng
        self._maker = maker

    async def run(self, client: AsyncClient, count: int, seconds: float) -> None:
        """Enqueue `count` tasks at random times within about `seconds` seconds."""
        async with client:
            under_way = []
            while count > 0:
                await asyncio.sleep(self._random.expovariate(count / seconds) % seconds)
                size = min(count, self._random.choice((1, 1, 1, 2, 5)))
                count -= size
                tasks = [self._maker.task() for _ in range(size)]
                work = self._one(client, tasks[0]) if size == 1 else self._many(client, tasks)
                under_way.append(asyncio.ensure_future(work))
            await asyncio.gather(*under_way)

    async def _one(self, client: AsyncClient, task: Task) -> None:
        began = self._books.ledger.now
        try:
            handle = await client.enqueue(task)
        except (DuplicateTask, StoreUnavailable, QueueFull) as error:
            refused(self._books, task, error, began)
            return
        self._books.check_in_time(f"enqueue of {handle.id}", began)
        wanted = accept(self._books, handle, task.payload, task)
        chance = self._random.random()
        if chance < (0.4 if task.payload["kind"] == "slow" else 0.1):
            await asyncio.sleep(self._random.uniform(0.0, 1.5))
            await self._cancel(handle, wanted)
        elif task.retention is not None and chance < 0.6:
            await self._result(handle, wanted)

    async def _many(self, client: AsyncClient, tasks: Sequence[Task]) -> None:
        began = self._books.ledger.now
        try:
            handles: Sequence[Any] = await client.enqueue_many(tasks)
        except (StoreUnavailable, QueueFull) as error:
            self._books.given_up("enqueue_many", error, began)
            handles = error.handles or []
        plans = {task.payload["n"]: task for task in tasks}
        by_id = {task.id: task for task in tasks if task.id is not None}
        if len(handles) == len(tasks):
            pairs = list(zip(handles, tasks, strict=True))
        else:  # only tasks with ids can be matched with handles
            pairs = [(one, by_id[one.id]) for one in handles if one.id in by_id]
        assert len(plans) == len(tasks)
        for handle, task in pairs:
            if handle.created:
                accept(self._books, handle, task.payload, task)

    async def _cancel(self, handle: Any, wanted: Wanted) -> None:
        began = self._books.ledger.now
        try:
            wanted.cancelled = True
            await handle.cancel()
        except StoreUnavailable as error:
            self._books.given_up(f"cancel of {wanted.id}", error, began)

    async def _result(self, handle: Any, wanted: Wanted) -> None:
        try:
            value = await handle.result(timeout=self._random.uniform(1, 20))
        except Exception as error:
            no_result(self._books, wanted, error)
            return
        right_result(self._books, wanted, value)


class BlockingUser:
    """A process that makes the same requests sequentially, with a blocking client."""

    def __init__(self, books: Books, rng: random.Random, maker: Maker) -> None:
        self._books = books
        self._random = rng
        self._maker = maker

    def run(self, client: Client, count: int, seconds: float) -> None:
        """Enqueue `count` tasks at random times within about `seconds` seconds."""
        with client:
            for _ in range(count):
                current_thread().park(self._random.uniform(0, 2 * seconds / count))
                task = self._maker.task()
                began = self._books.ledger.now
                try:
                    handle = client.enqueue(task)
                except (DuplicateTask, StoreUnavailable, QueueFull) as error:
                    refused(self._books, task, error, began)
                    continue
                self._books.check_in_time(f"enqueue of {handle.id}", began)
                wanted = accept(self._books, handle, task.payload, task)
                if task.retention is not None and self._random.random() < 0.3:
                    try:
                        value = handle.result(timeout=2)
                    except Exception as error:
                        no_result(self._books, wanted, error)
                    else:
                        right_result(self._books, wanted, value)


def refused(books: Books, task: Task, error: QsyncError, began: float) -> None:
    """Check that the error of an enqueue had a reason."""
    if not isinstance(error, DuplicateTask):
        books.given_up(f"enqueue of {task.id}", error, began)
    elif task.unique is None:
        books.ledger.find(f"{task.id} was refused as a duplicate: {error}")


def right_result(books: Books, wanted: Wanted, value: Any) -> None:
    """Check the result that a client received."""
    books.results += 1
    if value != wanted.plan["n"]:
        books.ledger.find(f"{wanted.id} has the result {value}, not {wanted.plan['n']}")


def no_result(books: Books, wanted: Wanted, error: Exception) -> None:
    """Check that a missing result has a reason."""
    known = (ResultTimeout, TaskFailed, TaskNotFound, StoreUnavailable, TaskCancelled)
    memory = "no memory for the result" in str(error)
    if not isinstance(error, known) and not memory:
        books.ledger.find(f"result of {wanted.id}: {type(error).__name__}: {error}")
