"""The final check of a history: every task is accounted for, and no data is left over."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from qsync import codec
from qsync.keys import QUEUE_KEYS, QueueKeys
from qsync.message import decode_failure, decode_message
from tests.simulation.editor import is_edit
from tests.simulation.entries import US, Entry
from tests.simulation.faults import HOUR_S
from tests.simulation.population import LEASE, PREFIX, SCHEDULES, SWEEP
from tests.simulation.process import WALL
from tests.simulation.stored import NAMES
from tests.simulation.ticks import MOVED
from tests.simulation.work import DEAF_S, MAX_CRASHES, QUEUES, Wanted
from tests.support.counters import with_counted

if TYPE_CHECKING:  # the history creates its verdict, so this import would be a cycle
    from tests.simulation.history import History

BAR_LEASES: Final = 10
"""Maximum time from the last fault until all tasks have ended, in leases."""

CAUGHT_UP_S: Final = 10
"""Maximum age of the last tick of a schedule that has no missed ticks left, in seconds."""

SLACK_S: Final = 1.0

STUBBORN_S: Final = DEAF_S + 1.0
"""How long a handler that ignores its timeout may hold its slot, including the timeout, in
seconds."""

POLL_S: Final = 0.5

FINISHED: Final = ("completed", "dead")
HASHES: Final = (
    "tasks", "owner", "keys", "progress", "crashes", "failures", "results", "cancels", "unique",
    "stats", "meta", "successors", "holds", "limits",
)  # fmt: skip
UNFINISHED: Final = ("scheduled", "pending", "limited", "active", "retry")
WAITERS: Final = ("waiters", "openings")
SUCCEEDS: Final = ("ok", "slow", "nested", "progress", "crash", "block")


class Verdict:
    """Compares the store, the ledger and the records of clients and handlers."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.store = history.network.store
        self.ledger = history.ledger
        self.books = history.books
        self.plain = history.network.store.plain
        self.find = history.ledger.find
        self._last: dict[tuple[str, str], dict[str, Any]] = {}
        self._cut_short = False
        """True if the servers were stopped before all tasks had ended, because a problem had been
        found."""

    def _key(self, queue: str, name: str) -> str:
        return QueueKeys(PREFIX, queue).key(name)

    def _command(self, queue: str, name: str) -> tuple[Any, ...]:
        key = self._key(queue, name)
        return ("HGETALL", key) if name in HASHES else ("ZRANGE", key, 0, -1, "WITHSCORES")

    def _fields(self, queue: str, name: str) -> dict[str, Any]:
        """Return the fields of a hash, or the ids in a state with their scores, by name."""
        if self._last:
            return self._last[queue, name]
        return _pairs(self.plain(*self._command(queue, name)))

    def _read_all(self) -> None:
        """Read all data in one round trip. The data no longer changes."""
        names = [
            (queue, name)
            for queue in QUEUES
            for name in (*UNFINISHED, *WAITERS, *FINISHED, *HASHES)
        ]
        replies = self.store.read([self._command(*name) for name in names])
        self._last = dict(zip(names, map(_pairs, replies), strict=True))

    async def recovered(self) -> None:
        """Check that dead servers hold no leases when a lease and a sweep have passed since the
        last fault."""
        loop = self.history.loop
        while loop.now < self._last_trouble() + LEASE + SWEEP + SLACK_S:
            if not self._unfinished():
                return
            await asyncio.sleep(POLL_S)
        over_us = self._now_us - round((SWEEP + SLACK_S) * US) - self.ledger.back_us
        for queue in QUEUES:
            for id, token in self._fields(queue, "owner").items():
                if is_edit(id):  # the ledger does not track edits
                    continue
                server = self.ledger.servers[token.decode().rpartition("/")[0]]
                lease = self.ledger.entry(queue, id).lease
                # A renewal may have been in flight for some time when its sender died.
                if not server.alive and (lease is None or lease.expires_us < over_us):
                    self.find(f"{id} is still leased to {server.name}, which died long ago")

    def _last_trouble(self) -> float:
        """Return the time of the latest of these events: a fault, the death or stop of a server, or
        a late or lost reply to a live server."""
        last: float = self.history.peace_at
        for server in self.history.population.servers:
            if server.died_at is not None:
                last = max(last, server.died_at)
            else:
                last = max([last, *(end for _, end in (*server.stalls, *server.troubles))])
        return last

    async def drained(self) -> None:
        """Wait until all tasks have ended; return early if a problem has been found."""
        loop = self.history.loop
        due_us = max([entry.due_us for entry in self.ledger.entries.values()], default=0)
        due = loop.now + max(0.0, (due_us - self._now_us) / US)
        jumps = sum(abs(by) for _, by in self.store.jumps if by < 0) / US  # with longer leases
        ends = due + self._work_left() + BAR_LEASES * LEASE + jumps
        while left := self._unfinished():
            if self.ledger.wrong:
                self._cut_short = True
                return
            if self._catches_up():
                ends = max(ends, loop.now + BAR_LEASES * LEASE)
            elif loop.now >= ends:
                self.find(f"tasks are left after {BAR_LEASES} leases without faults: {left}")
                return
            await asyncio.sleep(POLL_S)

    def _catches_up(self) -> bool:
        """Return whether servers still enqueue missed ticks of the schedule MOVED.

        After the store's clock has jumped forward by an hour, there are 3,600 of them.
        """
        book = self.ledger.ticks
        if book.changed_us is None or all(by < HOUR_S * US for _, by in self.store.jumps):
            return False
        over_us = self._now_us - CAUGHT_UP_S * US
        times = book.times.items()
        return any(ticks[-1] < over_us for (_, name), ticks in times if name == MOVED and ticks)

    def _work_left(self) -> float:
        """Return how long the handlers of unfinished tasks may take one after another, in
        seconds."""
        total = 0.0
        for wanted in self.books.accepted.values():
            entry = self.ledger.entry(wanted.queue, wanted.id)
            if entry.phase in ("waiting", "active"):
                plan = wanted.plan
                once = plan["seconds"] + STUBBORN_S * (plan["kind"] in ("hang", "deaf"))
                once += plan.get("stall", 0.0) * (plan["kind"] == "block")
                total += once * (wanted.retry + 1)
        return total

    def _unfinished(self) -> dict[str, list[str]]:
        names = [(queue, state) for queue in QUEUES for state in UNFINISHED]
        found = self.store.read([("ZRANGE", self._key(*name), 0, -1) for name in names])
        return {
            ":".join(name): [id.decode() for id in ids]
            for name, ids in zip(names, found, strict=True)
            if ids
        }

    @property
    def _now_us(self) -> int:
        return self.store.now_us

    # After all servers have stopped

    def final(self) -> None:
        """Check everything again after all servers have stopped."""
        self._read_all()
        for queue in QUEUES:
            if not self._cut_short:
                self._check_left(queue)
            self._check_counters(queue)
        for wanted in self.books.accepted.values():
            self._check_accepted(wanted)
        for entry in self.ledger.entries.values():
            self._check_entry(entry)
        self._check_ticks()
        self._check_documents()
        self._check_keys()

    def _check_left(self, queue: str) -> None:
        dead, completed = set(self._fields(queue, "dead")), set(self._fields(queue, "completed"))
        allowed = {
            "tasks": dead | completed, "owner": set(), "keys": set(), "progress": completed,
            "crashes": dead | completed, "failures": dead | completed, "results": completed,
            "cancels": completed, "successors": set(),
        }  # fmt: skip
        for name, ids in allowed.items():
            for id in self._fields(queue, name).keys() - ids:
                if id.partition("@")[0] in (*SCHEDULES, MOVED, *NAMES) and (
                    id in self._fields(queue, "pending") or id in self._fields(queue, "active")
                ):
                    continue  # enqueued when the servers were about to stop
                self.find(f"{name} of queue {queue} still has {id}")
        for name in ("holds", "waiters", "openings", "limited"):
            if left := self._fields(queue, name):
                self.find(f"{name} of queue {queue} still has {left}")
        for limit, text in self._fields(queue, "limits").items():
            if text.split()[:2] not in ([b"0", b"0"], ["0", "0"]):
                self.find(
                    f"slots of {limit} in {queue} are counted as {text!r}, but all tasks have ended"
                )
        upkept_us = self.ledger.upkept_us.get(queue, 0) - self.ledger.back_us
        for lock, value in self._fields(queue, "unique").items():
            if lock.startswith("@"):
                self.find(f"{lock} in {queue} is a lock of a task that has ended")
            elif int(value.partition(b":")[0]) <= upkept_us - 3 * US * SWEEP:
                # Fetches sweep ended windows once a second. Servers fetch from idle queues only
                # every few minutes, and an enqueue ignores a lock whose window has ended.
                self.find(f"{lock} in {queue} has no holder: {value!r}")

    def _check_counters(self, queue: str) -> None:
        stored, meta = (
            {name.encode(): value for name, value in self._fields(queue, key).items()}
            for key in ("stats", "meta")
        )
        stats = {name.decode(): int(v) for name, v in with_counted(stored, meta).items()}
        for entry in self.ledger.entries.values():
            if entry.queue == queue:
                stats["enqueued"] = stats.get("enqueued", 0) - entry.created
                stats["completed"] = stats.get("completed", 0) - entry.finished.count("completed")
        edited = self.history.profile.flow and queue == QUEUES[0]
        for name in () if edited else ("enqueued", "completed"):
            if stats.get(name, 0) and not self.ledger.unsure:
                self.find(f"counter {name} of {queue} is off by {stats[name]}")
        dead = len(self._fields(queue, "dead"))
        if stats.get("dead", 0) - stats.get("trimmed", 0) != dead:
            self.find(f"counters of {queue} are {stats}, but there are {dead} dead tasks")

    def _check_accepted(self, wanted: Wanted) -> None:
        entry = self.ledger.entries.get((wanted.queue, wanted.id))
        if entry is None or not entry.created:
            if (wanted.queue, wanted.id) not in self.ledger.lost:
                self.find(f"{wanted.id} was accepted, but never stored")
            return
        state = self._state(wanted)
        ended = entry.finished or state == "dead"
        # A task that was cancelled while it ran may end unobserved when its lease expires.
        cancelled = entry.unsure or (entry.cancel_asked and (entry.deliveries or state))
        if not ended and not cancelled:
            if self._cut_short and self._waits(wanted):
                return
            self.find(f"{wanted.id} is lost: {entry}, {state}")
            return
        if state == "dead":
            self._check_death(wanted, entry)
        elif entry.finished and entry.finished[-1] == "completed":
            self._check_success(wanted, entry)
        elif entry.finished and entry.finished[-1] == "cancelled" and not wanted.cancelled:
            self.find(f"{wanted.id} is cancelled without a request")

    def _waits(self, wanted: Wanted) -> bool:
        return any(wanted.id in self._fields(wanted.queue, state) for state in UNFINISHED)

    def _state(self, wanted: Wanted) -> str | None:
        for state in FINISHED:
            if wanted.id in self._fields(wanted.queue, state):
                return state
        return None

    def _check_success(self, wanted: Wanted, entry: Entry) -> None:
        if not entry.starts:
            self.find(f"{wanted.id} is completed but was never run")
        kind = wanted.plan["kind"]
        times = wanted.plan["times"]
        # A server that stops while the store refuses to record a dead task hands the task back.
        failures = max(wanted.retry, entry.returned_attempts)
        if kind in ("skip", "poison") or (kind in ("fail", "again") and times > failures):
            self.find(f"{wanted.id} of kind {kind} is completed: {wanted}")

    def _check_death(self, wanted: Wanted, entry: Entry) -> None:
        kind, times = wanted.plan["kind"], wanted.plan["times"]
        raw = self._fields(wanted.queue, "failures").get(wanted.id)
        error = decode_failure(raw).error.partition("\n")[0]
        crashes = self._fields(wanted.queue, "crashes").get(wanted.id, b"")
        if crashes.endswith(b"!"):
            self._check_crashed(wanted, entry, kind)
        elif "deadline" in error:
            if wanted.deadline_us is None:
                self.find(f"{wanted.id} is dead because of a deadline, but has none")
            elif error.startswith("deadline passed") and wanted.deadline_us > self.store.latest_us:
                self.find(f"{wanted.id} is dead because of a future deadline")
        elif not (
            "timed out" in error
            or ("no server had a handler for it for an hour" in error and self.ledger.forgetful)
            or kind == "skip"
            or (kind == "nested" and "no child" in error)  # the store had no memory for the result
            or (kind in ("fail", "again", "gives_up") and times > wanted.retry)
        ):
            self.find(f"{wanted.id} of kind {kind} is dead: {error} {wanted}")

    def _check_crashed(self, wanted: Wanted, entry: Entry, kind: str) -> None:
        """Check that a task is dead from crashes only if it kills its process (kind `poison`), or
        if it ran alone in processes that died for other reasons."""
        lapsed = [one for one in entry.deliveries if one.ended in ("lapsed", None)]
        if len(lapsed) < MAX_CRASHES:
            self.find(f"{wanted.id} is dead from crashes, but only {len(lapsed)} leases expired")
        last = self.ledger.servers[lapsed[-1].token.rpartition("/")[0]]
        died_us = int(self._fields(wanted.queue, "dead")[wanted.id])
        before = last.died_at is not None and (WALL + last.died_at) * US <= died_us
        before = before and not self.store.jumps
        if kind != "poison" and before and last.poisoned_by not in (None, wanted.id):
            self.find(f"{wanted.id} is dead because {last.poisoned_by} killed its process")

    def _check_entry(self, entry: Entry) -> None:
        lease = entry.lease
        if lease is not None:
            self.ledger.check_cause(entry, lease)
        wanted = self.books.accepted.get((entry.queue, entry.id))
        if entry.ran_on_us and (wanted is None or wanted.plan["kind"] not in ("deaf", "block")):
            self.find(f"{entry.id} ran for {entry.ran_on_us / US} s after it was cancelled")

    def _check_ticks(self) -> None:
        """Check that each tick of a schedule was enqueued exactly once."""
        if not self.ledger.forgetful:  # after a long clock jump, ticks may be missing
            self.ledger.stored.check_complete()
        for (queue, name), ticks in self.ledger.ticks.times.items():
            if name == MOVED:
                continue  # `see` has already checked the ticks of this schedule
            seconds, missed = SCHEDULES[name]
            period = round(seconds * US)
            lost = {tick for *of, tick in self.ledger.ticks.lost if of == [queue, name]}
            left_out = set(range(ticks[0], ticks[-1] + 1, period)) - set(ticks) - lost
            passed = self.ledger.forgetful and missed != "all"  # excused by a clock jump
            if ticks != sorted(set(ticks)) or (left_out and not passed):
                shown = [tick / US - WALL for tick in ticks]
                self.find(f"ticks of {name} are {shown}; the store lost {len(lost)}")
            leaps = sum(by > period for _, by in self.store.jumps)
            if missed == "once" and len(ticks) > max(1, leaps) and not lost:
                self.find(f"{name} ran more than one missed tick: {ticks}")

    def _check_documents(self) -> None:
        """Check that the last version of each document has run, or that its task is dead."""
        if self.ledger.losses or self._cut_short:
            return
        tasks, dead = self._fields(QUEUES[0], "tasks"), self._fields(QUEUES[0], "dead")
        for id in filter(is_edit, dead):
            self.books.documents.note_run(codec.decode(decode_message(tasks[id]).payload))
        for document, version in self.books.documents.missing().items():
            ran = self.books.documents.ran.get(document)
            self.find(
                f"version {version} of document {document} was not run: the last run was of "
                f"version {ran}"
            )

    def _check_keys(self) -> None:
        structural = {self._key(queue, name) for queue in QUEUES for name in QUEUE_KEYS}
        structural |= {f"{PREFIX}:queues", f"{PREFIX}:servers", f"{PREFIX}:schedule_queues"}
        keys = [raw.decode() for raw in self.plain("KEYS", "*")]
        others = [key for key in keys if key not in structural]
        for key, ttl in zip(
            others, self.store.read([("PTTL", key) for key in others]), strict=True
        ):
            if ttl < 0:
                self.find(f"key {key} is left without a TTL")


def _pairs(flat: Any) -> dict[str, Any]:
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return {name.decode(errors="backslashreplace"): value for name, value in pairs}


def explain(events: Any, id: str) -> list[str]:
    """Return the events of a history that mention a task."""
    needle = repr(id)[1:-1]
    return [repr(event) for event in events if needle in repr(event)]
