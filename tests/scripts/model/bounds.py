"""Models the bounds of a queue: whether new tasks fit, and which waiting tasks are dropped for
them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

WAITING: Final = ("pending", "limited", "retry", "scheduled")
"""States whose tasks count towards a bound on the number of tasks, in the order in which tasks are
dropped."""


class Waiting(NamedTuple):
    """Properties that decide whether a task is dropped."""

    id: str
    state: str
    priority: int
    score: float
    size: int

    @property
    def rank(self) -> tuple[int, int, float, bytes]:
        """Sort key for the order in which tasks are dropped: lowest priority first, then oldest
        first."""
        banded = self.state in ("pending", "limited")
        priority = self.priority if banded else 0
        return WAITING.index(self.state), priority, self.score, self.id.encode()


class Refusal(NamedTuple):
    """The bound that refuses a call, its value, the current amount, and how many new tasks fit."""

    bound: str
    limit: int
    count: int
    fitting: int


@dataclass
class QueueBounds:
    """The bounds set by the program and by an operator, as the store holds them."""

    program: str = ""
    operator: str = ""

    @property
    def in_force(self) -> tuple[float, float, str]:
        """Maximum number of tasks, maximum number of bytes, and what to do if the queue is full."""
        tasks, size, way = (*(self.operator or self.program or "  ").split(" "), "", "")[:3]
        return float(tasks or math.inf), float(size or math.inf), way

    def make_room(
        self, queue: Sequence[Waiting], sizes: Sequence[int], kept: Collection[str]
    ) -> list[str] | Refusal:
        """Return the tasks to drop so that new tasks of these sizes fit, or why they do not fit.

        The tasks in `kept` are not dropped.
        """
        most_tasks, most_bytes, way = self.in_force
        waiting = [task for task in queue if task.state in WAITING]
        there = sum(task.size for task in queue) if most_bytes < math.inf else 0
        over_tasks = max(0, len(waiting) + len(sizes) - most_tasks)
        over_bytes = max(0, there + sum(sizes) - most_bytes)
        if not sizes or over_tasks + over_bytes == 0:
            return []
        of_tasks = over_tasks > 0
        bound = "max_tasks" if of_tasks else "max_bytes"
        limit = int(most_tasks if of_tasks else most_bytes)
        count = len(waiting) if of_tasks else there
        if way != "drop_oldest":
            fits = _fitting(sizes, most_tasks - len(waiting), most_bytes - there)
            return Refusal(bound, limit, count, fits)
        if len(sizes) > most_tasks or sum(sizes) > most_bytes:
            return Refusal(bound, limit, count, _fitting(sizes, most_tasks, most_bytes))
        dropped = []
        for task in sorted(waiting, key=lambda task: task.rank):
            if over_tasks <= 0 and over_bytes <= 0:
                break
            if task.id in kept:
                continue
            over_tasks, over_bytes = over_tasks - 1, over_bytes - task.size
            dropped.append(task.id)
        if over_tasks > 0 or over_bytes > 0:
            return Refusal(bound, limit, count, 0)
        return dropped

    def contents(self, size: int) -> dict[str, str]:
        """Return the bounds as the store holds them, with the size of the queue if a bound needs
        it."""
        kept = self.in_force[1] < math.inf
        fields = {"bounds": self.program, "!bounds": self.operator, "bytes": str(size)}
        return {name: text for name, text in fields.items() if text and (name != "bytes" or kept)}


def _fitting(sizes: Sequence[int], tasks: float, size: float) -> int:
    """Return how many of the new tasks fit, starting with the first."""
    for count, added in enumerate(sizes):
        tasks, size = tasks - 1, size - added
        if tasks < 0 or size < 0:
            return count
    return len(sizes)
