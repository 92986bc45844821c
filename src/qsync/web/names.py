"""Display names of states, events, counters and kinds of payload."""

from __future__ import annotations

from typing import Final

from qsync.inspector import TaskDetail
from qsync.phrase import Phrase
from qsync.state import TaskState
from qsync.web.translation import STATES, _, marked, seconds, translated

COMPLETED_AND_CANCELLED: Final = marked("completed and cancelled")
"""Name that `purged_with` returns for completed and cancelled tasks, which are stored together."""

TITLES: Final = {
    TaskState.SCHEDULED: marked("Scheduled"),
    TaskState.PENDING: marked("Pending"),
    TaskState.LIMITED: marked("Limited"),
    TaskState.ACTIVE: marked("Active"),
    TaskState.RETRY: marked("Retry"),
    TaskState.COMPLETED: marked("Completed"),
    TaskState.DEAD: marked("Dead"),
    TaskState.CANCELLED: marked("Cancelled"),
}
"""Display name of each state as a title, e.g. of a list of tasks."""


def state_name(state: str | None) -> str:
    """Return the display name of a task's state; empty for None."""
    return "" if state is None else _(STATES[TaskState(state)])


def state_title(state: str) -> str:
    """Return the display name of a state as a title."""
    return _(TITLES[TaskState(state)])


EVENTS: Final = {
    "enqueued": marked("enqueued"),
    "due": marked("due"),
    "failed": marked("failed"),
    "lease expires": marked("lease expires"),
    "died": marked("died"),
    "completed": marked("completed"),
    "cancelled": marked("cancelled"),
    "deleted after": marked("deleted after"),
    "cancel requested": marked("cancel requested"),
    "deadline": marked("deadline"),
    "crashed": marked("crashed"),
    "returned to queue": marked("returned to queue"),
    "snoozed": marked("snoozed"),
}
"""Display names of a task's events, by label."""

COUNTERS: Final = {
    "enqueued": marked("Tasks enqueued"),
    "completed": marked("Tasks completed"),
    "failed": marked("Failed attempts"),
    "retried": marked("Retries"),
    "crashed": marked("Crashes"),
    "dead": marked("Tasks that died"),
    "cancelled": marked("Tasks cancelled"),
    "trimmed": marked("Dead tasks trimmed"),
    "lost": marked("Tasks lost"),
    "dropped": marked("Tasks dropped"),
    "bytes": marked("Size of messages"),
}
"""Display names of a queue's counters."""

KINDS: Final = {"binary": marked("binary"), "text": marked("text"), "value": "msgpack"}
"""Display names of kinds of payload; any other kind is the name of a format, and is shown as it
is."""


def event_name(label: str) -> str:
    """Return the display name of a task's event."""
    return _(EVENTS.get(label, label))


def counter_name(counter: str) -> str:
    """Return the display name of a queue's counter."""
    return _(COUNTERS.get(counter, counter))


def kind_name(kind: str) -> str:
    """Return the display name of a kind of payload."""
    return _(KINDS.get(kind, kind))


def retry_delay(task: TaskDetail) -> str:
    """Return the retry delay of a task in words."""
    delay: Phrase | float | str | None = task.retry_phrase or task.retry_delay
    if delay is None:
        return _("exponential backoff")
    return seconds(delay) if isinstance(delay, float) else translated(delay)
