"""What is checked of each kind of task: whether it holds, and what there is to say. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from qsync.cli.demo.evidence import Evidence, in_ms, lateness, tick_moment
from qsync.cli.demo.plan import CHILDREN, RUNNING

IN_HAND: Final = 200
"""Tasks that a server may hold already when one comes back to the head of the queue."""

Check = Callable[[Evidence], tuple[bool, str]]


def _digests(*shares: str) -> Check:
    def finding(evidence: Evidence) -> tuple[bool, str]:
        blocks = [block for share in shares for block in evidence.plan.blocks[share]]
        ok = evidence.manifest.right(blocks)
        return ok, f"{len(blocks):,} digests are right" if ok else "digests are wrong or missing"

    return finding


def _tenant(evidence: Evidence) -> tuple[bool, str]:
    history, ledger = evidence.history, evidence.ledger
    ok, text = _digests("flood", "small")(evidence)
    first = {id: starts[0] for id in ledger.ids["tenant"] if (starts := history.starts.get(id))}
    if not ok or len(first) < len(ledger.ids["tenant"]):
        return False, text
    # Of each server by itself: another one may stand still meanwhile, on a busy machine.
    last: dict[int, float] = {}
    for start in (first[id] for id in ledger.small):
        if not start.crashes:  # what was in the killed server comes later
            last[start.pid] = max(last.get(start.pid, 0.0), start.at)
    flood = Counter(
        start.pid for start in map(first.__getitem__, ledger.flood)
        if start.at < last.get(start.pid, 0.0)
    )  # fmt: skip
    ahead, small = max(flood.values(), default=0), len(ledger.small)
    return ahead <= small + IN_HAND, f"small one's {small} behind {ahead} of flood"


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


def _attempts(kind: str, failures: int, text: str) -> Check:
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
    return True, f"none early; {in_ms(late, 0.5)} late, max {1000 * max(late):.0f}"


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
    return True, f"{RUNNING} that ran stopped within {in_ms(ledger.cancelled_after, 1)}"


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


FINDINGS: Final[dict[str, Check]] = {
    "hash": _digests("hash"), "thread": _digests("thread"), "process": _digests("process"),
    "tenant": _tenant, "parent": _parent, "child": _digests("child"), "typed": _typed,
    "slow": _slow, "flaky": _attempts("flaky", 2, "each was done the third time"),
    "hopeless": _attempts("hopeless", 3, "three attempts each"), "scheduled": _scheduled,
    "unique": _unique, "late": _late, "cancel": _cancel, "tick": _tick, "poison": _poison,
}  # fmt: skip
