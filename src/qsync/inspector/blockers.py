"""What keeps all tasks of a queue or of a type from running. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qsync.broker.pending_view import PendingPosition
from qsync.formatting import utc_time
from qsync.inspector.limit_values import LimitInfo
from qsync.inspector.live_servers import Record
from qsync.inspector.task_rows import DecodedTask
from qsync.inspector.values import Pause, Reason


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts that an explanation is made from."""

    id: str
    queue: str
    task: DecodedTask
    located: PendingPosition
    servers: Sequence[Record]
    """The running servers."""
    rate: float | None
    waits_for: LimitInfo | None = None
    """Limit that a limited task waits for."""
    waits_before: int = 0
    """Number of tasks that wait for that limit, or for its type, before it."""
    type_pause: Pause | None = None
    """Pause of its type."""
    waits_for_type: bool = False
    """Whether it has been set aside because its type is, or was, paused."""


def able_servers(facts: Facts) -> list[Record]:
    """Return the running servers that can run the task."""
    type = facts.task.message.type if facts.task.message else None
    return [
        server
        for server in facts.servers
        if server.takes(facts.queue) and not server.quiet and (type is None or type in server.types)
    ]


def blockers_of(facts: Facts, paused: Pause | None) -> list[tuple[Reason, str]]:
    """Return what blocks every task of this type and queue, as reason and sentence."""
    blockers: list[tuple[Reason, str]] = []
    if paused is not None:
        blockers.append(("paused", f"The queue is {_paused(paused)}."))
    if facts.type_pause is not None:
        sentence = f"Type {quoted_type(facts)} is {_paused(facts.type_pause)}."
        blockers.append(("type_paused", sentence))
    takers = [server for server in facts.servers if server.takes(facts.queue)]
    if not takers:
        blockers.append(("no_server", f"No running server takes tasks from queue {facts.queue}."))
    elif all(server.quiet for server in takers):
        blockers.append(("all_quiet", "All servers of the queue were told to take no new tasks."))
    elif not able_servers(facts):
        sentence = f"No running server has a handler for {quoted_type(facts)}: deploy one"
        blockers.append(("no_server_knows", f"{sentence}, or delete the task."))
    return blockers


def _paused(pause: Pause) -> str:
    """Return `paused`, with by whom, since when and why."""
    by = f" by {pause.by}" if pause.by else ""
    since = f" since {utc_time(pause.at)}" if pause.at else ""
    return f"paused{by}{since}{f': {pause.why}' if pause.why else ''}"


def quoted_type(facts: Facts) -> str:
    """Return the type of the task in quotes."""
    return repr(facts.task.message.type) if facts.task.message else "its type, which is lost"
