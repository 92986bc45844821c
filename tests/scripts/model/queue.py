"""Models a queue: its tasks and their states, locks, order tags, and moves between states."""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from qsync.broker.op_values import Enqueued, Outcome
from qsync.broker.stored_schedules import StoredScheduleRow
from qsync.errors import QueueFull
from qsync.message import ENVELOPE_HEAD, NORMAL_PRIORITY
from qsync.new_task import NewTask
from qsync.state import UNFINISHED
from tests.scripts.model.bounds import QueueBounds, Refusal, Waiting
from tests.scripts.model.limits import MOVES_MOST, Limits, entry

_tail: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder()

BAND: Final = 2**41
"""Width of the band of order tags that each priority has."""


def band_of(priority: int) -> int:
    """Return the first tag of a priority's band."""
    return (NORMAL_PRIORITY - priority) * BAND


@dataclass
class Successor:
    """A task that replaces a running task when the attempt of the running task has ended."""

    sent: NewTask
    enqueued_at: int
    due: int

    @property
    def record(self) -> bytes:
        message = ENVELOPE_HEAD + struct.pack(">Q", self.enqueued_at) + self.sent.message
        member = member_of(self.sent)
        return b"%d %d %s%s" % (self.due, len(member), member, message)


def priority_of(sent: NewTask) -> int:
    return sent.flow.priority if sent.flow else NORMAL_PRIORITY


def type_of(sent: NewTask) -> str:
    found: str = _tail.decode(b"\x96" + sent.message)[1]
    return found


def member_of(sent: NewTask) -> bytes:
    """Return the member that stands for a task's key in the set of fairness keys."""
    priority, key = priority_of(sent), sent.fairness_key.encode()
    return key if priority == NORMAL_PRIORITY else b"\xff%d%s" % (priority, key)


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
    key: bytes = b""
    successor: Successor | None = None

    released: bool = False
    """True if the slots of the task have already been given back although it is active."""

    @property
    def type_limit(self) -> str:
        """Limit that the task waits for while its type is paused."""
        return f"@{type_of(self.sent)}"

    @property
    def limits(self) -> tuple[str, ...]:
        return self.sent.flow.limits if self.sent.flow else ()

    @property
    def holds(self) -> tuple[str, ...]:
        """Limits that the task holds; none while it waits for a limit."""
        return self.limits if self.state in UNFINISHED - {"limited"} else ()

    @property
    def priority(self) -> int:
        return int(chr(self.key[1])) if self.key[:1] == b"\xff" else NORMAL_PRIORITY

    @property
    def message(self) -> bytes:
        return ENVELOPE_HEAD + struct.pack(">Q", self.enqueued_at) + self.sent.message

    @property
    def since(self) -> int | None:
        """Time at which the task became runnable, if the progress hash records it."""
        kept = self.progress is not None and self.progress.startswith(b"@")
        return int(self.progress[1:]) if self.progress and kept else None

    @property
    def crash_count(self) -> int:
        return int((self.crashes or "0").rstrip("+!"))

    @property
    def lock(self) -> str:
        """Lock that the task holds; empty once the task has ended."""
        return self.sent.lock if self.state in (*UNFINISHED, "new") else ""


@dataclass
class Queue:
    """The state of a queue, without redundant data."""

    tasks: dict[str, Known] = field(default_factory=dict)
    locks: dict[str, tuple[int, str]] = field(default_factory=dict)
    tags: dict[bytes, float] = field(default_factory=dict)
    virtual: dict[int, float] = field(default_factory=dict)
    """Virtual time of each priority."""
    fetches: dict[str, tuple[int, int, list[str]]] = field(default_factory=dict)
    ticks: dict[str, int] = field(default_factory=dict)
    stored: dict[str, StoredScheduleRow] = field(default_factory=dict)
    """Schedules that clients have stored."""
    schedule_pauses: dict[str, bytes] = field(default_factory=dict)
    calls: dict[str, tuple[int, int, list[Enqueued]]] = field(default_factory=dict)
    replacing: dict[str, list[int]] = field(default_factory=dict)
    """Positions of the tasks that replace others in a sender's last call, by sender."""
    flow: bool = False
    """True if a task of the queue has used flow control."""
    recent: dict[str, int] = field(default_factory=dict)
    """For each id that a caller chose, the time until which no other task with this id is
    accepted."""
    paused: bytes = b""
    awake: bool = False
    swept: int = 0
    generation: str = ""
    seen: int | None = None
    returned: int | None = None
    more: bool = False
    """True if the last fetch left upkeep undone."""
    counts: Counter[str] = field(default_factory=Counter)
    limits: Limits = field(default_factory=Limits)
    bounds: QueueBounds = field(default_factory=QueueBounds)

    @property
    def size(self) -> int:
        """Total size of all messages, in bytes."""
        return sum(len(task.message) for task in self.tasks.values())

    def those(self, state: str, until: float = float("inf")) -> list[str]:
        """Return the ids of the tasks in a state with scores up to `until`, in the store's
        order."""
        found = [
            (task.score, id.encode())
            for id, task in self.tasks.items()
            if task.state == state and task.score <= until
        ]
        return [id.decode() for _, id in sorted(found)]

    def move(
        self, now: int, id: str, state: str | None, score: float = 0, *, keeps: bool = False
    ) -> None:
        """Move a task into another state; None removes it from the queue. When a task ends, its
        lock is freed.

        With `keeps`, the task keeps its progress.
        """
        task = self.tasks[id]
        lock = task.lock
        if task.state == "active":
            self.release([id])
            task.released = False
            task.token = None
            task.progress = task.progress if keeps else None
        if task.state == "limited":
            self.stop_waiting(id)
        if state is None:
            del self.tasks[id]
        else:
            task.state, task.score = state, score
        if lock and state not in UNFINISHED:
            task.key = b""
            ends, holder = self.locks.get(lock, (0, ""))
            if holder == id and ends <= now:
                del self.locks[lock]
        if state not in UNFINISHED:
            task.key = b""

    def holder(self, now: int, lock: str) -> str | None:
        ends, id = self.locks.get(lock, (0, ""))
        task = self.tasks.get(id)
        return id if id and (ends > now or (task and task.lock == lock)) else None

    def to_pending(self, now: int, id: str, *, new: bool = False) -> None:
        task = self.tasks[id]
        start = band_of(task.priority)
        virtual = self.virtual.get(task.priority, start)
        tag = max(virtual, self.tags.get(task.key, start)) + 1
        self.tags[task.key] = tag
        self.admit(now, id, tag, new=new)

    def to_head(self, now: int, ids: Sequence[str]) -> None:
        for priority in sorted({self.tasks[id].priority for id in ids}, reverse=True):
            mine = [id for id in ids if self.tasks[id].priority == priority]
            waiting = [self.tasks[id] for id in (*self.those("pending"), *self.those("limited"))]
            scores = [task.score for task in waiting if task.priority == priority]
            lowest = min(scores, default=self.virtual.get(priority, band_of(priority)))
            for at, id in enumerate(mine):
                self.admit(now, id, lowest - len(mine) + at)

    def admit(self, now: int, id: str, tag: float, *, new: bool = False) -> bool:
        """Move a task into `pending`, or into `limited` if a limit refuses it; return whether the
        task became pending.

        A paused type refuses only new tasks (`new`) here; fetches set the other tasks aside.
        """
        task = self.tasks[id]
        limits = task.limits
        if new and task.type_limit in self.limits.pauses:
            limit: str | None = task.type_limit
            self.limits.touch(task.type_limit)
        else:
            limit = self.limits.refusing(now, limits)
        if limit is not None:
            self.wait_for(now, id, tag, limit)
            return False
        self.move(now, id, "pending", tag)
        for limit in limits:
            self.limits.touch(limit).ready += 1
        return True

    def wait_for(self, now: int, id: str, tag: float, limit: str) -> None:
        self.move(now, id, "limited", tag)
        self.limits.waiting[entry(limit, tag, id, self.tasks[id].limits)] = (limit, id)

    def stop_waiting(self, id: str) -> None:
        waiting = self.limits.waiting
        [own] = [one for one, (_, waiter) in waiting.items() if waiter == id]
        del waiting[own]

    def release(self, ids: Iterable[str]) -> None:
        """Give back the slots of active tasks, except slots that have already been given back."""
        for id in ids:
            task = self.tasks[id]
            if task.state == "active" and not task.released:
                task.released = True
                for limit in task.limits:
                    self.limits.touch(limit).use -= 1

    def unready(self, ids: Iterable[str]) -> None:
        """Update the limits of tasks that leave `pending` or `limited` without being leased."""
        for id in ids:
            task = self.tasks[id]
            for limit in task.limits:
                if task.state == "pending":
                    self.limits.touch(limit).ready -= 1
                elif task.state == "limited":
                    self.limits.touch(limit)

    def open_waiters(self, now: int) -> bool:
        """While the limits that this call touched are open, move their waiters."""
        moves, opened = MOVES_MOST, False
        while moves > 0 and (firsts := self.limits.first_of_each(now, moves)):
            for limit, first in firsts:
                _, id = self.limits.waiting[first]
                task = self.tasks[id]
                others = [one for one in task.limits if one != limit]
                if task.type_limit in self.limits.pauses:
                    shut: str | None = task.type_limit
                    self.limits.touch(task.type_limit)
                else:
                    shut = next((one for one in others if not self.limits.is_open(now, one)), None)
                if not self.limits.is_open(now, limit):
                    continue
                moves -= 1
                del self.limits.waiting[first]
                if shut is not None:
                    self.limits.waiting[entry(shut, task.score, id, task.limits)] = (shut, id)
                    continue
                opened = True
                task.state = "pending"
                for one in task.limits:
                    self.limits.touch(one).ready += 1
        return opened

    def settle(self, now: int) -> bool:
        """Finish a call: move waiters and store the limits. Return whether a server is woken,
        because tasks became pending or a limit opens before all others."""
        opened, sooner = self.finish(now)
        return opened or sooner

    def finish(self, now: int) -> tuple[bool, bool]:
        """Move waiters and store the limits. Return whether tasks became pending, and whether a
        limit opens before all others."""
        opened = self.limits.is_touched and self.open_waiters(now)
        return opened, self.limits.save(now)

    def make_room(
        self, now: int, tasks: Sequence[NewTask], new: Sequence[NewTask], kept: Collection[str]
    ) -> None:
        """Drop waiting tasks, except `kept`, until the new tasks of a call fit, or raise
        QueueFull."""
        waiting = [
            Waiting(id, task.state, task.priority, task.score, len(task.message))
            for id, task in self.tasks.items()
        ]
        sizes = [len(Known(sent, 0).message) for sent in new]
        dropped = self.bounds.make_room(waiting, sizes, kept)
        if isinstance(dropped, Refusal):
            room = list(tasks).index(new[dropped.fitting])
            bound, limit, count = dropped.bound, dropped.limit, dropped.count
            raise QueueFull("model", bound=bound, limit=limit, count=count, room=room)
        self.unready(dropped)
        for id in dropped:
            self.move(now, id, None)
            self.recent.pop(id, None)
            self.counts["dropped"] += 1

    def to_later(self, now: int, state: str, due: dict[str, int]) -> None:
        first = min((self.tasks[id].score for id in self.those(state)), default=None)
        for id, at in due.items():
            self.move(now, id, state, at)
        if due and (first is None or min(due.values()) < first):
            self.awake = True

    def replace(self, now: int, sent: NewTask, holder: str) -> str:
        """Let a task replace the holder of its lock; return the outcome."""
        task = self.tasks.get(holder)
        if task and task.sent.message == sent.message:
            return "replaced"
        if task is None or task.lock != sent.lock:
            return "duplicate"
        if task.state == "active":
            waits = task.successor
            if waits is None or waits.sent.message != sent.message:
                first = waits.enqueued_at if waits else now
                task.successor = Successor(sent, first, self.replaced_due(now, sent, first))
            return "replaced"
        first = now if task.state == "retry" else task.enqueued_at
        due, before = self.replaced_due(now, sent, first), task.key
        had_limits = task.limits or task.state == "limited"
        self.unready([holder])
        task.sent, task.enqueued_at, task.key = sent, first, member_of(sent)
        task.failure = None
        keeps_place = task.state in ("pending", "limited") and task.key == before
        if due > now:
            self.to_later(now, "scheduled", {holder: due})
        elif keeps_place and (had_limits or task.limits):
            was_limited = task.state == "limited"
            self.admit(now, holder, task.score)
            self.awake |= was_limited and task.state == "pending"
        elif not keeps_place:
            self.to_pending(now, holder)
            self.awake = True
        self.runnable_from({holder: due})
        return "replaced"

    def replaced_due(self, now: int, sent: NewTask, first: int) -> int:
        flow = sent.flow
        assert flow is not None
        if not flow.debounce_us:
            at = now + int(sent.due) if sent.due.startswith("+") else int(sent.due or now)
            return max(now, at)
        latest = first + flow.debounce_max_us if flow.debounce_max_us else math.inf
        return int(max(now, min(now + flow.debounce_us, latest)))

    def start_again(self, now: int, ids: Iterable[str], *, crashed: bool = False) -> list[str]:
        """Restart the tasks that were replaced while they were active; return the other tasks."""
        rest = []
        for id in ids:
            task = self.tasks[id]
            if (successor := task.successor) is None:
                rest.append(id)
                continue
            task.sent, task.enqueued_at = successor.sent, successor.enqueued_at
            task.key = member_of(task.sent)
            task.failure = task.cancel = task.successor = None
            if not crashed:
                task.crashes = None
            self.to_later(now, "scheduled", {id: successor.due})
            self.runnable_from({id: successor.due})
        return rest

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
        """Return the rows that have a valid token, and the answer for each row."""
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
        """Store the times at which tasks become runnable."""
        for id, us in at.items():
            self.tasks[id].progress = f"@{us}".encode()

    def moments(self) -> set[int]:
        """Return the times at which something becomes due, opens, expires or ends."""
        tagged = ("pending", "limited")
        times = {int(task.score) for task in self.tasks.values() if task.state not in tagged}
        times |= set(self.limits.openings.values())
        return times | {ends for ends, _ in self.locks.values()} | set(self.recent.values())

    def contents(self) -> dict[str, Any]:
        """Return the contents in the format of Rig.dump, without the records of sweeps and fetches
        and the daily counters."""
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
            "holds": {id: "\0".join(task.holds) for id, task in every if task.holds},
            **self.limits.contents(),
            "successors": {id: task.successor.record for id, task in every if task.successor},
            "unique": {f"={lock}": f"{ends}:{id}" for lock, (ends, id) in self.locks.items()}
            | {f"@{id}": task.lock for id, task in every if task.lock},
            "fairness": self.tags,
            "recent": self.recent,
            "ticks": {name: str(tick) for name, tick in self.ticks.items()},
            "stored_schedules": {name: row.record for name, row in self.stored.items()},
            "next_ticks": {name: float(row.next_us or 0) for name, row in self.stored.items()},
            "schedules": {f"!{name}": note for name, note in self.schedule_pauses.items()},
            "calls": {
                sender: _kept(*last, self.replacing.get(sender, []))
                for sender, last in self.calls.items()
            },
            "stats": {name: str(count) for name, count in self.counts.items() if count},
            "meta": ({"paused": self.paused} if self.paused else {})
            | {
                "v" if priority == NORMAL_PRIORITY else f"virtual:{priority}": f"{time:.17g}"
                for priority, time in self.virtual.items()
            }
            | self.bounds.contents(self.size)
            | ({"schema": "2"} if self.flow else {}),
        }
        for id, task in every:
            full.setdefault(task.state, {})[id] = task.score
        contents: dict[str, Any] = {
            name: {_bytes(field): _bytes(value) for field, value in fields.items()}
            for name, fields in full.items()
            if fields
        }
        return contents | ({"wake": [b"1"]} if self.awake else {})


def _kept(number: int, at: int, answers: Sequence[Enqueued], replacing: Sequence[int]) -> str:
    others = [
        f" {n} {one.outcome} {one.id}"
        for n, one in sorted(enumerate(answers, 1), key=lambda row: row[0] in replacing)
        if one.outcome != "created"
    ]
    return f"{number} {at}" + "".join(others)


def _bytes(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value
