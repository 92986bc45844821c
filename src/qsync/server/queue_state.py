"""What a server holds: its queues, and the tasks that it has leased from them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, Protocol

import msgspec

from qsync.broker import ops
from qsync.broker.call import Call
from qsync.broker.ops import FetchResult, LeaseRef
from qsync.keys import QueueKeys
from qsync.server.metrics import MetricRow
from qsync.task import Failure, Message, TaskInfo

_BOOT_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_s() -> float:
    """Seconds on a clock that goes on while the machine sleeps, for judging leases."""
    return time.clock_gettime(_BOOT_CLOCK)


Stop = Literal["cancelled", "lost", "timeout", "shutdown"]
"""Why a running handler is stopped."""


class NotBegun(asyncio.CancelledError):
    """The handler was not called: its task may not begin any more."""


class Claim(Protocol):
    """The right of a task to begin, for one that waits for a thread or a process."""

    def wait(self) -> None:
        """Note that the task waits."""

    def may_begin(self) -> bool:
        """Note that its turn has come; False when it may not begin any more. For any thread."""


READY: Final = 0
"""Leased, and waiting for a slot."""
RUNNING: Final = 1
SETTLING: Final = 2
"""Its end is known here and not yet in the store."""
GONE: Final = 3
"""No business of this server's any more."""


class LeasedTask(msgspec.Struct, eq=False):
    """A task that this server holds a lease of."""

    lane: QueueState
    id: str
    token: str
    message: Message
    failure: Failure
    crashes: int
    fetched: float
    """By boot_s, before the call that brought it."""
    expires: float
    """By boot_s; renewals move it."""
    spared: int = 0
    """Crashes that did not count for it, since another suspect may have been the cause."""
    since_us: int = 0
    """Since when it is runnable, by the store's clock; 0: since its enqueue or due time."""
    phase: int = READY
    stop: Stop | None = None
    info: TaskInfo | None = None
    task: asyncio.Task[None] | None = None
    """Set while the handler may be cancelled."""
    timer: asyncio.TimerHandle | None = None
    progress: tuple[float, float] | None = None
    waits: bool = False
    """It has a slot, and waits for a thread or a process."""
    turn: float = 0.0
    """By time.monotonic, when it got that; 0: it has not, or does not need one."""
    begun_s: float = 0.0
    """By boot_s, when the handler began."""
    began: float = 0.0
    row: MetricRow | None = None
    """When its run began, and where it is counted; set by a tally, if there is one."""

    def __repr__(self) -> str:
        return f"<Leased {self.id!r}>"  # its payload is nobody's business

    def begins(self) -> bool:
        """Note that the handler begins now; False when the lease is over."""
        self.begun_s = boot_s()
        return self.begun_s < self.expires

    def begun_us(self, now_us: int) -> int:
        """When the handler began, by the store's clock; 0 when it did not."""
        if not self.begun_s:
            return 0
        return now_us - round((boot_s() - self.begun_s) * 1_000_000)

    def expired(self) -> bool:
        """Whether the lease is over, as far as is known here."""
        return boot_s() >= self.expires

    def past_deadline(self) -> bool:
        """Whether the task's deadline may be over."""
        options = self.message.options
        if options is None or options.deadline_us is None:
            return False
        return self.lane.store_time_us() >= options.deadline_us

    @property
    def fields(self) -> dict[str, object]:
        """What a log record about the task says of it, as `extra`."""
        return {
            "task_id": self.id, "queue": self.lane.queue, "task_type": self.message.type,
            "attempt": self.failure.attempts + 1,
        }  # fmt: skip

    @property
    def held(self) -> LeaseRef:
        """Id and token, as the store's operations take them."""
        return LeaseRef(self.id, self.token)


class FetchInFlight(NamedTuple):
    """A fetch that got no answer yet; made again it brings the same tasks."""

    first: Call[FetchResult]
    token: str
    """Of the tasks that it brings."""
    since: float
    """By boot_s, when it was first made."""

    @property
    def again(self) -> Call[FetchResult]:
        """The call to make again."""
        return ops.made_again(self.first)


class QueueState:
    """One queue as a server sees it: the state of its fetches, and what is held of it."""

    __slots__ = (
        "answered", "empty", "flown", "full", "generation", "held", "keys", "last_fetch",
        "met_unknown", "more", "next_due", "number", "queue", "refused", "revoked",
        "store_now_us", "store_seen", "unanswered", "unread", "wanted",
    )  # fmt: skip

    def __init__(self, keys: QueueKeys) -> None:
        self.keys = keys
        self.queue = keys.queue
        self.held: dict[str, LeasedTask] = {}
        """By id; the heartbeat thread reads copies of it."""
        self.number = 0
        """Of the last fetch sent."""
        self.unanswered: FetchInFlight | None = None
        """The heartbeat thread reads it."""
        self.revoked: str | None = None
        """The token of a fetch whose tasks the heartbeat thread gave back before they were read."""
        self.unread: Sequence[str] = ()
        """What the heartbeat thread keeps of a fetch whose answer lies unread: the same ids, unless
        the store lost its data in between."""
        self.wanted = 0
        self.flown = 0.0
        """By boot_s, when the fetch under way was sent."""
        self.empty = False
        """The last fetch left nothing: wait for a wake."""
        self.full = False
        """The last fetch left tasks that wait."""
        self.refused = False
        """The store did not take the last settlements: fetch nothing more until it does."""
        self.more = False
        """The upkeep of the queue has more to do at once."""
        self.last_fetch = -1e9
        self.answered = -1e9
        """By boot_s, when the store last answered a fetch or a look."""
        self.next_due: float | None = None
        """By boot_s, when something of the queue is next due."""
        self.met_unknown = -1e9
        """By boot_s, when a task of a type that this server does not know was last handed back."""
        self.generation: str | None = None
        """Of the queue's data, as the last fetch saw it."""
        self.store_now_us = 0
        self.store_seen = 0.0

    def store_time_us(self) -> int:
        """The latest that the store's clock may show now; 0 before the first fetch."""
        if not self.store_now_us:
            return 0
        return self.store_now_us + int((boot_s() - self.store_seen) * 1_000_000)

    def drop(self, leased: LeasedTask) -> None:
        """The server has nothing to do with this task any more."""
        leased.phase = GONE
        if self.held.get(leased.id) is leased:
            del self.held[leased.id]
