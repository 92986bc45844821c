"""What clients ask for, and what handlers do with it: well-behaved tasks and all the others."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from qsync.client import AsyncClient, Client
from qsync.errors import (
    DuplicateTask,
    QsyncError,
    QueueFull,
    ResultTimeout,
    Retry,
    SkipRetry,
    StoreUnavailable,
    TaskCancelled,
    TaskFailed,
    TaskNotFound,
)
from qsync.mux import Mux
from qsync.server.current import current
from qsync.task import Task, TaskInfo
from tests.sim.ledger import US, Entry, Ledger
from tests.sim.process import WALL, Proc
from tests.sim.threads import current_thread

KINDS: Final = {
    # kind: weight
    "ok": 8, "slow": 5, "fail": 4, "skip": 1, "again": 1, "hang": 1, "deaf": 1, "crash": 2,
    "poison": 1, "block": 1, "nested": 2, "progress": 1, "gives_up": 1,
}  # fmt: skip

CHARGED: Final = (ValueError, Retry, SkipRetry, TimeoutError, RuntimeError)
"""What handlers here fail with."""

QUEUES: Final = ("main", "side")
MAX_CRASHES: Final = 3


@dataclass(slots=True)
class Wanted:
    """A task whose enqueue returned."""

    queue: str
    id: str
    plan: dict[str, Any]
    retry: int
    deadline_us: int | None
    retention: float | None
    cancelled: bool = False


@dataclass(slots=True)
class Books:
    """What clients and handlers know, kept outside of the store."""

    ledger: Ledger
    accepted: dict[tuple[str, str], Wanted] = field(default_factory=dict)
    unanswered: int = 0
    results: int = 0
    runs: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """Tokens by task, in the order of their starts."""


# Handlers


class Handlers:
    """The handlers of one server process."""

    def __init__(self, process: Proc, books: Books, die: Callable[[], None]) -> None:
        self._process = process
        self._books = books
        self._die = die

    def mux(self, types: Sequence[str]) -> Mux:
        mux = Mux()
        for type in types:
            mux.handle(type)(self._handle)
        return mux

    def on_error(self, error: BaseException, task: TaskInfo) -> None:
        """Check that a failure is charged to a task only when it is the task's own."""
        if not isinstance(error, CHARGED):
            shown = f"{type(error).__name__}: {error}"
            self._books.ledger.find(f"{task.id} is charged with {shown}")

    async def _handle(self, task: TaskInfo) -> Any:
        entry = self._began(task)
        plan: dict[str, Any] = task.value(dict)
        kind = plan["kind"]
        crashed = sum(one.started for one in entry.deliveries if one.ended in (None, "lapsed"))
        if kind == "poison" and crashed > MAX_CRASHES * entry.created:
            self._books.ledger.find(f"poison {task.id} is started for the {entry.starts}th time")
        if plan["seconds"]:
            await asyncio.sleep(plan["seconds"])
        handler = getattr(self, f"_{kind}", None)
        if handler is not None:
            await handler(task, plan)
        return plan["n"]

    def _began(self, task: TaskInfo) -> Entry:
        """Check that it may run now; what stood still on its way to here is judged by then."""
        books, process = self._books, self._process
        ledger = books.ledger
        entry = ledger.entry(task.queue, task.id)
        books.runs.setdefault((task.queue, task.id), []).append(task.token)
        entry.starts += 1
        if round((WALL + process.loop.now) * US) < entry.due_us:
            ledger.find(f"{task.id} was started before {entry.due_us / US - WALL}")
        now = process.loop.now
        held_since, held_until = process.held  # its last check may have been before that
        if process.loop.current in process.overtaken and held_until >= held_since:
            now = held_since
        now_us = round((WALL + now) * US)
        lease = next((one for one in entry.deliveries if one.token == task.token), None)
        if lease is None:
            ledger.find(f"{task.id} runs under {task.token}, which nobody was given")
            return entry
        if lease.started:
            ledger.find(f"{task.id} was started twice under {task.token}")
        lease.started = True
        if lease.expires_us + 1000 < now_us:
            over = (now_us - lease.expires_us) / US
            ledger.find(f"{task.id} was started by {process.name} {over} s after its lease")
        if task.deadline_us is not None and now_us > task.deadline_us + 20_000:
            over = (now_us - task.deadline_us) / US
            ledger.find(f"{task.id} was started by {process.name} {over} s after its deadline")
        if task.attempt > task.retry + 1:
            ledger.find(f"{task.id} makes attempt {task.attempt} with {task.retry} retries")
        return entry

    async def _fail(self, task: TaskInfo, plan: dict[str, Any]) -> None:
        if task.attempt <= plan["times"]:
            msg = f"planned failure {task.attempt}"
            raise ValueError(msg)

    async def _skip(self, task: TaskInfo, plan: dict[str, Any]) -> None:
        msg = "not again"
        raise SkipRetry(msg)

    async def _again(self, task: TaskInfo, plan: dict[str, Any]) -> None:
        if task.attempt <= plan["times"]:
            raise Retry("later", delay=0.3)

    async def _hang(self, task: TaskInfo, plan: dict[str, Any]) -> None:
        if task.attempt <= plan["times"]:
            await asyncio.get_running_loop().create_future()

    async def _deaf(self, task: TaskInfo, plan: dict[str, Any]) -> None:
        if task.attempt > plan["times"]:
            return
        loop = asyncio.get_running_loop()
        ends = loop.time() + 12
        while loop.time() < ends:
            try:
                await asyncio.sleep(ends - loop.time())
            except asyncio.CancelledError:
                continue

    async def _crash_now(self, task: TaskInfo) -> None:
        self._process.poisoned_by = task.id
        self._die()
        await asyncio.get_running_loop().create_future()

    async def _crash(self, task: TaskInfo, plan: dict[str, Any]) -> None:
        if task.crashes == 0:
            await self._crash_now(task)

    async def _poison(self, task: TaskInfo, plan: dict[str, Any]) -> None:
        await self._crash_now(task)

    async def _block(self, task: TaskInfo, plan: dict[str, Any]) -> None:
        if task.attempt == 1:
            self._process.stall(plan["stall"])
            await asyncio.sleep(0)

    async def _nested(self, task: TaskInfo, plan: dict[str, Any]) -> None:
        child = {"kind": "ok", "n": plan["n"] + 1_000_000, "seconds": 0.0, "times": 0}
        made = Task("work", child, id=f"{task.id}.child", queue=QUEUES[0])
        try:
            handle = await current().client.enqueue(made)
        except DuplicateTask:  # an earlier run of this task was that far
            return
        except (StoreUnavailable, QueueFull) as error:
            msg = "no child"
            raise ValueError(msg) from error
        accept(self._books, handle, child, made)

    async def _progress(self, task: TaskInfo, plan: dict[str, Any]) -> None:
        for done in range(3):
            current().progress(done, 3)
            await asyncio.sleep(0.1)

    async def _gives_up(self, task: TaskInfo, plan: dict[str, Any]) -> None:
        if task.attempt <= plan["times"]:
            raise asyncio.CancelledError


# Clients


def accept(books: Books, handle: Any, plan: dict[str, Any], task: Task) -> Wanted:
    """Note that an enqueue returned."""
    deadline = None if task.deadline is None else round(task.deadline.timestamp() * US)
    retention: Any = task.retention
    wanted = Wanted(handle.queue, handle.id, plan, task.retry, deadline, retention)
    books.accepted[handle.queue, handle.id] = wanted
    return wanted


class Maker:
    """Makes tasks of every kind."""

    def __init__(self, name: str, rng: random.Random, *, poison: int, types: Sequence[str]) -> None:
        self._name = name
        self._random = rng
        self._poison = poison
        self._types = types
        self._made = 0

    def task(self, now_us: int) -> Task:
        rng = self._random
        [kind] = rng.choices(list(KINDS), list(KINDS.values()))
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
            options["timeout"] = rng.uniform(0.3, 2.0)
        if rng.random() < 0.15:
            us = now_us + rng.choice((200_000, 1_000_000, 6_000_000))
            options["deadline"] = datetime.fromtimestamp(us / US, UTC)
        if rng.random() < 0.15:
            options["unique"] = rng.choice((True, True, 4.0))
            options["unique_key"] = f"key{rng.randrange(4)}"
        if rng.random() < 0.4:
            options["retention"] = rng.choice((1.0, 200.0, 200.0))
        if rng.random() < 0.15:
            options["fairness_key"] = rng.choice("abc")
        options["retry_delay"] = rng.choice((0.01, 0.3, 1.5))
        seconds = {"ok": 0.0, "slow": rng.uniform(0.2, 5.0)}.get(kind, rng.uniform(-0.5, 0.5))
        plan = {
            "kind": kind,
            "n": self._made,
            "seconds": max(0.0, round(seconds, 3)),
            "times": rng.randrange(1, 4),
            "stall": round(rng.uniform(0.3, 8.0), 3),
        }
        return Task(rng.choice(self._types), plan, **options)


class AsyncUser:
    """A process that enqueues, cancels and waits for results, much of it at the same time."""

    def __init__(self, process: Proc, books: Books, rng: random.Random, maker: Maker) -> None:
        self._process = process
        self._books = books
        self._random = rng
        self._maker = maker

    async def run(self, client: AsyncClient, count: int, seconds: float) -> None:
        """Enqueue so many tasks in so many seconds."""
        async with client:
            under_way = []
            while count > 0:
                await asyncio.sleep(self._random.expovariate(count / seconds) % seconds)
                size = min(count, self._random.choice((1, 1, 1, 2, 5)))
                count -= size
                tasks = [self._maker.task(self._now_us()) for _ in range(size)]
                work = self._one(client, tasks[0]) if size == 1 else self._many(client, tasks)
                under_way.append(asyncio.ensure_future(work))
            await asyncio.gather(*under_way)

    def _now_us(self) -> int:
        return round((WALL + self._process.loop.now) * US)

    async def _one(self, client: AsyncClient, task: Task) -> None:
        try:
            handle = await client.enqueue(task)
        except (DuplicateTask, StoreUnavailable, QueueFull) as error:
            refused(self._books, task, error)
            return
        wanted = accept(self._books, handle, task.payload, task)
        chance = self._random.random()
        if chance < (0.4 if task.payload["kind"] == "slow" else 0.1):
            await asyncio.sleep(self._random.uniform(0.0, 1.5))
            await self._cancel(handle, wanted)
        elif task.retention is not None and chance < 0.6:
            await self._result(handle, wanted)

    async def _many(self, client: AsyncClient, tasks: Sequence[Task]) -> None:
        try:
            handles: Sequence[Any] = await client.enqueue_many(tasks)
        except (StoreUnavailable, QueueFull) as error:
            self._books.unanswered += 1
            handles = error.handles or []
        plans = {task.payload["n"]: task for task in tasks}
        by_id = {task.id: task for task in tasks if task.id is not None}
        if len(handles) == len(tasks):
            pairs = list(zip(handles, tasks, strict=True))
        else:  # only those that have ids can be told
            pairs = [(one, by_id[one.id]) for one in handles if one.id in by_id]
        assert len(plans) == len(tasks)
        for handle, task in pairs:
            if handle.created:
                accept(self._books, handle, task.payload, task)

    async def _cancel(self, handle: Any, wanted: Wanted) -> None:
        try:
            wanted.cancelled = True
            await handle.cancel()
        except StoreUnavailable:
            self._books.unanswered += 1

    async def _result(self, handle: Any, wanted: Wanted) -> None:
        try:
            value = await handle.result(timeout=self._random.uniform(1, 20))
        except Exception as error:
            no_result(self._books, wanted, error)
            return
        right_result(self._books, wanted, value)


class BlockingUser:
    """A process that does the same by a blocking client, one thing after the other."""

    def __init__(self, process: Proc, books: Books, rng: random.Random, maker: Maker) -> None:
        self._process = process
        self._books = books
        self._random = rng
        self._maker = maker

    def run(self, client: Client, count: int, seconds: float) -> None:
        """Enqueue so many tasks in so many seconds."""
        with client:
            for _ in range(count):
                current_thread().park(self._random.uniform(0, 2 * seconds / count))
                task = self._maker.task(round((WALL + self._process.loop.now) * US))
                try:
                    handle = client.enqueue(task)
                except (DuplicateTask, StoreUnavailable, QueueFull) as error:
                    refused(self._books, task, error)
                    continue
                wanted = accept(self._books, handle, task.payload, task)
                if task.retention is not None and self._random.random() < 0.3:
                    try:
                        value = handle.result(timeout=2)
                    except Exception as error:
                        no_result(self._books, wanted, error)
                    else:
                        right_result(self._books, wanted, value)


def refused(books: Books, task: Task, error: QsyncError) -> None:
    """Check that an enqueue had a reason to raise."""
    if not isinstance(error, DuplicateTask):
        books.unanswered += 1
    elif task.unique is None:
        books.ledger.find(f"{task.id} is said to be a duplicate: {error}")


def right_result(books: Books, wanted: Wanted, value: Any) -> None:
    """Check what a client was given as a result."""
    books.results += 1
    if value != wanted.plan["n"]:
        books.ledger.find(f"{wanted.id} has the result {value}, not {wanted.plan['n']}")


def no_result(books: Books, wanted: Wanted, error: Exception) -> None:
    """Check that there is a reason for a result not to come."""
    known = (ResultTimeout, TaskFailed, TaskNotFound, StoreUnavailable, TaskCancelled)
    memory = "no memory for the result" in str(error)
    if not isinstance(error, known) and not memory:
        books.ledger.find(f"result of {wanted.id}: {type(error).__name__}: {error}")
