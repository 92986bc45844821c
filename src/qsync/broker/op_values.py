"""The values that operations on tasks take and return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol

import msgspec

MAX_TASKS_PER_CALL: Final = 500
"""Maximum number of tasks that a script accepts. A fetch may have as many, because a larger fetch
costs less per task: its upkeep costs the same for any number of tasks."""

BATCH_BYTES: Final = 4 * 1024 * 1024

BATCH_SIZE: Final = 250
"""Maximum number of tasks per batch. A larger batch costs the same per task, but blocks the store
for longer."""

MAINTENANCE_BATCH: Final = 100
"""Maximum number of tasks per call that deletes or reruns tasks; it is small, so that urgent calls
are not delayed."""

SHORT_FAILURE: Final = 128
"""Maximum size, in bytes, of a failure record that is stored even if the store is out of memory."""

NO_CALL_ID: Final = ("", 0)
"""Values of `sender` and `number` for a call without a sender."""

Outcome = Literal["ok", "done", "lost"]
"""Outcome of a change that needs a lease. `ok`: the change was made; `done`: the task no longer has
a lease, because it ended or was handed back; `lost`: another server holds the lease."""

EnqueueOutcome = Literal["created", "exists", "duplicate", "repeated", "replaced"]


class Enqueued(msgspec.Struct, frozen=True, gc=False):
    """The outcome of enqueueing one task. `id` is the task that holds the id or the unique lock.

    `repeated`: a task with this id was enqueued recently and has left the queue; or it replaced the
    holder of its lock, and `id` is the task that holds the lock now. `replaced`: the holder of the
    lock now has this payload, or will run again with it after its current attempt.

    `confirmed`: whether the durability wait succeeded in time; None without a wait.
    """

    outcome: EnqueueOutcome
    id: str
    confirmed: bool | None = None


class LeaseRef(NamedTuple):
    """A leased task: its id and the token of its lease."""

    id: str
    token: str


class Leased(Protocol):
    """An object that has the id of a leased task and the token of its lease."""

    @property
    def id(self) -> str:
        """The task's id."""

    @property
    def token(self) -> str:
        """The token of the task's lease."""


class Completion(msgspec.Struct, frozen=True, gc=False):
    """A task that succeeded.

    If `retention_us` is None, the task and its result are deleted immediately.
    """

    id: str
    token: str
    retention_us: int | None = None
    result: bytes = b""


class Retried(NamedTuple):
    """A task whose attempt failed and that will be retried after a delay."""

    id: str
    token: str
    delay_us: int
    failure: bytes


class Killed(NamedTuple):
    """A task that becomes dead. `failed` is False if no attempt was started."""

    id: str
    token: str
    failed: bool
    failure: bytes


class HandedBack(NamedTuple):
    """A task that a server hands back without counting an attempt.

    If `delay_us` is None, the task goes to the head of `pending`. `limit` is closed for
    `closed_us`: during that time, no task that holds it starts. If `started` is true, the handler
    began, so the start counts toward the rates of the task's limits. `leased_us` is the time of the
    lease by the store's clock; 0 means that the time is unknown, in which case the start counts
    too.
    """

    id: str
    token: str
    delay_us: int | None = None
    failure: bytes = b""
    limit: str = ""
    closed_us: int = 0
    started: bool = False
    leased_us: int = 0


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """The part of the server's configuration that a fetch needs. All times are in microseconds."""

    lease_us: int
    max_crashes: int
    dead_limit: int
    dead_age_us: int
    max_bytes: int = BATCH_BYTES


class FetchResult(msgspec.Struct, frozen=True, kw_only=True):
    """The reply to a fetch. `ids`, `messages`, `failures` and `crashes` match by position."""

    now_us: int
    next_due_us: int | None
    """Time until the next task or upkeep is due, in microseconds; None if neither is known."""
    more: bool
    """Whether more upkeep is due."""
    recovered: int
    died: int
    """Number of tasks that became dead because they crashed their servers too often."""
    ids: list[str]
    messages: list[bytes]
    failures: list[bytes | None]
    crashes: list[int]
    own_lapsed: list[str]
    paused: bool
    generation: str
    """Generation of the queue's data; it changes only when the data were lost."""
    left: bool = False
    """Whether more tasks can be fetched."""
    left_for_free: bool = False
    """Whether only a server with free slots can fetch the tasks that are left."""
    passed_over: bool = False
    """Whether tasks with limits were not leased because the server has no free slots for them."""
    spared: dict[str, int] = {}
    """Numbers of crashes that did not count. The keys are task ids; tasks without such crashes are
    left out."""
    since: dict[str, int] = {}
    """Times, in us, at which tasks that were handed back, recovered or rerun became runnable. The
    keys are task ids."""
