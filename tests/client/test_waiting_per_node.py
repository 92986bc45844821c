"""A client that waits for results uses one thread or connection per node, not one per queue."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from qsync import Task, task_queries
from qsync.broker.channels import ChannelEvent, Channels
from qsync.errors import TaskCancelled
from qsync.keys import QueueKeys
from tests.broker.test_cluster_away import move_slot
from tests.conftest import Colour
from tests.support.stores import Cluster, Store, available, wait_until

NAMES = [f"q{at}" for at in range(30)]


@pytest.fixture(scope="module")
def partial() -> Iterator[Cluster]:
    """Yield a cluster that serves the slots of its reachable nodes."""
    if not available("valkey"):
        pytest.skip("needs valkey")
    config = {"cluster-require-full-coverage": "no"}
    with Cluster("valkey", replicas=0, node_timeout_ms=1000, config=config) as cluster:
        yield cluster


@pytest.fixture
def no_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable polling, so that only messages wake callers that wait for a result."""
    monkeypatch.setattr(task_queries, "poll_intervals", lambda: itertools.repeat(1000.0))


def threads() -> int:
    return sum(thread.name.startswith("qsync listener") for thread in threading.enumerate())


def listening(nodes: list[Store]) -> int:
    """Return the number of connections with a subscription."""
    lists = [node.command("CLIENT", "LIST", "TYPE", "pubsub") for node in nodes]
    return sum(len(lines.splitlines()) for lines in lists)


def subscribed(nodes: list[Store], channels: list[str]) -> int:
    """Return how many of these channels have subscribers."""
    found = [node.command("PUBSUB", "SHARDCHANNELS") for node in nodes]
    return len({name.decode() for names in found for name in names} & set(channels))


def begin(colour: Colour, client: Any, names: list[str]) -> tuple[list[Any], list[Any]]:
    """Enqueue a task in each queue; return the handles, and a future for each result."""
    handles = [colour.do(client.enqueue(Task("t", queue=name, retention=60))) for name in names]
    return handles, [colour.begin(each.result) for each in handles]


def assert_cancelled(colour: Colour, handles: list[Any], waits: list[Any]) -> None:
    for each in handles:
        assert colour.do(each.cancel())
    for wait in waits:
        assert isinstance(wait.exception(10), TaskCancelled)


def check_bound(colour: Colour, url: str, nodes: list[Store], prefix: str, most: int) -> None:
    channels = [QueueKeys(prefix, name).done for name in NAMES]
    before = threads(), listening(nodes)
    handles, waits = begin(colour, colour.client(url, prefix), NAMES)
    wait_until(lambda: subscribed(nodes, channels) == len(NAMES), 15)
    assert listening(nodes) - before[1] == most
    assert threads() - before[0] <= most
    assert_cancelled(colour, handles[1:], waits[1:])
    # No caller waits for tasks of the other queues any more.
    wait_until(lambda: subscribed(nodes, channels) == 1, 10)
    assert_cancelled(colour, handles[:1], waits[:1])
    wait_until(lambda: listening(nodes) == before[1], 10)
    wait_until(lambda: threads() == before[0], 10)


def test_waits_on_many_queues_of_a_cluster_use_one_connection_per_node(
    colour: Colour, cluster: Cluster, prefix: str
) -> None:
    check_bound(colour, cluster.url, cluster.nodes, prefix, cluster.primaries)


def test_waits_on_many_queues_of_one_node_use_one_connection(
    colour: Colour, store: Store, prefix: str
) -> None:
    check_bound(colour, store.url, [store], prefix, 1)


@pytest.mark.usefixtures("no_looking")
def test_frozen_node_does_not_delay_waits_on_other_nodes(
    colour: Colour, partial: Cluster, prefix: str
) -> None:
    client = colour.client(partial.url, prefix)
    # The list of servers is also on that node. Calls that wait read the list, to warn about queues
    # without a server.
    silent = partial.holder(f"{prefix}:servers")
    names = [f"q{at}" for at in range(40)]
    at_silent = [name for name in names if partial.holder(QueueKeys(prefix, name).done) is silent]
    others = [name for name in names if name not in at_silent]
    held, _ = begin(colour, client, at_silent[:1])
    old, old_waits = begin(colour, client, others[:5])
    channels = [QueueKeys(prefix, name).done for name in [at_silent[0], *others]]
    wait_until(lambda: subscribed(partial.nodes, channels) == 6, 15)
    silent.pause()
    try:
        new, new_waits = begin(colour, client, others[5:])
        nodes = [node for node in partial.nodes if node is not silent]
        wait_until(lambda: subscribed(nodes, channels) == len(others), 3)
        began = time.monotonic()
        assert_cancelled(colour, old + new, old_waits + new_waits)
        assert time.monotonic() - began < 3
    finally:
        silent.resume()
        wait_until(partial.settled, 30)
    wait_until(lambda: subscribed([silent], channels[:1]) == 1, 20)
    assert colour.do(held[0].info()).queue == at_silent[0]


@pytest.mark.usefixtures("no_looking")
def test_refused_channel_does_not_delay_waits_on_other_queues(
    colour: Colour, own_store: Store, prefix: str
) -> None:
    own_store.command(
        "ACL", "SETUSER", "some", "on", ">secret", "~*", "+@all", "resetchannels",
        f"&{QueueKeys(prefix, 'a').done}",
    )  # fmt: skip
    url = own_store.url.replace("redis://", "redis://some:secret@")
    client = colour.client(url, prefix)
    channels = [QueueKeys(prefix, name).done for name in "ab"]
    handles, waits = begin(colour, client, ["b"])
    others, other_waits = begin(colour, client, ["a"])
    wait_until(lambda: subscribed([own_store], channels) == 1)
    assert colour.do(others[0].cancel())
    assert isinstance(other_waits[0].exception(10), TaskCancelled)
    own_store.command("ACL", "SETUSER", "some", "allchannels")
    wait_until(lambda: subscribed([own_store], channels[1:]) == 1)
    assert colour.do(handles[0].cancel())
    assert isinstance(waits[0].exception(10), TaskCancelled)


@pytest.mark.faults(50)
def test_moved_slot_leaves_the_other_queues_of_its_node_subscribed(
    colour: Colour, partial: Cluster, prefix: str
) -> None:
    channels = [QueueKeys(prefix, name).done for name in NAMES]
    handles, waits = begin(colour, colour.client(partial.url, prefix), NAMES)
    wait_until(lambda: subscribed(partial.nodes, channels) == len(NAMES), 15)
    before = partial.holder(channels[0])
    move_slot(partial, channels[0])
    after = partial.holder(channels[0])
    assert after is not before
    wait_until(lambda: subscribed([after], channels[:1]) == 1, 10)
    assert subscribed([before], channels[:1]) == 0
    assert subscribed(partial.nodes, channels) == len(NAMES)
    assert listening(partial.nodes) == partial.primaries
    began = time.monotonic()
    assert_cancelled(colour, handles, waits)
    assert time.monotonic() - began < 10


def test_channels_are_identified_by_the_order_of_replies() -> None:
    channels = Channels()
    assert channels.commands("ab") == [("SSUBSCRIBE", "a"), ("SSUBSCRIBE", "b")]
    error = ValueError("no")
    assert channels.parse(error) == ChannelEvent("refused", "a", error=error)
    assert channels.parse([b"ssubscribe", b"b", 1]) == ChannelEvent("on", "b")
    assert channels.confirmed == {"b"}
    assert channels.parse([b"smessage", b"b", b"id"]) == ChannelEvent("ended", "b", "id")
    assert channels.ping() == ("PING",)
    assert channels.commands("a") == [("SUNSUBSCRIBE", "b"), ("SSUBSCRIBE", "a")]
    assert channels.parse([b"pong", b""]) is None
    assert channels.parse([b"sunsubscribe", b"b", 0]) is None
    assert channels.parse([b"ssubscribe", b"a", 1]) == ChannelEvent("on", "a")
    assert channels.parse([b"sunsubscribe", b"a", 0]) == ChannelEvent("off", "a")
    assert channels.confirmed == set()
    assert channels.commands("a") == [("SSUBSCRIBE", "a")]
