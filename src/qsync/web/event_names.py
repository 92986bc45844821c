"""Display names of operators' actions and of scheduled runs."""

from __future__ import annotations

import re
from typing import Final

from qsync.bounds import Bounds, WhenFull
from qsync.limit import LimitRule
from qsync.phrase import Phrase
from qsync.schedule import every_phrase
from qsync.state import TaskState
from qsync.web.names import state_name
from qsync.web.translation import STATES, _, marked, translated

NAMES: Final = {
    "task.retry": marked("Task retried"),
    "task.cancel": marked("Task cancelled"),
    "task.delete": marked("Task deleted"),
    "task.reschedule": marked("Task rescheduled"),
    "task.edit": marked("Payload edited"),
    "task.copy": marked("Task copied"),
    "queue.pause": marked("Queue paused"),
    "queue.resume": marked("Queue resumed"),
    "queue.purge": marked("State purged"),
    "queue.delete": marked("Queue deleted"),
    "dead.acknowledge": marked("Dead tasks acknowledged"),
    "type.pause": marked("Type paused"),
    "type.resume": marked("Type resumed"),
    "bounds.set": marked("Bounds set"),
    "bounds.reset": marked("Bounds reset"),
    "target.set": marked("Latency target set"),
    "weight.set": marked("Weight set"),
    "weight.reset": marked("Weight reset"),
    "limit.set": marked("Limit set"),
    "limit.reset": marked("Limit reset"),
    "limit.open": marked("Limit opened"),
    "schedule.put": marked("Schedule put"),
    "schedule.delete": marked("Schedule deleted"),
    "schedule.pause": marked("Schedule paused"),
    "schedule.resume": marked("Schedule resumed"),
    "schedule.trigger": marked("Schedule run now"),
    "schedule.backfill": marked("Schedule backfilled"),
    "server.quiet": marked("Server drained"),
    "server.stop": marked("Server stopped"),
}

MADE: Final = {
    "tick": marked("tick"),
    "manual": marked("by hand"),
    "backfill": marked("backfill"),
}
OUTCOMES: Final = {
    "completed": marked("completed"),
    "failed": marked("failed"),
    "cancelled": marked("cancelled"),
    "missed": marked("missed"),
    "unknown": marked("not known"),
}


def run_made(origin: str) -> str:
    """Return the display name of the way in which a scheduled run was started."""
    return _(MADE[origin])


def run_outcome(outcome: str) -> str:
    """Return the display name of a scheduled run's outcome, or of the state of its task."""
    return _(OUTCOMES[outcome]) if outcome in OUTCOMES else state_name(outcome)


def action_name(action: str) -> str:
    """Return the display name of an action; an action unknown to this version stays as it is."""
    return _(NAMES[action]) if action in NAMES else action


TEXTS: Final = {"and run now": marked("and run now")}
"""Details with a fixed text, which are translated as they are."""

_EVERY: Final = re.compile(r"every ([0-9.]+) (d|h|min|s)")
_LENGTH: Final = re.compile(r"([0-9.,e+-]+) (d|h|min|s)")
_SECONDS: Final = {"d": 86_400, "h": 3600, "min": 60, "s": 1}
_RULE: Final = re.compile(
    r"(?:(?P<rate>\d+) per (?P<per>[0-9.,e+-]+ [a-z]+(?: \d+ [a-z]+)?), (?P<burst>\d+) at once)?"
    r"(?:; )?"
    r"(?:(?P<concurrency>\d+) at a time)?"
)
_BOUNDS: Final = re.compile(
    r"(?:(?P<tasks>[\d,]+) waiting tasks?)?(?: and )?(?:(?P<bytes>[\d,]+) bytes?)?"
    r", then (?P<action>raise|drop_oldest)"
)


def event_detail(detail: str) -> str:
    """Return the detail of a recorded action in the language of the request."""
    if detail in TEXTS:
        return _(TEXTS[detail])
    if detail in STATES:
        return _(STATES[TaskState(detail)])
    message = _every(detail) or _rule(detail) or _bounds(detail)
    return detail if message is None else translated(message)


def _every(detail: str) -> Phrase | None:
    match = _EVERY.fullmatch(detail)
    return None if match is None else every_phrase(float(match[1]) * _SECONDS[match[2]])


def _rule(detail: str) -> Phrase | None:
    match = _RULE.fullmatch(detail) if detail else None
    if match is None:
        return None
    per = match["per"]
    rule = LimitRule(
        rate=_number(match["rate"]), burst=_number(match["burst"]),
        per_us=None if per is None else _microseconds(per),
        concurrency=_number(match["concurrency"]),
    )  # fmt: skip
    return rule.phrase


def _microseconds(length: str) -> int:
    """Return a period, e.g. `1 min 30 s`, in microseconds."""
    parts = _LENGTH.findall(length)
    seconds = sum(float(number.replace(",", "")) * _SECONDS[unit] for number, unit in parts)
    return round(seconds * 1_000_000)


def _bounds(detail: str) -> Phrase | None:
    match = _BOUNDS.fullmatch(detail)
    if match is None:
        return None
    when_full: WhenFull = "drop_oldest" if match["action"] == "drop_oldest" else "raise"
    bounds = Bounds(
        max_tasks=_number(match["tasks"]), max_bytes=_number(match["bytes"]), when_full=when_full
    )
    return bounds.phrase


def _number(text: str | None) -> int | None:
    return None if text is None else int(text.replace(",", ""))
