"""The state of a server's queues, and of the tasks that it has leased from them.

The event loop (L) and a heartbeat thread (H) share some fields without a lock: each access is one
operation that the interpreter makes atomic.

    LeasedTask.expires             L and H write after a renewal; L reads before a start
    LeasedTask.phase               L writes; H sets RELEASED for what it handed back
    QueueState.held                L writes; H removes what it handed back; H reads a copy
    QueueState.in_flight           L writes; H reads, to repeat a fetch whose answer L cannot read
    QueueState.unread_ids          H writes the ids of an unread fetch that it renewed; L takes them
    QueueState.repeated_token      H writes before it repeats a fetch; L reads
    QueueState.revoked_token       H writes before it hands back a fetch unread, and checks
                                   `in_flight` afterwards; L starts none of its tasks
    QueueState.handed_back_token   only H reads and writes

Only L accesses the other fields.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any, Final, Literal, NamedTuple, Protocol

import msgspec

from qsync.broker import ops
from qsync.broker.call import Call
from qsync.broker.op_values import FetchResult, LeaseRef
from qsync.keys import QueueKeys
from qsync.message import Failure, Message
from qsync.server.clock import boot_s
from qsync.server.metrics import MetricRow
from qsync.task import TaskInfo

Stop = Literal["cancelled", "lost", "timeout", "shutdown"]
"""Reason for stopping a running handler."""


class HandlerNotStarted(asyncio.CancelledError):
    """The handler was not called, because its task may no longer start."""


class Claim(Protocol):
    """A task's permission to start, while it waits for a thread or a process."""

    def wait(self) -> None:
        """Record that the task waits for a thread or a process."""

    def may_begin(self) -> bool:
        """Record that a thread or process is free; return False if the task may no longer start.

        Any thread may call this.
        """

    def is_of(self, leased: LeasedTask) -> bool:
        """Return whether this claim belongs to a task."""

    def progress(self, done: float, total: float) -> None:
        """Report the task's progress; raise LeaseLost once its lease is known to be lost."""


class Phase(IntEnum):
    """The stage of a leased task on this server."""

    QUEUED = 0
    """The task waits for a slot."""
    RUNNING = 1
    SETTLING = 2
    """The task has ended, but the store has not recorded that yet."""
    RELEASED = 3
    """The server no longer holds the task."""


QUEUED: Final = Phase.QUEUED
RUNNING: Final = Phase.RUNNING
SETTLING: Final = Phase.SETTLING
RELEASED: Final = Phase.RELEASED


class LeasedTask(msgspec.Struct, eq=False, gc=False):
    """A task on which this server holds a lease.

    The garbage collector does not track these objects, since a busy server holds thousands of them.
    Therefore, a reference cycle through `task`, `timer` or `call` must be broken when the task
    ends.
    """

    queue: QueueState
    id: str
    token: str
    message: Message
    failure: Failure
    crashes: int
    fetched: float
    """Time at which the fetch of the task was sent, by boot_s."""
    expires: float
    """Time at which the lease expires, by boot_s; each renewal extends it."""
    leased_us: int = 0
    """Time of the lease by the store's clock, in microseconds; 0 if it is unknown, after a late or
    repeated reply."""
    spared: int = 0
    """Number of the task's crashes that do not count, because another task may have caused them."""
    since_us: int = 0
    """Time at which the task became runnable, by the store's clock, in microseconds; 0 if that was
    when it was enqueued or due."""
    phase: Phase = QUEUED
    stop: Stop | None = None
    info: TaskInfo | None = None
    task: asyncio.Task[None] | asyncio.Future[Any] | None = None
    """asyncio task of the handler, or the future of its result if it runs in a thread; None unless
    it may be cancelled."""
    call: Any = None
    """BatchCall that runs the task together with other tasks; None means that the task runs
    alone."""
    timer: asyncio.TimerHandle | None = None
    progress: tuple[float, float] | None = None
    waits: bool = False
    """True while the task has a slot and waits for a thread or a process."""
    turn: float = 0.0
    """Time at which the task got its thread or process, by time.monotonic; 0 if it has none yet or
    needs none."""
    thread: int = 0
    """Identifier of the thread that runs the handler; 0 before the handler starts, or if it runs on
    the event loop."""
    begun_s: float = 0.0
    """Time at which the handler started, by boot_s; 0 before the start."""
    began: float = 0.0
    """Start of the run, by time.monotonic; only RunMetrics sets it."""
    row: MetricRow | None = None
    """Metrics row of the run; only RunMetrics sets it."""

    def __repr__(self) -> str:
        return f"<LeasedTask {self.id!r}>"  # without the payload, which may be confidential

    def task_info(self) -> TaskInfo:
        """Return the task as the handler sees it."""
        message = self.message
        options = message.options
        if options is None:  # by far the most frequent case
            return TaskInfo(
                id=self.id, type=message.type, payload=message.payload, queue=self.queue.name,
                retry=message.retry, attempt=self.failure.attempts + 1, crashes=self.crashes,
                enqueued_at_us=message.enqueued_at_us, token=self.token, is_value=message.is_value,
            )  # fmt: skip
        return TaskInfo(
            id=self.id,
            type=message.type,
            payload=message.payload,
            queue=self.queue.name,
            retry=message.retry,
            attempt=self.failure.attempts + 1,
            crashes=self.crashes,
            enqueued_at_us=message.enqueued_at_us,
            deadline_us=options.deadline_us,
            headers=options.headers or {},
            token=self.token,
            is_value=message.is_value,
        )

    @property
    def has_started(self) -> bool:
        """Whether the handler has been called, or may have been."""
        return self.begun_s > 0 and not self.waits

    @property
    def has_limits(self) -> bool:
        """Whether the task counts towards a limit."""
        return self.message.options is not None and bool(self.message.options.limits)

    def begins(self) -> bool:
        """Record that the handler starts now; return False if the lease has expired."""
        self.begun_s = boot_s()
        return self.begun_s < self.expires

    def begun_us(self, now_us: int) -> int:
        """Return the handler's start by the store's clock, in microseconds; 0 before the start."""
        if not self.begun_s:
            return 0
        return now_us - round((boot_s() - self.begun_s) * 1_000_000)

    def expired(self) -> bool:
        """Return whether the lease has expired, as far as this server knows."""
        return boot_s() >= self.expires

    def past_deadline(self) -> bool:
        """Return whether the task's deadline may have passed."""
        options = self.message.options
        if options is None or options.deadline_us is None:
            return False
        return self.queue.store_time_us() >= options.deadline_us

    @property
    def fields(self) -> dict[str, object]:
        """Return the task's fields for a log record, for use as `extra`."""
        return {
            "task_id": self.id, "queue": self.queue.name, "task_type": self.message.type,
            "attempt": self.failure.attempts + 1,
        }  # fmt: skip

    @property
    def held(self) -> LeaseRef:
        """Return the task's id and lease token in the form that store operations take."""
        return LeaseRef(self.id, self.token)


class FetchInFlight(NamedTuple):
    """A fetch that has not been answered yet; repeating the call returns the same tasks."""

    first: Call[FetchResult]
    token: str
    """Lease token for the tasks that the fetch returns."""
    since: float
    """Time of the first call, by boot_s."""

    @property
    def again(self) -> Call[FetchResult]:
        """Return the call that repeats the fetch."""
        return ops.made_again(self.first)


class QueueState:
    """One queue of a server: the state of its fetches, and the tasks leased from it."""

    __slots__ = (
        "answered",
        "awaits_rules",
        "blocked_until",
        "exhausted",
        "generation",
        "handed_back_token",
        "has_more_pending",
        "held",
        "in_flight",
        "keys",
        "last_fetch",
        "name",
        "next_due",
        "number",
        "refused",
        "repeated_token",
        "requested",
        "revoked_token",
        "rules_generation",
        "sent_at",
        "store_now_read_at",
        "store_now_us",
        "unknown_type_at",
        "unread_ids",
        "upkeep_pending",
    )  # fmt: skip

    refused: bool
    """True if the store refused the last settlements. Nothing is fetched until it accepts them."""

    awaits_rules: bool
    """True until the store has the program's limits and bounds for the queue.

    Nothing is fetched until then.
    """

    unknown_type_at: float
    """Time at which this server last handed back a task without a handler, by boot_s."""

    repeated_token: str | None
    """Token of the last fetch that the heartbeat thread has repeated."""

    generation: str | None
    """Generation of the queue's data at the last fetch; None before the first fetch."""

    rules_generation: str
    """Generation for which the server has published its program's limits; empty before the first
    fetch, and if the program has no limits. While the data have another generation, the store
    leases no tasks with limits to the server."""

    store_now_us: int
    """The store's time at the last fetch; 0 before the first fetch."""

    store_now_read_at: float
    """Time at which the last fetch was sent, by boot_s."""

    def __init__(self, keys: QueueKeys) -> None:
        self.keys: QueueKeys = keys
        self.name: str = keys.queue
        self.held: dict[str, LeasedTask] = {}
        """Leased tasks by id; the heartbeat thread reads copies of the dict."""
        self.number: int = 0
        """Number of the last fetch sent."""
        self.in_flight: FetchInFlight | None = None
        """Unanswered fetch, or None; the heartbeat thread reads it."""
        self.repeated_token = None
        self.revoked_token: str | None = None
        """Token of a fetch whose tasks the heartbeat thread hands back unread."""
        self.handed_back_token: str | None = None
        """Token of the last fetch whose tasks were handed back unread."""
        self.unread_ids: Sequence[str] = ()
        """Ids that the heartbeat thread renewed for a fetch whose answer is unread."""
        self.requested: int = 0
        """Number of tasks that the fetch in flight asks for."""
        self.blocked_until: float = 0.0
        """Time until which the fetch in flight waits for a wake, by boot_s; 0 if it does not."""
        self.sent_at: float = 0.0
        """Time at which the fetch in flight was sent, by boot_s."""
        self.exhausted: bool = False
        """True if the last fetch left no tasks, so that the server waits for a wake."""
        self.has_more_pending: bool = False
        """True if the last fetch left pending tasks."""
        self.refused = False
        self.awaits_rules = False
        self.upkeep_pending: bool = False
        """True if more upkeep of the queue is due immediately."""
        self.last_fetch: float = -1e9
        self.answered: float = -1e9
        """Times, by boot_s, of the last answer to a fetch, and of the last answer to a fetch or a
        check."""
        self.next_due: float | None = None
        """Time at which the queue's next task or upkeep is due, by boot_s."""
        self.unknown_type_at = -1e9
        self.generation = None
        self.rules_generation = ""
        self.store_now_us = 0
        self.store_now_read_at = 0.0

    def store_time_us(self) -> int:
        """Return an upper bound for the store's current time, in microseconds; 0 before the first
        fetch."""
        if not self.store_now_us:
            return 0
        return self.store_now_us + int((boot_s() - self.store_now_read_at) * 1_000_000)

    def ran_at(self, now_us: int, sent: float) -> float:
        """Estimate when the store ran a fetch, by boot_s; the estimate is never too late.

        `now_us` is the store's clock at the time of the fetch. The previous fetch shows how that
        clock relates to boot_s.
        """
        if not self.store_now_us:
            return sent
        passed = (now_us - self.store_now_us) / 1_000_000
        return min(max(sent, self.store_now_read_at + passed), boot_s())

    def drop(self, tasks: Iterable[LeasedTask]) -> None:
        """Remove tasks that the server no longer holds."""
        held = self.held
        pop = held.pop
        for leased in tasks:
            leased.phase = RELEASED
            dropped = pop(leased.id, leased)
            if dropped is not leased:  # the server has leased the task again
                held[leased.id] = dropped
