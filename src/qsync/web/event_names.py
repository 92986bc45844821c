"""Names of the recorded actions for people."""

from __future__ import annotations

from typing import Final

from qsync.web.names import state_name
from qsync.web.translation import _, marked

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
    """Return how a run of a schedule was made."""
    return _(MADE[origin])


def run_outcome(outcome: str) -> str:
    """Return the outcome of a run of a schedule, or the state of its task."""
    return _(OUTCOMES[outcome]) if outcome in OUTCOMES else state_name(outcome)


def action_name(action: str) -> str:
    """Return the name of an action; one that this version does not know stays as it is."""
    return _(NAMES[action]) if action in NAMES else action
