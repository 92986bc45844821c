"""How free slots are shared among queues. Pure.

Smooth weighted round-robin, many slots at a time: every queue earns credit by its weight and pays
for what it is given, so that over time the shares are those of the weights, whatever the number of
slots in one round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from qsync.broker.ops import BATCH_SIZE

T = TypeVar("T")


class Shares:
    """Shares slots among queues that are wanted at the moment."""

    def __init__(self, weights: dict[str, int], *, strict: bool) -> None:
        self._weights = weights
        self._strict = strict
        self._credit = dict.fromkeys(weights, 0.0)

    def split(self, slots: int, queues: Sequence[str]) -> dict[str, int]:
        """How many of the slots each of these queues gets, BATCH at most.

        What a queue leaves unused is shared among the others in the next round, from which the
        caller leaves it out.
        """
        if not queues:
            return {}
        if self._strict:
            return self._split_strictly(slots, queues)
        total = sum(self._weights[name] for name in queues)
        heaviest = max(self._weights[name] for name in queues)
        # No queue may get over BATCH, and cutting one alone would bend the shares.
        slots = min(slots, max(1, BATCH_SIZE * total // heaviest))
        for name in queues:
            self._credit[name] += slots * self._weights[name] / total
        given = {name: min(max(int(self._credit[name]), 0), BATCH_SIZE) for name in queues}
        if (asked := sum(given.values())) > slots:  # some of it was given back
            given = {name: slots * some // asked for name, some in given.items()}
        left = slots - sum(given.values())
        by_rest = sorted(queues, key=lambda name: given[name] - self._credit[name])
        while left > 0:
            for name in by_rest[:left]:
                given[name] += 1
            left -= len(by_rest)
        for name in queues:
            self._credit[name] -= given[name]
        return given

    def give_back(self, queue: str, slots: int) -> None:
        """Slots that a queue was given and could not use at once, though it has tasks."""
        self._credit[queue] = min(self._credit[queue] + max(slots, 0), float(BATCH_SIZE))

    def forget(self, queue: str) -> None:
        """A queue that ran empty does not save up credit."""
        self._credit[queue] = 0.0

    def _split_strictly(self, slots: int, queues: Sequence[str]) -> dict[str, int]:
        first = max(queues, key=lambda name: self._weights[name])
        return {name: min(slots, BATCH_SIZE) if name == first else 0 for name in queues}


def interleave(runs: Sequence[tuple[Sequence[T], int]]) -> Sequence[T]:
    """Merge runs so that each is spread evenly over the whole, its order kept.

    With each goes how long it was to be: one that is shorter keeps its pace and ends sooner.
    """
    runs = [(run, wanted) for run, wanted in runs if run]
    if len(runs) == 1:
        return runs[0][0]
    placed = [
        ((at + 0.5) / max(wanted, len(run)), which, at)
        for which, (run, wanted) in enumerate(runs)
        for at in range(len(run))
    ]
    placed.sort()
    return [runs[which][0][at] for _, which, at in placed]
