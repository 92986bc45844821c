"""The inspector's explanation of a task that is not running yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import msgspec

from qsync.broker.views import PendingPosition
from qsync.inspector.limits import LimitInfo
from qsync.inspector.live_servers import Record
from qsync.inspector.task_rows import DecodedTask
from qsync.inspector.values import Pause
from qsync.phrase import Phrase
from qsync.state import TaskState

Reason = Literal[
    "next", "behind", "paused", "type_paused", "no_server", "no_server_knows", "all_quiet",
    "scheduled", "retry", "handed_back", "active", "lapsed", "completed", "cancelled", "dead",
    "duplicate", "not_found", "deadline", "snoozed", "limited", "debounced", "replaced", "full",
]  # fmt: skip


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why a task is not running yet, and when it will run.

    sentence  the whole explanation as readable text
    reason    the main reason; `also` holds further reasons
    at        when the task is due, runs again, or ended; None if unknown
    rank      number of pending tasks ahead of it
    wait      estimated seconds until its turn, at the current rate
    rate      attempts ended per second in the queue, from this inspector's recent readings
    server    the server that runs it, with a lease until `lease_until`
    servers   number of live servers that can run it
    holder    the task that holds its lock
    paused    who paused the queue; `type_paused`: who paused the type of the task
    limit     the limit that it waits for; the tasks `limit_holders` hold its slots
    phrase    the sentence as a template and its values, so that a page can translate it
    """

    id: str
    queue: str
    state: TaskState | None
    sentence: str
    reason: Reason
    also: list[Reason] = []
    at: datetime | None = None
    rank: int | None = None
    wait: float | None = None
    rate: float | None = None
    paused: Pause | None = None
    type_paused: Pause | None = None
    attempt: int = 0
    retry: int = 0
    crashes: int = 0
    error: str | None = None
    server: str | None = None
    since: datetime | None = None
    lease_until: datetime | None = None
    servers: int | None = None
    holder: str | None = None
    limit: str | None = None
    limit_holders: list[str] = []
    phrase: Phrase | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts on which an explanation is based."""

    id: str
    queue: str
    task: DecodedTask
    located: PendingPosition
    servers: Sequence[Record]
    """The running servers."""
    rate: float | None
    waits_for: LimitInfo | None = None
    """Limit for which a limited task waits."""
    waits_before: int = 0
    """Number of earlier tasks that wait for the same limit or the same paused type."""
    other_limits: Sequence[LimitInfo] = ()
    """Other limits of a limited task, without those that are unlimited."""
    type_pause: Pause | None = None
    """Pause of the task's type; None if the type is not paused."""
    waits_for_type: bool = False
    """Whether the task has been set aside because its type is, or was, paused."""


def able_servers(facts: Facts) -> list[Record]:
    """Return the running servers that can run the task."""
    type = facts.task.message.type if facts.task.message else None
    return [
        server
        for server in facts.servers
        if server.takes(facts.queue) and not server.quiet and (type is None or type in server.types)
    ]
