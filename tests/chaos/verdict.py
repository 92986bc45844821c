"""Finds violations of the guarantees in the evidence of a chaos run."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence

from tests.chaos.evidence import Evidence, Note, Wanted

NO_ROOM = "the store had no memory for the result"

KEPT = {"tasks", "dead", "crashes", "failures", "completed", "results"}
"""Keys of a queue that hold ended tasks."""

STRUCTURE = {
    "meta", "stats", "fetches", "calls", "recent", "wake", "idle", "type_reports", "type_stats",
}  # fmt: skip
"""Keys that have no TTL, in addition to the sets of queues and servers."""


def judge(evidence: Evidence) -> list[str]:
    """Return all violations."""
    return list(_Judge(evidence).findings())


def recovery_times(evidence: Evidence) -> list[float]:
    """For each run whose process was killed, return after how many seconds its task ran again."""
    starts: dict[str, list[Note]] = defaultdict(list)
    ended = {(note.id, note.token) for note in evidence.notes if note.kind != "start"}
    for note in evidence.notes:
        if note.kind == "start":
            starts[note.id].append(note)
    times = []
    for trouble in evidence.troubles:
        if trouble.kind != "kill" or trouble.pid is None:
            continue
        for runs in starts.values():
            for run, again in itertools.pairwise(runs):
                broken = run.pid == trouble.pid and run.at <= trouble.begin < again.at
                if broken and (run.id, run.token) not in ended:
                    times.append(again.at - trouble.begin)
    return times


class _Judge:
    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.runs: dict[str, list[Note]] = defaultdict(list)
        self.ends: dict[tuple[str, str], list[Note]] = defaultdict(list)
        """The notes that end runs, by id and token."""
        for note in sorted(evidence.notes):
            if note.kind == "start":
                self.runs[note.id].append(note)
            else:
                self.ends[note.id, note.token].append(note)

    def findings(self) -> Iterator[str]:
        yield from self._unexpected()
        for wanted in self.evidence.accepted.values():
            yield from self._accepted(wanted)
        for id in self.evidence.dead:
            yield from self._dead(id)
        for id, runs in self.runs.items():
            if runs and runs[0].attempt != 1:
                yield f"{id} began with attempt {runs[0].attempt}"
            for before, again in itertools.pairwise(runs):
                if self._reason(before, again) is None:
                    yield f"{id} ran again, {again.token} after {before.token}, for no reason"
        yield from self._counts()
        yield from self._left()

    def _known(self, id: str) -> Wanted | None:
        return self.evidence.accepted.get(id) or self.evidence.perhaps.get(id)

    def _unexpected(self) -> Iterator[str]:
        for id in self.runs:
            if self._known(id) is None:
                yield f"{id} ran but was never accepted"
        for id, holder in self.evidence.refused.items():
            if holder == id or self._known(holder) is None:
                yield f"{id} was refused as a duplicate of {holder}, which was never enqueued"
        for (id, token), notes in self.ends.items():
            if len(notes) > 1:
                yield f"{id} ended {len(notes)} times under the token {token}"
            if not any(run.token == token for run in self.runs.get(id, ())):
                yield f"{id} ended under the token {token} without a start"

    def _accepted(self, wanted: Wanted) -> Iterator[str]:
        id, runs = wanted.id, self.runs[wanted.id]
        done = {run.token for run in runs if self._ended(run, "end")}
        if id in self.evidence.dead:
            return
        if not runs:
            yield f"{id} was accepted but never ran"
        elif not done:
            yield f"{id} was accepted but neither ran to its end nor is dead"
        if wanted.retention:
            result = self.evidence.results.get(id)
            if result is None:
                yield f"{id} is neither dead nor kept as completed"
            elif result == NO_ROOM and self._full():
                pass
            elif result not in done:
                yield f"{id} has the result of {result}, which did not end it under a valid lease"

    def _full(self) -> bool:
        return any(one.kind.startswith(("squeeze", "errors")) for one in self.evidence.troubles)

    def _ended(self, run: Note, kind: str) -> bool:
        """Return whether the run ended with this kind of note while its server held the lease.

        Once the task has been started again, the lease is lost.
        """
        later = [other.at for other in self.runs[run.id] if other.at > run.at]
        return any(
            note.kind == kind and not (later and min(later) < note.at)
            for note in self.ends[run.id, run.token]
        )

    def _dead(self, id: str) -> Iterator[str]:
        dead, wanted, runs = self.evidence.dead[id], self._known(id), self.runs[id]
        if wanted is None:
            yield f"{id} is dead but was never accepted"
        elif dead.error.startswith("crashed "):
            # A crash after a start was recorded but before the handler started also counts.
            most = self.evidence.max_crashes
            befell = self._troubles(wanted.at, float("inf"))
            if dead.crashes != most or befell < most or not any(run.crashes for run in runs):
                yield f"{id} is dead after {dead.crashes} crashes that the history does not show"
        else:
            failed = {run.attempt for run in runs if self._ended(run, "fail")}
            if wanted.fail <= wanted.retry or failed != set(range(1, wanted.retry + 2)):
                yield f"{id} is dead, but only the attempts {sorted(failed)} failed: {dead.error}"

    def _reason(self, before: Note, again: Note) -> str | None:
        """Return the reason why a task was started again, or None if there was no reason."""
        if again.attempt == before.attempt and again.crashes > before.crashes:
            return "crashed" if self._troubles(before.at, again.at) else None
        if again.attempt == before.attempt + 1 and again.crashes >= before.crashes:
            tries = [run for run in self.runs[again.id] if run.attempt == before.attempt]
            return "failed" if any(self._ended(run, "fail") for run in tries) else None
        unchanged = (again.attempt, again.crashes) == (before.attempt, before.crashes)
        if unchanged and any(e.kind == "cancelled" for e in self.ends[before.id, before.token]):
            return "handed back"
        if unchanged and before.crashes and self._crashed(before, again):
            # Another suspect on the same server may have caused the crash, so it does not count for
            # this task.
            return "crashed beside suspects"
        return None

    def _crashed(self, before: Note, again: Note) -> bool:
        """Return whether a fault began before the server was certain to have recorded the end of
        the run."""
        recorded = [end.at + self.evidence.lease for end in self.ends[before.id, before.token]]
        return self._troubles(before.at, min([again.at, *recorded])) > 0

    def _troubles(self, begin: float, end: float) -> int:
        """Return the number of faults between these times that may have let a lease expire."""
        lease = self.evidence.lease
        return sum(
            trouble.begin <= end and trouble.end >= begin - lease
            for trouble in self.evidence.troubles
            if not trouble.clients_only
        )

    def _counts(self) -> Iterator[str]:
        evidence = self.evidence
        count = evidence.counters.get
        enqueued, completed, dead = (count(n, 0) for n in ("enqueued", "completed", "dead"))
        ids = {*evidence.accepted, *evidence.dead, *self.runs} - evidence.refused.keys()
        if enqueued != len(ids):
            yield f"{len(ids)} tasks were accepted, but the store counts {enqueued}"
        if enqueued != completed + dead:
            yield f"of {enqueued} tasks {completed} were completed and {dead} died"
        if dead != len(evidence.dead):
            yield f"{dead} tasks died, but {len(evidence.dead)} are stored"
        starts = sum(map(len, self.runs.values()))
        reasons = reasons_of(evidence)
        allowed = sum(map(bool, self.runs.values())) + sum(reasons.values())
        if starts > allowed:
            yield f"{starts} starts, but reasons for only {allowed}: {reasons}"

    def reasons(self) -> dict[str, int]:
        """Return how often tasks were started again, by reason."""
        counts: dict[str, int] = defaultdict(int)
        for runs in self.runs.values():
            for before, again in itertools.pairwise(runs):
                if (reason := self._reason(before, again)) is not None:
                    counts[reason] += 1
        return dict(counts)

    def _left(self) -> Iterator[str]:
        evidence = self.evidence
        kept = len(evidence.dead) + len(evidence.results)
        for name, number in evidence.left.items():
            if name == "unique":
                yield f"{number} lock entries are left"
            elif name not in STRUCTURE and (name not in KEPT or number > kept):
                yield f"{number} entries are left in {name}"
        for key in sorted(evidence.keys):
            name = key.rpartition("}:")[2]
            if name not in STRUCTURE | KEPT and not name.endswith((":queues", ":servers")):
                yield f"the key {key} is left"
        for line in evidence.broken:
            yield f"a worker logged: {line[:2000]}"
        if evidence.audit:
            yield f"the audit found: {evidence.audit}"


def reasons_of(evidence: Evidence) -> dict[str, int]:
    """Return how often tasks were started again, by reason."""
    return _Judge(evidence).reasons()


def sequence(notes: Sequence[Note], id: str) -> str:
    """Return the events of a task as a string."""
    return "\n".join(
        f"{note.at:.3f} {note.kind} attempt {note.attempt} crashes {note.crashes} {note.token}"
        for note in sorted(notes)
        if note.id == id
    )
