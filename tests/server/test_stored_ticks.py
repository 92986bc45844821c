"""On a real store, each tick of a stored schedule enqueues one task, even with several servers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest

from qsync import Qsync
from qsync.broker import acl, operator_ops, program_schedule_ops, redis_clients, schedule_ops
from qsync.broker.aio import AsyncBroker
from qsync.broker.schedule_ops import TickRow
from qsync.broker.stored_schedules import (
    GRACE_US,
    MOST_TICKS,
    NEVER_US,
    StoredScheduleRow,
    decode_record,
    encode_record,
    ticks_of,
)
from qsync.keys import GlobalKeys
from qsync.message import decode_message
from qsync.new_task import new_nonce, new_task
from qsync.schedule import Cron, Every, Missed, tick_id
from qsync.server.outage_log import Outage
from qsync.server.stored_ticks import MOST_UNREAD, StoredTicks, TickCheck, tick_due
from qsync.task import Task
from tests.server.test_periodic import all_between
from tests.server.test_periodic import ticks_of as ticks_in
from tests.support.acl import rights_are_old
from tests.support.queue_driver import BINARIES, START, Rig, S
from tests.support.stores import Store, wait_until_async

MINUTE = 60 * S
DAY = 1440 * MINUTE


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        rig.now = START - START % MINUTE + 7 * S
        yield rig


def put(
    rig: Rig,
    name: str,
    schedule: Cron | Every,
    missed: Missed = "skip",
    payload: object = None,
    **options: Any,
) -> schedule_ops.PutOutcome:
    """Store a schedule at the current time of the rig."""
    message = new_task(Task("t", payload, **options), new_nonce()).message
    record = encode_record(schedule, missed, message)
    next_us = schedule.next_after(rig.now) or NEVER_US
    return rig.run(schedule_ops.put_schedule(rig.keys, name, next_us, record, now_us=rig.now))


def due(rig: Rig) -> list[TickRow]:
    """Return the ticks that a server that checks now would find due."""
    rows = []
    for row in rig.run(schedule_ops.due_schedules(rig.keys, now_us=rig.now)).rows:
        content = decode_record(row.record)
        ticks = ticks_of(row, content, rig.now)
        tasks = [content.task(tick_id(row.name, tick), "queue") for tick in ticks.due]
        rows.append(TickRow(row, ticks.next_us, tasks))
    return rows


def send(rig: Rig, rows: Sequence[TickRow]) -> list[str]:
    return list(rig.run(schedule_ops.tick_schedules(rig.keys, rows, now_us=rig.now)))


def tick(rig: Rig) -> list[str]:
    """Check once and enqueue the due ticks, as a server does."""
    return send(rig, due(rig))


def ids(rig: Rig) -> list[str]:
    return sorted(id.decode() for id in rig.client.hkeys(rig.keys.key("tasks")))


def ticks(rig: Rig, name: str) -> list[int]:
    return ticks_in(name, ids(rig))


def next_of(rig: Rig, name: str) -> int:
    return int(rig.client.zscore(rig.keys.key("next_ticks"), name) or 0)


def test_due_schedule_is_enqueued_once_and_waits_for_its_next_tick(rig: Rig) -> None:
    put(rig, "a", Every(60))
    put(rig, "b", Cron("0 0 1 1 *"))
    assert tick(rig) == []
    rig.now += 53 * S
    rows = due(rig)
    assert send(rig, rows) == ["ticked"]
    assert send(rig, rows) == ["changed"], "another server had read the same schedule"
    assert ticks(rig, "a") == [rig.now]
    assert next_of(rig, "a") == rig.now + MINUTE
    assert tick(rig) == []


def test_tick_of_server_that_died_before_its_call_is_enqueued_by_another(rig: Rig) -> None:
    put(rig, "a", Every(60))
    rig.now += 53 * S
    due(rig)  # a server reads the due ticks and then dies
    rig.now += 3 * S
    assert tick(rig) == ["ticked"]
    assert len(ids(rig)) == 1


def test_put_schedule_enqueues_no_tick_of_its_old_version(rig: Rig) -> None:
    put(rig, "a", Every(60), payload="old")
    rig.now += 53 * S
    read_before = due(rig)
    put(rig, "a", Every(60), payload="new")
    assert send(rig, read_before) == ["changed"]
    assert tick(rig) == []
    rig.now += 60 * S
    assert tick(rig) == ["ticked"]
    assert ticks(rig, "a") == [rig.now]
    [held] = rig.lease()
    stored = rig.client.hget(rig.keys.key("tasks"), held.id)
    assert decode_message(stored).payload == b"\xa3new"


@pytest.mark.parametrize("missed", ["skip", "once", "all"])
def test_put_schedule_enqueues_no_earlier_ticks(rig: Rig, missed: Missed) -> None:
    put(rig, "a", Every(60), missed)
    rig.now += 3600 * S
    put(rig, "a", Every(61), missed)
    assert tick(rig) == []
    changed_us = rig.now
    rig.now = next_of(rig, "a")
    tick(rig)
    assert [one for one in ticks(rig, "a") if one > changed_us] == ticks(rig, "a") != []


def test_put_that_arrives_after_its_first_tick_enqueues_the_next_tick(rig: Rig) -> None:
    record = encode_record(Every(60), "all", new_task(Task("t"), new_nonce()).message)
    early_us = Every(60).next_after(rig.now) or 0
    rig.now = early_us + S
    rig.run(schedule_ops.put_schedule(rig.keys, "a", early_us, record, now_us=rig.now))
    assert tick(rig) == ["ticked"]
    assert ids(rig) == []
    rig.now += 59 * S
    tick(rig)
    assert ticks(rig, "a") == [rig.now]


def test_unchanged_put_keeps_missed_ticks(rig: Rig) -> None:
    first = put(rig, "a", Every(60), "all", payload=1)
    rig.now += 130 * S
    assert put(rig, "a", Every(60), "all", payload=1) == first
    tick(rig)
    assert len(ticks(rig, "a")) == 2


def test_deleted_schedule_has_no_tick(rig: Rig) -> None:
    put(rig, "a", Every(60))
    rig.now += 53 * S
    read_before = due(rig)
    assert rig.run(schedule_ops.delete_schedule(rig.keys, "a"))
    assert send(rig, read_before) == ["lost"]
    assert tick(rig) == []
    assert ids(rig) == []


@pytest.mark.parametrize(("missed", "count"), [("skip", 0), ("once", 1), ("all", 60)])
def test_missed_ticks_are_caught_up_as_the_schedule_says(
    rig: Rig, missed: Missed, count: int
) -> None:
    put(rig, "a", Every(60), missed)
    first_us = next_of(rig, "a")
    rig.now += 3600 * S
    rig.now += GRACE_US  # so that the grace period of all ticks has passed
    for _ in range(2 + 60 // MOST_TICKS):
        tick(rig)
    found = ticks(rig, "a")
    assert len(found) == count
    if missed == "all":
        assert found == all_between(Every(60), first_us, found[-1])
    assert next_of(rig, "a") > rig.now


def test_clock_set_back_repeats_no_tick(rig: Rig) -> None:
    put(rig, "a", Every(60))
    rig.now += 53 * S
    tick(rig)
    [held] = rig.lease()
    rig.complete(held)
    rig.now -= 40 * S
    for _ in range(4):
        tick(rig)
        rig.now += 10 * S
    assert ids(rig) == []
    rig.now += 60 * S
    tick(rig)
    assert len(ids(rig)) == 1


async def check(rig: Rig) -> TickCheck:
    """Check the schedules with the function that servers use."""
    broker = AsyncBroker(redis_clients.parse(f"unix://{rig.socket}"))
    try:
        return await tick_due(broker, rig.keys, now_us=rig.now)
    finally:
        await broker.aclose()


@pytest.mark.faults(46)
def test_schedules_continue_after_a_clock_that_was_days_ahead(rig: Rig) -> None:
    for number in range(25):
        put(rig, f"a{number}", Every(60))
    put(rig, "yearly", Cron("0 0 1 1 *"))
    yearly_us = next_of(rig, "yearly")
    rig.now += 3 * DAY
    put(rig, "new", Every(60), "all")  # the first tick is in the future
    asyncio.run(check(rig))
    assert next_of(rig, "a7") > rig.now
    rig.now -= 3 * DAY
    checked = asyncio.run(check(rig))
    assert checked.next_us == rig.now + 53 * S, "the first check corrects the next ticks"
    assert next_of(rig, "a7") == next_of(rig, "new") == rig.now + 53 * S
    assert next_of(rig, "yearly") == yearly_us
    before = set(ids(rig))
    rig.now += 53 * S
    asyncio.run(check(rig))
    assert len(set(ids(rig)) - before) == 26
    clock = rig.field("meta", "ticked")
    assert clock == b"%d" % rig.now, "the next check does not plan all schedules again"


def test_paused_schedule_skips_ticks_without_catching_up(rig: Rig) -> None:
    put(rig, "a", Every(60), "all")
    rig.run(program_schedule_ops.pause_schedule(rig.keys, "a", b"me", now_us=rig.now))
    rig.now += 63 * S
    read_before = due(rig)
    assert tick(rig) == ["paused"]
    rig.now += 60 * S
    unfinished = due(rig)
    assert rig.run(program_schedule_ops.resume_schedule(rig.keys, "a", now_us=rig.now))
    assert send(rig, read_before) == send(rig, unfinished) == ["changed"]
    tick(rig)
    assert ids(rig) == []
    rig.now += 60 * S
    tick(rig)
    assert len(ids(rig)) == 1


def test_put_keeps_a_pause_and_delete_ends_it(rig: Rig) -> None:
    put(rig, "a", Every(60))
    rig.run(program_schedule_ops.pause_schedule(rig.keys, "a", b"me", now_us=rig.now))
    put(rig, "a", Every(30))
    rig.now += 60 * S
    assert tick(rig) == ["paused"]
    rig.run(schedule_ops.delete_schedule(rig.keys, "a"))
    put(rig, "a", Every(30))
    rig.now += 30 * S
    assert tick(rig) == ["ticked"]


def test_program_schedule_overrides_a_stored_one(rig: Rig) -> None:
    put(rig, "a", Every(60))
    rig.run(
        program_schedule_ops.publish_schedules(
            rig.keys, [("a", b"record", b"task")], now_us=rig.now
        )
    )
    assert put(rig, "a", Every(5)).of_program == b"record"
    rig.now += 60 * S
    assert tick(rig) == ["program"]
    assert ids(rig) == []
    rig.now += program_schedule_ops.SCHEDULE_SILENCE_US
    assert tick(rig) == ["ticked"], "no server publishes the program's schedule"
    assert put(rig, "a", Every(5)).of_program is None


def test_unique_task_that_still_waits_is_not_enqueued_again(rig: Rig) -> None:
    put(rig, "a", Every(60), unique=True)
    for _ in range(3):
        rig.now += 60 * S
        assert tick(rig) == ["ticked"]
    assert len(ids(rig)) == 1


def test_lost_record_leaves_no_entry_behind(rig: Rig) -> None:
    put(rig, "a", Every(60))
    rig.client.hdel(rig.keys.key("stored_schedules"), "a")
    rig.now += 60 * S
    rows = [TickRow(row, 0, []) for row in due_rows(rig)]
    assert send(rig, rows) == ["lost"]
    assert due_rows(rig) == []


def due_rows(rig: Rig) -> list[StoredScheduleRow]:
    return rig.run(schedule_ops.due_schedules(rig.keys, now_us=rig.now)).rows


def test_queue_with_schedules_is_not_forgotten_without_force(rig: Rig) -> None:
    put(rig, "a", Every(60))
    assert rig.run(operator_ops.delete_queue(rig.keys)) == 1
    assert rig.run(operator_ops.delete_queue(rig.keys, force=True)) == 0
    assert rig.dump() == {}


# The tick loops of servers


class Place:
    """A store and its brokers, for tick loops that share a prefix."""

    def __init__(self, store: Store, prefix: str) -> None:
        self.store, self.prefix = store, prefix
        self.broker = AsyncBroker(redis_clients.parse(store.url))
        self.keys = GlobalKeys(prefix)

    @contextlib.asynccontextmanager
    async def running(self, loops: int = 1) -> AsyncIterator[list[asyncio.Task[None]]]:
        brokers = [AsyncBroker(redis_clients.parse(self.store.url)) for _ in range(loops)]
        works = [StoredTicks(broker, self.prefix, Outage()).run() for broker in brokers]
        tasks = [asyncio.ensure_future(work) for work in works]
        try:
            yield tasks
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for broker in brokers:
                await broker.aclose()


@pytest.fixture
def app_of(store: Store, prefix: str) -> Any:
    return Qsync(store.url, prefix=prefix)


def test_ten_servers_enqueue_each_tick_once(app_of: Any, store: Store, prefix: str) -> None:
    names = ["a", "b", "c"]

    async def main() -> None:
        place = Place(store, prefix)
        async with app_of.async_client() as client, place.running(10) as tasks:
            for name in names:
                await client.schedules.put(name, Task("t", name), every=0.1, missed="all")

            def found() -> list[str]:
                with store.client() as redis:
                    held = redis.hkeys(f"{{{prefix}:default}}:tasks")
                return [id.decode() for id in held]

            await wait_until_async(lambda: len(found()) > 40)
            tasks[0].cancel()  # the other schedules continue
            await wait_until_async(lambda: len(found()) > 60)
            for name in names:
                times = ticks_in(name, found())
                assert times == all_between(Every(0.1), times[0], times[-1])
        await place.broker.aclose()

    asyncio.run(main())


def test_server_learns_at_once_of_a_schedule_that_is_due_soon(
    app_of: Any, store: Store, prefix: str
) -> None:
    async def main() -> None:
        place = Place(store, prefix)
        async with app_of.async_client() as client, place.running():
            await client.schedules.put("rare", Task("t"), every=86_400)
            await wait_until_async(lambda: store.client().exists(f"{prefix}:schedule_queues"))
            await client.schedules.put("soon", Task("t"), every=2)
            with store.client() as redis:
                await wait_until_async(
                    lambda: redis.hlen(f"{{{prefix}:default}}:tasks") == 2, timeout=6
                )

    asyncio.run(main())


def test_server_logs_schedules_that_it_cannot_tick_and_continues(
    app_of: Any, store: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        place = Place(store, prefix)
        keys = schedule_ops.QueueKeys(prefix, "default")
        async with app_of.async_client() as client:
            for name in ("future", "hostile", "nightly", "good"):
                await client.schedules.put(name, Task("t"), every=0.5)
            with store.client() as redis:
                record = redis.hget(keys.key("stored_schedules"), "future")
                redis.hset(
                    keys.key("stored_schedules"), "future", record[:8] + b"\xf0" + record[9:]
                )
                digits = struct.pack(">H", 5000) + b"9" * 5000
                redis.hset(
                    keys.key("stored_schedules"), "hostile", record[:9] + digits + record[17:]
                )
            await place.broker.run(
                program_schedule_ops.publish_schedules(keys, [("nightly", b"", b"")])
            )
            async with place.running():
                with store.client() as redis:
                    await wait_until_async(lambda: redis.hlen(keys.key("tasks")) > 2)
        await place.broker.aclose()

    with caplog.at_level(logging.ERROR, "qsync"):
        asyncio.run(main())
    lines = sorted(record.getMessage() for record in caplog.records)
    assert len(lines) == 3, lines
    assert lines[0].startswith("stored schedule 'future' of queue default enqueues no tasks: its ")
    assert "upgrade this server" in lines[0]
    assert lines[1].endswith("its expression has 5000 bytes; 1000 are allowed")
    assert lines[2].startswith(
        "stored schedule 'nightly' of queue default enqueues no tasks: a periodic"
    )


def test_number_of_queues_with_schedules_is_bounded(
    app_of: Any,
    store: Store,
    prefix: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hostile program may list any number of queues."""
    monkeypatch.setattr("qsync.server.stored_ticks.MOST_QUEUES", 3)

    async def main() -> None:
        place = Place(store, prefix)
        with store.client() as redis:
            names = {f"q{number}": "1" for number in range(10)}
            redis.hset(GlobalKeys(prefix).schedule_queues, mapping=names)
        async with place.running():
            await wait_until_async(lambda: len(caplog.records) > 0)
        await place.broker.aclose()

    with caplog.at_level(logging.ERROR, "qsync"):
        asyncio.run(main())
    assert [record.getMessage() for record in caplog.records] == [
        "10 queues have stored schedules; this server enqueues those of the first 3 only"
    ]


def test_tick_due_takes_the_time_of_a_test(app_of: Any, store: Store, prefix: str) -> None:
    async def main() -> None:
        place = Place(store, prefix)
        keys = schedule_ops.QueueKeys(prefix, "default")
        async with app_of.async_client() as client:
            made = await client.schedules.put("a", Task("t"), cron="0 9 * * *", tz="Asia/Tokyo")
            at_us = int(made.next_at.timestamp() * 1_000_000)
            assert (await tick_due(place.broker, keys, now_us=at_us - 1)).next_us == at_us
            ticked = await tick_due(place.broker, keys, now_us=at_us)
            assert ticked.rows == 1
            again = await client.schedules.get("a")
            assert (again.next_at - made.next_at).days == 1
        await place.broker.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("bad", [120, 3 * MOST_UNREAD + 1])
def test_due_schedules_are_all_read_behind_many_that_cannot_be_read(rig: Rig, bad: int) -> None:
    unread = 0

    def check() -> list[TickCheck]:
        async def main() -> list[TickCheck]:
            nonlocal unread
            broker = AsyncBroker(redis_clients.parse(f"unix://{rig.socket}"))
            ticks: list[TickCheck] = []
            while not ticks or ticks[-1].more:
                ticks.append(await tick_due(broker, rig.keys, unread=unread, now_us=rig.now))
                unread = ticks[-1].unread_count
                assert len(ticks) < 20, "the checks continue"
            await broker.aclose()
            return ticks

        return asyncio.run(main())

    for number in range(130):
        put(rig, f"good{number}", Every(60))
    records, nexts = rig.keys.key("stored_schedules"), rig.keys.key("next_ticks")
    names = [f"bad{number}" for number in range(bad)]
    rig.client.hset(records, mapping=dict.fromkeys(names, b"\x00" * 8 + b"\xf0"))
    rig.client.zadd(nexts, dict.fromkeys(names, rig.now))
    rig.now += MINUTE
    assert sum(len(ticked.tasks) for ticked in check()) == 130
    assert unread == bad
    rig.now += MINUTE
    checks = check()
    assert sum(len(ticked.tasks) for ticked in checks) == 130, (
        "each check continues where the previous check stopped"
    )
    assert sum(len(ticked.unread) for ticked in checks) <= 3 * MOST_UNREAD
    rig.client.zrem(nexts, *names[1:])
    rig.now += MINUTE
    assert sum(len(ticked.tasks) for ticked in check()) == 130, "most were deleted"
    assert unread == 1


def test_server_with_rights_of_an_older_version_logs_once_and_continues(
    app_of: Any, store: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A user with the rights that an older version needed has no access to a key that was added
    later."""
    old = rights_are_old(store)
    rules = [rule for rule in acl.rules("server", prefix, old=old) if "schedule_queues" not in rule]
    store.command("ACL", "SETUSER", "older", "reset", "on", ">secret", *rules)

    async def main() -> None:
        url = store.url.replace("//", "//older:secret@")
        place = Place(store, prefix)
        async with app_of.async_client() as client:
            await client.schedules.put("a", Task("t"), every=0.5)
            async with Qsync(url, prefix=prefix).server():
                await wait_until_async(lambda: bool(caplog.records))
            async with place.running():
                keys = schedule_ops.QueueKeys(prefix, "default")
                await wait_until_async(lambda: store.client().hlen(keys.key("tasks")))
        await place.broker.aclose()

    try:
        with caplog.at_level(logging.WARNING, "qsync"):
            asyncio.run(main())
    finally:
        store.command("ACL", "DELUSER", "older")
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("stored schedules do not run on this server: schedule_queues: ")


def test_schedules_continue_soon_after_a_refused_password_is_corrected(
    store: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The store refuses the password if it is changed there before it is changed in the app. One
    line is logged at the start of the outage and one at its end."""
    keys = schedule_ops.QueueKeys(prefix, "default")
    user = f"rotated-{prefix}"

    def password(secret: str) -> None:
        rules = ("reset", "on", f">{secret}", "~*", "&*", "+@all")
        store.command("ACL", "SETUSER", user, *rules)
        store.command("CLIENT", "KILL", "USER", user)

    def said(text: str) -> int:
        return sum(text in record.getMessage() for record in caplog.records)

    def enqueued() -> int:
        with store.client() as redis:
            return int(redis.hlen(keys.key("tasks")))

    async def main() -> None:
        app = Qsync(store.url.replace("//", f"//{user}:first@"), prefix=prefix)
        outage = Outage()
        broker = AsyncBroker(app.client()._address)
        async with app.async_client() as client:
            await client.schedules.put("a", Task("t"), every=0.5)
            ticks = asyncio.create_task(StoredTicks(broker, prefix, outage).run())
            await wait_until_async(lambda: enqueued() > 0)
            password("second")
            parts = ("read the stored schedules", "enqueue the stored schedules")
            await wait_until_async(
                lambda: all(any(part in failing for failing in outage.parts) for part in parts)
            )
            before = enqueued()
            password("first")
            await wait_until_async(lambda: enqueued() > before and not outage.parts, timeout=10)
            ticks.cancel()
            await asyncio.gather(ticks, return_exceptions=True)
        await broker.aclose()

    password("first")
    try:
        with caplog.at_level(logging.WARNING, "qsync.server"):
            asyncio.run(main())
    finally:
        store.command("ACL", "DELUSER", user)
    lines = [record.getMessage() for record in caplog.records]
    assert (said("refuses"), said("accepts all commands again"), len(lines)) == (1, 1, 2), lines
