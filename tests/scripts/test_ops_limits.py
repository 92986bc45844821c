"""How the scripts apply limits, in cases that the model check rarely reaches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qsync.broker import limit_ops, op_values, ops
from qsync.broker.op_values import FetchResult
from qsync.limit import LimitRule
from tests.support.invariants import check_limits
from tests.support.limits import with_limits
from tests.support.queue_driver import BINARIES, POLICY, Rig, S


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        rules = {"c": LimitRule(concurrency=2), "r": LimitRule(rate=1, per_us=S, burst=1)}
        rig.run(limit_ops.put_limit_rules(rig.keys, rules, now_us=rig.now))
        yield rig


def send(rig: Rig, limits: tuple[str, ...], *ids: str) -> None:
    rig.send([with_limits(task, *limits) for task in rig.tasks(*ids)])


def state(rig: Rig, limit: str) -> bytes | None:
    return rig.field("limits", limit)


def test_pending_task_that_a_limit_refuses_is_parked_and_takes_none_of_its_limits(rig: Rig) -> None:
    send(rig, ("c", "d"), "a")
    rig.run(limit_ops.set_limit(rig.keys, "d", LimitRule(concurrency=1), "me", now_us=rig.now))
    rig.set("limits", "d", "1 1 0 0")  # two tasks hold `d`, which allows one
    assert rig.fetch().ids == []
    assert rig.state("a") == "limited"
    assert state(rig, "c") is None


def test_deleted_pending_task_makes_room_for_a_waiter(rig: Rig) -> None:
    send(rig, ("c",), "a", "b", "waits")
    assert rig.state("waits") == "limited"
    assert rig.delete("pending", "a") == 1
    assert rig.state("waits") == "pending"
    assert state(rig, "c") == b"0 2 0 0"


def test_closed_limit_starts_nothing_before_its_time(rig: Rig) -> None:
    send(rig, ("c",), "a", "b")
    [a] = rig.lease(1)

    rows = [op_values.HandedBack(*a, None, b"", "c", 30 * S, True)]
    rig.run(ops.hand_back(rig.keys, rows, now_us=rig.now))
    assert rig.fetch().ids == []
    rig.now += 30 * S
    assert rig.fetch().ids == ["a", "b"]


def test_operator_opens_a_closed_limit_and_its_rule_still_holds(rig: Rig) -> None:
    def open_limit(limit: str) -> int:
        return rig.run(limit_ops.open_limit(rig.keys, limit, now_us=rig.now))

    send(rig, ("r",), "a", "b")
    [a] = rig.lease()
    rows = [op_values.HandedBack(*a, None, b"", "r", 3600 * S, True)]
    rig.run(ops.hand_back(rig.keys, rows, now_us=rig.now))
    rig.now += 2 * S
    assert (rig.fetch().ids, rig.ids("limited")) == ([], ["a", "b"])
    rig.woken()
    assert (open_limit("other"), open_limit("c"), rig.woken()) == (0, 0, False)
    assert open_limit("r") == 1
    assert rig.woken()
    assert open_limit("r") == 0
    assert rig.fetch().ids == ["a"], "one start a second"
    rig.now += S
    assert rig.fetch().ids == ["b"]
    rig.complete(*[op_values.LeaseRef(id, rig.field("owner", id).decode()) for id in ("a", "b")])
    send(rig, ("c",), "d")
    [d] = rig.lease()
    rows = [op_values.HandedBack(*d, 60 * S, b"", "c", 3600 * S, True)]
    rig.run(ops.hand_back(rig.keys, rows, now_us=rig.now))
    assert rig.delete("scheduled", "d") == 1
    assert state(rig, "c") is not None, "the limit stays closed when no task holds it"
    assert open_limit("c") == 1
    assert state(rig, "c") is None


def test_rate_lets_a_burst_start_and_then_one_at_a_time(rig: Rig) -> None:
    send(rig, ("r",), "a", "b", "c")
    assert rig.fetch().ids == ["a"]
    reply = rig.fetch()
    assert reply.ids == []
    assert reply.next_due_us == S
    rig.now += S
    assert rig.fetch().ids == ["b"]


def test_server_is_woken_for_a_limit_that_opens_before_all_others(rig: Rig) -> None:
    wake = rig.keys.key("wake")

    def woken() -> bool:
        return rig.client.delete(wake) == 1

    rule = LimitRule(concurrency=1, rate=1, per_us=S, burst=1)
    rig.run(limit_ops.put_limit_rules(rig.keys, {"both": rule}, now_us=rig.now))
    send(rig, ("both",), "a", "b")
    [a] = rig.lease()
    assert rig.fetch().next_due_us == POLICY.lease_us, "the limit opens when its task ends"
    assert not woken()
    rig.now += S // 4
    rig.complete(a)
    assert rig.state("b") == "limited"
    assert woken()
    assert rig.fetch().next_due_us == S - S // 4
    rig.enqueue("other", limits=["r"])
    rig.lease()
    woken()
    rig.enqueue("later", limits=["r"])
    assert not woken(), "a server waits for an earlier time already"
    rig.now += S - S // 4
    assert rig.fetch().ids == ["b"]


def test_start_returned_late_does_not_exceed_the_burst(rig: Rig) -> None:
    """When the start is given back, the rate has already regained it and other tasks have used
    it."""
    rule = LimitRule(rate=1, per_us=S, burst=2)
    rig.run(limit_ops.set_limit(rig.keys, "r", rule, "me", now_us=rig.now))
    send(rig, ("r",), "a", "b", "c", "d", "e", "f")
    early, leased_us = rig.lease(), rig.now
    rig.now += 3 * S // 2
    late = rig.lease()
    assert [one.id for one in (*early, *late)] == ["a", "b", "c"]

    def hand_back(leases: list[op_values.LeaseRef], leased_us: int) -> list[str]:
        rows = [op_values.HandedBack(*one, leased_us=leased_us) for one in leases]
        rig.run(ops.hand_back(rig.keys, rows, now_us=rig.now))
        return rig.fetch().ids

    # The rate has half a start left, and has regained half of the start that is now given back.
    assert hand_back(early, leased_us) == ["a"]
    assert hand_back(late, 0) == [], "no start is given back if the lease time is unknown"
    rig.now += S
    [fresh] = rig.lease()
    assert hand_back([fresh], rig.now) == [fresh.id]


def test_raised_rate_applies_at_once(rig: Rig) -> None:
    rule = LimitRule(rate=1, per_us=3600 * S, burst=1)
    rig.run(limit_ops.set_limit(rig.keys, "r", rule, "me", now_us=rig.now))
    send(rig, ("r",), *(f"t{number}" for number in range(8)))
    assert rig.fetch().ids == ["t0"]
    raised = LimitRule(rate=10, per_us=S, burst=2)
    rig.run(limit_ops.set_limit(rig.keys, "r", raised, "me", now_us=rig.now))
    reply = rig.fetch()
    assert (reply.ids, reply.next_due_us) == ([], S // 10), "the raised limit has no burst left"
    rig.now += S // 10
    assert rig.fetch().ids == ["t1"]
    rig.now += S
    assert rig.fetch().ids == ["t2", "t3"]


@pytest.mark.faults(46)
@pytest.mark.parametrize("ahead_s", [3 * 86_400, 60])
def test_waiters_start_after_a_clock_that_was_ahead(rig: Rig, ahead_s: int) -> None:
    daily = LimitRule(rate=1, per_us=86_400 * S, burst=1)
    rig.run(limit_ops.set_limit(rig.keys, "daily", daily, "me", now_us=rig.now))
    send(rig, ("daily",), "d1", "d2")
    rig.now += ahead_s * S
    send(rig, ("r",), "a", "b", "c")
    assert sorted(rig.fetch().ids) == ["a", "d1"]
    rig.now -= ahead_s * S
    rig.now += 2 * S  # first, a sweep corrects the opening time; then, another moves the task
    rig.fetch()
    rig.now += 2 * S
    assert rig.fetch().ids == ["b"]
    rig.now += S
    assert rig.fetch().ids == ["c"]
    assert rig.score("openings", "daily") == rig.now + 86_400 * S - 3 * S, "from its discovery"


def test_late_start_does_not_delay_the_next_starts(rig: Rig) -> None:
    send(rig, ("r",), "a", "b", "c", "d")
    assert rig.fetch().ids == ["a"]
    rig.now += S + 20_000  # 20 ms after b could have started
    assert rig.fetch().ids == ["b"]
    assert rig.fetch().next_due_us == S - 20_000
    rig.now += S - 20_000
    assert rig.fetch().ids == ["c"]
    rig.now += 5 * S  # a very late start brings the next start forward by at most 50 ms
    assert rig.fetch().ids == ["d"]
    assert rig.fetch().ids == []
    assert rig.field("limits", "r") == b"4 0 %d 0" % (rig.now + S - 50_000)


def test_server_without_free_slots_gets_no_limited_task(rig: Rig) -> None:

    send(rig, ("c",), "a")
    rig.enqueue("plain")
    call = ops.fetch(
        rig.keys, server="s", number=99, wanted=5, policy=POLICY, free=0, now_us=rig.now
    )
    reply = rig.run(call)
    assert reply.ids == ["plain"]
    assert (reply.left, reply.left_for_free) == (False, True)


def test_server_that_published_rules_for_other_data_gets_no_limited_task(rig: Rig) -> None:
    """The store has lost its data, including the rules, and the server has not noticed this yet."""
    generation = rig.fetch().generation
    send(rig, ("c",), "a", "b")
    rig.enqueue("plain")

    def fetch(number: int, rules: str) -> FetchResult:
        return rig.run(ops.fetch(
            rig.keys, server="s", number=number, wanted=5, policy=POLICY, rules=rules,
            now_us=rig.now,
        ))  # fmt: skip

    reply = fetch(98, "an earlier generation")
    assert reply.ids == ["plain"]
    assert (reply.generation, reply.left_for_free) == (generation, True)
    assert fetch(99, generation).ids == ["a", "b"]


def test_limits_of_many_tasks_are_looked_up_in_hash_tables(rig: Rig) -> None:
    def encodings() -> list[bytes]:
        names = [rig.keys.key(name) for name in ("limits", "holds")]
        return [rig.client.execute_command("OBJECT", "ENCODING", name) for name in names]

    rig.send([with_limits(task, f"c:{task.id}") for task in rig.tasks("a", "b")])
    assert b"hashtable" not in encodings()
    ids = [f"id{number}" for number in range(20)]
    rig.send([with_limits(task, f"c:{task.id}") for task in rig.tasks(*ids)])
    assert encodings() == [b"hashtable"] * 2
    rig.complete(*rig.lease(20))
    assert (state(rig, "c:id19"), rig.ids("pending")) == (b"0 1 0 0", ["id18", "id19"])
    assert (state(rig, ""), rig.field("holds", "")) == (None, None)


def test_first_waiters_are_stored_with_their_limit_and_others_need_no_id(rig: Rig) -> None:
    def with_id() -> set[str]:
        """Check all waiters; return the ids from the entries that contain an id."""
        check_limits(rig.dump())
        entries = rig.client.zrange(rig.keys.key("waiters"), 0, -1)
        return {entry.partition(b"\0")[2][8:].decode() for entry in entries} - {""}

    def share(id: str, tag: int) -> None:
        """Enqueue a task with another fairness key and the same tag as another task."""
        rig.client.zadd(rig.keys.key("fairness"), {id: tag - 1})
        rig.send([with_limits(task, "c") for task in rig.tasks(id, fairness_key=id)])
        assert rig.score("limited", id) == tag

    ids = [f"{number:02}" for number in range(1, 27)]  # the tag of each task is its number
    send(rig, ("c",), *ids)
    assert with_id() == set(), (
        "01 and 02 are pending, 16 waiters are in the limit's state, and the others have no ids"
    )
    share("same", 20)
    share("again", 20)
    assert with_id() == {"20", "same", "again"}
    share("earlier", 5)
    assert with_id() == {"18", "20", "same", "again"}, "waiter 18 has left the limit's state"
    assert rig.cancel("21") == ("cancelled", "")
    assert rig.delete("limited", "04", "20") == 2
    for id, place in (("05", 1), ("22", 19)):  # order: 03, 05, earlier, 06 to 19, same, again
        assert rig.run(limit_ops.get_limit(rig.keys, "c", id=id, now_us=rig.now)).place == place
    state = rig.run(limit_ops.get_limit(rig.keys, "c", now_us=rig.now)).state
    assert (state.in_use, state.ready, state.waiting) == (0, 2, 24)
    order = []
    while held := rig.lease(1):
        order += [ref.id for ref in held]
        rig.complete(*held)
        check_limits(rig.dump())
    assert order == [*ids[:3], "05", "earlier", *ids[5:19], "again", "same", *ids[21:]]
    assert "waiters" not in rig.dump()


def test_waiter_that_could_stand_for_two_tasks_is_damage(rig: Rig) -> None:
    send(rig, ("c",), *(f"{number:02}" for number in range(1, 23)))
    rig.client.zadd(rig.keys.key("limited"), {"20": 21})
    damage = rig.run(limit_ops.audit_limits(rig.keys))
    assert len(damage.strays) == 2, (
        "the entry of 20 matches no task, and the entry of 21 matches two"
    )
    assert damage.unlisted == ["20", "21"]
