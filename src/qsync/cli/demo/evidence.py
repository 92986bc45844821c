"""What the account is made from, and what can be read from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from qsync.broker.views import Counts
from qsync.cli.demo.ledger import Ledger
from qsync.cli.demo.plan import Block, Plan
from qsync.cli.demo.records import History, Start
from qsync.state import UNFINISHED, TaskState
from qsync.task import TaskStatus


class Fate(StrEnum):
    """How a task that was accepted ended; `left` and `lost` must not be."""

    DONE = "done"
    DEAD = "dead"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    LEFT = "left"
    LOST = "lost"


@dataclass
class Victim:
    """The server that was killed, and the tasks that were running in it."""

    pid: int
    at: float
    torn: set[str] = field(default_factory=set)

    def starts(self, history: History) -> dict[str, Start | None]:
        """Where each of these tasks began next; None: nowhere yet."""
        return {
            id: next((start for start in history.starts[id] if start.at > self.at), None)
            for id in self.torn
        }

    def waiting(self, history: History) -> int:
        """How many of them have not begun again."""
        return sum(start is None for start in self.starts(history).values())

    def seconds(self, history: History) -> float:
        """How long after the kill the last of them began again."""
        starts = [start.at for start in self.starts(history).values() if start is not None]
        return max(starts, default=self.at) - self.at


@dataclass(frozen=True)
class Manifest:
    """What the handlers found, and what a plain loop over the same files finds."""

    found: Mapping[str, str]
    expected: Mapping[str, str]
    contradictions: int = 0
    changed: int = 0
    """Files that somebody changed meanwhile; they are in neither."""
    seconds: float = 0.0
    """How long the plain loop took."""

    def right(self, blocks: Iterable[Block]) -> bool:
        """Whether the digests of these blocks are there and right."""
        return all(
            self.found.get(block.key) == self.expected[block.key]
            for block in blocks
            if block.key in self.expected
        )

    @property
    def is_same(self) -> bool:
        """Whether both are the same, and no task contradicted another."""
        return self.found == self.expected and not self.contradictions


@dataclass(frozen=True)
class Evidence:
    """All that the account is made from."""

    plan: Plan
    ledger: Ledger
    history: History
    statuses: Mapping[str, TaskStatus]
    """id -> where it is, of the tasks that the store still has."""
    counts: Mapping[str, Counts]
    manifest: Manifest
    victim: Victim | None
    withdrawn: Sequence[str] = ()
    """Ticks that were cancelled, since no server was left to run them."""


def fate_of(evidence: Evidence, kind: str, id: str) -> Fate:
    """How a task ended, by what the store has of it and what the servers wrote down."""
    status = evidence.statuses.get(id)
    done = id in evidence.history.done[kind]
    if status is None:
        if id in evidence.withdrawn:
            return Fate.CANCELLED
        return Fate.DONE if done else Fate.LOST
    if status.state in UNFINISHED:
        return Fate.LEFT
    if status.state is TaskState.DEAD:
        expired = (status.last_error or "").startswith("deadline")
        return Fate.EXPIRED if expired else Fate.DEAD
    if status.cancelled:
        return Fate.CANCELLED
    return Fate.DONE if done else Fate.LOST


def tick_moment(id: str) -> datetime:
    """The time of a tick, by the id of its task."""
    return datetime.fromisoformat(id.rpartition("@")[2])


def lateness(evidence: Evidence) -> list[float]:
    """How much later than due the scheduled tasks began, seconds.

    At most: the delay is counted from before the call, and the store counts it from within.
    """
    starts = evidence.history.starts
    return [starts[id][0].at - due for id, due in evidence.ledger.due.items() if id in starts]


def repeats(history: History) -> int:
    """How many tasks were done more than once: at-least-once allows it."""
    return sum(sum(end.how == "done" for end in ends) > 1 for ends in history.ends.values())


def quantile(values: Sequence[float], part: float) -> float:
    """The value below which this part of them is; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def in_ms(values: Sequence[float], part: float) -> str:
    return f"{quantile(values, part) * 1000:.0f} ms"
