"""What the store answered, and what that means for each task: who may run it, and until when.

It sees each call as it is made, so it knows of calls whose answer got lost too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from qsync import codec
from tests.sim.process import WALL, Proc

Phase = Literal["waiting", "active", "kept", "dead", "gone"]

US: Final = 1_000_000

MOST: Final = 40
"""How often a task is given to servers, in histories as short as these."""

EARLY_US: Final = 10_000
"""A tick may be so early: the clocks of two machines go at rates that differ by up to 1e-4, and the
store's is looked at once a minute."""


@dataclass(slots=True)
class Delivery:
    """A lease, as the store gave it."""

    token: str
    fetched_us: int
    expires_us: int
    length_us: int
    marked: bool = False
    ended: str | None = None
    started: bool = False


@dataclass(slots=True)
class Entry:
    """A task that the store has, or had."""

    id: str
    queue: str
    phase: Phase = "gone"
    due_us: int = 0
    kept_until_us: int = 0
    lock: str = ""
    cancel_asked: bool = False
    cancel_retention: Any = ""
    cancel_asked_us: int = 0
    unsure: bool = False
    """It may have been made again after an end that nobody saw."""
    ran_on_us: int = 0
    """How long it ran after its cancel was asked for, when that was too long."""
    created: int = 0
    finished: list[str] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    starts: int = 0

    @property
    def lease(self) -> Delivery | None:
        """The lease under which it runs."""
        last = self.deliveries[-1] if self.deliveries else None
        return last if last is not None and last.ended is None else None

    def surely_open(self, now_us: int) -> bool:
        """Whether it is unfinished; one whose lease is over may have ended unseen."""
        lease = self.lease
        return self.phase == "waiting" or (lease is not None and now_us < lease.expires_us)


class Ledger:
    """All tasks of a history, and what was found wrong."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.entries: dict[tuple[str, str], Entry] = {}
        self.servers: dict[str, Proc] = {}
        self.wrong: list[str] = []
        self.counts: dict[str, int] = {}
        self.ticks: dict[tuple[str, str], list[int]] = {}
        self.unsure = 0
        """Enqueues of which it cannot be told whether they made a task: it may have left unseen."""
        self.recreated = 0
        """Tasks that a late or repeated enqueue made again after they had ended and left."""
        self._open_locks: dict[tuple[str, str], str] = {}

    def find(self, text: str) -> None:
        """Note that something is wrong."""
        self.wrong.append(f"{self._clock():.4f} {text}")

    def entry(self, queue: str, id: str) -> Entry:
        """The task of this id."""
        key = (queue, id)
        found = self.entries.get(key)
        if found is None:
            found = self.entries[key] = Entry(id, queue)
        return found

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def observe(
        self, name: str, queue: str, now: int, args: Sequence[Any], reply: Any
    ) -> list[str]:
        """Take a call and its reply; returns the ids of tasks that ended by it."""
        look = getattr(self, f"_see_{name}", None)
        return [] if look is None else list(look(queue, now, args, reply) or ())

    # Enqueue

    def _see_enqueue(self, queue: str, now: int, args: Sequence[Any], reply: Any) -> None:
        for at, outcome in enumerate(reply[::2]):
            id, _, options = args[1 + 3 * at : 4 + 3 * at]
            if outcome == b"created":
                self._created(queue, now, id, options)
            elif outcome == b"duplicate":
                self._check_duplicate(queue, now, options, reply[2 * at + 1].decode())

    def _created(self, queue: str, now: int, id: str, packed: bytes) -> None:
        entry = self.entry(queue, id)
        there = entry.phase in ("waiting", "active", "dead")
        if there or (entry.phase == "kept" and now < entry.kept_until_us):
            if entry.cancel_asked and entry.phase == "active" and not entry.surely_open(now):
                self.unsure += 1  # maybe it was recovered, and ended by that, and is made again
                entry.unsure, entry.cancel_asked = True, False
            return  # said once more
        self.unsure += entry.phase == "kept"
        entry.created += 1
        self.count("enqueued")
        if entry.created > 1:
            self.recreated += 1
        due, _, lock, _ = codec.decode(packed) if packed else ("", "", "", 0)
        entry.phase, entry.cancel_asked = "waiting", False
        entry.due_us = now + int(due) if due.startswith("+") else int(due or 0)
        if lock:
            holder = self._open_locks.get((queue, lock))
            if holder not in (None, id) and self.entry(queue, holder).surely_open(now):
                self.find(f"{id} got the lock that {holder} has")
            entry.lock = lock
            self._open_locks[queue, lock] = id

    def _check_duplicate(self, queue: str, now: int, packed: bytes, holder: str) -> None:
        lock = codec.decode(packed)[2]
        open_holder = self._open_locks.get((queue, lock))
        if open_holder in (None, holder):
            return
        if self.entry(queue, open_holder).surely_open(now):
            self.find(f"lock of {open_holder} is said to be that of {holder}")

    def _see_tick(self, queue: str, now: int, args: Sequence[Any], reply: Any) -> None:
        _, schedule, tick_us, id, _, options = args
        if reply[0] != b"created":
            return
        ticks = self.ticks.setdefault((queue, schedule), [])
        entry = self.entries.get((queue, id))
        if entry is not None and entry.created:
            self.find(f"tick {id} came twice")
        if tick_us > now + EARLY_US:
            self.find(f"tick {id} came {(tick_us - now) / US} s early")
        ticks.append(tick_us)
        self._created(queue, now, id, options)

    # Leases

    def _see_fetch(self, queue: str, now: int, args: Sequence[Any], reply: Any) -> None:
        server, number, _, lease_us = args[:4]
        token = f"{server}/{number}"
        for raw in reply[5]:
            entry = self.entry(queue, raw.decode())
            if entry.deliveries and entry.deliveries[-1].token == token:
                continue
            if entry.lease is not None:
                self._lapsed(entry, entry.lease, now)
            elif entry.phase != "waiting":
                self.find(f"{entry.id} was fetched though it was {entry.phase}")
            if now < entry.due_us:
                self.find(f"{entry.id} was fetched {(entry.due_us - now) / US} s early")
            entry.phase = "active"
            if len(entry.deliveries) == MOST:
                self.find(f"{entry.id} is given to a server for the {MOST + 1}th time")
            entry.deliveries.append(Delivery(token, now, now + int(lease_us), int(lease_us)))

    def _lapsed(self, entry: Entry, lease: Delivery, now: int) -> None:
        lease.ended = "lapsed"
        self.count("lapsed")
        if now < lease.expires_us:
            self.find(f"{entry.id} was taken {(lease.expires_us - now) / US} s before its lease")
        self.check_cause(entry, lease, now)

    def check_cause(self, entry: Entry, lease: Delivery, now: int) -> None:
        """A lease lapses only where its server could not renew it, at a third of it or later."""
        server = self.servers.get(lease.token.rpartition("/")[0])
        since = min(lease.expires_us, now) - lease.length_us * 2 // 3
        if server is None or not server.troubled(since / US - WALL - 0.1, now / US - WALL):
            self.find(f"lease {lease.token} of {entry.id} lapsed, and nothing befell {server}")

    def _see_renew(self, queue: str, now: int, args: Sequence[Any], reply: Any) -> None:
        for entry, lease, _ in self._leases(queue, args[1:], 2, reply, ("ok", "cancelled")):
            if lease is None:
                self.find(f"{entry.id} was renewed by one who has no lease")
            else:
                lease.expires_us = now + int(args[0])

    def _see_start(self, queue: str, now: int, args: Sequence[Any], reply: Any) -> None:
        for _, lease, _ in self._leases(queue, args, 2, reply, ("ok",)):
            if lease is not None:
                lease.marked = True

    def _see_abandon(self, queue: str, now: int, args: Sequence[Any], reply: Any) -> None:
        server = self.servers[args[0]]
        if server.alive:
            self.find(f"server {args[0]} is alive and was abandoned")
        for entry in self.entries.values():
            lease = entry.lease if entry.queue == queue else None
            if lease is not None and lease.token.startswith(f"{args[0]}/"):
                lease.expires_us = min(lease.expires_us, now)

    def _leases(
        self, queue: str, args: Sequence[Any], stride: int, reply: Any, good: Sequence[str]
    ) -> Iterator[tuple[Entry, Delivery | None, Sequence[Any]]]:
        """The tasks for which a call was taken, the leases that it was made under, the rest."""
        for at, answer in enumerate(reply):
            id, token, *rest = args[stride * at : stride * (at + 1)]
            if answer.decode() in good:
                entry = self.entry(queue, id)
                lease = entry.lease
                yield entry, lease if lease is not None and lease.token == token else None, rest

    # Ends

    def _see_complete(self, queue: str, now: int, args: Sequence[Any], reply: Any) -> Iterator[str]:
        for entry, rest in self._settled("complete", queue, now, args, reply):
            self._finish(entry, "completed", now, rest[0])
            yield entry.id

    def _see_kill(self, queue: str, now: int, args: Sequence[Any], reply: Any) -> Iterator[str]:
        for entry, rest in self._settled("kill", queue, now, args, reply):
            if int(rest[0]):
                self.count("failed")
            self._finish(entry, "dead", now, "")
            yield entry.id

    def _see_cancelled(
        self, queue: str, now: int, args: Sequence[Any], reply: Any
    ) -> Iterator[str]:
        for entry, _ in self._settled("cancelled", queue, now, args, reply, stride=2):
            self._finish(entry, "cancelled", now, entry.cancel_retention)
            yield entry.id

    def _see_retry(self, queue: str, now: int, args: Sequence[Any], reply: Any) -> Iterator[str]:
        for entry, rest in self._settled("retry", queue, now, args, reply):
            self.count("failed")
            if entry.cancel_asked:
                self._finish(entry, "cancelled", now, entry.cancel_retention)
                yield entry.id
            else:
                self.count("retried")
                entry.phase, entry.due_us = "waiting", now + int(rest[0])

    def _see_hand_back(
        self, queue: str, now: int, args: Sequence[Any], reply: Any
    ) -> Iterator[str]:
        for entry, rest in self._settled("hand_back", queue, now, args, reply):
            if entry.cancel_asked:
                self._finish(entry, "cancelled", now, entry.cancel_retention)
                yield entry.id
            else:
                delay = rest[0]
                entry.phase, entry.due_us = "waiting", 0 if delay == "" else now + int(delay)

    def _settled(
        self, verb: str, queue: str, now: int, args: Sequence[Any], reply: Any, stride: int = 4
    ) -> Iterator[tuple[Entry, Sequence[Any]]]:
        for entry, lease, rest in self._leases(queue, args, stride, reply, ("ok",)):
            if lease is None:
                self.find(f"{verb} of {entry.id} was taken from one who has no lease")
                continue
            lease.ended = verb
            if lease.expires_us < now:
                self.check_cause(entry, lease, now)
            self._check_cancel(entry, lease, now)
            yield entry, rest

    def _check_cancel(self, entry: Entry, lease: Delivery, now: int) -> None:
        """Note a run that went on for longer after its cancel than it takes to hear of it."""
        since = max(entry.cancel_asked_us, lease.fetched_us)
        if entry.cancel_asked and now - since > lease.length_us // 3 + US:
            server = self.servers[lease.token.rpartition("/")[0]]
            if not server.stood_still(since / US - WALL - 1, now / US - WALL):
                entry.ran_on_us = now - since

    def _finish(self, entry: Entry, how: str, now: int, retention: Any) -> None:
        self.count(how)
        entry.finished.append(how)
        if len(entry.finished) > entry.created + entry.unsure:
            self.find(f"{entry.id} ended twice: {entry.finished}")
        if how == "dead":
            entry.phase = "dead"
        elif retention == "":
            entry.phase = "gone"
        else:
            entry.phase, entry.kept_until_us = "kept", now + int(retention)
        self._open_locks = {lock: id for lock, id in self._open_locks.items() if id != entry.id}

    def _see_cancel(self, queue: str, now: int, args: Sequence[Any], reply: Any) -> Iterator[str]:
        entry = self.entry(queue, args[0])
        if reply[0] in (b"active", b"cancelled"):
            entry.cancel_retention = args[1]
        if reply[0] == b"active" and not entry.cancel_asked:
            entry.cancel_asked, entry.cancel_asked_us = True, now
        elif reply[0] == b"cancelled" and entry.phase not in ("kept", "gone"):
            entry.cancel_asked = True
            if entry.lease is not None:
                self._lapsed(entry, entry.lease, now)
            self._finish(entry, "cancelled", now, entry.cancel_retention)
            yield entry.id
