"""Reads the parts of replies that describe a whole queue: states, counters, bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from qsync.bounds import QueueBounds, read_bounds
from qsync.state import UNFINISHED, TaskState

WAITING: Final = UNFINISHED - {TaskState.ACTIVE}
"""States of tasks that count for the bound `max_tasks`."""


def told_apart(stored: dict[TaskState, int], cancelled: int) -> dict[TaskState, int]:
    """Return the number of tasks by state, with cancelled tasks separated from completed ones."""
    completed = stored[TaskState.COMPLETED] - cancelled
    return {**stored, TaskState.COMPLETED: completed, TaskState.CANCELLED: cancelled}


def counters_of(flat: Sequence[bytes]) -> dict[str, int]:
    """Return the counters by name, without those that are not valid numbers."""
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return {
        name.decode(errors="backslashreplace"): int(value)
        for name, value in pairs
        if value.isdigit() and len(value) < 20
    }


def bounds_in(sizes: dict[TaskState, int], reply: Sequence[Any]) -> QueueBounds:
    """Return the bounds of a queue and how full it is, from its state sizes and its meta."""
    program, operator, size = reply
    return read_bounds(program, operator, sum(sizes[state] for state in WAITING), size)
