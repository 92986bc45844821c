"""What the client of the demo asked for, and what it was told."""

from __future__ import annotations

from collections import Counter, defaultdict


class Ledger:
    """What the client asked for, and what the store answered. Times are monotonic, in seconds."""

    def __init__(self) -> None:
        self.offered: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.ids: dict[str, list[str]] = defaultdict(list)
        """kind -> what was accepted."""
        self.sent: dict[str, float] = {}
        """id -> just before the call that enqueued it."""
        self.due: dict[str, float] = {}
        """id -> the earliest time at which it may start."""
        self.flood: list[str] = []
        self.small: list[str] = []
        self.round_trips: list[float] = []
        """From enqueue to the result, of the typed tasks."""
        self.wrong_results = 0
        self.holders: dict[str, list[str]] = defaultdict(list)
        """unique: name -> ids that were accepted for it."""
        self.named: list[tuple[str, str]] = []
        """unique: name and the holder of it, as each refusal gave it."""
        self.cancelled_after: list[float] = []
        """From `cancel()` of a running task to its end."""
        self.not_cancelled = 0
        self.poison_error = ""

    def accept(self, kind: str, id: str, sent: float) -> None:
        """A task that the store took."""
        self.ids[kind].append(id)
        self.sent[id] = sent

    @property
    def total(self) -> int:
        """How many tasks the store took from the client."""
        return sum(map(len, self.ids.values()))
