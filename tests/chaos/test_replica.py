"""Confirmed tasks survive when a primary is lost or demoted and a replica that may lack its last
writes takes its place.

The replica receives the primary's writes through a proxy, which can hold them back. Pausing the
replica would not lose writes, since it would later read them all from its socket. Clients and
servers connect through another proxy, whose target moves like that of a virtual IP.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from qsync.keys import QueueKeys
from qsync.task import Task
from tests.chaos.doing import damages, pass_time, wait_empty
from tests.chaos.flow import Flow
from tests.chaos.proxy import Proxy
from tests.conftest import NEEDS
from tests.guarantees.conftest import Launch, Measured
from tests.support.processes import History, task
from tests.support.stores import HOST, Store, available, wait_until


class Pair:
    """A primary and a replica that can swap roles repeatedly."""

    def __init__(self) -> None:
        self.stores = [Store("valkey"), Store("valkey")]

    def __enter__(self) -> Pair:
        for store in self.stores:
            store.start()
        self.link = Proxy(self.primary.port).__enter__()
        self.address = Proxy(self.primary.port).__enter__()
        self.follow()
        return self

    def __exit__(self, *_: object) -> None:
        for proxy in (self.link, self.address):
            proxy.__exit__()
        for store in self.stores:
            store.close()

    @property
    def primary(self) -> Store:
        return self.stores[0]

    @property
    def replica(self) -> Store:
        return self.stores[1]

    def follow(self) -> None:
        """Wait until the replica is connected and has all data of the primary."""
        self.link.heal()
        self.link.target = self.primary.port
        self.replica.command("REPLICAOF", HOST, self.link.port)

        def online() -> bool:
            state = self.replica.command("INFO", "replication")
            return bool(state.get("master_link_status") == "up")

        wait_until(online, timeout=20)
        with self.primary.client() as client:
            client.publish("replicate", "")
            assert client.wait(1, 5000) == 1

    def cut(self) -> None:
        """Cut off the replica without the primary noticing."""
        self.link.up.hole = self.link.down.hole = True

    def lose(self) -> None:
        """Kill the primary, and promote the replica with the data that it has."""
        old, new = self.stores
        old.kill()
        new.command("REPLICAOF", "NO", "ONE")
        self.link.reset()
        self.address.target = new.port
        self.stores.reverse()

    def demote(self) -> None:
        """Swap the roles of primary and replica without losing data. Connections to the old primary
        stay open."""
        old, new = self.stores
        old.command("FAILOVER")
        wait_until(lambda: new.command("INFO", "replication")["role"] == "master")
        self.address.target = new.port
        self.stores.reverse()

    def revive(self) -> None:
        """Restart the killed node without its data, as a replica."""
        self.replica.start()
        self.follow()


@pytest.fixture
def pair() -> Iterator[Pair]:
    if not available("valkey"):
        pytest.skip(NEEDS["valkey"])
    with Pair() as pair:
        yield pair


def more_than(count: int, flow: Flow, since: float) -> None:
    """Wait until more than `count` tasks have been accepted after `since`."""
    wait_until(lambda: len(flow.since(since)) > count, timeout=20)


def wait_ended(history: History, ids: set[str]) -> None:
    wait_until(lambda: ids <= history.ids("end"), timeout=20, every=0.05)


def held(store: Store, prefix: str) -> set[str]:
    return {id.decode() for id in store.command("HKEYS", QueueKeys(prefix, "default").key("tasks"))}


ROUNDS = [2, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]


@pytest.mark.faults(21)
@pytest.mark.guarantee(1, 2)
@pytest.mark.parametrize("failovers", ROUNDS)
def test_confirmed_tasks_survive_a_failover(
    pair: Pair, prefix: str, measured: Measured, failovers: int
) -> None:
    """The link is cut while enqueues continue; then the primary is killed and the replica
    promoted."""
    chance = random.Random(failovers)
    confirmed_lost = plain_lost = confirmed = plain = unconfirmed = 0
    for at in range(failovers):
        own = f"{prefix}-{at}"
        url = pair.address.url
        with (
            Flow(url, own, every=0.0, callers=4, durability="replica", confirm_timeout=0.3) as sure,
            Flow(url, own, every=0.0, callers=4) as quick,
            Flow(url, own, blocking=True, durability="replica", confirm_timeout=0.3) as blocking,
        ):
            wait_until(lambda: len(sure.accepted) > 50 and len(blocking.accepted) > 10)
            pass_time(chance.uniform(0, 0.1))
            cut_at = time.monotonic()
            pair.cut()
            pass_time(chance.uniform(0.05, 0.5))
            pair.lose()
            promoted_at = time.monotonic()
            more_than(20, quick, promoted_at)
        kept = held(pair.primary, own)
        sure.confirmed |= blocking.confirmed
        asked = {**sure.asked, **blocking.asked}
        yes = {id for id, told in sure.confirmed.items() if told}
        confirmed_lost += len(yes - kept)
        lost = quick.ids - kept
        assert sure.errors + quick.errors + blocking.errors == []
        assert yes, "some were confirmed"
        # Only writes that never reached the replica are lost. The replica has every write that was
        # accepted before the last confirmed task was sent.
        carried_until = max(asked[id] for id in yes)
        assert {id for at, id in quick.accepted if at < carried_until} <= kept
        assert all(asked[id] > cut_at - 0.3 for id in sure.confirmed.keys() - yes)
        confirmed, plain = confirmed + len(yes), plain + len(quick.ids)
        unconfirmed += len(sure.confirmed.keys() - yes)
        plain_lost += len(lost)
        assert damages(pair.primary, own) == []
        pair.revive()
    measured("failovers", failovers)
    measured(
        "failovers: confirmed tasks, and how many of them were lost", (confirmed, confirmed_lost)
    )
    measured("failovers: unconfirmed tasks", unconfirmed)
    measured(
        "failovers: tasks enqueued without durability, and how many of them were lost",
        (plain, plain_lost),
    )
    assert confirmed_lost == 0
    assert plain_lost > 0, "the failovers lost nothing, so they prove nothing"


@pytest.mark.faults(22)
@pytest.mark.guarantee(1, 2, 5)
@pytest.mark.parametrize("failovers", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_failover_that_loses_completions_repeats_tasks_under_their_ids(
    pair: Pair,
    prefix: str,
    launch: Launch,
    history: History,
    measured: Measured,
    failovers: int,
) -> None:
    server = launch(pair.address.url, concurrency=20)
    again = 0
    for at in range(failovers):

        def make(number: int, at: int = at) -> Task:
            return task(id=f"{at}-{number}", sleep=0.2, retry=0)

        with Flow(
            pair.address.url, prefix, make=make, durability="replica", confirm_timeout=0.3
        ) as flow:
            wait_until(lambda: len(flow.accepted) > 50)
            pair.cut()
            cut_at = time.monotonic()
            pass_time(0.4)
            pair.lose()
            promoted_at = time.monotonic()
            more_than(3, flow, promoted_at)
        wait_ended(history, {id for id, told in flow.confirmed.items() if told})
        wait_empty(pair.primary, prefix)
        ended = {event.id: event.at for event in history.of("end") if event.at < promoted_at}
        rerun = {event.id for event in history.of("start") if event.at > promoted_at} & ended.keys()
        again += len(rerun)
        # The replica may lack completions only of tasks that ended after the cut.
        assert all(ended[id] > cut_at - 0.2 for id in rerun)
        assert {event.attempt for event in history.of("start")} == {1}
        pair.revive()
    measured("failovers: tasks that ran again because the store lost their ends", again)
    assert again > 0, "no end was lost, so the failovers prove nothing"
    assert server.running
    assert damages(pair.primary, prefix) == []


@pytest.mark.faults(23)
@pytest.mark.guarantee(7)
@pytest.mark.parametrize("demotions", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_clients_leave_a_demoted_primary_within_five_seconds(
    pair: Pair,
    prefix: str,
    launch: Launch,
    history: History,
    measured: Measured,
    demotions: int,
) -> None:
    """Connections to the old primary stay open, but it refuses every write, so clients must drop
    them."""
    server = launch(pair.address.url, concurrency=20)
    gaps, work = [], []
    with (
        Flow(pair.address.url, prefix) as flow,
        Flow(pair.address.url, prefix, blocking=True) as blocking,
    ):
        for _ in range(demotions):
            more_than(50, flow, time.monotonic())
            at = time.monotonic()
            pair.demote()
            more_than(20, flow, at)
            more_than(20, blocking, at)
            [first] = flow.since(at)[10:11]
            [started] = history.wait("start", 1, id=first)
            gaps.append(max(flow.longest_gap(at), blocking.longest_gap(at)))
            work.append(started.at - at)
            pair.follow()
    ids = flow.ids | blocking.ids
    measured("primary demoted: longest time without an enqueue, in seconds", max(gaps))
    measured("primary demoted: longest time until a new task started, in seconds", max(work))
    assert flow.errors + blocking.errors == []
    assert max(gaps + work) <= 5
    wait_ended(history, ids)
    wait_empty(pair.primary, prefix)
    assert {event.attempt for event in history.of("start")} == {1}
    assert server.running
