"""A fetch leases tasks in order, each only once, and does the upkeep of the queue."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from qsync import codec
from qsync.broker import operator_ops, type_ops
from qsync.broker.op_values import LeaseRef
from qsync.message import ENVELOPE_HEAD, decode_message
from tests.support.queue_driver import BINARIES, DAY, FAILURE, LAPSE, LEASE, POLICY, START, Rig, S


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        yield rig


# Leases


def test_tasks_are_fetched_in_the_order_of_enqueue(rig: Rig) -> None:
    rig.enqueue("c", "a")
    rig.enqueue("b")
    assert rig.fetch(2).ids == ["c", "a"]
    assert rig.fetch(2).ids == ["b"]
    assert rig.fetch(2).ids == []


def test_order_of_tasks_spans_chunks_and_batches(rig: Rig) -> None:
    ids = [f"task-{n}" for n in range(730)]
    for at in range(0, 730, 365):
        rig.enqueue(*ids[at : at + 365])
    assert rig.fetch(120).ids == ids[:120]
    assert rig.fetch(9999).ids == ids[120:620]  # no call leases more than 500
    assert rig.fetch(500).ids == ids[620:]


def test_a_fetched_task_is_active_under_its_token_until_the_lease_ends(rig: Rig) -> None:
    rig.enqueue("a")
    fetched = rig.fetch(number=7)
    assert rig.state("a") == "active"
    assert rig.field("owner", "a") == b"s/7"
    assert rig.score("active", "a") == START + LEASE
    assert fetched.now_us == START
    assert fetched.next_due_us == LEASE


def test_messages_include_the_time_of_enqueue(rig: Rig) -> None:
    rig.enqueue("a")
    rig.now += S
    message = decode_message(rig.fetch().messages[0])
    assert message.enqueued_at_us == START
    assert message.payload == b"a"


def test_failures_and_crash_counts_match_their_ids(rig: Rig) -> None:
    rig.enqueue("a", "b", "c")
    held = rig.lease()
    rig.retry(held[1], delay_us=0)
    rig.hand_back(held[0])
    rig.now += LAPSE
    fetched = rig.fetch(server="other")
    assert fetched.ids == ["c", "a", "b"]
    assert fetched.failures == [None, None, FAILURE]
    assert fetched.crashes == [1, 0, 0]
    assert fetched.recovered == 1


def test_full_server_fetches_no_task_but_does_upkeep(rig: Rig) -> None:
    rig.enqueue("a")
    rig.enqueue("b", delay=1)
    rig.now += S
    assert rig.fetch(0).ids == []
    assert rig.ids("pending") == ["a", "b"]


def test_a_batch_is_bounded_in_bytes(rig: Rig) -> None:
    megabyte = b"x" * (1024 * 1024 - 100)
    rig.enqueue("a", "b", payload=megabyte)
    rig.enqueue("c", "d", payload=megabyte)
    rig.enqueue("e", payload=megabyte)
    assert rig.fetch().ids == ["a", "b", "c", "d"]
    assert rig.fetch().ids == ["e"]


def test_at_least_one_task_of_any_size_is_leased(rig: Rig) -> None:
    rig.enqueue("a", "b")
    tight = replace(POLICY, max_bytes=1)
    assert rig.fetch(policy=tight).ids == ["a"]
    assert rig.fetch(policy=tight).ids == ["b"]


def test_batch_may_reach_the_byte_limit_exactly(rig: Rig) -> None:
    rig.enqueue("a", "b", "c")
    size = len(rig.client.hget(rig.keys.key("tasks"), "a"))
    assert rig.fetch(policy=replace(POLICY, max_bytes=2 * size)).ids == ["a", "b"]


@pytest.mark.faults(77)
def test_nothing_is_fetched_from_a_paused_queue(rig: Rig) -> None:
    rig.enqueue("a")
    rig.enqueue("b", delay=1)
    assert rig.run(operator_ops.pause(rig.keys, b"me")) is True
    rig.now += S
    paused = rig.fetch()
    assert paused.paused
    assert paused.ids == []
    assert rig.ids("pending") == ["a", "b"]  # upkeep continues
    assert rig.run(operator_ops.resume(rig.keys)) is True
    resumed = rig.fetch()
    assert not resumed.paused
    assert resumed.ids == ["a", "b"]


# Promotion


@pytest.mark.faults(66)
@pytest.mark.guarantee(5)
def test_a_task_is_promoted_when_due_and_never_before(rig: Rig) -> None:
    rig.enqueue("late", delay=2)
    rig.enqueue("soon", delay=1)
    rig.now += S - 1
    early = rig.fetch()
    assert early.ids == []
    assert early.next_due_us == 1
    rig.now += 1
    assert rig.fetch().ids == ["soon"]
    rig.now += S
    assert rig.fetch().ids == ["late"]


def test_a_failed_task_is_promoted_when_due(rig: Rig) -> None:
    rig.enqueue("a")
    rig.retry(*rig.lease(), delay_us=10)
    rig.now += 9
    assert rig.fetch().ids == []
    rig.now += 1
    assert rig.fetch().ids == ["a"]


def test_due_tasks_are_promoted_in_time_order_behind_pending_ones(rig: Rig) -> None:
    rig.enqueue("b", delay=2)
    rig.enqueue("a", delay=1)
    rig.enqueue("first")
    rig.now += 2 * S
    rig.enqueue("before")
    assert rig.fetch().ids == ["first", "before", "a", "b"]


def test_promotion_moves_100_per_set_and_reports_more(rig: Rig) -> None:
    rig.enqueue(*[f"r{n}" for n in range(130)])
    rig.retry(*rig.lease(), delay_us=S)
    rig.enqueue(*[f"s{n}" for n in range(130)], delay=1)
    rig.now += S
    first = rig.fetch(0)
    assert first.more
    assert len(rig.ids("pending")) == 200
    second = rig.fetch(0)
    assert not second.more
    assert len(rig.ids("pending")) == 260


def test_fetch_returns_the_next_due_time_of_any_kind(rig: Rig) -> None:
    assert rig.fetch().next_due_us is None
    rig.enqueue("s", delay=1000)
    assert rig.fetch().next_due_us == 1000 * S
    rig.enqueue("a")
    held = rig.lease()
    assert rig.fetch(0).next_due_us == LEASE
    rig.retry(*held, delay_us=5)
    assert rig.fetch(0).next_due_us == 5


# The number of a fetch


@pytest.mark.faults(35)
def test_repeated_number_returns_the_unsettled_tasks_of_its_batch(rig: Rig) -> None:
    rig.enqueue(*"abcdef")
    first = rig.fetch(5, number=3)
    held = {id: LeaseRef(id, "s/3") for id in first.ids}
    rig.enqueue("z")
    again = rig.fetch(5, number=3)
    assert (again.ids, again.messages) == (first.ids, first.messages)
    rig.complete(held["a"])
    rig.retry(held["b"])
    rig.kill(held["c"])
    rig.hand_back(held["d"])
    again = rig.fetch(5, number=3)
    assert (again.ids, again.messages) == (["e"], first.messages[4:])


@pytest.mark.faults(35)
def test_a_repeated_fetch_changes_nothing_and_does_no_upkeep(rig: Rig) -> None:
    rig.enqueue("a", "b")
    rig.enqueue("c", delay=1)
    rig.fetch(1, number=3)
    rig.now += DAY
    before = rig.dump()
    assert rig.fetch(500, number=3).ids == ["a"]
    assert rig.dump() == before


def test_repeated_fetch_omits_tasks_leased_again(rig: Rig) -> None:
    rig.enqueue("a")
    rig.fetch(number=1)
    rig.now += LAPSE
    rig.be_seen()
    assert rig.fetch(server="other", number=1).ids == ["a"]
    assert rig.fetch(number=1).ids == []
    rig.hand_back(LeaseRef("a", "other/1"))
    assert rig.fetch(number=1).ids == []
    assert rig.fetch(number=2).ids == ["a"]
    assert rig.fetch(number=2).ids == ["a"]


def test_repeated_fetch_includes_failures_and_crash_counts(rig: Rig) -> None:
    rig.enqueue("a", "b")
    [a, _] = rig.lease()
    rig.retry(a, delay_us=0)
    rig.now += LAPSE
    rig.be_seen()
    first = rig.fetch(server="other", number=9)
    again = rig.fetch(server="other", number=9)
    assert again.crashes == first.crashes == [1, 0]
    assert again.failures == first.failures == [None, FAILURE]


def test_fetch_with_a_lower_number_returns_and_changes_nothing(rig: Rig) -> None:
    rig.enqueue("a", "b")
    rig.enqueue("c", delay=1)
    rig.fetch(1, number=10)
    rig.now += DAY
    before = rig.dump()
    late = rig.fetch(number=9)
    assert (late.ids, late.next_due_us, late.own_lapsed) == ([], None, [])
    assert rig.dump() == before


def test_fetch_numbers_are_compared_numerically_for_each_server(rig: Rig) -> None:
    rig.enqueue(*"abcd")
    assert rig.fetch(1, number=9).ids == ["a"]
    assert rig.fetch(1, number=10).ids == ["b"]
    assert rig.fetch(1, number=9).ids == []
    assert rig.fetch(1, server="t", number=0).ids == ["c"]
    assert rig.fetch(1, server="t", number=0).ids == ["c"]
    assert rig.fetch(1, server="t", number=1).ids == ["d"]


ODD_IDS = ("-1", "+inf", "XX", "NX", "0", "1e3", "a/b", "=l", "@a", "{x}:y", "%d", "'", "~" * 128)


@pytest.mark.parametrize("id", ODD_IDS)
def test_unusual_ids_are_supported(rig: Rig, id: str) -> None:
    rig.enqueue(id, unique=True)
    assert rig.fetch(server="t", number=1).ids == [id]
    assert rig.fetch(server="t", number=1).ids == [id]
    assert rig.state(id) == "active"
    assert rig.retry(LeaseRef(id, "t/1"), delay_us=0) == ["ok"]
    assert rig.complete(*rig.lease()) == ["ok"]
    assert rig.state(id) is None
    assert rig.locks() == {}


# Lost messages


@pytest.mark.faults(27)
def test_task_without_a_message_is_dead_and_does_not_stop_others(rig: Rig) -> None:
    rig.enqueue("a", unique=True)
    rig.enqueue("b")
    rig.client.hdel(rig.keys.key("tasks"), "a")
    assert rig.fetch(1).ids == ["b"]
    assert rig.state("a") == "dead"
    assert rig.locks() == {}
    assert rig.counters()["dead"] == 1
    [status] = [rig.status("a")]
    assert status is not None
    assert status.last_error == "the store lost the message of this task"


@pytest.mark.faults(27)
def test_a_queue_that_lost_all_its_messages_is_cleared_in_parts(rig: Rig) -> None:
    for at in range(0, 9000, 500):
        rig.enqueue(*[str(n) for n in range(at, at + 500)])
    rig.client.delete(rig.keys.key("tasks"))
    rig.enqueue("whole")
    first = rig.fetch()
    assert first.more
    assert 100 <= len(rig.ids("dead")) < 200
    for _ in range(100):
        if rig.fetch().ids == ["whole"]:
            break
    assert len(rig.ids("dead")) == 9000
    assert rig.ids("pending") == []


# Sweep


def test_completed_tasks_are_deleted_after_their_retention(rig: Rig) -> None:
    rig.enqueue("a", "b", fairness_key="k", unique=True)
    a, b = rig.lease()
    rig.complete(a, retention_us=S, result=b"one")
    rig.complete(b, retention_us=2 * S, result=b"two")
    rig.now += S - 1
    rig.fetch(0)
    assert rig.ids("completed") == ["a", "b"]
    rig.now += 1
    rig.fetch(0)
    assert rig.ids("completed") == ["b"]
    assert rig.field("results", "a") is None
    rig.now += S
    rig.fetch(0)
    assert set(rig.dump()) == {"fetches", "meta", "stats"}


def test_dead_tasks_are_trimmed_by_age_and_counted(rig: Rig) -> None:
    policy = replace(POLICY, dead_age_us=10 * S)
    for id in "ab":
        rig.enqueue(id)
        rig.kill(*rig.lease())
        rig.now += 5 * S
    rig.fetch(0, policy=policy)
    assert rig.ids("dead") == ["b"]
    assert rig.counters()["trimmed"] == 1
    rig.now += 5 * S
    rig.fetch(0, policy=policy)
    assert rig.counters()["trimmed"] == 2
    assert set(rig.dump()) == {"fetches", "meta", "stats"}


@pytest.mark.faults(79)
def test_dead_tasks_are_trimmed_by_number_oldest_first(rig: Rig) -> None:
    for id in "abcd":
        rig.enqueue(id)
        rig.kill(*rig.lease())
        rig.now += 1
    rig.fetch(0, policy=replace(POLICY, dead_limit=4))
    assert rig.ids("dead") == ["a", "b", "c", "d"]
    rig.now += 300 * S
    rig.fetch(0, policy=replace(POLICY, dead_limit=1))
    assert rig.ids("dead") == ["d"]
    rig.now += 300 * S
    rig.fetch(0, policy=replace(POLICY, dead_limit=0))
    assert rig.ids("dead") == []
    assert rig.counters()["trimmed"] == 4


def test_age_and_number_together_trim_the_minimum(rig: Rig) -> None:
    for id in "abcdef":
        rig.enqueue(id)
        rig.kill(*rig.lease())
        rig.now += S
    # Two tasks are too old, and one of the other four exceeds the limit.
    rig.fetch(0, policy=replace(POLICY, dead_age_us=4 * S + S // 2, dead_limit=3))
    assert rig.ids("dead") == ["d", "e", "f"]
    assert rig.counters()["trimmed"] == 3


@pytest.mark.faults(79)
def test_next_fetch_trims_newly_dead_tasks(rig: Rig) -> None:
    rig.fetch(0)
    for id in "abc":
        rig.enqueue(id)
    rig.kill(*rig.lease())
    rig.fetch(0, policy=replace(POLICY, dead_limit=1))
    assert rig.ids("dead") == ["c"]


@pytest.mark.parametrize("kind", ["completed", "dead"])
def test_sweep_is_bounded_and_reports_more(rig: Rig, kind: str) -> None:
    rig.enqueue(*[str(n) for n in range(250)])
    held = rig.lease()
    if kind == "completed":
        rig.complete(*held, retention_us=S)
    else:
        rig.kill(*held)
    rig.now += S
    policy = replace(POLICY, dead_age_us=S)
    assert rig.fetch(0, policy=policy).more
    assert len(rig.ids(kind)) == 150
    assert rig.fetch(0, policy=policy).more
    assert not rig.fetch(0, policy=policy).more
    assert rig.ids(kind) == []


def test_sweep_keeps_up_with_fetches(rig: Rig) -> None:
    rig.enqueue(*[f"old{n}" for n in range(450)])
    rig.complete(*rig.lease(), retention_us=S)
    rig.enqueue(*[f"new{n}" for n in range(400)])
    rig.now += S
    assert len(rig.fetch().ids) == 400
    assert rig.ids("completed") == []


@pytest.mark.faults(79)
def test_last_fetches_of_servers_that_are_gone_are_dropped(rig: Rig) -> None:
    rig.enqueue("a" * 100)  # so long that the hash is not compact and HSCAN returns it in parts
    for n in range(200):
        rig.hand_back(*rig.lease(server=f"gone-{n:03}"))
    rig.now += 3600 * S
    for n in range(200):
        rig.hand_back(*rig.lease(server=f"here-{n:03}"))
    assert rig.client.hlen(rig.keys.key("fetches")) == 400
    for _ in range(20):
        rig.now += S
        rig.fetch(0, server="here-000")
    left = {server.decode() for server in rig.client.hkeys(rig.keys.key("fetches"))}
    assert left == {f"here-{n:03}" for n in range(200)}


@pytest.mark.faults(46)
def test_sweep_of_hashes_continues_after_a_clock_jump_back(rig: Rig) -> None:
    rig.enqueue("a", unique=5)
    rig.fetch(0)
    rig.complete(*rig.lease())
    rig.now -= 100 * DAY
    rig.fetch(0)
    assert rig.client.hget(rig.keys.key("meta"), "swept") == str(rig.now).encode()


# Nothing to do


def processed(rig: Rig) -> int:
    """Return how many commands the store has executed, including commands that scripts run."""
    number: int = rig.client.info("stats")["total_commands_processed"]
    return number


@pytest.mark.parametrize("flow", [False, True])
def test_fetch_without_work_runs_few_commands(rig: Rig, flow: bool) -> None:
    if flow:
        for call in (type_ops.pause_type(rig.keys, "x", b""), type_ops.resume_type(rig.keys, "x")):
            rig.run(call)
    rig.fetch(5, number=1)
    before = rig.dump()
    commands = processed(rig)
    assert rig.fetch(5, number=2).ids == []
    # The store counts the EVALSHA, the commands that the script runs, and the INFO that reads the
    # count.
    assert processed(rig) - commands <= 5
    assert rig.dump() == before
    rig.enqueue("a")
    assert rig.fetch(5, number=2).ids == ["a"], "an empty fetch is not remembered"


@pytest.mark.parametrize("rest", ["later", "dead", "completed", "a lock"])
def test_fetch_does_upkeep_of_remaining_tasks(rig: Rig, rest: str) -> None:
    rig.fetch(0)
    rig.enqueue("a", unique=5 if rest == "a lock" else None)
    if rest == "later":
        rig.retry(*rig.lease(), delay_us=5 * S)
    elif rest == "dead":
        rig.kill(*rig.lease())
    else:
        rig.complete(*rig.lease(), retention_us=5 * S if rest == "completed" else None)
    commands = processed(rig)
    rig.fetch(0)
    assert processed(rig) - commands > 5


# Waking others


def test_fetch_wakes_the_next_server_while_tasks_remain(rig: Rig) -> None:
    rig.enqueue("a", "b")
    assert rig.woken()
    rig.fetch(1)
    assert rig.woken()
    rig.fetch(1)
    assert not rig.woken()
    rig.fetch(1)
    assert not rig.woken()


def test_fetch_wakes_server_for_promoted_and_recovered_tasks(rig: Rig) -> None:
    rig.enqueue("a", delay=1)
    rig.enqueue("b")
    rig.fetch(1)
    rig.woken()
    rig.now += LAPSE
    rig.fetch(0, server="other")
    assert rig.ids("pending") == ["b", "a"]
    assert rig.woken()


def test_fetch_from_paused_queue_wakes_no_server(rig: Rig) -> None:
    rig.enqueue("a")
    rig.woken()
    rig.run(operator_ops.pause(rig.keys, b"me"))
    rig.fetch()
    assert not rig.woken()


@pytest.mark.faults(57)
def test_message_of_a_later_version_is_kept_unchanged(rig: Rig) -> None:
    rig.enqueue("a")
    [message] = rig.fetch().messages
    assert message.startswith(ENVELOPE_HEAD)
    with pytest.raises(codec.CodecError, match="envelope version 9"):
        decode_message(message[:1] + b"\x09" + message[2:])
