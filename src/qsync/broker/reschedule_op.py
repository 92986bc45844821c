"""The operation that changes when a waiting task is due. See `qsync.broker.ops`."""

from __future__ import annotations

from typing import Any, NamedTuple

from qsync.broker.call import Call, queue_query
from qsync.broker.call_values import now_argument
from qsync.keys import QueueKeys
from qsync.state import TaskState


class Rescheduled(NamedTuple):
    """The outcome of a reschedule."""

    state: TaskState | None
    """State of the task; None if it is not in the queue."""
    due_us: int | None
    """The new due time, us; None if the task is in a state without a due time, and was not
    changed."""


def reschedule(
    keys: QueueKeys, id: str, due: str, *, now_us: int | None = None
) -> Call[Rescheduled]:
    """Change when a scheduled or retried task is due: `+<us>` from now, or `<us>` Unix time."""
    args = (now_argument(now_us), "", id, due)

    def decode(reply: dict[str, Any]) -> Rescheduled:
        state, due_us = reply["state"].decode(), reply["due"].decode()
        return Rescheduled(TaskState(state) if state else None, int(due_us) if due_us else None)

    return queue_query("reschedule", keys, args, decode)
