"""The states of a task and the only ways from one to another.

The diagram in the docs and the property tests are made from TRANSITIONS.
"""

from __future__ import annotations

from enum import StrEnum


class TaskState(StrEnum):
    """Where a task is; each of STORED is one sorted set of its queue, named like the value.

    A cancelled task with a retention is kept among the completed ones, and told apart from them.
    """

    SCHEDULED = "scheduled"
    PENDING = "pending"
    ACTIVE = "active"
    RETRY = "retry"
    COMPLETED = "completed"
    DEAD = "dead"
    CANCELLED = "cancelled"


STORED: tuple[TaskState, ...] = tuple(
    state for state in TaskState if state is not TaskState.CANCELLED
)
"""The states that are sorted sets; TRANSITIONS is about these."""


def stored_as(state: TaskState) -> TaskState:
    """Return the state whose sorted set holds the tasks of this one."""
    return TaskState.COMPLETED if state is TaskState.CANCELLED else state


UNFINISHED = frozenset(
    {TaskState.SCHEDULED, TaskState.PENDING, TaskState.ACTIVE, TaskState.RETRY},
)
"""The states of a task that still has something to run; a unique lock lasts as long."""

_S = TaskState

TRANSITIONS: dict[tuple[TaskState | None, str], tuple[TaskState | None, ...]] = {
    # (from, verb): to; None is "not in the queue".
    (None, "enqueue"): (_S.PENDING, _S.SCHEDULED),
    (_S.SCHEDULED, "promote"): (_S.PENDING,),
    (_S.SCHEDULED, "run"): (_S.PENDING,),
    (_S.SCHEDULED, "cancel"): (None, _S.COMPLETED),
    (_S.SCHEDULED, "delete"): (None,),
    (_S.PENDING, "fetch"): (_S.ACTIVE, _S.DEAD),
    (_S.PENDING, "cancel"): (None, _S.COMPLETED),
    (_S.PENDING, "delete"): (None,),
    (_S.ACTIVE, "complete"): (None, _S.COMPLETED),
    (_S.ACTIVE, "retry"): (_S.RETRY, _S.COMPLETED, None),
    (_S.ACTIVE, "kill"): (_S.DEAD,),
    (_S.ACTIVE, "cancel"): (None, _S.COMPLETED),
    (_S.ACTIVE, "hand_back"): (_S.PENDING, _S.SCHEDULED, _S.COMPLETED, None),
    (_S.ACTIVE, "lapse"): (_S.PENDING, _S.DEAD, _S.COMPLETED, None),
    (_S.ACTIVE, "purge"): (None,),
    (_S.RETRY, "promote"): (_S.PENDING,),
    (_S.RETRY, "run"): (_S.PENDING,),
    (_S.RETRY, "cancel"): (None, _S.COMPLETED),
    (_S.RETRY, "delete"): (None,),
    (_S.COMPLETED, "sweep"): (None,),
    (_S.COMPLETED, "delete"): (None,),
    (_S.DEAD, "run"): (_S.PENDING,),
    (_S.DEAD, "delete"): (None,),
    (_S.DEAD, "trim"): (None,),
}
