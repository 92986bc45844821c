"""Checks the data in the store for damage, and repairs it where possible.

An audit only reads, in short steps, and may run while the queue is in use. Each step reads all data
of its tasks at one moment, and every change to a task is atomic. The audit reads suspected damage a
second time before it reports it. A repair is one script that changes a task only if the damage is
still there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from qsync import codec
from qsync.broker import bounds_ops, limit_ops, operator_ops, registry_ops, schedule_ops, views
from qsync.broker.address import Address
from qsync.broker.aio import AsyncBroker
from qsync.broker.views import AuditRow
from qsync.errors import InvalidTask
from qsync.keys import QUEUE_KEYS, GlobalKeys, QueueKeys, check_name
from qsync.message import Failure, decode_message
from qsync.new_task import new_nonce
from qsync.state import UNFINISHED, TaskState

Kind = Literal[
    "several states", "no state", "no message", "not leased", "not owned", "leftover",
    "lock kept", "lock lost", "lock unkept", "strange lock",
    "next run kept", "hold kept", "hold lost", "not listed", "stray waiter", "limit count",
    "limit shut",
    "layout lost", "several wakes", "no tick", "wrong bytes", "not announced", "not registered",
    "wrong type", "stray key",
]  # fmt: skip

MEANINGS: Final[dict[Kind, tuple[str, str]]] = {
    # kind: (problem, repair; the repair is empty if an operator has to decide)
    "several states": ("a task is in several states", "kept only in the state nearest to running"),
    "no state": (
        "a task is in no state, so it never runs",
        "made dead, or leased to the server that holds it",
    ),
    "no message": ("a task has lost its message", "made dead: payload missing"),
    "not leased": ("a task that is not active has a lease", "lease removed"),
    "not owned": ("an active task has no lease holder", "lease ended immediately"),
    "leftover": ("records of a task that no longer exists", "removed"),
    "lock kept": ("a task that has ended holds a unique lock", "freed"),
    "lock lost": ("a task has lost its unique lock", "taken again, unless another task holds it"),
    "lock unkept": ("a unique lock would expire before its task ends", "kept until the task ends"),
    "strange lock": ("an entry of the unique locks is invalid", "removed"),
    "next run kept": (
        "a task has ended, but its stored next run was not enqueued",
        "run enqueued, without a lock",
    ),
    "hold kept": ("a task that has ended or waits for a limit holds slots of limits", "freed"),
    "hold lost": ("a task has lost its limits, so they do not count it", "counted again"),
    "not listed": (
        "a limited task is in no limit's list of waiters, so it never starts",
        "tried again",
    ),
    "stray waiter": ("a limit has a waiter that is not a limited task", "removed"),
    "limit count": ("the stored number of tasks that hold a limit is wrong", "counted again"),
    "limit shut": ("a limit is open, but its waiters do not start", "opened"),
    "layout lost": ("a queue with limits is marked as having none", "marked"),
    "several wakes": ("the list that wakes servers has several elements", "reduced to one"),
    "no tick": ("a stored schedule has no next run, so it never runs", "due immediately"),
    "wrong bytes": ("the size of all messages of a bounded queue is wrong", "counted again"),
    "not announced": ("servers do not check the stored schedules of a queue", "announced"),
    "not registered": ("a queue is not in the set of queues", "added"),
    "wrong type": ("a key has the wrong type: another program wrote it", ""),
    "stray key": ("a key is not qsync's, or should expire but does not", ""),
}

SOURCES: Final = (
    "tasks", *(state.value for state in TaskState), "owner", "crashes", "failures", "results",
    "keys", "cancels", "progress", "successors", "holds", "unique",
)  # fmt: skip
PAGE_SIZE: Final = 100
"""Number of entries read or repaired in one step."""

SCAN_SIZE: Final = 1000
"""Number of keys or queue names that the store scans in one step."""

MAX_DAMAGES: Final = 10_000
"""Maximum number of problems reported per queue; run the audit again after a repair."""

LEASE_US: Final = 30_000_000
"""Lease that a repair gives to a task that it makes active again, in microseconds."""

_UNFINISHED: Final = frozenset(state.value for state in UNFINISHED)
_HOLDING: Final = _UNFINISHED - {TaskState.LIMITED.value}
"""States in which a task holds slots of its limits."""

_ENDED: Final = frozenset({TaskState.COMPLETED.value, TaskState.DEAD.value})


@dataclass(frozen=True, slots=True)
class Damage:
    """One inconsistency. `id` is a task's id or a key's name."""

    kind: Kind
    queue: str
    id: str
    lock: str = ""

    @property
    def repairable(self) -> bool:
        """Whether a repair exists for this kind."""
        return bool(MEANINGS[self.kind][1])


@dataclass(slots=True)
class Report:
    """The result of an audit."""

    queues: list[str] = field(default_factory=list)
    ids: int = 0
    """Number of entries read."""
    damages: list[Damage] = field(default_factory=list)
    lost_payloads: int = 0
    """Number of ended tasks whose message has been lost; the audit does not report them as
    damage."""
    truncated: bool = False
    unknown: list[str] = field(default_factory=list)
    """Data that the audit could not read, with the reason, such as a denied permission."""


def damages_of(row: AuditRow, queue: str) -> list[Damage]:
    """Return the damage to a task, given its data as read at one moment."""
    if not row.id:
        return [Damage("strange lock", queue, "", row.claim)] if row.claim else []
    return [
        Damage(kind, queue, row.id, row.claim if kind == "lock unkept" else "")
        for kind in (*_state_damage(row), *_lock_damage(row))
    ]


def _state_damage(row: AuditRow) -> Iterable[Kind]:
    states, has_message = row.states, "tasks" in row.beside
    if len(states) > 1:
        yield "several states"
    if "unheld" in row.beside:
        yield "hold lost"
    elif "holds" in row.beside and states and not _HOLDING & set(states):
        yield "hold kept"
    if "successors" in row.beside and states and not _UNFINISHED & set(states):
        yield "next run kept"
    if not states and row.beside:
        yield "no state" if has_message else "leftover"
    if not has_message and _UNFINISHED & set(states):
        yield "no message"
    if states and ("owner" in row.beside) != ("active" in states):
        yield "not owned" if "active" in states else "not leased"


def _lock_damage(row: AuditRow) -> Iterable[Kind]:
    is_unfinished = bool(_UNFINISHED & set(row.states))
    if row.lock and not is_unfinished:
        yield "lock kept"
    elif row.lock and row.holder != row.id:
        yield "lock lost"
    elif not row.lock and is_unfinished and row.claim and _lock_in(row.message) == row.claim:
        yield "lock unkept"


def _lock_in(message: bytes | None) -> str | None:
    """Return the task's own lock; an earlier task with the same id may have had another."""
    try:
        options = decode_message(message).options if message else None
    except codec.CodecError:
        return None
    return options.lock if options else None


class Auditor:
    """Audits and repairs the queues of a prefix."""

    def __init__(self, broker: AsyncBroker, *, prefix: str) -> None:
        self._broker = broker
        self._keys = keys = GlobalKeys(prefix)
        self._lasting = keys.lasting
        """Keys that belong to no queue and never expire."""

    async def audit(self, queue: str | None = None) -> Report:
        """Audit one queue, or all queues and the keys that belong to no queue."""
        report = Report()
        if queue is not None:
            report.queues = [check_name("queue", queue)]
        else:
            report.queues = await self._survey(report)
        for name in report.queues:
            await self._audit_queue(name, report)
        return report

    async def repair(self, damages: Sequence[Damage]) -> Counter[Kind]:
        """Repair the damage where possible; return the number of repairs by kind.

        Problems that no longer exist are not counted.
        """
        repairs: Counter[Kind] = Counter()
        groups: dict[tuple[str, Kind], list[Damage]] = {}
        for damage in damages:
            if damage.repairable:
                groups.setdefault((damage.queue, damage.kind), []).append(damage)
        for (queue, kind), group in groups.items():
            for start in range(0, len(group), PAGE_SIZE):
                repairs[kind] += await self._repair(queue, kind, group[start : start + PAGE_SIZE])
        return +repairs

    async def _repair(self, queue: str, kind: Kind, group: Sequence[Damage]) -> int:
        if kind == "not registered":
            return await self._broker.run(registry_ops.register(self._keys, [queue]))
        if kind == "not announced":
            if queue in await self._broker.run(schedule_ops.schedule_queues(self._keys)):
                return 0
            number = int.from_bytes(new_nonce()[:6], "big")
            return await self._broker.run(
                schedule_ops.announce_schedules(self._keys, queue, number)
            )
        if kind == "wrong bytes":
            return await self._broker.run(
                bounds_ops.recount_bytes(QueueKeys(self._keys.prefix, queue))
            )
        rows = [(damage.id, damage.lock) for damage in group]
        record = codec.encode(Failure(error="an audit found the task in no state"))
        keys = QueueKeys(self._keys.prefix, queue)
        call = operator_ops.repair(keys, kind, rows, record=record, lease_us=LEASE_US)
        return (await self._broker.run(call)).count("ok")

    async def _audit_queue(self, queue: str, report: Report) -> None:
        keys = QueueKeys(self._keys.prefix, queue)
        types, wakes = await self._broker.run(views.key_types(keys))
        wrong = [name for name, type in types.items() if type != QUEUE_KEYS[name][0]]
        if wrong:
            report.damages += [Damage("wrong type", queue, keys.key(name)) for name in wrong]
            return
        if wakes > 1:
            report.damages.append(Damage("several wakes", queue, ""))
        suspects: set[Damage] = set()
        async for source, row in self._rows(keys):
            report.ids += 1
            if len(suspects) < MAX_DAMAGES:
                suspects.update(damages_of(row, queue))
            report.lost_payloads += source in _ENDED and "tasks" not in row.beside
        report.truncated |= len(suspects) >= MAX_DAMAGES
        report.damages += await self._confirmed(keys, suspects)
        recorded, counted = await self._broker.run(bounds_ops.counted_bytes(keys))
        if recorded is not None and recorded != counted:
            report.damages.append(Damage("wrong bytes", queue, keys.key("meta")))
        report.damages += await self._limits(keys, report)
        report.damages += await self._schedules(keys, report)

    async def _limits(self, keys: QueueKeys, report: Report) -> list[Damage]:
        """Return the damage to a queue's limits and their waiters."""
        damages: list[Damage] = []
        first, more = 0, True
        while more and len(damages) < MAX_DAMAGES:
            part = await self._broker.run(limit_ops.audit_limits(keys, first=first))
            kinds: tuple[tuple[Kind, list[str]], ...] = (
                ("not listed", part.unlisted), ("stray waiter", part.strays),
                ("limit count", part.miscounted), ("limit shut", part.shut),
            )  # fmt: skip
            damages += [Damage(kind, keys.queue, name) for kind, names in kinds for name in names]
            if part.unmarked and not first:
                damages.append(Damage("layout lost", keys.queue, ""))
            if part.uncounted:
                report.unknown.append(f"the limit counts of queue {keys.queue}: too many tasks")
            first, more = first + 500, part.more
        order = list(MEANINGS).index
        return sorted(damages, key=lambda damage: order(damage.kind))

    async def _schedules(self, keys: QueueKeys, report: Report) -> list[Damage]:
        """Return the damage to a queue's stored schedules."""
        names: list[str] = []
        cursor = ""
        while cursor != "0" and len(names) < MAX_DAMAGES:
            call = schedule_ops.stored_page(keys, cursor=cursor or "0", count=PAGE_SIZE)
            page = await self._broker.run(call)
            cursor = page.cursor
            report.ids += len(page.rows)
            names += [row.name for row in page.rows if row.next_us is None]
        damages = []
        for start in range(0, len(names), PAGE_SIZE):
            part = names[start : start + PAGE_SIZE]
            _, rows = await self._broker.run(schedule_ops.stored_schedules(keys, part))
            lost = [row.name for row in rows if row is not None and row.next_us is None]
            damages += [Damage("no tick", keys.queue, name) for name in sorted(set(lost))]
        page = await self._broker.run(schedule_ops.stored_page(keys, count=1))
        if page.rows:
            queues = await self._broker.run(schedule_ops.schedule_queues(self._keys))
            if keys.queue not in queues:
                damages.append(Damage("not announced", keys.queue, self._keys.schedule_queues))
        return damages

    async def _rows(self, keys: QueueKeys) -> AsyncIterator[tuple[str, AuditRow]]:
        for source in SOURCES:
            cursor = ""
            while cursor != "0":
                call = views.audit(keys, source, cursor=cursor or "0", count=PAGE_SIZE)
                cursor, rows = await self._broker.run(call)
                for row in rows:
                    yield source, row

    async def _confirmed(self, keys: QueueKeys, suspects: set[Damage]) -> list[Damage]:
        """Return the damage that a second reading confirms."""
        confirmed: list[Damage] = []
        order = list(MEANINGS).index
        ordered = sorted(suspects, key=lambda damage: (order(damage.kind), damage.id, damage.lock))
        for start in range(0, len(ordered), PAGE_SIZE):
            part = ordered[start : start + PAGE_SIZE]
            pairs = [(damage.id, damage.lock) for damage in part]
            _, rows = await self._broker.run(views.stand(keys, pairs))
            for damage, row in zip(part, rows, strict=True):
                if damage in damages_of(row, keys.queue):
                    confirmed.append(damage)
        return confirmed

    # Outside the queues

    async def _survey(self, report: Report) -> list[str]:
        """Return the names of all queues; add damage outside the queues to the report."""
        registered = await self._registered()
        if registered is None:
            report.unknown.append("the set of queues: the store denies SSCAN")
        present: set[str] = set()
        for address in await self._broker.primaries():
            present |= await self._scan(address, report)
        if registered is not None:
            report.damages += [
                Damage("not registered", name, self._keys.queues)
                for name in sorted(present - registered)
            ]
        return sorted(present | {name for name in registered or () if _is_name(name)})

    async def _registered(self) -> set[str] | None:
        """Return the names in the set of queues, read in short steps; None if the store denies
        access."""
        key, names, cursor = self._keys.queues, set[str](), ""
        while cursor != "0":
            reply = await self._broker.ask("SSCAN", key, cursor or "0", "COUNT", SCAN_SIZE, key=key)
            if reply is None:
                return None
            cursor = reply[0].decode()
            names |= {name.decode(errors="replace") for name in reply[1]}
        return names

    async def _scan(self, address: Address, report: Report) -> set[str]:
        """Return the queues that have keys on a node."""
        queues: set[str] = set()
        others: set[bytes] = set()
        node = AsyncBroker(address, connections=1)
        try:
            async for key in self._all_keys(node):
                queue = self._queue_of(key.decode(errors="replace"))
                if queue is not None:
                    queues.add(queue)
                elif key.decode(errors="replace") not in self._lasting:
                    others.add(key)
            for key in sorted(others):
                # -1 means no TTL. Ask twice, because servers create a key before they set its TTL,
                # so the first answer may be premature.
                if await node.ask("PTTL", key) == -1 and await node.ask("PTTL", key) == -1:
                    name = key.decode(errors="backslashreplace")
                    report.damages.append(Damage("stray key", "", name))
        except _Denied:
            report.unknown.append(f"the keys at {address}: the store denies SCAN")
        finally:
            await node.aclose()
        return queues

    async def _all_keys(self, node: AsyncBroker) -> AsyncIterator[bytes]:
        """Yield the keys of a node that have the prefix; some may occur twice."""
        for pattern in (f"{{{self._keys.prefix}:*", f"{self._keys.prefix}:*"):
            cursor = ""
            while cursor != "0":
                reply = await node.ask("SCAN", cursor or "0", "MATCH", pattern, "COUNT", SCAN_SIZE)
                if reply is None:
                    raise _Denied
                cursor = reply[0].decode()
                for key in reply[1]:
                    yield key

    def _queue_of(self, key: str) -> str | None:
        """Return the queue that a key belongs to; None if the key belongs to no queue."""
        base, _, name = key.rpartition("}:")
        queue = base.removeprefix(f"{{{self._keys.prefix}:")
        return queue if name in QUEUE_KEYS and queue != base and _is_name(queue) else None


class _Denied(Exception):
    """Raised when the store denies permission to read."""


def _is_name(text: str) -> bool:
    try:
        return bool(check_name("queue", text))
    except InvalidTask:
        return False
