"""The handlers of the simulation, both well-behaved and misbehaving."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from qsync.broker.base import DEFAULT_PATIENCE_S, LINE_S
from qsync.errors import DuplicateTask, QueueFull, Retry, SkipRetry, StoreUnavailable
from qsync.mux import Mux
from qsync.server.current import current
from qsync.task import Task, TaskInfo
from tests.simulation.editor import Documents, is_edit
from tests.simulation.entries import US, Entry
from tests.simulation.ledger import Ledger
from tests.simulation.loop import STRAND
from tests.simulation.process import WALL, Proc
from tests.simulation.store import SimStore
from tests.simulation.threads import current_thread

KINDS: Final = {
    # kind: weight
    "ok": 8, "slow": 5, "fail": 4, "skip": 1, "again": 1, "hang": 1, "deaf": 1, "crash": 2,
    "poison": 1, "block": 1, "nested": 2, "progress": 1, "gives_up": 1,
}  # fmt: skip

CHARGED: Final = (ValueError, Retry, SkipRetry, TimeoutError, RuntimeError)
"""Exceptions with which handlers fail on purpose."""

QUEUES: Final = ("main", "side")
MAX_CRASHES: Final = 3
SPARED_MOST: Final = 3
"""How many crashes that occur while other suspects run are not charged to a task; see
include/crash_counts.lua."""

DEAF_S: Final = 5.0
"""How long a handler that ignores its cancellation continues, in seconds. This time is longer than
a lease."""

KNOWN_S: Final = 5.0
"""Time within which servers notice a jump of the store's clock, in seconds."""

LONGEST_DELAY_S: Final = 5.0
"""Longest delay between retries, in seconds. A client gives up early when the next delay would
exceed its patience."""

LONGEST_WAIT_S: Final = DEFAULT_PATIENCE_S + LINE_S + 1.0
"""Longest duration of a call, in seconds: its patience, plus `LINE_S` if it waits in a queue of
callers that is moving, plus a margin."""

CHILD: Final = 1_000_000
"""Difference between the number of a child task and the number of its parent."""


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
    """What clients and handlers have recorded, outside the store."""

    ledger: Ledger
    store: SimStore
    asked: set[int] = field(default_factory=lambda: {0})
    """Numbers of the tasks that clients or handlers enqueued; 0 stands for ticks."""
    accepted: dict[tuple[str, str], Wanted] = field(default_factory=dict)
    documents: Documents = field(default_factory=Documents)
    unanswered: int = 0
    results: int = 0

    def given_up(self, what: object, error: Exception, began: float) -> None:
        """Record that a call failed, and check that the client retried until its patience ended."""
        self.unanswered += 1
        took = self.ledger.now - began
        if isinstance(error, StoreUnavailable) and took < DEFAULT_PATIENCE_S - LONGEST_DELAY_S:
            self.ledger.find(f"{what}: StoreUnavailable after {took:.3f} s: {error}")
        self.check_in_time(what, began)

    def check_in_time(self, what: object, began: float) -> None:
        """Check that a call ended within its caller's patience, even if other callers waited
        longer."""
        strand = STRAND.get()
        assert strand is not None
        process, now = cast("Proc", strand.process), self.ledger.now
        took = now - began - process.stood_still_for(began, now)
        if took > LONGEST_WAIT_S:
            self.ledger.find(f"{what} took {took:.3f} s")

    def past_deadline(self, task: TaskInfo, now: float) -> float:
        """Return by how many seconds a task is past its deadline, ignoring recent jumps of the
        store's clock that servers may not have noticed yet."""
        if task.deadline_us is None:
            return 0.0
        forward_us, _ = self.store.jumped_us(now - KNOWN_S)
        now_us = (WALL + now) * US + self.store.skew_us - forward_us
        return (now_us - task.deadline_us) / US


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
            threaded = type.endswith("-thread")
            if threaded:  # the handler may begin long after the middleware
                mux.handle(type)(self._handle_in_thread)
            else:
                mux.handle(type, middleware=(self._beginning,))(self._handle)
        return mux

    async def _beginning(self, task: TaskInfo, call_next: Callable[[], Any]) -> Any:
        self._began(task)
        return await call_next()

    def on_error(self, error: BaseException, task: TaskInfo) -> None:
        """Check that a task loses an attempt only if its own handler failed."""
        if not isinstance(error, CHARGED):
            shown = f"{type(error).__name__}: {error}"
            self._books.ledger.find(
                f"{task.id} lost an attempt to a failure that is not its own: {shown}"
            )

    async def _handle(self, task: TaskInfo) -> Any:
        plan: dict[str, Any] = task.value(dict)
        if plan["seconds"]:
            await asyncio.sleep(plan["seconds"])
        handler = getattr(self, f"_{plan['kind']}", None)
        if handler is not None:
            await handler(task, plan)
        return plan["n"]

    def _began(self, task: TaskInfo) -> None:
        """Check that the task may run now."""
        books, process = self._books, self._process
        if is_edit(task.id):
            return
        find, now = books.ledger.find, process.loop.now
        entry = books.ledger.entry(task.queue, task.id)
        if task.value(dict)["n"] not in books.asked:
            find(f"{task.id} was started without an enqueue")
        if (over := books.past_deadline(task, now)) > 0.02:
            find(f"{task.id} was started by {process.name} {over} s after its deadline")
        if task.attempt > max(task.retry, entry.returned_attempts) + 1:
            find(f"{task.id} started attempt {task.attempt} with only {task.retry} retries")
        if (task.queue, task.id, task.token) in books.ledger.void:
            return  # the store has lost the lease, but the server does not know
        entry.starts += 1
        if books.store.latest_us < entry.due_us:
            find(f"{task.id} was started {(entry.due_us - books.store.now_us) / US} s early")
        lease = next((one for one in entry.deliveries if one.token == task.token), None)
        if lease is None:
            find(f"{task.id} runs under {task.token}, a token that no server received")
            return
        if lease.started:
            find(f"{task.id} was started twice under {task.token}")
        lease.started = True
        if lease.expires_at + 0.001 < now:
            over = now - lease.expires_at
            find(f"{task.id} was started by {process.name} {over} s after its lease expired")
        self._check_alone(entry)
        runs = [one for one in entry.deliveries if one.started and one.ended in (None, "lapsed")]
        spared = min(sum(one.together for one in runs), SPARED_MOST * entry.created)
        most = MAX_CRASHES * entry.created + spared
        if task.value(dict)["kind"] == "poison" and len(runs) > most:
            find(f"poison {task.id} was started {entry.starts} times")

    def _check_alone(self, entry: Entry) -> None:
        """Check that no other task with a valid lease runs under the same lock."""
        books = self._books
        for other in books.ledger.entries.values() if entry.lock else ():
            lease = other.lease
            shares = other is not entry and (other.queue, other.lock) == (entry.queue, entry.lock)
            runs = lease is not None and lease.started and lease.expires_us > books.store.latest_us
            if shares and runs:
                books.ledger.find(f"{entry.id} and {other.id} run under one lock")

    async def _edit(self, task: TaskInfo, plan: dict[str, Any]) -> None:
        await self._fail(task, plan)
        self._books.documents.note_run(plan)

    async def _fail(self, task: TaskInfo, plan: dict[str, Any]) -> None:
        if task.attempt <= plan["times"]:
            raise ValueError(f"planned failure {task.attempt}")

    async def _skip(self, task: TaskInfo, plan: dict[str, Any]) -> None:
        raise SkipRetry("not again")

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
        ends = loop.time() + DEAF_S
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

    def _child(self, task: TaskInfo, plan: dict[str, Any]) -> Task:
        child = {"kind": "ok", "n": plan["n"] + CHILD, "seconds": 0.0, "times": 0}
        self._books.asked.add(child["n"])
        return Task("work", child, id=f"{task.id}.child", queue=QUEUES[0])

    async def _nested(self, task: TaskInfo, plan: dict[str, Any]) -> None:
        made = self._child(task, plan)
        try:
            handle = await current().client.enqueue(made)
        except DuplicateTask:  # an earlier run of this task enqueued the child
            return
        except (StoreUnavailable, QueueFull) as error:
            raise ValueError("no child") from error
        accept(self._books, handle, made.payload, made)

    async def _progress(self, task: TaskInfo, plan: dict[str, Any]) -> None:
        for done in range(3):
            current().progress(done, 3)
            await asyncio.sleep(0.1)

    async def _gives_up(self, task: TaskInfo, plan: dict[str, Any]) -> None:
        if task.attempt <= plan["times"]:
            raise asyncio.CancelledError

    # In threads

    def _handle_in_thread(self, task: TaskInfo) -> Any:
        self._began(task)
        if current().cancelled:
            self._books.ledger.find(f"{task.id} began in a thread after the server had given it up")
        plan: dict[str, Any] = task.value(dict)
        current_thread().park(plan["seconds"])
        handler = getattr(self, f"_thread_{plan['kind']}", None)
        if handler is not None:
            handler(task, plan)
        return plan["n"]

    def _thread_fail(self, task: TaskInfo, plan: dict[str, Any]) -> None:
        if task.attempt <= plan["times"]:
            raise ValueError(f"planned failure {task.attempt}")

    def _thread_skip(self, task: TaskInfo, plan: dict[str, Any]) -> None:
        raise SkipRetry("not again")

    def _thread_again(self, task: TaskInfo, plan: dict[str, Any]) -> None:
        if task.attempt <= plan["times"]:
            raise Retry("later", delay=0.3)

    def _thread_hang(self, task: TaskInfo, plan: dict[str, Any]) -> None:
        while task.attempt <= plan["times"] and not current().cancelled:
            current_thread().park(0.25)

    def _thread_deaf(self, task: TaskInfo, plan: dict[str, Any]) -> None:
        if task.attempt <= plan["times"]:
            current_thread().park(DEAF_S)

    def _thread_crash(self, task: TaskInfo, plan: dict[str, Any]) -> None:
        if task.crashes == 0:
            self._thread_poison(task, plan)

    def _thread_poison(self, task: TaskInfo, plan: dict[str, Any]) -> None:
        self._process.poisoned_by = task.id
        self._die()
        current_thread().park(None)

    def _thread_nested(self, task: TaskInfo, plan: dict[str, Any]) -> None:
        made = self._child(task, plan)
        try:
            handle = current().client.enqueue(made)
        except DuplicateTask:
            return
        except (StoreUnavailable, QueueFull) as error:
            raise ValueError("no child") from error
        accept(self._books, handle, made.payload, made)

    def _thread_progress(self, task: TaskInfo, plan: dict[str, Any]) -> None:
        for done in range(3):
            current().progress(done, 3)
            current_thread().park(0.1)


def accept(books: Books, handle: Any, plan: dict[str, Any], task: Task) -> Wanted:
    """Record that an enqueue returned."""
    deadline = None if task.deadline is None else round(task.deadline.timestamp() * US)
    retention: Any = task.retention
    wanted = Wanted(handle.queue, handle.id, plan, task.retry, deadline, retention)
    books.accepted[handle.queue, handle.id] = wanted
    return wanted
