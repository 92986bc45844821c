"""The account of a run: every task that was accepted has one end, and everything agrees. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from qsync.cli.demo.evidence import Evidence, Fate, fate_of, lateness, quantile, repeats
from qsync.cli.demo.findings import FINDINGS
from qsync.cli.demo.plan import HASHING, KINDS


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


def _row(evidence: Evidence, kind: str, fates: Mapping[str, Fate]) -> Row:
    ledger, history = evidence.ledger, evidence.history
    ends = Counter(fates.values())
    expected = _END.get(kind, Fate.DONE)
    # A tick may have been withdrawn; of every other kind all tasks have the one end.
    as_expected = all(fate is expected or id in evidence.withdrawn for id, fate in fates.items())
    ok, finding = FINDINGS[kind](evidence)
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
    if victim is None or not victim.torn:
        return Finding(False, "no server was killed in the middle of its work")
    waiting, seconds = victim.waiting(history), victim.seconds(history)
    text = f"kill -9: {len(victim.torn)} tasks were cut off, and ran again within {seconds:.2f} s"
    if waiting:
        text = f"kill -9: {waiting} of {len(victim.torn)} tasks did not run again"
    twice = repeats(history)
    return Finding(not waiting, f"{text}; {twice} tasks of all were done twice")


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
