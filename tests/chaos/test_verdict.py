"""The verdict accepts a correct run and finds each planted mistake."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import pytest

from tests.chaos.evidence import Dead, Evidence, Note, Trouble, Wanted
from tests.chaos.verdict import judge, reasons_of, recovery_times

A, B, C, X = "a/1", "b/1", "c/1", "x/1"


def ran(id: str, at: float, token: str, *, end: str = "end", attempt: int = 1, crashes: int = 0,
        pid: int = 1, seconds: float = 0.5) -> list[Note]:  # fmt: skip
    notes = [Note(at, pid, "start", id, attempt, crashes, token)]
    if end:
        notes.append(Note(at + seconds, pid, end, id, attempt, crashes, token))
    return notes


def sound() -> Evidence:
    """Return the evidence of a run that has one task per possible outcome."""
    evidence = Evidence(lease=1.0, max_crashes=3)
    for id, retry, fail, retention in (
        ("plain", 0, 0, False), ("kept", 0, 0, True), ("flaky", 1, 1, False),
        ("doomed", 1, 99, False), ("crashed", 0, 0, True), ("poison", 0, 0, False),
        ("back", 0, 0, False), ("twice", 0, 0, True), ("locked", 0, 0, False),
        ("spared", 0, 0, False),
    ):  # fmt: skip
        evidence.accepted[id] = Wanted(id, retry, fail, retention)
    evidence.perhaps = {
        "heard": Wanted("heard", 0, 0, False), "unheard": Wanted("unheard", 0, 0, False),
    }  # fmt: skip
    evidence.refused = {"duplicate": "locked"}
    evidence.notes = [
        *ran("plain", 1, A), *ran("kept", 1, A), *ran("locked", 1, A), *ran("heard", 1, B),
        *ran("flaky", 1, A, end="fail"), *ran("flaky", 2, B, attempt=2),
        *ran("doomed", 1, A, end="fail"), *ran("doomed", 2, C, end="fail", attempt=2),
        *ran("crashed", 10, A, end="", pid=7), *ran("crashed", 11.5, B, crashes=1),
        *ran("poison", 10, A, end="", pid=7), *ran("poison", 11.5, B, end="", crashes=1),
        *ran("poison", 14, C, end="", crashes=2),
        *ran("spared", 10, A, end="", pid=7), *ran("spared", 11.5, B, end="", crashes=1, pid=8),
        *ran("spared", 13.1, C, crashes=1, seconds=0.2),
        *ran("back", 3, A, end="cancelled"), *ran("back", 3.6, B),
        *ran("twice", 20, A, seconds=4), *ran("twice", 22, B, crashes=1),
    ]  # fmt: skip
    evidence.troubles = [
        Trouble("kill", 10.2, 10.2, pid=7), Trouble("kill", 12, 12, pid=8),
        Trouble("kill", 14.5, 14.5, pid=9), Trouble("freeze", 20.5, 22.5, pid=1),
        Trouble("delay of clients", 1, 30, clients_only=True),
    ]  # fmt: skip
    evidence.dead = {
        "doomed": Dead("RuntimeError: no", 2, 0),
        "poison": Dead("crashed 3 times", 0, 3),
    }
    evidence.results = {"kept": A, "crashed": B, "twice": B}
    evidence.counters = {"enqueued": 11, "completed": 9, "dead": 2}
    evidence.left = {"tasks": 5, "dead": 2, "completed": 3, "results": 3, "crashes": 3, "calls": 2}
    evidence.keys = {"{p:default}:meta", "{p:default}:stats", "{p:default}:tasks", "p:queues"}
    return evidence


def without(evidence: Evidence, id: str, token: str = "") -> None:
    evidence.notes = [
        note for note in evidence.notes if note.id != id or (token and note.token != token)
    ]


def turned(evidence: Evidence, id: str, token: str, kind: str) -> None:
    """Replace the kind of the note that ended a run, e.g. `end` with `fail`."""
    evidence.notes = [
        note._replace(kind=kind)
        if (note.id, note.token) == (id, token) and note.kind != "start"
        else note
        for note in evidence.notes
    ]


def lost(evidence: Evidence) -> None:
    without(evidence, "plain")


def lost_after_its_crash(evidence: Evidence) -> None:
    without(evidence, "crashed", A)
    evidence.results.pop("crashed")


def lost_after_its_failure(evidence: Evidence) -> None:
    without(evidence, "flaky", A)


def lost_from_what_is_kept(evidence: Evidence) -> None:
    evidence.results.pop("kept")


def unexpected(evidence: Evidence) -> None:
    evidence.notes += ran("ghost", 1, A)


def ran_though_refused(evidence: Evidence) -> None:
    evidence.notes += ran("duplicate", 1, A)


def refused_for_nobody(evidence: Evidence) -> None:
    evidence.refused["other"] = "ghost"


def refused_for_itself(evidence: Evidence) -> None:
    evidence.refused["other"] = "other"


def ran_twice_for_no_reason(evidence: Evidence) -> None:
    evidence.notes += ran("plain", 5, B)


def crashed_though_nothing_happened(evidence: Evidence) -> None:
    evidence.notes += ran("plain", 5, B, crashes=1)


def crashed_of_what_befell_clients(evidence: Evidence) -> None:
    evidence.troubles = [one for one in evidence.troubles if one.kind != "freeze"]


def spared_though_nothing_happened(evidence: Evidence) -> None:
    evidence.notes += ran("spared", 30, X, crashes=1)


def spared_before_its_first_crash(evidence: Evidence) -> None:
    without(evidence, "poison", B)
    evidence.notes += ran("poison", 11.5, B, end="", crashes=0)


def an_attempt_from_nowhere(evidence: Evidence) -> None:
    evidence.notes += ran("plain", 5, B, attempt=2)


def the_zombies_result(evidence: Evidence) -> None:
    evidence.results["twice"] = X


def a_zombie_was_heard(evidence: Evidence) -> None:
    """Accept the result of a run although its task already ran elsewhere under another lease."""
    evidence.results["twice"] = A


def a_zombies_failure_was_heard(evidence: Evidence) -> None:
    evidence.accepted["late"] = Wanted("late", 1, 1, False)
    evidence.notes += [
        *ran("late", 20, A, end="fail", seconds=4), *ran("late", 22, B, crashes=1, seconds=4),
        *ran("late", 24.1, C, attempt=2, crashes=1),
    ]  # fmt: skip
    evidence.counters |= {"enqueued": 11, "completed": 9}


def both_were_accepted(evidence: Evidence) -> None:
    evidence.counters["completed"] += 1


def the_result_of_a_failed_run(evidence: Evidence) -> None:
    turned(evidence, "twice", B, "cancelled")


def no_room_in_a_store_that_had_some(evidence: Evidence) -> None:
    evidence.results["kept"] = "the store had no memory for the result"


def made_twice(evidence: Evidence) -> None:
    evidence.counters["enqueued"] += 1
    evidence.counters["completed"] += 1


def dead_of_crashes_that_were_none(evidence: Evidence) -> None:
    without(evidence, "poison")


def dead_too_early(evidence: Evidence) -> None:
    evidence.dead["poison"] = replace(evidence.dead["poison"], crashes=2)


def dead_with_attempts_left(evidence: Evidence) -> None:
    without(evidence, "doomed", A)


def dead_though_it_never_fails(evidence: Evidence) -> None:
    evidence.dead["plain"] = Dead("RuntimeError: no", 1, 0)
    evidence.counters |= {"completed": 7, "dead": 3}


def dead_and_gone(evidence: Evidence) -> None:
    evidence.dead.pop("doomed")


def a_start_too_many(evidence: Evidence) -> None:
    turned(evidence, "back", A, "end")


def ended_twice(evidence: Evidence) -> None:
    evidence.notes.append(Note(9, 1, "end", "plain", 1, 0, A))


def ended_without_a_start(evidence: Evidence) -> None:
    evidence.notes.append(Note(9, 1, "end", "plain", 1, 0, X))


def a_lock_is_left(evidence: Evidence) -> None:
    evidence.left["unique"] = 2


def an_owner_is_left(evidence: Evidence) -> None:
    evidence.left["owner"] = 1


def a_message_is_left(evidence: Evidence) -> None:
    evidence.left["tasks"] += 1


def a_key_is_left(evidence: Evidence) -> None:
    evidence.keys.add("{p:default}:lock:a")


def a_server_broke(evidence: Evidence) -> None:
    evidence.broken.append("ERROR a part of the server failed")


def damaged(evidence: Evidence) -> None:
    evidence.audit = "no state: 1"


MISTAKES: Final[list[tuple[Callable[[Evidence], None], str]]] = [
    (lost, "plain was accepted but never ran"),
    (lost_after_its_crash, "crashed is neither dead nor kept"),
    (lost_after_its_failure, "flaky began with attempt 2"),
    (lost_from_what_is_kept, "kept is neither dead nor kept"),
    (unexpected, "ghost ran but was never accepted"),
    (ran_though_refused, "duplicate ran but was never accepted"),
    (refused_for_nobody, "duplicate of ghost"),
    (refused_for_itself, "duplicate of other"),
    (ran_twice_for_no_reason, "plain ran again, b/1 after a/1, for no reason"),
    (crashed_though_nothing_happened, ""),
    (crashed_of_what_befell_clients, "twice ran again"),
    (spared_though_nothing_happened, "spared ran again, x/1 after c/1, for no reason"),
    (spared_before_its_first_crash, "poison ran again, b/1 after a/1, for no reason"),
    (an_attempt_from_nowhere, "plain ran again"),
    (the_zombies_result, "twice has the result of x/1"),
    (a_zombie_was_heard, "twice has the result of a/1"),
    (a_zombies_failure_was_heard, "late ran again, c/1 after b/1"),
    (both_were_accepted, "of 11 tasks 10 were completed and 2 died"),
    (the_result_of_a_failed_run, "twice has the result of b/1"),
    (no_room_in_a_store_that_had_some, "kept has the result of"),
    (made_twice, "11 tasks were accepted, but the store counts 12"),
    (dead_of_crashes_that_were_none, "poison is dead after 3 crashes"),
    (dead_too_early, "poison is dead after 2 crashes"),
    (dead_with_attempts_left, "doomed is dead, but only the attempts [2] failed"),
    (dead_though_it_never_fails, "plain is dead, but only the attempts [] failed"),
    (dead_and_gone, "2 tasks died, but 1 are stored"),
    (a_start_too_many, "back ran again"),
    (ended_twice, "plain ended 2 times"),
    (ended_without_a_start, "plain ended under the token x/1 without a start"),
    (a_lock_is_left, "2 lock entries"),
    (an_owner_is_left, "1 entries are left in owner"),
    (a_message_is_left, "6 entries are left in tasks"),
    (a_key_is_left, "lock:a is left"),
    (a_server_broke, "a part of the server failed"),
    (damaged, "the audit found"),
]


def test_correct_run_has_no_finding() -> None:
    evidence = sound()
    assert judge(evidence) == []
    assert reasons_of(evidence) == {
        "failed": 2, "crashed": 5, "crashed beside suspects": 1, "handed back": 1,
    }  # fmt: skip
    assert recovery_times(evidence) == pytest.approx([1.3, 1.3, 1.3, 1.1])


@pytest.mark.parametrize(("mistake", "said"), MISTAKES, ids=lambda it: getattr(it, "__name__", ""))
def test_a_planted_mistake_is_found(mistake: Callable[[Evidence], None], said: str) -> None:
    evidence = sound()
    mistake(evidence)
    wrong = judge(evidence)
    assert [one for one in wrong if said in one], wrong
