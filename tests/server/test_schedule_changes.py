"""Ticks from before a schedule changed, or was published again after a gap, are not enqueued."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from qsync.broker import program_schedule_ops, redis_clients
from qsync.broker.blocking import Broker
from qsync.broker.schedule_records import LIVE_US, digest_of
from qsync.keys import QueueKeys
from qsync.schedule import Cron, Every, Missed, Schedule
from tests.server.test_periodic import Place, periodic, run, ticks_of
from tests.support.stores import Store, wait_until_async

START = 1_700_000_000_000_000
YEARLY = Cron("0 0 1 1 *")


def _year_ago(place: Place) -> int:
    return place.now_us() - 365 * 86_400_000_000


@pytest.mark.faults(94)
@pytest.mark.parametrize("missed", ["skip", "once", "all"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (YEARLY, Cron("* * * * * *")),
        (YEARLY, Every(1)),
        (Every(7 * 86_400), Every(1)),
        (Every(31_536_000), Every(60)),
    ],
    ids=str,
)
def test_changed_schedule_enqueues_no_earlier_ticks(
    store: Store, prefix: str, missed: Missed, before: Schedule, after: Schedule
) -> None:
    async def work(place: Place) -> None:
        async with place.running(periodic("a", before)):
            await wait_until_async(lambda: place.last("a") is not None)
        place.set_last("a", _year_ago(place))
        changed_us = place.now_us()
        async with place.running(periodic("a", after, missed=missed), periodic("b", Every(0.2))):
            await wait_until_async(lambda: len(ticks_of("b", place.ids())) > 2)
        assert all(tick > changed_us for tick in ticks_of("a", place.ids()))

    run(store, prefix, work)


@pytest.mark.faults(94)
def test_changed_time_zone_enqueues_no_earlier_ticks(store: Store, prefix: str) -> None:
    async def work(place: Place) -> None:
        async with place.running(periodic("a", Cron("* * * * *", tz="Europe/Moscow"))):
            await wait_until_async(lambda: place.last("a") is not None)
        place.set_last("a", place.now_us() - 3_600_000_000)
        changed_us = place.now_us()
        new = periodic("a", Cron("* * * * *", tz="Asia/Tokyo"), missed="all")
        async with place.running(new, periodic("b", Every(0.2))):
            await wait_until_async(lambda: len(ticks_of("b", place.ids())) > 2)
        assert all(tick > changed_us for tick in ticks_of("a", place.ids()))

    run(store, prefix, work)


def test_unchanged_schedule_enqueues_missed_ticks(store: Store, prefix: str) -> None:
    """A schedule counts as unchanged if only its task or its option for missed ticks changes."""
    schedule = Every(60)

    async def work(place: Place) -> None:
        async with place.running(periodic("a", schedule)):
            await wait_until_async(lambda: place.last("a") is not None)
        place.set_last("a", place.now_us() - 600_000_000)
        async with place.running(periodic("a", schedule, missed="all", retry=1)):
            await wait_until_async(lambda: len(ticks_of("a", place.ids())) >= 10)

    run(store, prefix, work)


class Book:
    """Servers that ask from which time the ticks of schedules are due; the test sets the clock."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store, self._keys = store, QueueKeys(prefix, "default")
        self.now_us = START

    def ask(self, *schedules: tuple[str, Schedule]) -> Sequence[int]:
        """Begin and publish the ticks of schedules as a server does at startup; return the times
        from which the ticks are due."""
        names, digests = [name for name, _ in schedules], [digest_of(one) for _, one in schedules]
        broker = Broker(redis_clients.parse(self._store.url))
        call = program_schedule_ops.begin_ticks(
            self._keys, names, digests=digests, now_us=self.now_us
        )
        _, after = broker.run(call)
        rows = [(name, b"record", b"task") for name in names]
        broker.run(program_schedule_ops.publish_schedules(self._keys, rows, now_us=self.now_us))
        broker.close()
        return after

    def pass_(self, seconds: float) -> None:
        self.now_us += int(seconds * 1_000_000)


@pytest.fixture
def book(store: Store, prefix: str) -> Book:
    return Book(store, prefix)


@pytest.mark.faults(94)
def test_old_and_new_servers_keep_their_tick_times_during_a_deploy(book: Book) -> None:
    """Servers of the old and the new version take turns to publish, and no tick of either version
    is lost."""
    assert book.ask(("a", Every(60))) == [START]
    for _ in range(10):
        book.pass_(60)
        book.ask(("a", Every(60)))
    changed_us = book.now_us
    for _ in range(20):
        assert book.ask(("a", Every(7))) == [changed_us]
        assert book.ask(("a", Every(60))) == [START]
        book.pass_(30)


def test_schedule_changed_back_enqueues_no_earlier_ticks(book: Book) -> None:
    book.ask(("a", Every(60)))
    book.pass_(10)
    for _ in range(10):
        book.ask(("a", Every(7)))
        book.pass_(60)
    assert book.ask(("a", Every(60))) == [book.now_us]


def test_removed_schedule_that_returns_enqueues_no_earlier_ticks(book: Book) -> None:
    """Other schedules of the queue were published in the meantime."""
    book.ask(("a", Every(60)), ("b", Every(60)))
    for _ in range(10):
        book.pass_(60)
        book.ask(("b", Every(60)))
    book.pass_(60)
    assert book.ask(("a", Every(60)), ("b", Every(60))) == [book.now_us, START]


def test_schedule_enqueues_ticks_missed_while_no_server_ran(book: Book) -> None:
    schedules = [(name, Every(60)) for name in ("a", "b")]
    book.ask(*schedules)
    book.pass_(86_400)
    assert book.ask(schedules[0]) == [START]
    book.pass_(100)
    assert book.ask(schedules[1]) == [START], "a schedule of another app, whose servers start later"


def test_forgotten_schedule_that_returns_enqueues_no_earlier_ticks(
    book: Book, store: Store, prefix: str
) -> None:
    book.ask(("a", Every(60)))
    book.pass_(LIVE_US / 1_000_000 + 1)
    broker = Broker(redis_clients.parse(store.url))
    forget = program_schedule_ops.forget_schedule(
        QueueKeys(prefix, "default"), "a", silence_us=LIVE_US, now_us=book.now_us
    )
    assert broker.run(forget) is True
    broker.close()
    assert book.ask(("a", Every(60))) == [book.now_us]


def test_clock_set_back_does_not_delay_a_changed_schedule(book: Book) -> None:
    book.ask(("a", Every(60)))
    book.pass_(3600)
    book.ask(("a", Every(7)))
    book.pass_(-1800)
    [after] = book.ask(("a", Every(7)))
    assert after <= book.now_us


class Own:
    """A custom schedule that has no text form."""

    def next_after(self, moment_us: int) -> int | None:
        return moment_us + 1

    def previous(self, moment_us: int) -> int | None:
        return moment_us


def test_digest_depends_only_on_the_tick_times() -> None:
    different: list[Schedule] = [
        Cron("0 * * * *"), Cron("0 * * * *", tz="Asia/Tokyo"), Cron("1 * * * *"), Every(60),
        Every(61), Own(),
    ]  # fmt: skip
    assert len({digest_of(one) for one in different}) == len(different)
    assert digest_of(Own()) == digest_of(Own())
    assert digest_of(Cron("0  *  * * *")) == digest_of(Cron("0 * * * *", tz="UTC"))
