"""Other programs may write anything into a field. Scripts continue, and other tasks run as
usual."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qsync import codec
from qsync.bounds import Bounds
from qsync.broker import (
    bounds_ops,
    limit_ops,
    ops,
    program_schedule_ops,
    schedule_run_ops,
    type_ops,
    views,
)
from qsync.broker.op_values import LeaseRef
from qsync.keys import QUEUE_KEYS
from qsync.limit import LimitRule
from qsync.message import Failure, decode_failure
from qsync.state import STORED, TaskState
from tests.scripts.test_ops_locks import LOCK, NAME
from tests.support.limits import with_limits
from tests.support.queue_driver import BINARIES, DAY, LAPSE, STATES, Rig, S

GARBAGE = {
    "empty": b"", "word": b"garbage", "negative": b"-1", "nan": b"nan", "inf": b"inf",
    "long": b"9" * 400, "half": b"5:", "overflow": b"99999999999999999999:x",
    "bytes": b"\xff\xfe\x00", "truncated": b"\x93\x01",
}  # fmt: skip

HASHES = [name for name, (type, _) in QUEUE_KEYS.items() if type == "hash"]


every_garbage = pytest.mark.parametrize("value", GARBAGE.values(), ids=GARBAGE)


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        yield rig


def spoilt_fields(name: str) -> list[str]:
    """Return the fields that scripts read from a hash."""
    return {
        "unique": [f"={NAME}", "@a", "odd", "=", "@"],
        "fetches": ["s", "t", "gone"],
        "meta": ["v", "swept", "cursor", "fetches_cursor", "day", "weight:k", "paused_at",
                 "bytes", "bounds", "!bounds", "latency_target", "dead_known", "ticked", "tally"],
        "stats": [
            f"{counter}{day}"
            for counter in ("enqueued", "bytes", "completed", "failed", "retried", "crashed",
                            "dead", "cancelled", "trimmed", "lost")
            for day in ("", ":20000", ":1", ":x", ":99999999999999999999")
        ],
        "ticks": ["hourly"],
        "schedules": ["=hourly", ">hourly", "@hourly", "hourly", "=", "!"],
    }.get(name, ["a"])  # fmt: skip


def spoil(rig: Rig, name: str, value: bytes) -> None:
    for field in spoilt_fields(name):
        rig.set(name, field, value)


def work(rig: Rig) -> None:
    """Call each operation on the task `a` and on other tasks; no call may be refused."""
    rig.enqueue("n1", "n2", "n3", fairness_key="k")
    rig.enqueue("locked", **LOCK)
    rig.enqueue("later", delay=1)
    tick = rig.tasks("ticked")[0]
    rig.run(program_schedule_ops.begin_ticks(rig.keys, ["hourly"], now_us=rig.now))
    rig.run(program_schedule_ops.tick(rig.keys, "hourly", rig.now + 1, tick, now_us=rig.now))
    rig.run(views.get_tasks(rig.keys, ["a", "n1", "later"]))
    held = {one.id: one for one in rig.lease(server="w")}
    assert {"n1", "n2", "n3", "ticked"} <= set(held)
    everything = list(held.values())
    rig.renew(*everything)
    rig.mark_started(*everything)
    rig.run(ops.progress(rig.keys, [(*one, 1, 2) for one in everything]))
    rig.status("a")
    assert rig.retry(held["n1"], delay_us=0) == ["ok"]
    assert rig.kill(held["n2"]) == ["ok"]
    assert rig.hand_back(held["n3"]) == ["ok"]
    assert rig.complete(held["ticked"]) == ["ok"]
    for one in [held[id] for id in ("a", "locked") if id in held]:
        assert rig.hand_back(one) == ["ok"]
    again = {one.id: one for one in rig.lease(server="w")}
    rig.cancel("a", retention_us=S)
    rig.mark_started(*again.values())
    rig.now += LAPSE
    rig.be_seen()
    rig.abandon("w")
    rig.fetch(0, server="t")
    rig.rerun("n2", "dead", lock=NAME)
    for number in (10**6, 10**6, 10**6 - 1, 10**6 + 1):
        rig.fetch(1, server="s", number=number)
    rig.now += DAY
    rig.fetch(0, server="t")
    rig.cancel("n3")
    rig.delete("dead", "n2")
    rig.run(views.overview(rig.keys))
    rig.run(views.schedules(rig.keys))
    rig.run(views.schedules(rig.keys, "hourly"))
    rig.run(views.pending_position(rig.keys, "a", lock=NAME, server="s"))
    for state in STORED:
        rig.run(views.list_tasks(rig.keys, state, count=100))
    rig.run(
        program_schedule_ops.publish_schedules(rig.keys, [("hourly", b"", b"")], now_us=rig.now)
    )
    rig.run(program_schedule_ops.pause_schedule(rig.keys, "hourly", b"me", now_us=rig.now))
    rig.run(program_schedule_ops.resume_schedule(rig.keys, "hourly", now_us=rig.now))


def settled(rig: Rig) -> None:
    """Check that all remaining tasks can later be fetched and completed, and that no data is
    left."""
    for _ in range(5):
        rig.now += LAPSE
        rig.be_seen()
        rig.fetch(0, server="last1")
        rig.complete(*rig.lease(server="last2"))
        rig.now += DAY
    rig.fetch(0, server="last1")
    assert [rig.ids(state) for state in ("scheduled", "pending", "active", "retry")] == [[]] * 4


@pytest.mark.faults(55)
@every_garbage
@pytest.mark.parametrize("name", HASHES)
def test_damaged_field_stops_no_other_task(rig: Rig, name: str, value: bytes) -> None:
    rig.enqueue("a", **LOCK)
    rig.enqueue("b", fairness_key="k")
    spoil(rig, name, value)
    work(rig)
    spoil(rig, name, value)
    work(rig)
    settled(rig)


@every_garbage
def test_active_task_with_all_fields_damaged_stops_no_other_task(rig: Rig, value: bytes) -> None:
    rig.enqueue("a", "b", unique=True)
    rig.lease()
    for name in HASHES:
        spoil(rig, name, value)
    rig.now += LAPSE
    rig.be_seen()
    assert "b" in rig.fetch(server="u", number=1).ids
    rig.status("a")
    assert rig.complete(LeaseRef("b", "u/1")) == ["ok"]
    settled(rig)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("score", ["inf", "-inf", "1e300", "-1e300", "0.5"])
def test_absurd_score_stops_no_other_task(rig: Rig, state: str, score: str) -> None:
    rig.enqueue("a")
    rig.client.zrem(rig.keys.key("pending"), "a")
    rig.client.zadd(rig.keys.key(state), {"a": score})
    status = rig.status("a")
    assert status is not None
    assert status.state == state
    work(rig)
    rig.status("a")
    work(rig)


@pytest.mark.parametrize("state", ["scheduled", "pending", "retry", "active"])
@pytest.mark.parametrize("member", [b"", b"two words", b"\xff\xfe", b"new\nline", b"\x7f"])
def test_invalid_id_is_not_run_and_is_removed_with_its_lease(
    rig: Rig, state: str, member: bytes
) -> None:
    rig.enqueue("a", "b")
    rig.client.zadd(rig.keys.key(state), {member: 1})
    rig.set("tasks", member, b"a message")  # type: ignore[arg-type]
    rig.set("owner", member, "s/1")  # type: ignore[arg-type]
    first = rig.fetch(number=2)
    again = rig.fetch(number=2)
    assert sorted(first.ids) == sorted(again.ids) == ["a", "b"]
    assert len(first.messages) == len(first.failures) == len(first.crashes) == 2
    rig.now += LAPSE
    rig.be_seen()
    assert rig.fetch(number=3).own_lapsed == ["a", "b"]
    assert [name for name, held in rig.dump().items() if name != "fetches" and member in held] == []


@pytest.mark.parametrize("tag", ["inf", "-inf", "1e300", "9007199254740992"])
def test_absurd_tag_does_not_affect_order_of_later_tasks(rig: Rig, tag: str) -> None:
    rig.enqueue("first")
    rig.client.zadd(rig.keys.key("pending"), {"first": tag})
    rig.client.zadd(rig.keys.key("fairness"), {"": tag, "k": tag})
    rig.complete(*rig.lease())
    later = [f"t{n}" for n in range(9, 0, -1)]
    rig.enqueue(*later)
    rig.hand_back(*rig.lease(3))
    rig.enqueue("k1", "k2", fairness_key="k")
    order = rig.fetch().ids
    assert [id for id in order if id in later] == later
    assert [id for id in order if id not in later] == ["k1", "k2"]


def test_binary_holder_is_shown_escaped(rig: Rig) -> None:
    rig.set("unique", f"={NAME}", b"%d:\xff" % (rig.now + DAY))
    assert rig.enqueue("a", **LOCK) == [("duplicate", "\\xff")]


@pytest.mark.faults(55)
@every_garbage
def test_invalid_message_is_fetched_shown_and_killed(rig: Rig, value: bytes) -> None:
    rig.enqueue("a", "b")
    rig.set("tasks", "a", value)
    fetched = rig.fetch(server="t", number=1)
    assert fetched.ids == ["a", "b"]
    assert fetched.messages[0] == value
    status = rig.status("a")
    assert status is not None
    assert (status.type, status.payload) == ("", value)
    assert rig.enqueue("a") == [("exists", "a")]
    assert rig.kill(LeaseRef("a", "t/1"), failed=False) == ["ok"]
    assert rig.field("tasks", "a") == value


@every_garbage
def test_invalid_crash_count_counts_as_0(rig: Rig, value: bytes) -> None:
    rig.enqueue("a")
    rig.lease()
    rig.set("crashes", "a", value)
    rig.now += LAPSE
    rig.be_seen()
    found = rig.fetch(server="t")
    if value == b"5:":  # the number is read even if an unknown mark follows it
        assert rig.state("a") == "dead"
    else:
        assert found.crashes == [1]


@every_garbage
def test_invalid_failure_record_counts_as_missing(rig: Rig, value: bytes) -> None:
    rig.enqueue("a")
    rig.kill(*rig.lease())
    rig.set("failures", "a", value)
    status = rig.status("a")
    assert status is not None
    assert status.last_error is None
    assert decode_failure(value) == Failure()


def test_time_beyond_the_range_of_datetime_is_shown_as_its_maximum(rig: Rig) -> None:
    rig.enqueue("a", delay=1)
    rig.client.zadd(rig.keys.key("scheduled"), {"a": "253402300799999999"})
    status = rig.status("a")
    assert status is not None
    assert status.state is TaskState.SCHEDULED
    assert status.due_at is not None
    assert status.due_at.year == 9999


LISTS_OF_NO_LIMITS = (
    [[1]],
    [True],
    [{}],
    [1.5],
    {"a": "b"},
    "one",
    ["@t"],
    ["x"] * 5,
    ["a\0b"],
    [""],
)


@pytest.mark.faults(55)
def test_message_with_invalid_limits_does_not_stop_other_tasks(rig: Rig) -> None:
    """Scripts read the limits of a message when its task is due, recovered or handed back."""
    one = {"one": LimitRule(concurrency=1)}
    for limits in LISTS_OF_NO_LIMITS:
        rig.reset()
        rig.run(limit_ops.put_limit_rules(rig.keys, one, now_us=rig.now))
        rig.send([with_limits(task, "one") for task in rig.tasks("a", "b", "c")])
        rig.enqueue("later", delay=1)
        [held] = rig.lease()
        message = rig.field("tasks", "later")
        assert message is not None
        hostile = message[:11] + codec.encode([b"n" * 8, "t", b"p", False, 3, {"lm": limits}])[1:]
        for id in ("b", "later"):
            rig.set("tasks", id, hostile)
        assert rig.complete(held) == ["ok"]
        rig.now += 2 * S
        rig.enqueue("good")
        assert "good" in rig.fetch().ids, limits
        settled(rig)
        assert rig.ids("limited") == []


@pytest.mark.faults(59)
def test_message_too_large_to_receive_in_time_is_fetched_truncated(rig: Rig) -> None:
    """If the whole message were sent, the server would fetch the same batch over and over, and no
    other task would run."""
    rig.enqueue("large", "next")
    rig.set("tasks", "large", b"\x98" + b"x" * (32 << 20))
    for _ in range(2):
        fetched = rig.fetch(number=10**6)
        assert [len(message) for message in fetched.messages] == [1000]
    assert rig.fetch(number=10**6 + 1).ids == ["next"]
    assert rig.kill(LeaseRef("large", f"s/{10**6}"), failed=False) == ["ok"]
    assert rig.client.hstrlen(rig.keys.key("tasks"), "large") == (32 << 20) + 1


@pytest.mark.guarantee(2)
def test_invalid_size_of_messages_leaves_no_partial_transition(rig: Rig) -> None:
    for value in GARBAGE.values():
        rig.reset()
        rig.run(bounds_ops.set_bounds(rig.keys, Bounds(max_bytes=10_000), by="me"))
        for verb in (rig.complete, rig.kill):
            rig.enqueue("a")
            held = rig.lease()
            rig.set("meta", "bytes", value)
            assert verb(*held) == ["ok"]
            assert rig.state("a") == (None if verb == rig.complete else "dead")
        rig.set("meta", "bytes", value)
        assert rig.delete("dead", "a") == 1
        assert rig.field("tasks", "a") is None
        assert rig.enqueue("b") == [("created", "b")]


def test_long_records_cost_the_store_little_time(rig: Rig) -> None:
    """A pattern that does not match a long string must not be tried at every position."""
    rig.enqueue("a")
    for value in (b"9" * 50_000, b"1 " * 25_000, b"\0" * 50_000, b"x\0" * 25_000):
        for name, field in (
            ("schedule_runs", "s"), ("schedule_runs", "!"), ("schedules", "#s"), ("schedules", "#"),
            ("limit_rules", "@"), ("limit_rules", "@t"), ("limit_rules", "!one"),
            ("meta", "bounds"), ("meta", "!bounds"),
        ):  # fmt: skip
            rig.set(name, field, value)
        rig.client.slowlog_reset()
        [last] = rig.run(schedule_run_ops.last_runs(rig.keys, count=100))
        assert (last.field, last.success, last.failure) == ("s", None, None)
        rig.run(schedule_run_ops.missed_runs(rig.keys))
        note = schedule_run_ops.Note("s", 1_700_000_000_000, "T", "c1,2")
        rig.run(schedule_run_ops.note_runs(rig.keys, [note]))
        rig.run(program_schedule_ops.begin_ticks(rig.keys, ["s"], digests=["f0"]))
        rig.run(type_ops.paused_types(rig.keys))
        rig.run(bounds_ops.queue_bounds(rig.keys))
        rig.run(limit_ops.list_limits(rig.keys))
        slow = [entry["duration"] for entry in rig.client.slowlog_get()]
        assert max(slow, default=0) < 500_000


def test_generation_that_is_not_text_is_shown_escaped(rig: Rig) -> None:
    rig.enqueue("a")
    for value in GARBAGE.values():
        rig.set("meta", "generation", value)
        shown = value.decode(errors="backslashreplace")
        check = rig.run(views.check_for_work(rig.keys, lease_us=S))
        assert check.generation == (shown or None)
        assert rig.fetch().generation == shown
