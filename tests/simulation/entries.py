"""The known facts of one task: its state, and all of its leases."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from qsync.message import NORMAL_PRIORITY

Phase = Literal["waiting", "active", "kept", "dead", "gone"]

US: Final = 1_000_000


@dataclass(slots=True)
class Delivery:
    """A lease, as the store gave it."""

    token: str
    fetched_us: int
    expires_us: int
    """By the store's clock, which may jump."""
    expires_at: float
    """The same, as the time of the history."""
    length_us: int
    marked: bool = False
    together: bool = False
    """It began beside other suspects, so a crash is not charged to it."""
    ended: str | None = None
    started: bool = False
    copied: bool = False
    """Whether a copy of an answered fetch took it; no server reads the answer to the copy."""
    recovered: bool = False
    """True once the store has recovered it from a dead server."""


@dataclass(slots=True)
class Entry:
    """A task that is or was in the store."""

    id: str
    queue: str
    phase: Phase = "gone"
    due_us: int = 0
    kept_until_us: int = 0
    remembered_until_us: int = 0
    """Time until which no other task is taken under this id, after the last one was."""
    lock: str = ""
    limits: tuple[str, ...] = ()
    place: int = 0
    """Place among all tasks, by their enqueue."""
    in_order: bool = False
    """It was due at once, without limits and fairness key."""
    cancel_asked: bool = False
    cancel_retention: Any = ""
    cancel_asked_us: int = 0
    unsure: bool = False
    """It may have been created again after an unobserved end."""
    ran_on_us: int = 0
    """Time for which it ran after its cancel request, if that was too long."""
    priority: int = NORMAL_PRIORITY
    created: int = 0
    finished: list[str] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    starts: int = 0
    returned_attempts: int = 0
    """Failed attempts when a server handed it back, which it does with the last one of a task, too,
    if it stops before the store takes the death: then the task runs once more."""

    @property
    def lease(self) -> Delivery | None:
        """The lease under which it runs."""
        last = self.deliveries[-1] if self.deliveries else None
        return last if last is not None and last.ended is None else None

    def surely_open(self, now_us: int) -> bool:
        """Whether it is unfinished; a task with an expired lease may have ended unseen."""
        lease = self.lease
        return self.phase == "waiting" or (lease is not None and now_us < lease.expires_us)
