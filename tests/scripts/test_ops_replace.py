"""Tasks that replace the holder of their lock, and debounced tasks. The payload of the last call
always runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qsync.broker import limit_ops, ops, type_ops
from qsync.broker.op_values import Completion, LeaseRef
from qsync.limit import LimitRule
from qsync.message import decode_message
from qsync.new_task import new_nonce, new_task
from qsync.task import Task
from tests.support.queue_driver import BINARIES, FAILURE, LAPSE, START, Rig, S

LATER = 600 * S


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        yield rig


def replace(rig: Rig, id: str, payload: str, **options: Any) -> tuple[str, str]:
    """Enqueue a task that replaces the holder of the lock `doc`; return the outcome."""
    options = {"unique_key": "doc", "on_duplicate": "replace", **options}
    [outcome] = rig.enqueue(id, payload=payload.encode(), **options)
    return outcome


def debounce(rig: Rig, id: str, payload: str, **options: Any) -> tuple[str, str]:
    [outcome] = rig.enqueue(
        id, payload=payload.encode(), unique_key="doc", debounce=5, debounce_max=12, **options
    )
    return outcome


def payload(rig: Rig, id: str) -> str:
    return decode_message(rig.dump()["tasks"][id.encode()]).payload.decode()


def run_next(rig: Rig) -> tuple[LeaseRef, str]:
    """Lease the only task; return its lease and the payload that its handler gets."""
    fetched = rig.fetch()
    [id], [message] = fetched.ids, fetched.messages
    return LeaseRef(id, f"s/{rig._number}"), decode_message(message).payload.decode()


@pytest.mark.parametrize("state", ["scheduled", "pending", "retry"])
def test_waiting_holder_gets_payload_options_and_due_time(rig: Rig, state: str) -> None:
    delay = 60 if state == "scheduled" else None
    assert replace(rig, "a", "old", delay=delay, fairness_key="k", retry=1) == ("created", "a")
    if state == "retry":
        rig.retry(*rig.lease(), delay_us=LATER)
    assert rig.state("a") == state
    assert replace(rig, "b", "new", delay=30, priority=8, retry=7) == ("replaced", "a")
    assert rig.score("scheduled", "a") == START + 30 * S
    assert rig.state("a") == "scheduled"
    dump = rig.dump()
    assert set(dump["tasks"]) == {b"a"}, "the later task is not stored separately"
    assert dump["keys"] == {b"a": b"\xff8"}
    assert "failures" not in dump, "all attempts are left"
    rig.now += 30 * S
    held, ran = run_next(rig)
    assert (held.id, ran) == ("a", "new")
    assert rig.complete(held) == ["ok"]
    assert set(rig.dump()) <= {"meta", "stats", "fetches"}


def test_pending_holder_keeps_its_turn(rig: Rig) -> None:
    replace(rig, "a", "old")
    rig.enqueue("n")
    replace(rig, "b", "new")
    assert rig.ids("pending") == ["a", "n"]
    replace(rig, "c", "newer", priority=1)
    assert rig.ids("pending") == ["n", "a"], "a task with a new priority moves"
    assert payload(rig, "a") == "newer"


def test_pending_holder_with_a_later_due_time_is_scheduled(rig: Rig) -> None:
    replace(rig, "a", "old")
    replace(rig, "b", "new", delay=9)
    assert rig.state("a") == "scheduled"
    replace(rig, "c", "newest")
    assert (rig.state("a"), payload(rig, "a")) == ("pending", "newest")


def test_limited_holder_that_becomes_pending_wakes_a_server(rig: Rig) -> None:
    rig.run(limit_ops.put_limit_rules(rig.keys, {"api": LimitRule(concurrency=1)}))
    rig.enqueue("other", limits=["api"])
    rig.lease()
    replace(rig, "a", "old", limits=["api"])
    wake = rig.keys.key("wake")
    rig.client.delete(wake)
    replace(rig, "b", "newer", limits=["api"])
    assert (rig.state("a"), rig.client.llen(wake)) == ("limited", 0)
    replace(rig, "c", "newest")
    assert (rig.state("a"), rig.client.llen(wake)) == ("pending", 1)


def test_holder_of_a_paused_type_that_gets_another_type_wakes_a_server(rig: Rig) -> None:
    rig.run(type_ops.pause_type(rig.keys, "type", b"", now_us=rig.now))
    replace(rig, "a", "old")
    assert rig.state("a") == "limited"
    rig.client.delete(rig.keys.key("wake"))
    replace(rig, "b", "new", type="other")
    assert (rig.state("a"), rig.client.llen(rig.keys.key("wake"))) == ("pending", 1)


@pytest.mark.parametrize(
    "end", ["complete", "keep", "retry", "kill", "hand back", "hand back later", "cancel", "crash"]
)
def test_active_holder_runs_again_after_any_outcome(rig: Rig, end: str) -> None:
    """The task runs again with the last payload, all its attempts and its lock."""
    replace(rig, "a", "old", retention=60)
    held, ran = run_next(rig)
    assert ran == "old"
    if end == "cancel":
        rig.cancel("a", 60 * S)
    assert replace(rig, "b", "new", delay=3) == ("replaced", "a")
    assert replace(rig, "c", "newest", delay=2) == ("replaced", "a")
    assert (rig.state("a"), payload(rig, "a")) == ("active", "old"), "the attempt continues"
    due = rig.now + 2 * S
    match end:
        case "complete":
            rig.run(ops.complete(rig.keys, [Completion(*held)], now_us=rig.now))
        case "keep":
            rig.complete(held, retention_us=60 * S, result=b"x")
        case "retry":
            rig.retry(held, delay_us=LATER)
        case "kill":
            rig.kill(held)
        case "hand back":
            rig.hand_back(held)
        case "hand back later":
            rig.hand_back(held, delay_us=LATER, failure=FAILURE)
        case "cancel":
            rig.end_cancelled(held)
        case _:
            rig.now += LAPSE
            assert rig.fetch(0, server="other").recovered == 1
    if end == "crash":
        assert rig.state("a") == "pending", "it is due already"
    else:
        assert rig.score("scheduled", "a") == due
    dump = rig.dump()
    assert not {"failures", "results", "cancels", "successors", "owner"} & set(dump)
    assert (dump.get("crashes") is None) == (end != "crash"), "a crash counts"
    assert b"@a" in dump["unique"]
    assert replace(rig, "d", "last") == ("replaced", "a"), "it waits now"
    held, ran = run_next(rig)
    assert ran == "last"
    assert rig.complete(held) == ["ok"]
    assert "tasks" not in rig.dump()


def test_cancel_after_a_replacement_also_cancels_the_replacement(rig: Rig) -> None:
    replace(rig, "a", "old")
    held, _ = run_next(rig)
    replace(rig, "b", "new")
    assert rig.cancel("a")[0] == "active"
    assert rig.end_cancelled(held) == ["ok"]
    assert "tasks" not in rig.dump()
    assert "successors" not in rig.dump()


def test_late_settlement_of_a_lost_lease_does_not_start_the_successor(rig: Rig) -> None:
    replace(rig, "a", "old")
    held, _ = run_next(rig)
    rig.now += LAPSE
    [again] = rig.lease(server="other")
    replace(rig, "b", "new")
    assert rig.complete(held) == ["lost"]
    assert rig.state("a") == "active"
    assert rig.complete(again) == ["ok"]
    assert run_next(rig)[1] == "new"


def test_repeated_call_replaces_once_and_never_with_an_older_payload(rig: Rig) -> None:
    replace(rig, "a", "old")

    def call(number: int, payload: bytes, sender: str = "me") -> Any:
        task = Task("t", payload, unique_key="doc", on_duplicate="replace")
        return ops.enqueue(
            rig.keys, [new_task(task, new_nonce())], sender=sender, number=number, now_us=rig.now
        )

    first, second, other = call(1, b"1"), call(2, b"2"), call(1, b"other", "you")
    assert rig.run(first)[0].outcome == "replaced"
    assert rig.run(first)[0].outcome == "replaced"
    assert rig.run(other)[0].outcome == "replaced"
    before = rig.dump()
    assert rig.run(first)[0].outcome == "replaced", "the repeated call gets the same reply"
    assert rig.dump() == before, "and nothing changes"
    assert payload(rig, "a") == "other"
    rig.run(second)
    assert rig.run(first) == [], "superseded by a later call of this sender"
    assert payload(rig, "a") == "2"
    held, _ = run_next(rig)
    third, fourth = call(3, b"3"), call(4, b"4", "you")
    rig.run(third)
    rig.run(fourth)
    rig.run(third)
    rig.complete(held)
    assert run_next(rig)[1] == "4"


def test_chosen_id_of_a_replacing_call_is_remembered(rig: Rig) -> None:
    replace(rig, "a", "old")
    task = Task("t", b"new", id="b", unique_key="doc", on_duplicate="replace")
    for outcome in ("replaced", "repeated"):
        made = new_task(task, new_nonce(), remember_us=60 * S)
        assert rig.send([made])[0][0] == outcome
    assert payload(rig, "a") == "new"


def repeat(rig: Rig, id: str, **options: Any) -> tuple[str, str]:
    """Enqueue a replacing task with a remembered id again, as a caller that got no reply."""
    task = Task("t", b"old", id=id, unique_key="doc", on_duplicate="replace", **options)
    [outcome] = rig.send([new_task(task, new_nonce(), remember_us=60 * S)])
    return outcome


@pytest.mark.parametrize("state", ["scheduled", "pending", "active", "retry"])
def test_repeated_id_of_a_replacement_gets_the_holder(rig: Rig, state: str) -> None:
    replace(rig, "a", "first", delay=60 if state == "scheduled" else None, retry=1)
    held = rig.lease() if state in ("active", "retry") else []
    if state == "retry":
        rig.retry(*held, delay_us=LATER)
    assert repeat(rig, "b", debounce=5) == ("replaced", "a")
    replace(rig, "c", "newest", delay=60)
    before = rig.dump()
    assert repeat(rig, "b", debounce=5) == ("repeated", "a")
    assert rig.dump() == before, "the repeated call changes nothing"


def test_repeated_id_of_a_replacement_never_runs_again(rig: Rig) -> None:
    """The lock may be free, or another task may hold it."""
    replace(rig, "a", "first")
    assert repeat(rig, "b") == ("replaced", "a")
    rig.complete(*rig.lease())
    assert repeat(rig, "b") == ("repeated", "b")
    replace(rig, "c", "newest")
    assert repeat(rig, "b") == ("repeated", "c")
    assert payload(rig, "c") == "newest"
    task = Task("t", id="b", unique_key="doc", on_duplicate="skip")
    outcomes = rig.send([new_task(task, new_nonce(), remember_us=60 * S)])
    assert outcomes == [("repeated", "b")], "a skipped task is not remembered, so `b` has run"


def test_last_replacement_of_a_batch_counts(rig: Rig) -> None:
    def made(id: str) -> Any:
        task = Task("t", id.encode(), id=id, unique_key="doc", on_duplicate="replace")
        return new_task(task, new_nonce())

    outcomes = rig.send([made("a"), *rig.tasks("n"), made("b"), made("c")])
    assert outcomes == [("created", "a"), ("created", "n"), ("replaced", "a"), ("replaced", "a")]
    assert payload(rig, "a") == "c"


def test_lock_window_of_an_ended_holder_refuses_a_replacement(rig: Rig) -> None:
    """With unique=seconds, the lock outlives its task, and an ended task cannot be replaced."""
    rig.enqueue("a", unique=400, unique_key="doc")
    rig.complete(*rig.lease())
    assert replace(rig, "b", "new") == ("duplicate", "a")


def test_task_with_the_id_of_an_ended_holder_is_not_replaced(rig: Rig) -> None:
    rig.enqueue("a", unique=400, unique_key="doc")
    rig.complete(*rig.lease())
    rig.enqueue("a", payload=b"other work", delay=60)
    assert replace(rig, "b", "new") == ("duplicate", "a")
    assert payload(rig, "a") == "other work"


def test_debounced_task_runs_after_the_last_call_with_its_payload(rig: Rig) -> None:
    assert debounce(rig, "a", "1") == ("created", "a")
    for n, step in enumerate((4, 4, 3), start=2):
        rig.now += step * S
        assert rig.fetch().ids == []
        assert debounce(rig, f"b{n}", str(n)) == ("replaced", "a")
    assert rig.score("scheduled", "a") == START + 12 * S, (
        "the task runs at most 12 s after the first call"
    )
    rig.now = START + 12 * S - 1
    assert rig.fetch().ids == []
    rig.now += 1
    assert run_next(rig)[1] == "4"


def test_debounce_counts_from_the_first_call_that_has_not_run(rig: Rig) -> None:
    debounce(rig, "a", "1")
    rig.now += 5 * S
    held, _ = run_next(rig)
    begun = rig.now
    for n in range(4):
        debounce(rig, f"b{n}", f"b{n}")
        rig.now += 4 * S
    rig.complete(held)
    assert rig.score("scheduled", "a") == begun + 12 * S
    assert run_next(rig)[1] == "b3"


def test_debounced_task_that_was_not_started_waits_again(rig: Rig) -> None:
    debounce(rig, "a", "1")
    rig.now += 5 * S
    rig.fetch(0)
    assert rig.state("a") == "pending"
    debounce(rig, "b", "2")
    assert rig.score("scheduled", "a") == START + 10 * S
    rig.now += 9 * S
    debounce(rig, "c", "3")
    assert rig.state("a") == "pending", "12 s are over"
    assert run_next(rig)[1] == "3"


def test_server_learns_the_due_time_of_a_debounced_task(rig: Rig) -> None:
    """The server measures the waiting time from the due time."""
    debounce(rig, "a", "1")
    rig.now += 4 * S
    debounce(rig, "b", "2")
    rig.now += 6 * S
    assert rig.fetch().since == {"a": START + 9 * S}
