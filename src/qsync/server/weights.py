"""Shares free slots among queues by weight. Without I/O.

The algorithm is smooth weighted round-robin, for many slots at a time. In each round, a queue earns
credit in proportion to its weight, and pays for the slots that it receives. So over time, the
shares follow the weights, with any number of slots per round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from qsync.broker.op_values import MAX_TASKS_PER_CALL

T = TypeVar("T")


class Shares:
    """Shares slots among the queues that need a fetch."""

    def __init__(self, weights: dict[str, int], *, strict: bool) -> None:
        self._weights = weights
        self._strict = strict
        self._credit = dict.fromkeys(weights, 0.0)
        self._truncated: dict[str, int] = {}
        """Number of tasks that the last fetch returned, for queues whose large payloads cut the
        fetch short."""

    def split(self, slots: int, queues: Sequence[str]) -> dict[str, int]:
        """Return the number of slots for each of these queues, at most MAX_TASKS_PER_CALL.

        If a queue does not use its slots, the caller leaves it out of the next round, which shares
        them among the other queues.
        """
        if not queues:
            return {}
        if self._strict:
            return self._split_strictly(slots, queues)
        total = sum(self._weights[name] for name in queues)
        heaviest = max(self._weights[name] for name in queues)
        # No queue may get more than MAX_TASKS_PER_CALL slots; reducing only one queue would distort
        # the shares.
        slots = min(slots, max(1, MAX_TASKS_PER_CALL * total // heaviest))
        earned = {name: slots * self._weights[name] / total for name in queues}
        if self._truncated:
            self._keep_ratio(earned)
            slots = min(slots, math.ceil(sum(earned.values())))
        for name in queues:
            self._credit[name] += earned[name]
        slots_of = {
            name: min(max(int(self._credit[name]), 0), MAX_TASKS_PER_CALL) for name in queues
        }
        if (asked := sum(slots_of.values())) > slots:
            slots_of = {name: slots * some // asked for name, some in slots_of.items()}
        free = slots - sum(slots_of.values())
        by_rest = sorted(queues, key=lambda name: slots_of[name] - self._credit[name])
        while free > 0:
            for name in by_rest[:free]:
                slots_of[name] += 1
            free -= len(by_rest)
        for name in queues:
            self._credit[name] -= slots_of[name]
        return slots_of

    def note_fetch(self, queue: str, wanted: int, brought: int, *, left: bool) -> None:
        """Record how many tasks a fetch returned, and whether it left some.

        If a fetch returns fewer tasks than requested, either large payloads cut it short, or it
        emptied the queue. In both cases, the queue's credit is reset.
        """
        if left and brought < wanted:
            self._truncated[queue] = max(1, brought)
        else:
            self._truncated.pop(queue, None)
        if brought < wanted:
            self._credit[queue] = 0.0

    def is_truncated(self, queue: str) -> bool:
        """Return whether large payloads cut the last fetch from a queue short."""
        return queue in self._truncated

    def _keep_ratio(self, earned: dict[str, float]) -> None:
        """Keep the ratio of the weights when large payloads cut the fetches of a queue short.

        Queues of the same or a lower weight then earn less too. Queues with more weight earn as
        before, so they get the share that the queue with large payloads cannot use.
        """
        for name, brought in self._truncated.items():
            if name not in earned:
                continue
            weight = self._weights[name]
            for other in earned:
                if other == name or self._weights[other] > weight:
                    continue
                bound = brought * self._weights[other] / weight
                # If two queues of equal weight are both cut short, each requests one task more than
                # the other returned. Its next fetch then still shows whether it is cut short.
                bound += self._weights[other] == weight and other in self._truncated
                earned[other] = min(earned[other], bound)

    def _split_strictly(self, slots: int, queues: Sequence[str]) -> dict[str, int]:
        first = max(queues, key=lambda name: self._weights[name])
        return {name: min(slots, MAX_TASKS_PER_CALL) if name == first else 0 for name in queues}


def interleave(runs: Sequence[tuple[Sequence[T], int]]) -> Sequence[T]:
    """Merge sequences so that each is spread evenly over the result, in its own order.

    The number in each pair is the expected length of the sequence; a shorter sequence is used up
    before the others.
    """
    runs = [(run, wanted) for run, wanted in runs if run]
    if len(runs) == 1:
        return runs[0][0]
    placed = [
        ((index + 0.5) / max(wanted, len(run)), which, index)
        for which, (run, wanted) in enumerate(runs)
        for index in range(len(run))
    ]
    placed.sort()
    return [runs[which][0][index] for _, which, index in placed]
