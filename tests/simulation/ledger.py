"""Records the replies of the store, and derives which server may run each task and until when.

The ledger sees each call when the store executes it, so it also records calls whose replies are
lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any, Final

from qsync import codec
from qsync.message import NORMAL_PRIORITY, decode_failure
from tests.simulation.editor import is_edit
from tests.simulation.entries import US, Delivery, Entry
from tests.simulation.limits import LimitBook
from tests.simulation.process import Proc
from tests.simulation.stored import StoredBook
from tests.simulation.ticks import TickBook

MOST: Final = 40
"""Maximum number of leases that a task may have in a history."""

CALL_KEPT_US: Final = 600 * US
"""How long the store remembers the last enqueue of a sender."""


class Ledger:
    """All tasks of a history and the problems found."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.entries: dict[tuple[str, str], Entry] = {}
        self.servers: dict[str, Proc] = {}
        self.wrong: list[str] = []
        self.counts: dict[str, int] = {}
        self.ticks = TickBook(self.find)
        self.stored = StoredBook(self.find)
        self.limits = LimitBook(self.find)
        self.unsure = 0
        """Number of enqueues that may or may not have created a task, because an earlier task may
        have left the queue unobserved."""
        self.recreated = 0
        """Number of tasks that another call created again after they had ended and left the
        queue."""
        self.recoveries: list[float] = []
        """Time from when each lease of a dead server expired until its task could be leased again,
        in seconds."""
        self.back_us = 0
        """How far the store's clock has gone back in total, in microseconds. Ticks may be early by
        up to this amount."""
        self.forgetful = False
        """True if the store's clock has jumped so far ahead that the store forgets the calls of
        senders."""
        self.losses = 0
        """Number of times the store has lost data."""
        self.lost: set[tuple[str, str]] = set()
        """Tasks that the store lost with its data."""
        self.void: set[tuple[str, str, str]] = set()
        """Queue, id and token of the leases that the store has lost."""
        self._starts: dict[tuple[str, str], int] = {}
        """Number of starts of each task before the last loss of data."""
        self.upkept_us: dict[str, int] = {}
        """Time of the last fetch that did upkeep since the last loss of data, by queue."""
        self._numbers: dict[tuple[str, str], int] = {}
        """Number of the last fetch, by queue and server."""
        self._latest_us = 0
        """Latest time that the store's clock has shown. What had expired or was due at that time
        stays expired or due, even if the clock goes back."""
        self._open_locks: dict[tuple[str, str], str] = {}
        self._calls: dict[tuple[str, str], tuple[int, int, list[Any]]] = {}
        """Number, time and reply of the last call that created a task, by queue and sender."""

        self._settled_before_loss: set[tuple[str, str, str]] = set()
        """Queue, id and token of each lease that was settled before a loss of data."""

    # The store's data

    def copy(self) -> Any:
        """Return a copy of what is known about the store's state."""
        stored = self.stored.versions, self.stored.deleted
        state = self.entries, self.ticks.times, self._open_locks, self._calls, self.unsure, stored
        return deepcopy(state)

    def lose(self, kept: Any | None) -> None:
        """Record that the store has lost all data or, with a copy, all changes since the copy was
        made."""
        entries = self.entries
        self._settled_before_loss |= {
            (*key, one.token)
            for key, entry in entries.items()
            for one in entry.deliveries
            if one.ended not in (None, "lapsed")
        }
        self.upkept_us.clear()
        state = ({}, {}, {}, {}, 0, ({}, set())) if kept is None else deepcopy(kept)
        self.entries, times, self._open_locks, self._calls, self.unsure, stored = state
        self.ticks.lose(times)
        self.losses += 1
        self.limits.lose(queue for queue, _ in entries)
        self.stored.versions, self.stored.deleted = stored
        for key, entry in entries.items():
            left = self.entries.get(key)
            self._starts[key] = max(entry.starts, self._starts.get(key, 0))
            tokens = {one.token for one in left.deliveries} if left else set()
            self.void |= {(*key, one.token) for one in entry.deliveries if one.token not in tokens}
            if entry.created > (left.created if left else 0):
                self.lost.add(key)
        for key, entry in self.entries.items():
            # A start counts even if the store has lost its record.
            entry.starts = max(entry.starts, self._starts.get(key, 0))
            # Leases that an earlier loss voided may be back, since this copy may be newer than the
            # copy that was restored then.
            self.void -= {(*key, one.token) for one in entry.deliveries}
            for one in entry.deliveries:
                one.settled = one.ended is None and (*key, one.token) in self._settled_before_loss

    @property
    def now(self) -> float:
        """Time of the history, in seconds."""
        return self._clock()

    def find(self, text: str) -> None:
        """Record a problem."""
        self.wrong.append(f"{self._clock():.4f} {text}")

    def entry(self, queue: str, id: str) -> Entry:
        """Return the entry of the task with this id; create it if it is new."""
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
        """Process a call and its reply; return the ids of tasks that it ended."""
        self._latest_us = max(self._latest_us, now)
        look = getattr(self, f"_see_{name}", None)
        return [] if look is None else list(look(queue, now, args, reply) or ())

    # Enqueue

    def _see_enqueue(self, queue: str, now: int, args: Sequence[Any], reply: Any) -> None:
        sender, number, stride = args[1:4]
        tasks = [(*args[at : at + stride], b"")[:3] for at in range(4, len(args), stride)]
        reply = _in_full(reply, [id for id, *_ in tasks])
        before, at_us, said = self._calls.get((queue, sender), (-1, now, []))
        if sender and now - at_us < CALL_KEPT_US and number <= before:
            if reply != (said if number == before else []):
                self.find(
                    f"enqueue {number} of {sender} was answered with {reply}, earlier with {said}"
                )
            return  # the store repeated the reply and changed nothing
        if sender and {b"created", b"replaced"} & {*reply[::2]}:
            self._calls[queue, sender] = (number, now, reply)
        for at, ((id, _, options), outcome) in enumerate(zip(tasks, reply[::2], strict=False)):
            if is_edit(id):
                continue
            if outcome == b"created":
                self._created(queue, now, id, options)
                again = sender and self.entry(queue, id).created > 1 and not self.forgetful
                if again and not id.endswith(".child"):
                    self.find(f"{id} was created twice by one enqueue")
            elif outcome == b"duplicate":
                self._check_duplicate(queue, now, options, reply[2 * at + 1].decode())
            elif outcome == b"repeated" and now >= self.entry(queue, id).remembered_until_us:
                self.find(f"{id} was reported as repeated, but was not enqueued recently")

    def _see_enqueue_one(self, queue: str, now: int, args: Sequence[Any], reply: Any) -> None:
        self._see_enqueue(queue, now, [*args[:3], 2, *args[3:]], reply)

    def _created(self, queue: str, now: int, id: str, packed: bytes) -> None:
        entry = self.entry(queue, id)
        there = entry.phase in ("waiting", "active", "dead")
        if there or (entry.phase == "kept" and self._latest_us < entry.kept_until_us):
            open_ = entry.phase != "active" or entry.surely_open(self._latest_us)
            if entry.cancel_asked and not open_:
                self.unsure += 1  # recovery may have ended the task in between
                entry.unsure, entry.cancel_asked = True, False
            return  # a repeated reply
        self.unsure += entry.phase == "kept"
        entry.created += 1
        self.count("enqueued")
        if entry.created > 1:
            self.recreated += 1
        given = codec.decode(packed) if packed else ("", "", "", 0, 0)
        due, key, lock, _, remember_us = given[:5]
        entry.priority = given[6] if len(given) > 5 else NORMAL_PRIORITY
        entry.limits = tuple(given[5]) if len(given) > 5 else ()
        entry.place = self.counts["enqueued"]
        entry.in_order = not (due or key or entry.limits) and entry.created == 1
        if self._latest_us < entry.remembered_until_us and not entry.cancel_asked:
            self.find(f"{id} was created again while its id was remembered")
        entry.remembered_until_us = now + remember_us
        entry.phase, entry.cancel_asked = "waiting", False
        entry.due_us = now + int(due) if due.startswith("+") else int(due or 0)
        if lock:
            holder = self._open_locks.get((queue, lock))
            if holder not in (None, id) and self.entry(queue, holder).surely_open(self._latest_us):
                self.find(f"{id} got the lock that {holder} holds")
            entry.lock = lock
            self._open_locks[queue, lock] = id

    def _check_duplicate(self, queue: str, now: int, packed: bytes, holder: str) -> None:
        lock = codec.decode(packed)[2]
        open_holder = self._open_locks.get((queue, lock))
        if open_holder in (None, holder):
            return
        if self.entry(queue, open_holder).surely_open(self._latest_us):
            self.find(f"lock of {open_holder} was reported as held by {holder}")

    def _see_tick(self, queue: str, now: int, args: Sequence[Any], reply: Any) -> None:
        _, schedule, tick_us, id, _, options = args
        if _in_full(reply, [id])[0] != b"created":
            return
        entry = self.entries.get((queue, id))
        if entry is not None and entry.created:
            self.find(f"tick {id} was enqueued twice")
        self.ticks.see(queue, schedule, tick_us, id, now, self.back_us)
        self._created(queue, now, id, options)

    def _see_pause_type(self, queue: str, now: int, args: Sequence[Any], reply: Any) -> None:
        self.limits.see_pause(queue, args[1], args[2])

    def _see_put_schedule(self, queue: str, now: int, args: Sequence[Any], reply: Any) -> None:
        self.stored.see_put(queue, now, args, reply)

    def _see_delete_schedule(self, queue: str, now: int, args: Sequence[Any], reply: Any) -> None:
        self.stored.see_delete(queue, args, reply)

    def _see_tick_schedules(self, queue: str, now: int, args: Sequence[Any], reply: Any) -> None:
        for id, options in self.stored.see_ticks(queue, now, args, reply, self.back_us):
            self._created(queue, now, id, options)

    # Leases

    def _see_fetch(self, queue: str, now: int, args: Sequence[Any], reply: Any) -> None:
        server, number, _, lease_us = args[:4]
        token, new = f"{server}/{number}", number > self._numbers.get((queue, server), -1)
        if new:  # a repeated fetch does no upkeep
            self._numbers[queue, server], self.upkept_us[queue] = number, now
        copied = not (new or int(args[8]))  # servers mark repeated fetches
        above = math.inf
        for raw, message in zip(reply[5], reply[6], strict=True):
            if is_edit(raw):
                continue
            entry = self.entry(queue, raw.decode())
            if entry.priority > above:
                self.find(
                    f"{entry.id} of priority {entry.priority} was leased after one of {above}"
                )
            above = min(above, entry.priority)
            if entry.deliveries and entry.deliveries[-1].token == token:
                entry.deliveries[-1].copied &= copied
                continue
            if entry.lease is not None:
                self._lapsed(entry, entry.lease, now)
            elif entry.phase != "waiting":
                self.find(f"{entry.id} was fetched although it was {entry.phase}")
            if self._latest_us < entry.due_us:
                self.find(f"{entry.id} was fetched {(entry.due_us - now) / US} s early")
            self.limits.see_lease(entry, message, self.entries.values(), now)
            entry.phase = "active"
            if len(entry.deliveries) == MOST:
                self.find(f"{entry.id} was leased {MOST + 1} times")
            self.void.discard((queue, entry.id, token))  # the fetch was repeated after the loss
            length_us = int(lease_us)
            ends = self._clock() + length_us / US
            lease = Delivery(token, now, now + length_us, ends, length_us, copied=copied)
            entry.deliveries.append(lease)
            self.limits.check_slots(entry, self.entries.values(), self._latest_us)

    def _lapsed(self, entry: Entry, lease: Delivery, now: int) -> None:
        lease.ended = "lapsed"
        self.count("lapsed")
        if self._latest_us < lease.expires_us:
            early = (lease.expires_us - self._latest_us) / US
            self.find(f"{entry.id} was recovered {early} s before its lease expired")
        self._recovered(lease)
        self.check_cause(entry, lease)

    def see_owners(self, queue: str, owners: dict[bytes, bytes]) -> None:
        """Record which tasks of dead servers have no lease any more after a fetch has recovered
        some.

        Recovered tasks may wait a long time for their next lease, because of their limits or until
        a server has a free slot.
        """
        for entry in self.entries.values():
            lease = entry.lease if entry.queue == queue and not entry.cancel_asked else None
            if lease is not None and owners.get(entry.id.encode()) != lease.token.encode():
                self._recovered(lease)

    def _recovered(self, lease: Delivery) -> None:
        server = self.servers.get(lease.token.rpartition("/")[0])
        if server is not None and not server.alive and not lease.recovered:
            lease.recovered = True
            self.recoveries.append(max(0.0, self._clock() - lease.expires_at))

    def check_cause(self, entry: Entry, lease: Delivery) -> None:
        """Check that a lease expired for a reason: its server could not renew it, could not hand
        the task back during a shutdown, never received the lease, or settled the task before a loss
        of data."""
        server = self.servers.get(lease.token.rpartition("/")[0])
        now = self._clock()
        since = min(lease.expires_at, now) - lease.length_us / US * 2 / 3
        if server is not None and server.told_to_stop is not None:
            since = min(since, server.told_to_stop)
        excused = lease.copied or lease.settled
        if server is None or not (excused or server.troubled(since - 0.1, now)):
            self.find(f"lease {lease.token} of {entry.id} expired without a fault of {server}")

    def _see_renew(self, queue: str, now: int, args: Sequence[Any], reply: Any) -> None:
        for entry, lease, _ in self._leases(queue, args[1:], 2, reply, ("ok", "cancelled")):
            if lease is None:
                self.find(f"{entry.id} was renewed without a valid lease")
            else:
                lease.expires_us = now + int(args[0])
                lease.expires_at = self._clock() + int(args[0]) / US

    def _see_mark_started(self, queue: str, now: int, args: Sequence[Any], reply: Any) -> None:
        together = args[-1] == "-"
        for _, lease, _ in self._leases(queue, args, 2, reply, ("ok",)):
            if lease is not None:
                lease.marked, lease.together = True, together

    def _see_abandon(self, queue: str, now: int, args: Sequence[Any], reply: Any) -> None:
        server = self.servers[args[0]]
        if server.alive:
            self.find(f"server {args[0]} is alive but was abandoned")
        for entry in self.entries.values():
            lease = entry.lease if entry.queue == queue else None
            if lease is not None and lease.token.startswith(f"{args[0]}/"):
                lease.expires_us = min(lease.expires_us, now)
                lease.expires_at = min(lease.expires_at, self._clock())

    def _leases(
        self, queue: str, args: Sequence[Any], stride: int, reply: Any, good: Sequence[str]
    ) -> Iterator[tuple[Entry, Delivery | None, Sequence[Any]]]:
        """Yield each task for which the store accepted the call, with its lease and the other
        arguments."""
        for at, answer in enumerate(reply):
            id, token, *rest = args[stride * at : stride * (at + 1)]
            if answer.decode() in good and not is_edit(id):
                entry = self.entry(queue, id)
                lease = entry.lease
                yield entry, lease if lease is not None and lease.token == token else None, rest

    # Ends

    def _see_complete(self, queue: str, now: int, args: Sequence[Any], reply: Any) -> Iterator[str]:
        stride, *rows = args
        answers = [reply] * (len(rows) // stride) if reply == b"ok" else reply
        for entry, rest in self._settled("complete", queue, now, rows, answers, stride):
            self._finish(entry, "completed", now, rest[0] if rest else "")
            yield entry.id

    def _see_kill(self, queue: str, now: int, args: Sequence[Any], reply: Any) -> Iterator[str]:
        for entry, rest in self._settled("kill", queue, now, args, reply):
            if int(rest[0]):
                self.count("failed")
            self._finish(entry, "dead", now, "")
            yield entry.id

    def _see_end_cancelled(
        self, queue: str, now: int, args: Sequence[Any], reply: Any
    ) -> Iterator[str]:
        for entry, _ in self._settled("end_cancelled", queue, now, args, reply, stride=2):
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
        unstarted = []
        for entry, rest in self._settled(
            "hand_back", queue, now, args, reply, stride=len(args) // max(1, len(reply))
        ):
            if rest[2:] and int(rest[4]):
                unstarted.append((int(rest[4]), entry.limits))
            if rest[1]:
                entry.returned_attempts = decode_failure(rest[1]).attempts
            if entry.cancel_asked:
                self._finish(entry, "cancelled", now, entry.cancel_retention)
                yield entry.id
            else:
                delay = rest[0]
                entry.phase, entry.due_us = "waiting", 0 if delay == "" else now + int(delay)
        self.limits.refund(queue, now, unstarted)

    def _settled(
        self, verb: str, queue: str, now: int, args: Sequence[Any], reply: Any, stride: int = 4
    ) -> Iterator[tuple[Entry, Sequence[Any]]]:
        for entry, lease, rest in self._leases(queue, args, stride, reply, ("ok",)):
            if lease is None:
                self.find(f"{verb} of {entry.id} was accepted without a valid lease")
                continue
            lease.ended = verb
            if lease.expires_us < now:
                self.check_cause(entry, lease)
            self._check_cancel(entry, lease, now)
            yield entry, rest

    def _check_cancel(self, entry: Entry, lease: Delivery, now: int) -> None:
        """Record how long a run continued after its cancel request, if that is longer than a
        request takes to arrive."""
        since = max(entry.cancel_asked_us, lease.fetched_us)
        if entry.cancel_asked and now - since > lease.length_us // 3 + US:
            server = self.servers[lease.token.rpartition("/")[0]]
            ago = (now - since) / US
            if not server.stood_still(self._clock() - ago - 1, self._clock()):
                entry.ran_on_us = now - since

    def _finish(self, entry: Entry, how: str, now: int, retention: Any) -> None:
        self.count(how)
        entry.finished.append(how)
        if len(entry.finished) > entry.created + entry.unsure:
            self.find(f"{entry.id} ended twice: {entry.finished}")
        if how == "cancelled":
            entry.remembered_until_us = 0
        if how == "dead":
            entry.phase = "dead"
        elif retention == "":
            entry.phase = "gone"
        else:
            entry.phase, entry.kept_until_us = "kept", now + int(retention)
        self._open_locks = {lock: id for lock, id in self._open_locks.items() if id != entry.id}

    def _see_cancel(self, queue: str, now: int, args: Sequence[Any], reply: Any) -> Iterator[str]:
        entry = self.entry(queue, args[1])
        if reply[0] in (b"active", b"cancelled"):
            entry.cancel_retention = args[2]
        if reply[0] == b"active" and not entry.cancel_asked:
            entry.cancel_asked, entry.cancel_asked_us = True, now
        elif reply[0] == b"cancelled" and entry.phase not in ("kept", "gone"):
            entry.cancel_asked = True
            if entry.lease is not None:
                self._lapsed(entry, entry.lease, now)
            self._finish(entry, "cancelled", now, entry.cancel_retention)
            yield entry.id


def _in_full(reply: Any, ids: Sequence[str]) -> list[bytes]:
    """Return the outcome and the id of each task of an enqueue, even if the reply is a single
    word."""
    if reply != b"created":
        return list(reply)
    return [part for id in ids for part in (b"created", id.encode())]
