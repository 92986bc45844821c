"""Tasks complete while a cluster changes: slots move, and replicas take over."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import pytest

from qsync.keys import QueueKeys
from tests.chaos.doing import pass_time
from tests.chaos.flow import Flow
from tests.conftest import NEEDS
from tests.guarantees.conftest import Launch, Measured
from tests.support.processes import History
from tests.support.server import left_over
from tests.support.stores import HOST, Cluster, Store, available, wait_until

QUEUE = "default"
CONFIG = {"lease": 6.0, "concurrency": 20}


@pytest.fixture(scope="module")
def replicated() -> Iterator[Cluster]:
    """Start a cluster for this module."""
    if not available("valkey"):
        pytest.skip(NEEDS["valkey"])
    with Cluster(primaries=3, replicas=1) as cluster:
        yield cluster


class Mover:
    """Moves a queue's slot from one primary to another and back, key by key."""

    def __init__(self, cluster: Cluster, prefix: str) -> None:
        key = QueueKeys(prefix, QUEUE).key("tasks")
        self.slot = cluster.nodes[0].command("CLUSTER", "KEYSLOT", key)
        self.primaries = [node for node in cluster.nodes if is_primary(node)]
        self._giver = cluster.holder(key)
        self._taker = next(node for node in self.primaries if node is not self._giver)

    def move(self, *, pause: float) -> None:
        """Move the slot and all its keys, with a pause after each key."""
        giver, taker = self._giver, self._taker
        ids = {node: node.command("CLUSTER", "MYID") for node in (giver, taker)}
        taker.command("CLUSTER", "SETSLOT", self.slot, "IMPORTING", ids[giver])
        giver.command("CLUSTER", "SETSLOT", self.slot, "MIGRATING", ids[taker])
        while keys := giver.command("CLUSTER", "GETKEYSINSLOT", self.slot, 1):
            giver.command("MIGRATE", HOST, taker.port, keys[0], 0, 5000)
            pass_time(pause)
        for node in (taker, giver, *self.primaries):
            node.command("CLUSTER", "SETSLOT", self.slot, "NODE", ids[taker])
        self._giver, self._taker = taker, giver


def is_primary(node: Store) -> bool:
    return bool(node.command("INFO", "replication")["role"] == "master")


def tried_again(cluster: Cluster) -> int:
    """Return how often nodes answered TRYAGAIN because they had only some of a script's keys."""
    stats = [node.command("INFO", "errorstats") for node in cluster.nodes]
    return sum(one.get("errorstat_TRYAGAIN", {"count": 0})["count"] for one in stats)


def operations_a_second(*flows: Flow) -> float:
    """Return the enqueues per second that all clients complete, measured over half a second."""
    began = time.monotonic()
    pass_time(0.5)
    return sum(len(flow.since(began)) for flow in flows) / (time.monotonic() - began)


def drained(cluster: Cluster, prefix: str) -> None:
    with cluster.client() as client:
        wait_until(lambda: left_over(client, prefix).keys() <= {"calls"}, timeout=20, every=0.05)


@pytest.mark.faults(50)
@pytest.mark.guarantee(1, 2, 7)
@pytest.mark.parametrize("moves", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_queue_moves_to_another_node_while_it_is_in_use(
    replicated: Cluster,
    prefix: str,
    launch: Launch,
    history: History,
    measured: Measured,
    moves: int,
) -> None:
    """A script cannot run while the keys of its queue are on two nodes. Callers notice only a
    delay."""
    launch(replicated.url, **CONFIG)
    mover, gaps, lasted, before = Mover(replicated, prefix), [], [], tried_again(replicated)
    with (
        Flow(replicated.url, prefix, every=0.001, callers=16) as flow,
        Flow(replicated.url, prefix, every=0.001, blocking=True) as blocking,
    ):
        wait_for(flow, blocking)
        rate = operations_a_second(flow, blocking)
        for _ in range(moves):
            wait_for(flow, blocking)
            began = time.monotonic()
            mover.move(pause=0.25)
            over = time.monotonic()
            wait_for(flow, blocking)
            lasted.append(over - began)
            gaps += [one.longest_gap(began) - (over - began) for one in (flow, blocking)]
    ids = flow.ids | blocking.ids
    wait_until(lambda: ids <= history.ids("end"), timeout=20)
    drained(replicated, prefix)
    measured("slot moved: operations per second before the move", rate)
    measured("slot moved: duration of the longest move, in seconds", max(lasted))
    measured("slot moved: longest gap minus the duration of the move, in seconds", max(gaps))
    measured("slot moved: tasks", len(ids))
    measured("slot moved: calls refused during the moves", tried_again(replicated) - before)
    assert rate >= 500
    assert tried_again(replicated) > before, "no call found the keys on two nodes"
    assert flow.errors + blocking.errors == []
    assert max(gaps) <= 5
    assert set(Counter(event.id for event in history.of("start")).values()) == {1}


def wait_for(*flows: Flow) -> None:
    """Wait until each client has enqueued some more tasks."""
    since = time.monotonic()
    for flow in flows:
        wait_until(lambda flow=flow: len(flow.since(since)) > 30, timeout=30)  # type: ignore[misc]


BY_FORCE = [pytest.param(how, marks=pytest.mark.slow) for how in ("FORCE", "TAKEOVER")]


@pytest.mark.faults(51)
@pytest.mark.guarantee(1, 2, 7)
@pytest.mark.parametrize("how", ["", *BY_FORCE])
def test_replica_takes_over_while_its_primary_is_alive(
    replicated: Cluster, prefix: str, launch: Launch, history: History, measured: Measured, how: str
) -> None:
    """After an orderly failover, no task is lost or run twice. A forced failover may lose recent
    writes."""
    server = launch(replicated.url, **CONFIG)
    holder = replicated.holder(QueueKeys(prefix, QUEUE).key("tasks"))
    at = replicated.nodes.index(holder)
    replica = replicated.nodes[(at + 3) % 6]
    with (
        Flow(replicated.url, prefix, callers=3) as flow,
        Flow(replicated.url, prefix, blocking=True) as blocking,
    ):
        wait_for(flow, blocking)
        began = time.monotonic()
        replica.command("CLUSTER", "FAILOVER", *how.split())
        wait_until(lambda: is_primary(replica), timeout=20)
        over = time.monotonic()
        wait_for(flow, blocking)
        gaps = [one.longest_gap(began) for one in (flow, blocking)]
    ids = flow.ids | blocking.ids
    drained(replicated, prefix)
    lost = ids - history.ids("end")
    wait_until(replicated.settled, timeout=20)
    again = len(history.of("start")) - len(history.ids("start"))
    measured(
        f"failover {how or 'in order'}: longest time without an enqueue, in seconds", max(gaps)
    )
    measured(f"failover {how or 'in order'}: tasks lost", len(lost))
    measured(f"failover {how or 'in order'}: tasks that ran again", again)
    assert flow.errors + blocking.errors == []
    assert max(gaps) <= (5 if how else 2)
    if not how:
        assert (lost, again) == (set(), 0)
    # The old primary may accept writes until it learns of the new primary.
    accepted = {id: at for one in (flow, blocking) for at, id in one.accepted}
    assert all(began - 0.5 <= accepted[id] <= over + 2 for id in lost)
    assert server.running
