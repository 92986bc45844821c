"""Names of the states of tasks for people."""

from __future__ import annotations

from typing import Final

from qsync.state import TaskState
from qsync.web.translation import _, marked

NAMES: Final = {
    TaskState.SCHEDULED: marked("scheduled"),
    TaskState.PENDING: marked("pending"),
    TaskState.LIMITED: marked("limited"),
    TaskState.ACTIVE: marked("active"),
    TaskState.RETRY: marked("retry"),
    TaskState.COMPLETED: marked("completed"),
    TaskState.DEAD: marked("dead"),
    TaskState.CANCELLED: marked("cancelled"),
}
"""Name of the state of one task."""

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
"""Name of all tasks in a state."""


def state_name(state: str | None) -> str:
    """Return the name of the state of a task; empty for None."""
    return "" if state is None else _(NAMES[TaskState(state)])


def state_title(state: str) -> str:
    """Return the name of all tasks in a state."""
    return _(TITLES[TaskState(state)])
