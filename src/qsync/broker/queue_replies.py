"""Decodes the parts of replies that describe a whole queue: states, counters, bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from qsync.bounds import QueueBounds, read_bounds
from qsync.state import UNFINISHED, TaskState

WAITING: Final = UNFINISHED - {TaskState.ACTIVE}
"""States whose tasks count towards the bound `max_tasks`."""


def separate_cancelled(stored: dict[TaskState, int], cancelled: int) -> dict[TaskState, int]:
    """Return the number of tasks by state, with cancelled tasks separated from completed ones."""
    completed = stored[TaskState.COMPLETED] - cancelled
    return {**stored, TaskState.COMPLETED: completed, TaskState.CANCELLED: cancelled}


ONE_TASK: Final = 1_000_000_000_000
"""What each task adds to the field `tally` of `meta`, in addition to its size (see
include/count_enqueued.lua)."""


def counters_of(flat: Sequence[bytes], tally: Sequence[bytes]) -> dict[str, int]:
    """Return the counters by name, except those that are not valid numbers.

    `tally` is the day and sum of tasks that the counters do not include yet.
    """
    pairs = zip(flat[::2], flat[1::2], strict=True)
    counters = {
        name.decode(errors="backslashreplace"): int(value)
        for name, value in pairs
        if value.isdigit() and len(value) < 20
    }
    day, summed = tally
    if day.isdigit() and summed.isdigit() and len(summed) < 17:
        tasks, size = divmod(int(summed), ONE_TASK)
        for name, amount in (("enqueued", tasks), ("bytes", size)):
            for counter in (name, f"{name}:{int(day)}"):
                counters[counter] = counters.get(counter, 0) + amount
    return counters


def bounds_in(sizes: dict[TaskState, int], reply: Sequence[Any]) -> QueueBounds:
    """Return the bounds of a queue and how full it is, from the sizes of its states and its
    `meta`."""
    program, operator, size = reply
    return read_bounds(program, operator, sum(sizes[state] for state in WAITING), size)
