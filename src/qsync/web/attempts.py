"""The attempts of a task as bars, and the link to its trace. Does no I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from qsync import store_clock
from qsync.errors import ConfigError
from qsync.inspector import Explanation, OperatorEvent, TaskDetail
from qsync.state import TaskState
from qsync.value_text import shorten
from qsync.web.translation import _

WIDTH: Final = 100.0
"""Width of the longest bar, in units of the SVG drawing."""

CLOCKS: Final = timedelta(seconds=1)
"""Tolerated difference between the clocks of the store and of a server."""

_PARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_PLACE: Final = "{trace_id}"


@dataclass(frozen=True, slots=True)
class AttemptBar:
    """An attempt, with its waiting time and its duration, both in seconds (None if unknown) and as
    widths of bars.

    `operator` is the name of the operator who re-ran the task before this attempt, if recorded.
    """

    number: int
    outcome: str
    at: datetime | None
    server: str
    error: str
    waited: float | None
    ran: float | None
    waited_width: float = 0.0
    ran_width: float = 0.0
    operator: str = ""


def bars_of(
    task: TaskDetail, explanation: Explanation, actions: Sequence[OperatorEvent] = ()
) -> list[AttemptBar]:
    """Return the attempts of a task that have begun, the latest first.

    `actions` are the actions of operators on this task.
    """
    reruns = [(event.at, event.by) for event in actions if event.action == "task.retry"]
    ready = max(
        (event.at for event in task.events if event.at and event.what in ("enqueued", "due")),
        default=None,
    ) if not task.history else _enqueued(task)  # fmt: skip
    bars: list[AttemptBar] = []
    for attempt in task.history:
        at, by = _rerun(reruns, ready, attempt.begun_at)
        bars.append(
            AttemptBar(attempt.number, "failed", attempt.at, attempt.server, attempt.error,
                _between(at, attempt.begun_at), _between(attempt.begun_at, attempt.at), operator=by)
        )  # fmt: skip
        ready = attempt.at
    begun = explanation.since or task.begun_at
    at, by = _rerun(reruns, ready, begun)
    if (last := _last(task, explanation, at)) is not None:
        bars.append(replace(last, operator=by))
    longest = max(((bar.waited or 0.0) + (bar.ran or 0.0) for bar in bars), default=0.0)
    return [_drawn(bar, longest) for bar in reversed(bars)]


def outcomes() -> dict[str, str]:
    """Return the display names of an attempt's outcomes, by outcome."""
    return {"failed": _("failed"), "completed": _("completed")}


def _rerun(
    reruns: Sequence[tuple[datetime, str]], ready: datetime | None, begun: datetime | None
) -> tuple[datetime | None, str]:
    """Return the time from which an attempt could begin, and the operator who re-ran the task
    before the attempt ("" if none did)."""
    if ready is None or begun is None:
        return ready, ""
    between = [each for each in reruns if ready <= each[0] <= begun + CLOCKS]
    return max(between, default=(ready, ""))


def _enqueued(task: TaskDetail) -> datetime | None:
    return task.row.enqueued_at


def _last(task: TaskDetail, explanation: Explanation, ready: datetime | None) -> AttemptBar | None:
    """Return the running or the completed attempt; None if there is neither."""
    row = task.row
    if row.state is TaskState.ACTIVE and explanation.since is not None:
        begun, now = explanation.since, store_clock.now()
        return AttemptBar(task.attempt, "running", begun, row.server or "", "",
                   _between(ready, begun), _between(begun, now))  # fmt: skip
    if row.state is TaskState.COMPLETED and task.begun_at is not None:
        waited, ran = _between(ready, task.begun_at), _between(task.begun_at, row.ended_at)
        return AttemptBar(row.ended_attempts, "completed", row.ended_at, "", "", waited, ran)
    return None


def _between(start: datetime | None, end: datetime | None) -> float | None:
    """Return the seconds between two times, which may come from two clocks; None if unknown."""
    if start is None or end is None:
        return None
    return max(0.0, (end - start).total_seconds())


def _drawn(bar: AttemptBar, longest: float) -> AttemptBar:
    scale = WIDTH / longest if longest else 0.0
    return replace(
        bar,
        waited_width=round((bar.waited or 0.0) * scale, 2),
        ran_width=max(0.6, round((bar.ran or 0.0) * scale, 2)),
    )


def check_trace_url(url: str | None) -> str | None:
    """Check the option `trace_url` and return it; raise ConfigError if it is invalid."""
    if url is None:
        return None
    if not isinstance(url, str) or not re.match("https?://", url) or _PLACE not in url:
        raise ConfigError(
            f"trace_url: {shorten(url)} is not an address with {_PLACE}; write "
            "https://traces.example.com/trace/{trace_id}"
        )
    return url


def trace_link(url: str | None, task: TaskDetail) -> str | None:
    """Return the URL of the trace in which the task was enqueued; None if there is no trace."""
    match = _PARENT.fullmatch(task.headers.get("traceparent", ""))
    return None if url is None or match is None else url.replace(_PLACE, match[1])


def short_server(id: str) -> str:
    """Return the id of a server with its random suffix shortened."""
    match = re.fullmatch(r"(.*?)([0-9a-f]{6})[0-9a-f]{18}(~.*)?", id)
    return id if match is None else f"{match[1]}{match[2]}…"
