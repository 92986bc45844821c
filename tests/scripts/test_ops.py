"""Examples of each operation.

Fetches, crashes, locks, order, repeated calls and corrupted stores have separate files.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise

import pytest

from qsync.broker import operator_ops, ops, program_schedule_ops, registry_ops
from qsync.broker.channels import ChannelEvent
from qsync.broker.op_values import LeaseRef
from qsync.keys import COUNTERS, QUEUE_KEYS
from qsync.times import from_us
from tests.support.queue_driver import BINARIES, DAY, FAILURE, LAPSE, START, Rig, S


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        yield rig


# Enqueue


def test_a_task_goes_to_pending_or_to_scheduled(rig: Rig) -> None:
    rig.enqueue("now")
    rig.enqueue("later", delay=1.5)
    rig.enqueue("at", process_at=from_us(START + 7))
    rig.enqueue("past", process_at=datetime(2000, 1, 1, tzinfo=UTC))
    rig.enqueue("exactly", process_at=from_us(START))
    assert rig.ids("pending") == ["now", "past", "exactly"]
    assert rig.score("scheduled", "later") == START + 1_500_000
    assert rig.score("scheduled", "at") == START + 7
    assert set(rig.dump()["tasks"]) == {b"now", b"later", b"at", b"past", b"exactly"}


def test_an_empty_batch_is_no_error(rig: Rig) -> None:
    assert rig.send([]) == []
    assert rig.delete("dead") == 0
    assert rig.run(registry_ops.register(rig.globals, [])) == 0
    assert rig.run(program_schedule_ops.begin_ticks(rig.keys, [], now_us=5)) == (5, [])
    assert rig.dump() == {}


def test_outcomes_come_in_order(rig: Rig) -> None:
    rig.enqueue("b")
    assert rig.send(rig.tasks("a", "b", "c")) == [
        ("created", "a"),
        ("exists", "b"),
        ("created", "c"),
    ]


def test_times_keep_all_their_digits(rig: Rig) -> None:
    rig.now = 1_790_123_456_789_013
    rig.enqueue("a", delay=3)
    assert rig.client.zscore(rig.keys.key("scheduled"), "a") == rig.now + 3 * S
    rig.now += 3 * S
    rig.retry(*rig.lease(), delay_us=1)
    assert rig.score("retry", "a") == rig.now + 1


def test_operations_without_a_time_use_the_store_clock(rig: Rig) -> None:
    task = rig.tasks("a", delay=3600)
    rig.run(ops.enqueue(rig.keys, task))
    seconds, micros = rig.client.time()
    due = rig.score("scheduled", "a")
    assert due is not None
    assert 0 <= seconds * S + micros + 3600 * S - due < 60 * S


# Settling


def test_completed_task_is_deleted_or_kept(rig: Rig) -> None:
    rig.enqueue("gone", "kept", fairness_key="k")
    gone, kept = rig.lease()
    rig.complete(gone, result=b"dropped")
    assert rig.state("gone") is None
    rig.complete(kept, retention_us=9, result=b"result")
    assert rig.score("completed", "kept") == START + 9
    assert rig.field("results", "kept") == b"result"
    assert not {"active", "owner", "keys"} & set(rig.dump())
    assert set(rig.dump()["tasks"]) == {b"kept"}


def test_no_retention_differs_from_a_retention_of_0(rig: Rig) -> None:
    rig.enqueue("none", "zero")
    none, zero = rig.lease()
    rig.complete(none)
    rig.complete(zero, retention_us=0, result=b"r")
    assert rig.state("none") is None
    assert rig.state("zero") == "completed"
    rig.fetch(0)
    assert rig.state("zero") is None


def test_failed_task_is_stored_with_its_record(rig: Rig) -> None:
    rig.enqueue("a", fairness_key="k")
    rig.retry(*rig.lease(), delay_us=5)
    assert rig.score("retry", "a") == START + 5
    assert rig.field("failures", "a") == FAILURE
    assert rig.field("keys", "a") == b"k"
    assert not {"active", "owner"} & set(rig.dump())


def test_a_killed_task_is_kept_as_dead(rig: Rig) -> None:
    rig.enqueue("a", fairness_key="k")
    rig.kill(*rig.lease())
    assert rig.score("dead", "a") == START
    assert rig.field("failures", "a") == FAILURE
    assert set(rig.dump()) == {"tasks", "dead", "failures", "meta", "fetches", "stats"}


def test_a_task_handed_back_for_later_is_scheduled_with_its_record(rig: Rig) -> None:
    rig.enqueue("a", "b")
    a, b = rig.lease()
    rig.hand_back(a, delay_us=5, failure=FAILURE)
    rig.hand_back(b, delay_us=0)
    assert rig.score("scheduled", "a") == START + 5
    assert rig.field("failures", "a") == FAILURE
    assert rig.field("failures", "b") is None
    assert rig.fetch().ids == ["b"]


def test_progress_is_kept_while_the_task_runs(rig: Rig) -> None:
    rig.enqueue("a", "b")
    a, b = rig.lease()
    assert rig.run(ops.progress(rig.keys, [(*a, 1, 3), (*b, 0.5, 1e7)])) == ["ok", "ok"]
    assert rig.dump()["progress"] == {b"a": b"1/3", b"b": b"0.5/10000000"}
    rig.retry(a)
    rig.complete(b)
    assert "progress" not in rig.dump()


def test_every_end_of_a_task_with_waiting_callers_is_published(rig: Rig) -> None:
    subscription = rig.broker.subscribe(None)
    subscription.open()
    try:
        subscription.follow([rig.keys.done])
        assert subscription.read(5) == ChannelEvent("on", rig.keys.done)
        rig.enqueue(*"abcdefg")
        held = {one.id: one for one in rig.lease(5)}
        rig.complete(held["a"], retention_us=1, result=b"r")
        rig.kill(held["b"])
        rig.cancel("c")
        rig.end_cancelled(held["c"])
        rig.cancel("f")
        rig.delete("pending", "g")
        rig.cancel("d")
        rig.retry(held["d"])
        rig.cancel("e")
        rig.hand_back(held["e"])
        said = [subscription.read(5) for _ in range(7)]
    finally:
        subscription.close()
    assert said == [ChannelEvent("ended", rig.keys.done, id) for id in "abcfgde"]


def test_deaths_in_a_fetch_are_published(rig: Rig) -> None:
    rig.enqueue("lost", "crashed", "cancelled")
    rig.lease()
    rig.cancel("cancelled")
    rig.set("crashes", "crashed", "2+")
    rig.client.hdel(rig.keys.key("tasks"), "lost")
    rig.now += LAPSE
    subscription = rig.broker.subscribe(None)
    subscription.open()
    try:
        subscription.follow([rig.keys.done])
        assert subscription.read(5) == ChannelEvent("on", rig.keys.done)
        rig.fetch(server="t")
        said = {subscription.read(5) for _ in range(3)}
    finally:
        subscription.close()
    ids = ("lost", "crashed", "cancelled")
    assert said == {ChannelEvent("ended", rig.keys.done, id) for id in ids}


# Cancel


def test_a_waiting_task_is_cancelled_at_once(rig: Rig) -> None:
    rig.enqueue("pending", "retry")
    pending, retry = rig.lease()
    rig.retry(retry, delay_us=S)
    rig.hand_back(pending)
    rig.enqueue("scheduled", delay=1)
    for id in ("pending", "scheduled", "retry"):
        assert rig.state(id) == id
        assert rig.cancel(id) == ("cancelled", "")
        assert rig.state(id) is None
        assert rig.cancel(id) == ("missing", "")
    assert rig.counters()["cancelled"] == 3
    assert not {"tasks", "cancels", "failures"} & set(rig.dump())


def test_a_cancelled_task_with_retention_is_kept(rig: Rig) -> None:
    rig.enqueue("a")
    assert rig.cancel("a", retention_us=7) == ("cancelled", "")
    assert rig.score("completed", "a") == START + 7
    assert rig.field("cancels", "a") == b"7"
    assert rig.cancel("a", retention_us=7) == ("cancelled", "")
    assert rig.counters()["cancelled"] == 1


def test_cancel_of_a_running_task_reaches_its_server(rig: Rig) -> None:
    rig.enqueue("a", "b")
    a, b = rig.lease()
    assert rig.renew(a, b) == ["ok", "ok"]
    assert rig.cancel("a", retention_us=7) == ("active", a.token)
    assert rig.state("a") == "active"
    assert rig.renew(b, a) == ["ok", "cancelled"]
    assert rig.end_cancelled(a) == ["ok"]
    assert rig.score("completed", "a") == START + 7


@pytest.mark.faults(76)
def test_late_cancel_does_not_change_a_success(rig: Rig) -> None:
    rig.enqueue("a")
    held = rig.lease()
    rig.cancel("a", retention_us=7)
    rig.complete(*held, retention_us=9, result=b"r")
    assert rig.field("cancels", "a") is None
    assert rig.score("completed", "a") == START + 9
    assert rig.cancel("a", retention_us=7) == ("finished", "")
    assert "cancelled" not in rig.counters()


@pytest.mark.parametrize("how", ["retry", "hand_back", "hand_back for later"])
def test_a_cancelled_task_that_is_given_back_ends(rig: Rig, how: str) -> None:
    rig.enqueue("kept", "gone", "other")
    held = rig.lease()
    rig.cancel("kept", retention_us=7)
    rig.cancel("gone")
    if how == "retry":
        rig.retry(*held)
    else:
        rig.hand_back(*held, delay_us=None if how == "hand_back" else 5)
    assert rig.state("kept") == "completed"
    assert rig.state("gone") is None
    assert rig.state("other") in ("retry", "pending", "scheduled")
    assert rig.counters()["cancelled"] == 2


def test_a_cancelled_task_that_fails_for_good_is_dead(rig: Rig) -> None:
    rig.enqueue("a")
    held = rig.lease()
    rig.cancel("a", retention_us=7)
    rig.kill(*held)
    assert rig.state("a") == "dead"
    assert "cancels" not in rig.dump()
    assert rig.cancel("a") == ("finished", "")


def test_missing_task_cannot_be_cancelled(rig: Rig) -> None:
    assert rig.cancel("a") == ("missing", "")
    assert rig.dump() == {}


# Run and delete


def test_a_task_can_be_run_at_once(rig: Rig) -> None:
    rig.enqueue("retry")
    rig.retry(*rig.lease(), delay_us=S)
    rig.enqueue("dead", fairness_key="k")
    rig.kill(*rig.lease())
    rig.enqueue("scheduled", delay=1)
    for id in ("scheduled", "retry"):
        assert rig.rerun(id, id) == ("ok", "")
    assert rig.rerun("dead", "dead", fairness_key="k") == ("ok", "")
    assert rig.ids("pending") == ["dead", "scheduled", "retry"]
    assert rig.field("keys", "dead") == b"k"
    assert rig.field("failures", "retry") == FAILURE
    assert rig.field("failures", "dead") is None


@pytest.mark.faults(76)
@pytest.mark.parametrize(
    "state", ["scheduled", "retry", "dead", "pending", "active", "completed", ""]
)
def test_changed_task_is_not_run(rig: Rig, state: str) -> None:
    rig.enqueue("pending", "active")
    rig.hand_back(rig.lease()[0])
    before = rig.dump()
    for id in ("pending", "active", "missing"):
        assert rig.rerun(id, state) == ("changed", "")
    assert rig.dump() == before


def test_a_dead_task_without_its_message_is_not_run(rig: Rig) -> None:
    rig.enqueue("a")
    rig.kill(*rig.lease())
    rig.client.hdel(rig.keys.key("tasks"), "a")
    assert rig.rerun("a", "dead") == ("changed", "")
    assert rig.delete("dead", "a") == 1


@pytest.mark.faults(76)
def test_tasks_are_deleted_only_from_the_given_state(rig: Rig) -> None:
    rig.enqueue("pending")
    rig.enqueue("scheduled", delay=1)
    before = rig.dump()
    assert rig.delete("dead", "pending", "scheduled", "missing") == 0
    assert rig.delete("nowhere", "pending") == 0
    assert rig.dump() == before
    assert rig.delete("pending", "pending", "pending", "scheduled", "missing") == 1
    assert rig.delete("scheduled", "scheduled") == 1
    assert "tasks" not in rig.dump()


@pytest.mark.faults(76)
def test_a_running_task_is_not_deleted(rig: Rig) -> None:
    rig.enqueue("a")
    rig.lease()
    before = rig.dump()
    assert rig.delete("active", "a") == 0
    assert rig.dump() == before


# Pause


def test_pause_and_resume_report_whether_they_changed_something(rig: Rig) -> None:
    assert rig.run(operator_ops.resume(rig.keys)) is False
    assert rig.run(operator_ops.pause(rig.keys, b"me")) is True
    assert rig.run(operator_ops.pause(rig.keys, b"you")) is False
    assert rig.field("meta", "paused") == b"you"
    assert rig.run(operator_ops.resume(rig.keys)) is True
    assert rig.run(operator_ops.resume(rig.keys)) is False
    assert rig.field("meta", "paused") is None


def test_a_pause_without_a_note_is_refused(rig: Rig) -> None:
    with pytest.raises(ValueError, match="note"):
        operator_ops.pause(rig.keys, b"")


# Wake


def test_operation_that_adds_work_wakes_a_server(rig: Rig) -> None:
    assert rig.enqueue("a")
    assert rig.woken()
    rig.enqueue("scheduled", delay=9)
    assert rig.woken(), "the new task may be the next that is due"
    rig.enqueue("earlier", delay=5)
    assert rig.woken()
    held = rig.lease()
    rig.woken()
    rig.retry(*held, delay_us=3 * S)
    assert rig.woken()
    rig.rerun("scheduled", "scheduled")
    assert rig.woken()
    held = rig.lease()
    rig.woken()
    rig.hand_back(*held)
    assert rig.woken()
    rig.run(operator_ops.pause(rig.keys, b"me"))
    rig.run(operator_ops.resume(rig.keys))
    assert rig.woken()
    rig.run(
        program_schedule_ops.tick(rig.keys, "hourly", START, rig.tasks("tick")[0], now_us=rig.now)
    )
    assert rig.woken()


def test_operation_without_new_work_wakes_no_server(rig: Rig) -> None:
    rig.enqueue("first", delay=5)
    rig.enqueue(*"abcdef")
    held = {one.id: one for one in rig.lease()}
    rig.retry(held["a"], delay_us=S)
    rig.woken()
    rig.enqueue("later", delay=9)
    rig.enqueue("first", delay=1)  # exists
    rig.retry(held["b"], delay_us=2 * S)
    rig.hand_back(held["c"], delay_us=9 * S)
    rig.complete(held["d"])
    rig.kill(held["e"])
    rig.cancel("f")
    rig.hand_back(held["f"])
    rig.renew(held["a"])
    rig.complete(LeaseRef("gone", "s/1"))
    rig.delete("scheduled", "later")
    rig.cancel("first")
    rig.run(operator_ops.pause(rig.keys, b"me"))
    assert not rig.woken()


def test_one_wake_element_is_pushed_for_any_number_of_tasks(rig: Rig) -> None:
    for id in "abc":
        rig.enqueue(id)
        rig.fetch(0)
    assert rig.client.llen(rig.keys.key("wake")) == 1


# Periodic tasks


@pytest.mark.faults(67)
def test_a_tick_is_enqueued_once(rig: Rig) -> None:
    def tick(at: int, id: str) -> bool:
        call = program_schedule_ops.tick(rig.keys, "hourly", at, rig.tasks(id)[0], now_us=rig.now)
        made = rig.run(call)
        assert rig.run(call) is False
        return made

    assert tick(START, "a") is True
    assert tick(START, "b") is False
    assert tick(START - 1, "c") is False
    assert tick(START + 1, "d") is True
    assert rig.ids("pending") == ["a", "d"]
    assert rig.field("ticks", "hourly") == str(START + 1).encode()


def test_tick_whose_lock_is_held_is_skipped(rig: Rig) -> None:
    rig.enqueue("a", unique=True, unique_key="k")
    task = rig.tasks("b", unique=True, unique_key="k")[0]
    assert (
        rig.run(program_schedule_ops.tick(rig.keys, "hourly", START, task, now_us=rig.now)) is False
    )
    rig.complete(*rig.lease())
    assert (
        rig.run(program_schedule_ops.tick(rig.keys, "hourly", START, task, now_us=rig.now)) is False
    )
    assert (
        rig.run(program_schedule_ops.tick(rig.keys, "hourly", START + 1, task, now_us=rig.now))
        is True
    )


def test_refused_tick_can_be_repeated(rig: Rig) -> None:
    rig.client.set(rig.keys.key("tasks"), "of the wrong type")
    call = program_schedule_ops.tick(rig.keys, "hourly", START, rig.tasks("a")[0], now_us=rig.now)
    with pytest.raises(Exception, match="WRONGTYPE"):
        rig.run(call)
    rig.client.delete(rig.keys.key("tasks"))
    assert rig.run(call) is True
    assert rig.ids("pending") == ["a"]


def test_new_schedule_starts_now_and_a_known_one_continues(rig: Rig) -> None:
    assert rig.run(program_schedule_ops.begin_ticks(rig.keys, ["a"], now_us=START)) == (
        START,
        [START],
    )
    rig.run(
        program_schedule_ops.tick(rig.keys, "a", START + 5, rig.tasks("t")[0], now_us=START + 6)
    )
    later = program_schedule_ops.begin_ticks(rig.keys, ["a", "b"], now_us=START + 9)
    assert rig.run(later) == (START + 9, [START + 5, START + 9])
    assert rig.run(later) == (START + 9, [START + 5, START + 9])


# Servers and queues


def test_queues_are_registered_once(rig: Rig) -> None:
    assert rig.run(registry_ops.register(rig.globals, ["a", "b"])) == 2
    assert rig.run(registry_ops.register(rig.globals, ["b", "c"])) == 1
    assert rig.client.smembers(rig.globals.queues) == {b"a", b"b", b"c"}


def test_server_is_live_for_its_announced_time(rig: Rig) -> None:
    def announce(server: str, ttl_us: int) -> int:
        return rig.run(
            registry_ops.server_heartbeat(rig.globals, server, ttl_us=ttl_us, now_us=rig.now)
        )

    assert announce("a", 10 * S) == 1
    assert announce("b", 20 * S) == 2
    rig.now += 10 * S
    assert announce("b", 20 * S) == 1
    assert announce("a", 0) == 1
    assert announce("b", 0) == 0


@pytest.mark.faults(79)
def test_server_description_replaces_the_previous_one_and_expires(rig: Rig) -> None:
    key = rig.globals.server("s")
    rig.run(
        registry_ops.set_server_info(
            rig.globals, "s", {"host": "h", "blob": b"\xff"}, ttl_ms=60_000
        )
    )
    rig.run(
        registry_ops.set_server_info(rig.globals, "s", {"host": "g", "blob": b""}, ttl_ms=60_000)
    )
    assert rig.client.hgetall(key) == {b"host": b"g", b"blob": b""}
    assert 0 < rig.client.pttl(key) <= 60_000
    rig.run(registry_ops.set_server_info(rig.globals, "s", {}, ttl_ms=0))
    assert not rig.client.exists(key)


@pytest.mark.faults(79)
def test_requests_to_a_server_are_read_in_order_and_expire(rig: Rig) -> None:
    key = rig.globals.inbox("s")
    for order in (b"quiet", b"stop", b"stop", b"quiet"):
        rig.run(registry_ops.send_order(rig.globals, "s", order, ttl_ms=60_000))
    assert rig.client.lrange(key, 0, -1) == [b"quiet", b"stop", b"quiet"]
    assert 0 < rig.client.pttl(key) <= 60_000


# Counters


def test_outcomes_are_counted_in_total_and_by_day(rig: Rig) -> None:
    rig.enqueue(*"abcdefgh")
    size = len(rig.client.hget(rig.keys.key("tasks"), "a"))
    held = rig.lease()
    rig.complete(*held[:2])
    rig.retry(*held[2:5], delay_us=DAY)
    rig.now += DAY
    rig.kill(held[5])
    rig.kill(held[6], failed=False)
    rig.cancel("h")
    rig.end_cancelled(held[7])
    rig.complete(LeaseRef("c", "s/0"))
    expected = {
        "enqueued": 8, "bytes": 8 * size, "completed": 2, "failed": 4, "retried": 3, "dead": 2,
        "cancelled": 1,
    }  # fmt: skip
    assert rig.counters() == expected
    assert set(expected) <= set(COUNTERS)
    stats = rig.dump()["stats"]
    assert stats[b"failed:20000"] == b"3"
    assert stats[b"failed:20001"] == b"1"
    assert b"dead:20000" not in stats


def test_days_are_kept_for_90_days(rig: Rig) -> None:
    for n in range(95):
        rig.enqueue(f"t{n}")
        rig.now += DAY
    rig.fetch(1)  # once a day, a fetch deletes old daily counters
    days = sorted(
        int(name.partition(b":")[2])
        for name in rig.dump()["stats"]
        if name.startswith(b"enqueued:")
    )
    assert days == list(range(20006, 20095))  # with today, 90
    assert all(later - day == 1 for day, later in pairwise(days))
    assert rig.counters()["enqueued"] == 95


@pytest.mark.faults(79)
def test_operations_create_only_known_keys(rig: Rig) -> None:
    rig.enqueue("a", "b", "c", fairness_key="k", unique=True, retention=5)
    held = rig.lease()
    rig.run(ops.progress(rig.keys, [(*held[0], 1, 2)]))
    rig.cancel("b")
    rig.kill(held[2])
    rig.set("crashes", "a", "1")
    rig.run(program_schedule_ops.begin_ticks(rig.keys, ["t"], now_us=rig.now))
    rig.enqueue("s", delay=5)
    dump = rig.dump()
    assert set(dump) <= set(QUEUE_KEYS)
    for name in dump:
        type, _ = QUEUE_KEYS[name]
        assert rig.client.type(rig.keys.key(name)).decode() == type
