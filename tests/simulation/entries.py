"""What is known about a task: its state, and all of its leases."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from qsync.message import NORMAL_PRIORITY

Phase = Literal["waiting", "active", "kept", "dead", "gone"]

US: Final = 1_000_000


@dataclass(slots=True)
class Delivery:
    """A lease that the store has granted."""

    token: str
    fetched_us: int
    expires_us: int
    """Expiry time by the store's clock, which may jump."""
    expires_at: float
    """Expiry time in the history's virtual time."""
    length_us: int
    marked: bool = False
    together: bool = False
    """True if the run began while other suspects were running, so that a crash is not charged to
    this task."""
    ended: str | None = None
    started: bool = False
    copied: bool = False
    """True if the lease was granted to a duplicate of an answered fetch; no server reads the reply
    to the duplicate."""
    settled: bool = False
    """True if the server settled the task and the store then lost the settlement."""
    recovered: bool = False
    """True once the store has recovered the task from a dead server."""


@dataclass(slots=True)
class Entry:
    """A task that is or was in the store."""

    id: str
    queue: str
    phase: Phase = "gone"
    due_us: int = 0
    kept_until_us: int = 0
    remembered_until_us: int = 0
    """Time until which the store refuses other tasks with this id."""
    lock: str = ""
    limits: tuple[str, ...] = ()
    place: int = 0
    """Position among all tasks, in the order in which they were enqueued."""
    in_order: bool = False
    """True if the task was due immediately and had neither limits nor a fairness key."""
    cancel_asked: bool = False
    cancel_retention: Any = ""
    cancel_asked_us: int = 0
    unsure: bool = False
    """True if the task may have been created again because its end was not observed."""
    ran_on_us: int = 0
    """How long the task ran on after its cancel request, if that was too long."""
    priority: int = NORMAL_PRIORITY
    created: int = 0
    finished: list[str] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    starts: int = 0
    returned_attempts: int = 0
    """Number of failed attempts when a server handed the task back. A server that stops before the
    store has recorded the death of the task also hands the task back, so that the last attempt runs
    once more."""

    @property
    def lease(self) -> Delivery | None:
        """Lease under which the task runs; None if there is none."""
        last = self.deliveries[-1] if self.deliveries else None
        return last if last is not None and last.ended is None else None

    def surely_open(self, now_us: int) -> bool:
        """Return whether the task has certainly not ended. A task with an expired lease may have
        ended unobserved."""
        lease = self.lease
        return self.phase == "waiting" or (lease is not None and now_us < lease.expires_us)
