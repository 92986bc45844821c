"""The queue of the model: tasks with one state each, locks, tags, and the moves between states."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from qsync.broker.ops import Enqueued, Outcome
from qsync.message import ENVELOPE_HEAD
from qsync.new_task import NewTask
from qsync.state import UNFINISHED


@dataclass
class Known:
    """A task in the queue."""

    sent: NewTask
    enqueued_at: int
    state: str = "pending"
    score: float = 0
    token: str | None = None
    crashes: str | None = None
    failure: bytes | None = None
    result: bytes | None = None
    cancel: str | None = None
    progress: bytes | None = None
    key: str = ""

    @property
    def message(self) -> bytes:
        return ENVELOPE_HEAD + struct.pack(">Q", self.enqueued_at) + self.sent.message

    @property
    def since(self) -> int | None:
        """Since when it is runnable, where that is kept: at the place of its progress."""
        kept = self.progress is not None and self.progress.startswith(b"@")
        return int(self.progress[1:]) if self.progress and kept else None

    @property
    def crash_count(self) -> int:
        return int((self.crashes or "0").rstrip("+!"))

    @property
    def lock(self) -> str:
        """The lock that it has, for as long as it is not done."""
        return self.sent.lock if self.state in UNFINISHED else ""


@dataclass
class Queue:
    """All that there is to know of a queue, nothing of it twice."""

    tasks: dict[str, Known] = field(default_factory=dict)
    locks: dict[str, tuple[int, str]] = field(default_factory=dict)
    tags: dict[str, float] = field(default_factory=dict)
    virtual: float = 0
    fetches: dict[str, tuple[int, int, list[str]]] = field(default_factory=dict)
    ticks: dict[str, int] = field(default_factory=dict)
    calls: dict[str, tuple[int, int, list[Enqueued]]] = field(default_factory=dict)
    recent: dict[str, int] = field(default_factory=dict)
    """Until when no other task is taken under an id that a caller chose."""
    paused: bytes = b""
    awake: bool = False
    swept: int = 0
    generation: str = ""
    seen: int | None = None
    returned: int | None = None
    more: bool = False
    """The last fetch left upkeep undone."""
    counts: Counter[str] = field(default_factory=Counter)

    def those(self, state: str, until: float = float("inf")) -> list[str]:
        """The ids in a state with a score up to a limit, in the order of the store."""
        found = [
            (task.score, id.encode())
            for id, task in self.tasks.items()
            if task.state == state and task.score <= until
        ]
        return [id.decode() for _, id in sorted(found)]

    def move(
        self, now: int, id: str, state: str | None, score: float = 0, *, keeps: bool = False
    ) -> None:
        """Into another state, None: out of the queue. A lock is freed with the end of its task.

        `keeps`: the progress stays.
        """
        task = self.tasks[id]
        lock = task.lock
        if task.state == "active":
            task.token = None
            task.progress = task.progress if keeps else None
        if state is None:
            del self.tasks[id]
        else:
            task.state, task.score = state, score
        if lock and state not in UNFINISHED:
            task.key = ""
            ends, holder = self.locks.get(lock, (0, ""))
            if holder == id and ends <= now:
                del self.locks[lock]
        if state not in UNFINISHED:
            task.key = ""

    def holder(self, now: int, lock: str) -> str | None:
        ends, id = self.locks.get(lock, (0, ""))
        task = self.tasks.get(id)
        return id if id and (ends > now or (task and task.lock == lock)) else None

    def to_pending(self, now: int, id: str) -> None:
        key = self.tasks[id].key
        tag = max(self.virtual, self.tags.get(key, 0)) + 1
        self.tags[key] = tag
        self.move(now, id, "pending", tag)

    def to_head(self, now: int, ids: Sequence[str]) -> None:
        waiting = self.those("pending")
        lowest = self.tasks[waiting[0]].score if waiting else self.virtual
        for at, id in enumerate(ids):
            self.move(now, id, "pending", lowest - len(ids) + at)

    def to_later(self, now: int, state: str, due: dict[str, int]) -> None:
        first = min((self.tasks[id].score for id in self.those(state)), default=None)
        for id, at in due.items():
            self.move(now, id, state, at)
        if due and (first is None or min(due.values()) < first):
            self.awake = True

    def end_cancelled(self, now: int, ids: Iterable[str]) -> None:
        for id in ids:
            retention = self.tasks[id].cancel
            if retention:
                self.move(now, id, "completed", now + int(retention))
            else:
                self.move(now, id, None)
            self.recent.pop(id, None)
            self.counts["cancelled"] += 1

    def owned(self, rows: Sequence[Any]) -> tuple[list[Any], list[Outcome]]:
        """The rows whose token holds, and the answers."""
        held, answers, seen = [], [], set()
        for row in rows:
            task = self.tasks.get(row.id)
            answer: Outcome = "done"
            if task and task.token and row.id not in seen:
                answer = "ok" if task.token == row.token else "lost"
            if answer == "ok":
                held.append(row)
                seen.add(row.id)
            answers.append(answer)
        return held, answers

    def unmark(self, rows: Iterable[Any]) -> None:
        for row in rows:
            task = self.tasks[row.id]
            if task.crashes:
                task.crashes = str(task.crash_count)

    def runnable_from(self, at: dict[str, int]) -> None:
        """Keep since when, or from when on, tasks can run."""
        for id, us in at.items():
            self.tasks[id].progress = f"@{us}".encode()

    def moments(self) -> set[int]:
        """The times at which something is due, lapses or ends."""
        times = {int(task.score) for task in self.tasks.values() if task.state != "pending"}
        return times | {ends for ends, _ in self.locks.values()} | set(self.recent.values())

    def contents(self) -> dict[str, Any]:
        """As Rig.dump, without the bookkeeping of sweeps and fetches and the counters by day."""
        every = self.tasks.items()
        full: dict[str, dict[str, Any]] = {
            "tasks": {id: task.message for id, task in every},
            "owner": {id: task.token for id, task in every if task.token},
            "crashes": {id: task.crashes for id, task in every if task.crashes},
            "failures": {id: task.failure for id, task in every if task.failure is not None},
            "results": {id: task.result for id, task in every if task.result is not None},
            "cancels": {id: task.cancel for id, task in every if task.cancel is not None},
            "progress": {id: task.progress for id, task in every if task.progress},
            "keys": {id: task.key for id, task in every if task.key},
            "unique": {f"={lock}": f"{ends}:{id}" for lock, (ends, id) in self.locks.items()}
            | {f"@{id}": task.lock for id, task in every if task.lock},
            "fairness": self.tags,
            "recent": self.recent,
            "ticks": {name: str(tick) for name, tick in self.ticks.items()},
            "calls": {sender: _kept(*last) for sender, last in self.calls.items()},
            "stats": {name: str(count) for name, count in self.counts.items() if count},
            "meta": ({"paused": self.paused} if self.paused else {})
            | ({"v": f"{self.virtual:.17g}"} if self.virtual else {}),
        }
        for id, task in every:
            full.setdefault(task.state, {})[id] = task.score
        contents: dict[str, Any] = {
            name: {_bytes(field): _bytes(value) for field, value in fields.items()}
            for name, fields in full.items()
            if fields
        }
        return contents | ({"wake": [b"1"]} if self.awake else {})


def _kept(number: int, at: int, answers: Sequence[Enqueued]) -> str:
    others = [
        f" {n} {one.outcome} {one.id}"
        for n, one in enumerate(answers, 1)
        if one.outcome != "created"
    ]
    return f"{number} {at}" + "".join(others)


def _bytes(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value
