"""The known facts of one task: its state, and all of its leases."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from qsync.message import NORMAL_PRIORITY

Phase = Literal["waiting", "active", "kept", "dead", "gone"]

US: Final = 1_000_000


@dataclass(slots=True)
class Delivery:
    """A lease as returned by the store."""

    token: str
    fetched_us: int
    expires_us: int
    """Expiry by the store's clock, which may jump."""
    expires_at: float
    """Expiry in the time of the history."""
    length_us: int
    marked: bool = False
    together: bool = False
    """True if the run began beside other suspects, so that a crash is not charged to this task."""
    ended: str | None = None
    started: bool = False
    copied: bool = False
    """True if a duplicate of an answered fetch took the lease; no server reads the reply to the
    duplicate."""
    settled: bool = False
    """True if its server has settled it, and the store has lost the settlement."""
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
    """Time until which the store refuses another task with this id."""
    lock: str = ""
    limits: tuple[str, ...] = ()
    place: int = 0
    """Position among all tasks, in the order of their enqueues."""
    in_order: bool = False
    """True if it was due at once and had neither limits nor a fairness key."""
    cancel_asked: bool = False
    cancel_retention: Any = ""
    cancel_asked_us: int = 0
    unsure: bool = False
    """True if it may have been created again after an unobserved end."""
    ran_on_us: int = 0
    """Time for which it ran after its cancel request, if that was too long."""
    priority: int = NORMAL_PRIORITY
    created: int = 0
    finished: list[str] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    starts: int = 0
    returned_attempts: int = 0
    """Failed attempts when a server handed it back. A server that stops before the store has
    recorded the death of a task also hands the task back, so its last attempt runs once more."""

    @property
    def lease(self) -> Delivery | None:
        """Lease under which it runs; None if it has none."""
        last = self.deliveries[-1] if self.deliveries else None
        return last if last is not None and last.ended is None else None

    def surely_open(self, now_us: int) -> bool:
        """Return whether it is certainly unfinished. A task with an expired lease may have ended
        unobserved."""
        lease = self.lease
        return self.phase == "waiting" or (lease is not None and now_us < lease.expires_us)
