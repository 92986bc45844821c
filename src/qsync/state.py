"""The states of a task and all transitions between them.

The diagram in the docs and the property tests are generated from TRANSITIONS. A new state also
needs its key in `keys.py` and in the scripts that name all states (`rg KEYS.limited`), rows in
`docs/design/data-model.md`, and words in `cli/output.py` and `web/translation.py`.
"""

from __future__ import annotations

from enum import StrEnum


class TaskState(StrEnum):
    """The state of a task.

    A queue has one sorted set per state, named after the state's value. CANCELLED has no set: a
    cancelled task with a retention is kept in the set of completed tasks, with a mark.
    """

    SCHEDULED = "scheduled"
    PENDING = "pending"
    LIMITED = "limited"
    ACTIVE = "active"
    RETRY = "retry"
    COMPLETED = "completed"
    DEAD = "dead"
    CANCELLED = "cancelled"


STORED: tuple[TaskState, ...] = tuple(
    state for state in TaskState if state is not TaskState.CANCELLED
)
"""States that have a sorted set of their own; TRANSITIONS uses only these."""


UNFINISHED = frozenset(
    {
        TaskState.SCHEDULED,
        TaskState.PENDING,
        TaskState.LIMITED,
        TaskState.ACTIVE,
        TaskState.RETRY,
    },
)
"""States of a task that has not ended; in these, a task with `unique=True` holds its lock."""

_S = TaskState

TRANSITIONS: dict[tuple[TaskState | None, str], tuple[TaskState | None, ...]] = {
    # (state before, verb): possible states after; None means "not in the queue".
    (None, "enqueue"): (_S.PENDING, _S.LIMITED, _S.SCHEDULED),
    (_S.SCHEDULED, "promote"): (_S.PENDING, _S.LIMITED),
    (_S.SCHEDULED, "run"): (_S.PENDING, _S.LIMITED),
    (_S.SCHEDULED, "replace"): (_S.PENDING, _S.LIMITED),
    (_S.SCHEDULED, "cancel"): (None, _S.COMPLETED),
    (_S.SCHEDULED, "delete"): (None,),
    (_S.SCHEDULED, "drop"): (None,),
    (_S.PENDING, "fetch"): (_S.ACTIVE, _S.DEAD),
    (_S.PENDING, "replace"): (_S.SCHEDULED, _S.LIMITED),
    (_S.PENDING, "park"): (_S.LIMITED,),
    (_S.PENDING, "cancel"): (None, _S.COMPLETED),
    (_S.PENDING, "delete"): (None,),
    (_S.PENDING, "drop"): (None,),
    (_S.LIMITED, "open"): (_S.PENDING,),
    (_S.LIMITED, "replace"): (_S.PENDING, _S.SCHEDULED),
    (_S.LIMITED, "cancel"): (None, _S.COMPLETED),
    (_S.LIMITED, "delete"): (None,),
    (_S.LIMITED, "drop"): (None,),
    (_S.ACTIVE, "complete"): (None, _S.COMPLETED, _S.SCHEDULED),
    (_S.ACTIVE, "retry"): (_S.RETRY, _S.COMPLETED, None, _S.SCHEDULED),
    (_S.ACTIVE, "kill"): (_S.DEAD, _S.SCHEDULED),
    (_S.ACTIVE, "cancel"): (None, _S.COMPLETED, _S.SCHEDULED),
    (_S.ACTIVE, "hand_back"): (_S.PENDING, _S.LIMITED, _S.SCHEDULED, _S.COMPLETED, None),
    (_S.ACTIVE, "lapse"): (
        _S.PENDING,
        _S.LIMITED,
        _S.DEAD,
        _S.COMPLETED,
        None,
        _S.SCHEDULED,
    ),
    (_S.ACTIVE, "purge"): (None,),
    (_S.RETRY, "promote"): (_S.PENDING, _S.LIMITED),
    (_S.RETRY, "run"): (_S.PENDING, _S.LIMITED),
    (_S.RETRY, "replace"): (_S.PENDING, _S.LIMITED, _S.SCHEDULED),
    (_S.RETRY, "cancel"): (None, _S.COMPLETED),
    (_S.RETRY, "delete"): (None,),
    (_S.RETRY, "drop"): (None,),
    (_S.COMPLETED, "sweep"): (None,),
    (_S.COMPLETED, "delete"): (None,),
    (_S.DEAD, "run"): (_S.PENDING, _S.LIMITED),
    (_S.DEAD, "delete"): (None,),
    (_S.DEAD, "trim"): (None,),
}
