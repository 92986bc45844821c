"""Reads what delays a task: its rank in pending, the holder of its lock, its next run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qsync.broker.call import Call, queue_query
from qsync.broker.call_values import now_argument
from qsync.broker.stored_task import number
from qsync.keys import QueueKeys


@dataclass(frozen=True, slots=True)
class PendingPosition:
    """What delays a task. `rank` is the number of pending tasks before it; None if not pending.

    `holder` is the task that holds its unique lock; `fetched_at_us` and `fetch_number` are from the
    last fetch of its server.
    """

    now_us: int
    rank: int | None
    pending: int
    holder: str | None
    fetched_at_us: int
    fetch_number: int
    pause_note: bytes | None
    paused_at_us: int
    ended: int
    """Number of attempts that ended in the queue so far."""
    above: int = 0
    """Number of pending tasks of a higher priority."""
    next_run_us: int | None = None
    """Due time of its next run, with the payload of a later call, in us; None if no run follows."""


def pending_position(
    keys: QueueKeys, id: str, *, lock: str = "", server: str = "", now_us: int | None = None
) -> Call[PendingPosition]:
    """Read what delays a task."""
    args = (now_argument(now_us), id, lock, server)

    def decode(row: dict[str, Any]) -> PendingPosition:
        rank, holder = row["rank"], row["holder"].decode(errors="backslashreplace")
        return PendingPosition(
            row["now"], None if rank < 0 else rank, row["pending"], holder or None,
            number(row["fetched_at"]), number(row["fetch_number"]), row["pause_note"] or None,
            number(row["paused_at"]), number(row["completed"]) + number(row["failed"]),
            row["above"], number(row["next_run"]) or None,
        )  # fmt: skip

    return queue_query("pending_position", keys, args, decode)
