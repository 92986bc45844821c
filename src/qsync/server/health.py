"""Answers liveness, startup and readiness probes.

A server whose store is unreachable is live but not ready, because a restart of the server would not
repair the store. A server whose event loop is blocked keeps its leases, so it stays live for
LIVE_LIMIT_S.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

import msgspec

from qsync.server import invoke
from qsync.server.capacity import Capacity
from qsync.server.clock import boot_s
from qsync.server.config import Config
from qsync.server.loop_watchdog import STALL_S, LoopWatchdog
from qsync.server.outage_log import Outage, fetch_part
from qsync.server.outbox_backlog import OutboxBacklog, largest_backlog
from qsync.server.queue_state import QueueState
from qsync.server.server_inbox import ServerInbox

LIVE_LIMIT_S: Final = 60.0
"""Default time, in seconds, after which a process that does not answer, or whose event loop is
blocked, is no longer live."""

STORE_AWAY_S: Final = 3.0
"""Time after which the store counts as unreachable, in seconds. The time is counted from a fetch
that gets no answer, or from the first failure to fetch or to wait for tasks."""

SILENT_S: Final = 15.0
"""How long a queue may have no fetch before it counts as not served, in seconds. The limit is at
least three times `sweep`."""


class ServerHealth(msgspec.Struct, frozen=True):
    """The condition of a server at a given moment; times are in seconds."""

    started: bool = False
    unavailable: str = ""
    """Last error from the store while a part of the server cannot reach it; empty otherwise."""
    stopping: bool = False
    quiet: bool = False
    running: int = 0
    tasks: int = 0
    """Number of tasks started so far."""
    concurrency: int = 0
    app_version: str = ""
    """Version of the program; empty if it is not set."""
    blocked_s: float = 0.0
    """Time for which the event loop has been blocked; 0 if it is not blocked."""
    blocked_in: str = ""
    """Function that blocks the event loop, with file and line."""
    away: dict[str, float] = {}
    """Queues from which fetches fail, each with the time since its fetches began to fail."""
    silent: dict[str, float] = {}
    """Queues without a recent fetch, each with the time since its last fetch."""
    outbox: OutboxBacklog | None = None
    """Backlog of the outbox whose relay runs in the server's process; None if there is no relay."""


class ProcessHealth(msgspec.Struct, frozen=True):
    """The state of a server process of `qsync worker`, as its parent sees it."""

    number: int
    pid: int
    condition: ServerHealth | None
    """Condition of the server; None if the process did not answer."""
    unheard_s: float = 0.0
    """Time since the process last answered, or since it started if it has not answered yet, in
    seconds."""
    ended: str = ""
    """How the process ended; empty while it runs, and once another process has replaced it."""
    was_ready: bool = True
    """Whether the parent knows that the process has taken tasks before."""


@dataclass(frozen=True, slots=True)
class HealthVerdict:
    """The answer to a probe."""

    ok: bool
    reasons: tuple[str, ...]
    """Reasons why `ok` is False, or warnings if it is True."""


class HealthProbe:
    """Reads the condition of a running server. Thread-safe."""

    def __init__(
        self,
        config: Config,
        queues: Sequence[QueueState],
        capacity: Capacity,
        control: ServerInbox,
        watchdog: LoopWatchdog,
        outage: Outage,
    ) -> None:
        self._config = config
        self._queues = queues
        self._capacity = capacity
        self._control = control
        self._watchdog = watchdog
        self._outage = outage

    def read(self, *, stopping: bool) -> ServerHealth:
        """Return the server's condition at this moment."""
        now = boot_s()
        away, silent = {}, {}
        limit = max(SILENT_S, 3 * self._config.sweep_s)
        for queue in self._queues:
            asked = queue.in_flight
            away_s = 0.0 if asked is None else now - max(asked.since, queue.blocked_until)
            away_s = max(away_s, self._outage.failing_s(fetch_part(queue.name)))
            if away_s >= STORE_AWAY_S:
                away[queue.name] = round(away_s, 1)
            elif 0 < queue.answered < now - limit:
                silent[queue.name] = round(now - queue.answered, 1)
        blocked_s = self._watchdog.blocked_s()
        blocked = blocked_s >= STALL_S
        return ServerHealth(
            started=True,
            unavailable=self._outage.reason,
            stopping=stopping,
            quiet=self._control.quiet,
            running=self._capacity.in_use,
            tasks=self._capacity.started_total,
            concurrency=self._config.concurrency,
            app_version=self._config.version or "",
            blocked_s=round(blocked_s, 1) if blocked else 0.0,
            blocked_in=_place(self._watchdog.thread) if blocked else "",
            away=away,
            silent=silent,
            outbox=largest_backlog(),
        )


def live(reports: Sequence[ProcessHealth], *, limit_s: float = LIVE_LIMIT_S) -> HealthVerdict:
    """Return whether all processes are live.

    Processes that have ended are ignored, because their parent replaces them.
    """
    ok = True
    reasons = []
    for report in reports:
        who, condition = _process_phrase(report), report.condition
        if report.ended:
            reasons.append(f"{who} {report.ended}")
        elif condition is None:
            ok = ok and report.unheard_s < limit_s
            reasons.append(f"{who} has not answered for {report.unheard_s:.1f} s")
        elif condition.blocked_s:
            ok = ok and condition.blocked_s < limit_s
            reasons.append(f"{who}: {_blocked(condition)}")
    return HealthVerdict(ok, tuple(reasons))


def started(reports: Sequence[ProcessHealth]) -> HealthVerdict:
    """Return whether all processes have begun to take tasks."""
    reasons = [
        f"{_process_phrase(report)} {report.ended or _not_started(report.condition)}"
        for report in reports
        if not _has_started(report)
    ]
    return HealthVerdict(not reasons, tuple(reasons))


def _has_started(report: ProcessHealth) -> bool:
    """Return whether a process has begun to take tasks, even if it does not answer now."""
    if report.condition is None:
        return report.was_ready and not report.ended
    return report.condition.started


def ready(reports: Sequence[ProcessHealth]) -> HealthVerdict:
    """Return whether all processes take tasks from all of their queues."""
    reasons = [reason for report in reports for reason in _idle_because(report)]
    return HealthVerdict(not reasons, tuple(reasons))


def _idle_because(report: ProcessHealth) -> list[str]:
    who, condition = _process_phrase(report), report.condition
    if report.ended:
        return [f"{who} {report.ended}"]
    if condition is None and not report.was_ready:
        return [f"{who} has not started yet"]
    if condition is None:
        return [f"{who} has not answered for {report.unheard_s:.1f} s"]
    if not condition.started:
        return [f"{who} {_not_started(condition)}"]
    if condition.stopping:
        return [f"{who} is stopping"]
    if condition.quiet:
        return [f"{who} is draining: it takes no new tasks"]
    if condition.blocked_s:
        return [f"{who}: {_blocked(condition)}"]
    reason = f": {condition.unavailable}" if condition.unavailable else ""
    return [
        f"{who}: the store has not answered a fetch from queue {queue} for {since_s:.1f} s{reason}"
        for queue, since_s in condition.away.items()
    ] + [
        f"{who} has not fetched from queue {queue} for {since_s:.1f} s{reason}"
        for queue, since_s in condition.silent.items()
    ]


def _process_phrase(report: ProcessHealth) -> str:
    return f"process {report.number}"


def _not_started(condition: ServerHealth | None) -> str:
    reason = "" if condition is None else condition.unavailable
    return "has not started yet" + (f", retrying: {reason}" if reason else "")


def _blocked(condition: ServerHealth) -> str:
    return f"event loop blocked for {condition.blocked_s:.1f} s in {condition.blocked_in}"


def _place(thread: int) -> str:
    """Return the function that a thread runs: its handler, or else the innermost function."""
    frame = inner = sys._current_frames().get(thread)
    while frame is not None and frame.f_back is not None:
        if frame.f_back.f_code.co_filename == invoke.__file__:
            inner = frame  # the innermost caller is the handler, before any middleware
            break
        frame = frame.f_back
    if inner is None:
        return "unknown"
    code = inner.f_code
    return f"{code.co_qualname} ({PurePath(code.co_filename).name}:{inner.f_lineno})"
