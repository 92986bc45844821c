"""The fixtures `qsync` and `qsync_sync`, used as in users' tests."""

from __future__ import annotations

import asyncio
import gc
import itertools
import signal
import sys
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from qsync import (
    ConfigError,
    InvalidTask,
    Mux,
    Qsync,
    QsyncError,
    QueueFull,
    Retry,
    SkipRetry,
    Snooze,
    Task,
    TaskInfo,
    current,
)
from qsync.errors import DuplicateTask, TaskFailed
from qsync.testing import Kit, SyncKit


@dataclass
class Invoice:
    number: int
    to: str = "ann"


class Shop:
    """A program under test, and a record of the runs of its handlers."""

    def __init__(self) -> None:
        self.ran: list[Any] = []
        self.fails = 0
        mux = Mux()
        mux.handle("plain")(lambda task: self.ran.append(task.payload))
        self.app = app = Qsync("redis://127.0.0.1:1", prefix="real", mux=mux, patience=0)

        @app.task(name="send", queue="mail", retention=60)
        async def send(invoice: Invoice, copies: int = 1) -> int:
            await asyncio.sleep(0)
            self.ran.append(invoice.number)
            if self.fails:
                self.fails -= 1
                raise ValueError(f"no {invoice.number}")
            return invoice.number

        @app.task(name="thread")
        def in_thread(number: int) -> None:
            self.ran.append((number, threading.current_thread()))
            current().client.enqueue(send.build(Invoice(number + 1)))

        @app.task(name="decide")
        async def decide(what: str) -> None:
            self.ran.append(what)
            if what == "snooze":
                raise Snooze(60)
            raise Retry(delay=5) if what == "retry" else SkipRetry(what)

        @app.periodic(every=3600, name="hourly")
        async def hourly() -> None:
            self.ran.append("hour")

        @app.periodic(cron="0 9 * * *", tz="Asia/Tokyo", name="morning")
        async def morning() -> None:
            self.ran.append("morning")

        self.send, self.in_thread, self.decide, self.hourly = send, in_thread, decide, hourly
        self.morning = morning


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def qsync_app(shop: Shop) -> Qsync:
    return shop.app


# Async tests. Each test is one coroutine, so that no pytest plugin is needed.


def test_enqueued_tasks_are_found_with_their_arguments(shop: Shop, qsync: Kit) -> None:
    async def main() -> None:
        await shop.send.enqueue(Invoice(7))
        await shop.send.options(queue="other", delay=60).enqueue(Invoice(8), copies=2)
        async with shop.app.async_client() as client:
            await client.enqueue(Task("plain", b"bytes"))

    asyncio.run(main())
    first, second = qsync.enqueued(shop.send)
    assert first.arguments == {"invoice": Invoice(7), "copies": 1}
    assert (first.queue, second.queue) == ("mail", "other")
    assert second.status.state == "scheduled"
    found = qsync.assert_enqueued(shop.send, invoice=Invoice(8), queue="other")
    assert found.id == second.id
    assert qsync.assert_enqueued(shop.send, copies=1).id == first.id
    qsync.assert_enqueued("plain", payload=b"bytes")
    with pytest.raises(AssertionError) as failed:
        qsync.assert_enqueued(shop.send, invoice=Invoice(9), queue="mail")
    assert str(failed.value).splitlines()[:3] == [
        "no task send(invoice=Invoice(number=9, to='ann')) on queue mail is enqueued",
        "of send there are:",
        "  send(invoice=Invoice(number=7, to='ann'), copies=1) on queue mail, pending",
    ]
    with pytest.raises(AssertionError, match="no task of this function is waiting or running"):
        qsync.assert_enqueued(shop.decide)
    with pytest.raises(InvalidTask, match="no parameter 'copy', only invoice, copies"):
        qsync.assert_enqueued(shop.send, copy=2)
    with pytest.raises(ConfigError, match="neither a task function, nor"):
        qsync.enqueued(7)  # type: ignore[arg-type]


def test_drain_runs_pending_tasks_and_their_children(shop: Shop, qsync: Kit) -> None:
    async def main() -> None:
        handle = await shop.send.enqueue(Invoice(1))
        await shop.in_thread.enqueue(7)
        await shop.send.options(delay=60).enqueue(Invoice(99))
        await qsync.drain()
        assert await handle.result(1) == 1

    asyncio.run(main())
    numbers = [one[0] if isinstance(one, tuple) else one for one in shop.ran]
    assert sorted(numbers) == [1, 7, 8]
    assert [one.arguments["invoice"].number for one in qsync.enqueued(shop.send)] == [99]


def test_errors_of_handlers_are_raised(shop: Shop, qsync: Kit) -> None:
    async def main() -> None:
        shop.fails = 1
        await shop.send.enqueue(Invoice(1))
        await shop.send.enqueue(Invoice(2))
        with pytest.raises(ValueError, match="no 1") as raised:
            await qsync.drain()
        assert "in task send" in raised.value.__notes__[0]
        assert sorted(shop.ran) == [1, 2]
        shop.fails = 2
        for number in (3, 4):
            await shop.send.enqueue(Invoice(number))
        await shop.decide.enqueue("skip")
        await shop.decide.enqueue("retry")
        with pytest.raises(ExceptionGroup, match="3 task attempts failed") as group:
            await qsync.drain()
        assert group.group_contains(ValueError)
        assert group.group_contains(SkipRetry)
        assert not group.group_contains(Retry)
        async with shop.app.async_client() as client:
            await client.enqueue(Task("strange"))
        with pytest.raises(QsyncError, match="no handler for type 'strange'"):
            await qsync.drain()

    asyncio.run(main())


def test_drain_leaves_a_snoozed_task_until_its_time_has_passed(shop: Shop, qsync: Kit) -> None:
    async def main() -> None:
        handle = await shop.decide.enqueue("snooze")
        await qsync.drain()
        assert (await handle.info()).state == "scheduled"
        await qsync.advance(seconds=59, schedules=False)
        await qsync.drain()
        assert shop.ran == ["snooze"]
        await qsync.advance(seconds=2, schedules=False)
        await qsync.drain()
        assert shop.ran == ["snooze", "snooze"]
        assert (await handle.info()).attempt == 1

    asyncio.run(main())


def test_advance_makes_retries_due(shop: Shop, qsync: Kit) -> None:
    async def main() -> None:
        shop.fails = 1
        handle = await shop.send.enqueue(Invoice(1))
        with pytest.raises(ValueError, match="no 1"):
            await qsync.drain()
        await qsync.drain()
        assert shop.ran.count(1) == 1
        assert (await handle.info()).state == "retry"
        await qsync.advance(hours=1)
        assert (await handle.info()).state == "pending"
        assert shop.ran.count(1) == 1
        await qsync.drain()
        assert shop.ran.count(1) == 2
        assert (await handle.info()).state == "completed"
        await qsync.advance(seconds=59)
        assert await handle.result(1) == 1
        await qsync.advance(seconds=2)
        with pytest.raises(QsyncError, match="was not kept"):
            await handle.result(1)

    asyncio.run(main())


def test_advance_enqueues_each_tick_of_schedules(shop: Shop, qsync: Kit) -> None:
    async def main() -> None:
        await qsync.advance(timedelta(days=2))
        ticks = [one.status.enqueued_at for one in qsync.enqueued(shop.hourly)]
        assert len(ticks) == 48
        assert {later - former for former, later in itertools.pairwise(ticks)} == {
            timedelta(hours=1)
        }
        assert {(tick.minute, tick.second) for tick in ticks} == {(0, 0)}
        assert [one.status.enqueued_at.hour for one in qsync.enqueued(shop.morning)] == [0, 0]
        await qsync.drain()
        assert shop.ran.count("hour") == 48
        await qsync.advance(hours=1)
        await qsync.drain()
        assert shop.ran.count("hour") == 49

    asyncio.run(main())


async def test_advance_without_schedules_leaves_their_ticks_to_the_next(
    shop: Shop, qsync: Kit
) -> None:
    async with shop.app.async_client() as client:
        await client.schedules.put("report-44", shop.send.build(Invoice(44)), every=3600)
        await qsync.advance(hours=3, schedules=False)
        assert qsync.enqueued(shop.hourly) == qsync.enqueued(shop.send) == []
        await qsync.advance(hours=1)
        assert len(qsync.enqueued(shop.hourly)) == 4
        assert qsync.enqueued(shop.send)


def test_advance_enqueues_ticks_of_stored_schedules(shop: Shop, qsync: Kit) -> None:
    async def main() -> None:
        async with shop.app.async_client() as client:
            report = shop.send.build(Invoice(42))
            await client.schedules.put("report-42", report, cron="0 * * * *")
            await client.schedules.put("report-43", report, every=7200)
            await qsync.advance(days=1)
            times = [one.status.enqueued_at for one in qsync.enqueued(shop.send)]
            assert len(times) == 24 + 12
            await qsync.drain()
            assert shop.ran.count(42) == 36
            await client.schedules.delete("report-42")
            await qsync.advance(days=1)
            assert len(qsync.enqueued(shop.send)) == 12

    asyncio.run(main())


async def test_advance_enqueues_the_ticks_of_many_schedules_that_are_due_at_once(
    shop: Shop, qsync: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count(invoice: int) -> int:
        sent = qsync.enqueued(shop.send)
        return sum(one.arguments["invoice"].number == invoice for one in sent)

    cron = f"0 {(datetime.now(UTC) + timedelta(hours=12)).hour} * * *"
    async with shop.app.async_client() as client:
        for number in range(120):
            await client.schedules.put(f"r{number}", shop.send.build(Invoice(1)), cron=cron)
        await client.schedules.put("all", shop.send.build(Invoice(2)), every=600, missed="all")
        await qsync.advance(days=2)
        assert (count(1), count(2)) == (240, 288)
        await qsync.advance(hours=23, schedules=False)
        await qsync.advance(seconds=1)  # runs missed ticks as after an outage
        assert (count(1), count(2)) in ((240, 288 + 138), (240, 288 + 139))
        monkeypatch.setattr("qsync.testing.advance.TICKS", 100)
        with pytest.raises(ConfigError, match="schedules have over 100 ticks in that time"):
            await qsync.advance(days=1)


def test_advance_ends_unique_locks_and_leases(shop: Shop, qsync: Kit) -> None:
    async def main() -> None:
        unique = shop.send.options(unique=600)
        await unique.enqueue(Invoice(1))
        await qsync.drain()
        with pytest.raises(DuplicateTask):
            await unique.enqueue(Invoice(1))
        await qsync.advance(minutes=10)
        handle = await unique.enqueue(Invoice(1))
        keys = shop.app._connections
        from qsync.broker import ops
        from qsync.keys import QueueKeys

        policy = shop.app.server().config.policy()
        call = ops.fetch(
            QueueKeys(keys.prefix, "mail"), server="gone", number=1, wanted=1, policy=policy
        )
        async with shop.app.inspector() as inspector:
            await inspector._broker.run(call)  # a server leases the task and disappears
        assert (await handle.info()).state == "active"
        await qsync.advance(seconds=5)
        assert (await handle.info()).state == "active"
        await qsync.advance(days=1)
        assert (await handle.info()).state == "pending"
        assert (await handle.info()).crashes == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("point", "before", "after"),
    [
        ("before handler", 0, 1),
        ("during handler", 0, 1),
        ("before complete", 1, 2),
        ("after complete", 1, 1),
    ],
)
def test_crash_ends_the_server_at_the_point(
    shop: Shop, qsync: Kit, point: str, before: int, after: int
) -> None:
    async def main() -> None:
        handle = await shop.send.enqueue(Invoice(1))
        with qsync.crash(point):
            await qsync.drain()
        assert shop.ran == [1] * before
        await qsync.drain()
        assert shop.ran == [1] * after
        info = await handle.info()
        assert (info.state, info.attempt) == ("completed", 1)
        assert await handle.result(1) == 1

    asyncio.run(main())


@pytest.mark.parametrize(("point", "state"), [("before failure", 2), ("after failure", 1)])
def test_crash_at_a_failure_ends_the_server(shop: Shop, qsync: Kit, point: str, state: int) -> None:
    async def main() -> None:
        shop.fails = 1
        await shop.send.enqueue(Invoice(1))
        with qsync.crash(point):
            await qsync.drain()
        await qsync.drain()
        assert shop.ran == [1] * state

    asyncio.run(main())


def test_a_crash_during_a_handler_in_a_thread_loses_its_outcome(shop: Shop, qsync: Kit) -> None:
    async def main() -> None:
        reported: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: reported.append(what))
        await shop.in_thread.enqueue(7)
        with qsync.crash("during handler"):
            await qsync.drain()
        await qsync.drain()
        gc.collect()
        assert reported == []
        assert [one[0] for one in shop.ran if isinstance(one, tuple)] == [7, 7]

    asyncio.run(main())


def test_crash_refuses_unknown_point_and_reports_unreached_one(shop: Shop, qsync: Kit) -> None:
    with (
        pytest.raises(ConfigError, match="no point 'at lunch'; use one of before handler, during"),
        qsync.crash("at lunch"),
    ):
        pass
    with (
        pytest.raises(
            AssertionError, match="reached the point 'before complete'; no task ended in"
        ),
        qsync.crash("before complete"),
    ):
        asyncio.run(qsync.drain())
    shop.decide.enqueue_sync("retry")
    with (
        pytest.raises(AssertionError, match="complete'; its tasks ended with: failure"),
        qsync.crash("before complete"),
    ):
        asyncio.run(qsync.drain())
    with (
        pytest.raises(ConfigError, match="cannot be nested"),
        qsync.crash("before complete"),
        qsync.crash("before handler"),
    ):
        pass


def test_advance_moves_the_clock_by_the_whole_time_after_a_crash(shop: Shop, qsync: Kit) -> None:
    async def main() -> None:
        clock = qsync._opened.clock
        await shop.send.enqueue(Invoice(1))
        with qsync.crash("before complete"):
            await qsync.drain()
        await qsync.advance(seconds=100)
        assert clock.ahead_us == 100_000_000
        await asyncio.gather(qsync.advance(seconds=1), qsync.advance(seconds=1))
        assert clock.ahead_us == 102_000_000

    asyncio.run(main())


def test_stopped_drain_gives_handlers_no_more_time(shop: Shop, qsync: Kit) -> None:
    @shop.app.task(name="hang")
    async def hang() -> None:
        hanging.set()
        await asyncio.sleep(60)

    async def main() -> None:
        await hang.enqueue()
        drain = asyncio.create_task(qsync.drain())
        await hanging.wait()
        began = time.monotonic()
        drain.cancel()
        with pytest.raises(asyncio.CancelledError):
            await drain
        assert time.monotonic() - began < 10  # far less than the shutdown_timeout of 30 s
        assert [task.status.state for task in qsync.enqueued(hang)] == ["pending"]

    hanging = asyncio.Event()
    asyncio.run(main())


def test_errors_of_unusual_classes_are_raised(shop: Shop, qsync: Kit) -> None:
    class Noted(Exception):
        def add_note(self, note: str) -> None:
            raise TypeError("add_note has another meaning here")

    @shop.app.task(name="raise", retry=0)
    async def fail() -> None:
        raise Noted("seven")

    async def main() -> None:
        await fail.enqueue()
        with pytest.raises(Noted, match="seven"):
            await qsync.drain()

    asyncio.run(main())


def test_bounds_of_the_program_hold_from_the_first_enqueue(shop: Shop) -> None:
    shop.app.queue("mail", max_tasks=1)
    with SyncKit(shop.app) as kit:
        shop.send.enqueue_sync(Invoice(1))
        with pytest.raises(QueueFull, match="mail"):
            shop.send.enqueue_sync(Invoice(2))
        kit.drain()
        shop.send.enqueue_sync(Invoice(2))


def test_a_task_of_another_app_is_named_as_such(shop: Shop, qsync: Kit) -> None:
    other = Shop()
    with pytest.raises(AssertionError, match="it is a task of another app, not of this kit's app"):
        qsync.assert_enqueued(other.send)


def test_wrong_times_are_refused(shop: Shop, qsync: Kit) -> None:
    for wrong, message in (
        ({"days": -1}, "not positive"),
        ({"days": 0}, "not positive"),
        ({"day": 1}, "no unit 'day'; pass days=1$"),
        ({"months": 1}, "no unit 'months'; pass weeks or days or hours"),
        ({"days": "x"}, "not a valid time"),
        ({"days": float("nan")}, "not a valid time"),
    ):
        with pytest.raises(ConfigError, match=message):
            asyncio.run(qsync.advance(**wrong))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"60 has no unit; pass e\.g\. seconds=60"):
        asyncio.run(qsync.advance(60))  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match=r"is not a timedelta; pass a timedelta, or e\.g\. days=1"
    ):
        asyncio.run(qsync.advance(datetime.now(UTC)))  # type: ignore[arg-type]


def test_passed_deadline_is_not_raised_as_an_error_of_a_handler(shop: Shop, qsync: Kit) -> None:
    from datetime import UTC, datetime

    async def main() -> None:
        deadline = datetime.now(UTC) + timedelta(hours=1)
        handle = await shop.send.options(deadline=deadline).enqueue(Invoice(1))
        await qsync.advance(hours=2)
        await qsync.drain()
        with pytest.raises(TaskFailed, match="deadline"):
            await handle.result(1)

    asyncio.run(main())


def test_after_the_test_the_app_has_its_own_store_again(shop: Shop) -> None:
    before = str(shop.app), shop.app.prefix
    with Kit(shop.app) as kit:
        assert shop.app.prefix.startswith("qsync-test-")
        shop.send.enqueue_sync(Invoice(1))
        assert kit.enqueued(shop.send)
        prefix, broker = shop.app.prefix, kit._opened.session._broker
    assert (str(shop.app), shop.app.prefix) == before
    assert broker.ask("KEYS", f"*{prefix}*") == []
    with pytest.raises(QsyncError, match="the test is over"):
        kit.enqueued(shop.send)
    with pytest.raises(QsyncError, match="the test is over"):
        asyncio.run(kit.advance(days=1))
    with pytest.raises(QsyncError, match="has not been opened"):
        SyncKit(shop.app).drain()


# Plain tests.


def test_plain_tests_drain_in_their_own_thread(shop: Shop, qsync_sync: SyncKit) -> None:
    shop.in_thread.enqueue_sync(7)
    qsync_sync.assert_enqueued(shop.in_thread, number=7)
    qsync_sync.drain()
    assert shop.ran == [(7, threading.current_thread()), 8]
    with qsync_sync.crash("before complete"):
        shop.in_thread.enqueue_sync(9)
        qsync_sync.drain()
    qsync_sync.drain()
    assert [one for one in shop.ran if isinstance(one, tuple)][1:] == [
        (9, threading.current_thread())
    ] * 2
    qsync_sync.advance(hours=1)
    assert len(qsync_sync.enqueued(shop.hourly)) == 1
    shop.fails = 1
    shop.send.enqueue_sync(Invoice(1))
    with pytest.raises(ValueError, match="no 1"):
        qsync_sync.drain()


def test_interrupted_sync_drain_leaves_no_server(shop: Shop, qsync_sync: SyncKit) -> None:
    @shop.app.task(name="hang")
    async def hang() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        await asyncio.sleep(60)

    hang.enqueue_sync()
    with pytest.raises(KeyboardInterrupt):
        qsync_sync.drain()
    assert [task.status.state for task in qsync_sync.enqueued(hang)] == ["pending"]


def test_plain_kit_on_an_event_loop_names_the_async_kit(shop: Shop, qsync_sync: SyncKit) -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match="use the fixture qsync"):
            qsync_sync.drain()
        with pytest.raises(ConfigError, match="use the fixture qsync"):
            qsync_sync.advance(days=1)

    asyncio.run(main())


def test_kit_without_an_asyncio_loop_raises_a_clear_error(shop: Shop, qsync: Kit) -> None:
    for call in (qsync.drain(), qsync.advance(days=1)):  # step the coroutine as trio would
        with pytest.raises(ConfigError, match="for anyio, set anyio_backend to asyncio"):
            call.send(None)


def test_kit_of_a_wider_scope_waits_while_another_is_open(shop: Shop, qsync_sync: SyncKit) -> None:
    shop.send.enqueue_sync(Invoice(1))
    with SyncKit(shop.app) as inner:
        shop.send.enqueue_sync(Invoice(2))
        inner.drain()
        for use in (qsync_sync.drain, lambda: qsync_sync.enqueued(shop.send)):
            with pytest.raises(ConfigError, match="not both qsync and qsync_sync in a test"):
                use()
    qsync_sync.assert_enqueued(shop.send)
    qsync_sync.drain()
    assert shop.ran == [2, 1]


# Speed.


def test_a_day_with_10_000_due_tasks_takes_under_2_s(shop: Shop, qsync: Kit) -> None:
    async def main() -> float:
        async with shop.app.async_client() as client:
            await client.enqueue_many([Task("plain", b"", delay=3600) for _ in range(10_000)])
        began = time.perf_counter()
        await qsync.advance(days=1)
        return time.perf_counter() - began

    took = asyncio.run(main())
    sys.stdout.write(f"advance(days=1) with 10,000 due tasks, s: {took:.2f}\n")  # pytest -s
    assert len(qsync.enqueued("plain")) == 10_000
    assert took < 2


def test_opening_a_kit_takes_a_few_ms(shop: Shop) -> None:
    with Kit(shop.app):
        shop.send.enqueue_sync(Invoice(1))
    took = []
    for _ in range(20):
        began = time.perf_counter()
        with Kit(shop.app):
            pass
        took.append(time.perf_counter() - began)
    sys.stdout.write(f"each further test with the fixture qsync: {sorted(took)[5] * 1000:.1f} ms\n")
    assert sorted(took)[5] < 0.005


def test_drain_runs_batches_without_their_long_wait(shop: Shop, qsync: Kit) -> None:
    sizes: list[int] = []

    @shop.app.batch("index", max_size=3, max_wait=3600)
    async def index(tasks: list[TaskInfo]) -> None:
        sizes.append(len(tasks))

    async def body() -> None:
        for number in range(5):
            await index.enqueue(number)
        qsync.assert_enqueued(index, payload=4)
        await qsync.drain()

    asyncio.run(body())
    assert sizes == [3, 2]
