"""The account of a run: every task that was accepted has one end, and everything agrees. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from qsync.broker.views import Counts
from qsync.cli.demo.ledger import Ledger
from qsync.cli.demo.plan import CHILDREN, HASHING, KINDS, RUNNING, Block, Plan
from qsync.cli.demo.records import History, Start
from qsync.state import UNFINISHED, TaskState
from qsync.task import TaskStatus


class Fate(StrEnum):
    """How a task that was accepted ended; `left` and `lost` must not be."""

    DONE = "done"
    DEAD = "dead"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    LEFT = "left"
    LOST = "lost"


@dataclass
class Victim:
    """The server that was killed, and the tasks that were running in it."""

    pid: int
    at: float
    torn: set[str] = field(default_factory=set)

    def starts(self, history: History) -> dict[str, Start | None]:
        """Where each of these tasks began next; None: nowhere yet."""
        return {
            id: next((start for start in history.starts[id] if start.at > self.at), None)
            for id in self.torn
        }

    def waiting(self, history: History) -> int:
        """How many of them have not begun again."""
        return sum(start is None for start in self.starts(history).values())

    def seconds(self, history: History) -> float:
        """How long after the kill the last of them began again."""
        starts = [start.at for start in self.starts(history).values() if start is not None]
        return max(starts, default=self.at) - self.at


@dataclass(frozen=True)
class Manifest:
    """What the handlers found, and what a plain loop over the same files finds."""

    found: Mapping[str, str]
    expected: Mapping[str, str]
    contradictions: int = 0
    changed: int = 0
    """Files that somebody changed meanwhile; they are in neither."""
    seconds: float = 0.0
    """How long the plain loop took."""

    def right(self, blocks: Iterable[Block]) -> bool:
        """Whether the digests of these blocks are there and right."""
        return all(
            self.found.get(block.key) == self.expected[block.key]
            for block in blocks
            if block.key in self.expected
        )

    @property
    def is_same(self) -> bool:
        """Whether both are the same, and no task contradicted another."""
        return self.found == self.expected and not self.contradictions


@dataclass(frozen=True)
class Evidence:
    """All that the account is made from."""

    plan: Plan
    ledger: Ledger
    history: History
    statuses: Mapping[str, TaskStatus]
    """id -> where it is, of the tasks that the store still has."""
    counts: Mapping[str, Counts]
    manifest: Manifest
    victim: Victim | None
    withdrawn: Sequence[str] = ()
    """Ticks that were cancelled, since no server was left to run them."""


@dataclass
class Row:
    """The tasks of one kind."""

    kind: str
    offered: int
    refused: int
    ends: dict[str, int]
    failed_attempts: int
    repeated_runs: int
    ok: bool
    finding: str

    @property
    def accepted(self) -> int:
        """How many the store took."""
        return sum(self.ends.values())


@dataclass
class Finding:
    """Something that was checked."""

    ok: bool
    text: str


@dataclass
class Summary:
    """The account."""

    rows: list[Row]
    findings: list[Finding]
    numbers: dict[str, float]

    @property
    def ok(self) -> bool:
        """Whether all is accounted for, and everything that was checked holds."""
        return all(row.ok for row in self.rows) and all(one.ok for one in self.findings)

    def total(self, end: str) -> int:
        """How many tasks had this end, of all kinds."""
        return sum(row.ends[end] for row in self.rows)


def account(evidence: Evidence) -> Summary:
    """Draw up the account."""
    fates = {
        kind: {id: fate_of(evidence, kind, id) for id in evidence.ledger.ids[kind]}
        for kind in KINDS
    }
    rows = [_row(evidence, kind, fates[kind]) for kind in KINDS]
    findings = [
        _accounted(rows), _manifest(evidence), _recovery(evidence), _counters(evidence, rows),
    ]  # fmt: skip
    return Summary(rows, findings, _numbers(evidence, rows))


def fate_of(evidence: Evidence, kind: str, id: str) -> Fate:
    """How a task ended, by what the store has of it and what the servers wrote down."""
    status = evidence.statuses.get(id)
    done = id in evidence.history.done[kind]
    if status is None:
        if id in evidence.withdrawn:
            return Fate.CANCELLED
        return Fate.DONE if done else Fate.LOST
    if status.state in UNFINISHED:
        return Fate.LEFT
    if status.state is TaskState.DEAD:
        expired = (status.last_error or "").startswith("deadline")
        return Fate.EXPIRED if expired else Fate.DEAD
    if status.cancelled:
        return Fate.CANCELLED
    return Fate.DONE if done else Fate.LOST


def _row(evidence: Evidence, kind: str, fates: Mapping[str, Fate]) -> Row:
    ledger, history = evidence.ledger, evidence.history
    ends = Counter(fates.values())
    expected = _END.get(kind, Fate.DONE)
    # A tick may have been withdrawn; of every other kind all tasks have the one end.
    as_expected = all(fate is expected or id in evidence.withdrawn for id, fate in fates.items())
    ok, finding = _FINDINGS[kind](evidence)
    if not as_expected:
        wrong = {fate: number for fate, number in ends.items() if fate is not expected}
        finding = "not as it should: " + ", ".join(f"{n} {fate}" for fate, n in wrong.items())
    if len(fates) != len(ledger.ids[kind]):
        as_expected, finding = False, "an id was accepted twice"
    offered = ledger.offered[kind] if kind != "tick" else len(fates)
    return Row(
        kind, offered, ledger.refused[kind], {fate.value: ends[fate] for fate in Fate},
        len(history.failed[kind]), history.again[kind],
        ok and as_expected and offered == ledger.refused[kind] + len(fates), finding,
    )  # fmt: skip


_END: Final = {
    "hopeless": Fate.DEAD, "poison": Fate.DEAD, "late": Fate.EXPIRED, "cancel": Fate.CANCELLED,
}  # fmt: skip
"""How the tasks of a kind are to end; the others are to be done."""


# What is checked of the kinds, one by one.


def _digests(*shares: str) -> Callable[[Evidence], tuple[bool, str]]:
    def finding(evidence: Evidence) -> tuple[bool, str]:
        blocks = [block for share in shares for block in evidence.plan.blocks[share]]
        ok = evidence.manifest.right(blocks)
        return ok, f"{len(blocks):,} digests are right" if ok else "digests are wrong or missing"

    return finding


def _tenant(evidence: Evidence) -> tuple[bool, str]:
    history, ledger = evidence.history, evidence.ledger
    ok, text = _digests("flood", "small")(evidence)
    first = {id: starts[0].at for id in ledger.ids["tenant"] if (starts := history.starts.get(id))}
    if not ok or len(first) < len(ledger.ids["tenant"]):
        return False, text
    last = max(first[id] for id in ledger.small)
    rank = sum(at <= last for at in first.values())
    before = sum(first[id] < ledger.small_sent for id in ledger.flood)
    # Turn and turn about, and what the servers had in hand already.
    fair = before + 2 * len(ledger.small) + 200
    return rank <= fair, f"small one's {len(ledger.small)} in the first {rank:,}"


def _parent(evidence: Evidence) -> tuple[bool, str]:
    ids = set(evidence.ledger.ids["child"])
    strange = {id for id, kind in evidence.history.kinds.items() if kind == "child"} - ids
    return not strange, f"{CHILDREN} tasks each, none twice" if not strange else "too many children"


def _typed(evidence: Evidence) -> tuple[bool, str]:
    ledger = evidence.ledger
    ok = not ledger.wrong_results and len(ledger.round_trips) == evidence.plan.typed
    return ok, "results are as of a plain call" if ok else f"{ledger.wrong_results} wrong results"


def _slow(evidence: Evidence) -> tuple[bool, str]:
    again = evidence.history.again["slow"]
    return True, f"{again} were cut off and ran again"


def _attempts(kind: str, failures: int, text: str) -> Callable[[Evidence], tuple[bool, str]]:
    def finding(evidence: Evidence) -> tuple[bool, str]:
        wanted = {
            (id, attempt) for id in evidence.ledger.ids[kind] for attempt in range(1, failures + 1)
        }
        ok = evidence.history.failed[kind] == wanted
        return ok, text if ok else "attempts are missing, or too many"

    return finding


def _scheduled(evidence: Evidence) -> tuple[bool, str]:
    late = lateness(evidence)
    if not late or min(late) < 0:
        return False, "some started early"
    return True, f"none early; {_ms(late, 0.5)}, max {_ms(late, 1)} late"


def _unique(evidence: Evidence) -> tuple[bool, str]:
    ledger, names = evidence.ledger, evidence.plan.unique
    once = len(ledger.holders) == names and all(len(ids) == 1 for ids in ledger.holders.values())
    told = all(ledger.holders[name] == [holder] for name, holder in ledger.named)
    if not once:
        return False, "a name was accepted more than once"
    return told, f"each of {names} names accepted once" if told else "a wrong holder was named"


def _late(evidence: Evidence) -> tuple[bool, str]:
    started = sum(id in evidence.history.starts for id in evidence.ledger.ids["late"])
    return not started, f"{started} started" if started else "none started"


def _cancel(evidence: Evidence) -> tuple[bool, str]:
    ledger = evidence.ledger
    ok = not ledger.not_cancelled and len(ledger.cancelled_after) == RUNNING
    if not ok:
        return False, f"{ledger.not_cancelled} were not cancelled"
    return True, f"{RUNNING} that ran stopped within {_ms(ledger.cancelled_after, 1)}"


def _tick(evidence: Evidence) -> tuple[bool, str]:
    moments = sorted(tick_moment(id) for id in evidence.ledger.ids["tick"])
    if not moments:
        return False, "there was none"
    span = (moments[-1] - moments[0]) // timedelta(seconds=1) + 1
    ok = len(set(moments)) == len(moments) == span
    return ok, f"{span} seconds, one for each" if ok else f"{len(moments)} in {span} seconds"


def _poison(evidence: Evidence) -> tuple[bool, str]:
    starts = sum(len(evidence.history.starts.get(id, ())) for id in evidence.ledger.ids["poison"])
    crashes = [evidence.statuses[id].crashes for id in evidence.ledger.ids["poison"]
               if id in evidence.statuses]  # fmt: skip
    ok = crashes == [3] and starts == 3
    return ok, f"{starts} starts, {sum(crashes)} crashes, then dead"


_FINDINGS: Final[dict[str, Callable[[Evidence], tuple[bool, str]]]] = {
    "hash": _digests("hash"), "thread": _digests("thread"), "process": _digests("process"),
    "tenant": _tenant, "parent": _parent, "child": _digests("child"), "typed": _typed,
    "slow": _slow, "flaky": _attempts("flaky", 2, "each was done the third time"),
    "hopeless": _attempts("hopeless", 3, "three attempts each"), "scheduled": _scheduled,
    "unique": _unique, "late": _late, "cancel": _cancel, "tick": _tick, "poison": _poison,
}  # fmt: skip


def tick_moment(id: str) -> datetime:
    """The time of a tick, by the id of its task."""
    return datetime.fromisoformat(id.rpartition("@")[2])


def lateness(evidence: Evidence) -> list[float]:
    """How much later than due the scheduled tasks began, seconds.

    At most: the delay is counted from before the call, and the store counts it from within.
    """
    starts = evidence.history.starts
    return [starts[id][0].at - due for id, due in evidence.ledger.due.items() if id in starts]


# What is checked of all.


def _accounted(rows: Sequence[Row]) -> Finding:
    offered = sum(row.offered for row in rows)
    refused = sum(row.refused for row in rows)
    ends = {fate: sum(row.ends[fate] for row in rows) for fate in Fate}
    accepted = sum(ends.values())
    ok = not ends[Fate.LEFT] and not ends[Fate.LOST] and offered == accepted + refused
    parts = " + ".join(
        f"{ends[fate]:,} {fate}" for fate in (Fate.DONE, Fate.DEAD, Fate.EXPIRED, Fate.CANCELLED)
    )
    return Finding(
        ok,
        f"{accepted:,} accepted = {parts}; {refused:,} duplicates refused; "
        f"left in the store: {ends[Fate.LEFT]}; lost: {ends[Fate.LOST]}",
    )


def _manifest(evidence: Evidence) -> Finding:
    manifest = evidence.manifest
    differing = sum(
        manifest.found.get(key) != manifest.expected.get(key)
        for key in manifest.found.keys() | manifest.expected.keys()
    )
    text = f"{len(manifest.found):,} digests in the manifest, the same as of a plain loop"
    if not manifest.is_same:
        text = f"the manifest differs from a plain loop in {differing + manifest.contradictions}"
    if manifest.changed:
        text += f" ({manifest.changed} files changed meanwhile and were left out)"
    return Finding(manifest.is_same, text)


def _recovery(evidence: Evidence) -> Finding:
    victim, history = evidence.victim, evidence.history
    if victim is None:
        return Finding(False, "no server was killed")
    waiting, seconds = victim.waiting(history), victim.seconds(history)
    text = f"kill -9: {len(victim.torn)} tasks were cut off, and ran again within {seconds:.2f} s"
    if waiting:
        text = f"kill -9: {waiting} of {len(victim.torn)} tasks did not run again"
    twice = repeats(history)
    return Finding(not waiting, f"{text}; {twice} tasks of all were done twice")


def repeats(history: History) -> int:
    """How many tasks were done more than once: at-least-once allows it."""
    return sum(sum(end.how == "done" for end in ends) > 1 for ends in history.ends.values())


def _counters(evidence: Evidence, rows: Sequence[Row]) -> Finding:
    """The store's own counters, beside what the client and the servers saw."""
    stored = Counter[str]()
    for counts in evidence.counts.values():
        stored.update(counts.stats)
    seen = Counter({fate.value: sum(row.ends[fate] for row in rows) for fate in Fate})
    failed = sum(map(len, evidence.history.failed.values()))
    hopeless = len(evidence.ledger.ids["hopeless"])
    wanted = {
        "enqueued": seen.total(),
        "completed": seen["done"],
        "failed": failed,
        "retried": failed - hopeless,
        "dead": seen["dead"] + seen["expired"],
        "cancelled": seen["cancelled"],
    }
    wrong = [f"{name} {stored[name]:,} (seen: {number:,})"
             for name, number in wanted.items() if stored[name] != number]  # fmt: skip
    if wrong:
        return Finding(False, "the store's counters differ: " + ", ".join(wrong))
    shown = ", ".join(f"{name} {number:,}" for name, number in wanted.items())
    return Finding(True, f"the store's counters say the same: {shown}")


# Measures.


def quantile(values: Sequence[float], part: float) -> float:
    """The value below which this part of them is; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def _ms(values: Sequence[float], part: float) -> str:
    return f"{quantile(values, part) * 1000:.0f} ms"


def _numbers(evidence: Evidence, rows: Sequence[Row]) -> dict[str, float]:
    ledger, history = evidence.ledger, evidence.history

    def waits(kind: str) -> list[float]:
        return [history.starts[id][0].at - ledger.sent[id]
                for id in ledger.ids[kind] if id in history.starts]  # fmt: skip

    ends = [end.at for kind in HASHING for id in history.done[kind] for end in history.ends[id]]
    starts = [history.starts[id][0].at for kind in HASHING for id in history.done[kind]]
    seconds = max(ends, default=0.0) - min(starts, default=0.0)
    peak = max(Counter(map(int, ends)).values(), default=0)
    typed, late = waits("typed"), lateness(evidence)
    numbers = {
        "hashed": sum(len(history.done[kind]) for kind in HASHING),
        "hashing_seconds": seconds,
        "tasks_per_second": len(starts) / seconds if seconds else 0.0,
        "tasks_per_second_peak": peak,
        "loop_seconds": evidence.manifest.seconds,
        "runs": sum(map(len, history.starts.values())),
        "failed_attempts": sum(row.failed_attempts for row in rows),
        "repeated_runs": sum(row.repeated_runs for row in rows),
        "done_twice": repeats(history),
        "recovery_seconds": evidence.victim.seconds(history) if evidence.victim else 0.0,
    }
    for name, values in (
        ("start", typed), ("round_trip", ledger.round_trips), ("backlog", waits("hash")),
        ("lateness", late),
    ):  # fmt: skip
        numbers |= {f"{name}_p50_ms": 1000 * quantile(values, 0.5),
                    f"{name}_p99_ms": 1000 * quantile(values, 0.99),
                    f"{name}_max_ms": 1000 * max(values, default=0.0)}  # fmt: skip
    return numbers
