"""Turns the value that a batch handler returned into one outcome per task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qsync.errors import QsyncError
from qsync.server.outcome import NEVER_RUN, never_run


class WrongOutcomes(QsyncError):
    """A batch handler returned something other than one outcome per task."""


def outcomes_of_call(value: Any, count: int) -> Sequence[Any]:
    """Return the outcomes in the value that a batch handler returned: a result or an exception for
    each task."""
    if value is None:
        return [None] * count
    if type(value) in NEVER_RUN:
        raise never_run(value)
    hint = "return None, or a list in task order with a result or an exception for each task"
    if not isinstance(value, list | tuple):
        name = type(value).__name__
        raise WrongOutcomes(f"the batch handler returned a value of type {name}: {hint}")
    if len(value) != count:
        tasks = "1 task" if count == 1 else f"{count} tasks"
        raise WrongOutcomes(f"the batch handler returned {len(value)} results for {tasks}: {hint}")
    return [never_run(outcome) if type(outcome) in NEVER_RUN else outcome for outcome in value]
