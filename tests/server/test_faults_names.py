"""Names of queues and prefixes never collide. Invalid names are refused before any call to the
store."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from qsync import ConfigError, InvalidTask, Mux, Qsync, Task
from qsync.broker import redis_clients
from qsync.broker.aio import AsyncBroker
from qsync.broker.blocking import Broker
from qsync.client import Client
from qsync.diagnostics.audit import Auditor
from qsync.keys import NAME, QUEUE_KEYS, GlobalKeys, QueueKeys
from qsync.server.server import Server

ADDRESS = redis_clients.parse("redis://127.0.0.1:1")

names = st.from_regex(NAME, fullmatch=True) | st.text("A.-_9q", min_size=1, max_size=4)
"""Generates allowed names, many of them similar to each other."""

HOSTILE = (
    "", " ", "a b", "a:b", "{x}", "a}", "*", "a*", "[a]", "a/b", "a\n", "\n", "a\0", "a'b", 'a"',
    "a%", "😀", "é", "А", "a" * 129, "x" * 1024, "a,b", "$(id)", "-@all\r\n", 5, b"a", ["a"],
)  # fmt: skip


def keys_of(prefix: str, queue: str) -> set[str]:
    """Return all keys of a queue and its channel."""
    keys = QueueKeys(prefix, queue)
    return {keys.key(name) for name in QUEUE_KEYS} | {keys.done}


def globals_of(prefix: str) -> set[str]:
    keys = GlobalKeys(prefix)
    return {keys.queues, keys.servers, keys.server("s"), keys.inbox("s"), keys.server("queues")}


@pytest.mark.faults(81)
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(one=st.tuples(names, names), other=st.tuples(names, names))
@example(("a", "b-c"), ("a-b", "c"))
@example(("a", "b"), ("b", "a"))
@example(("a", "queues"), ("a", "servers"))
def test_two_queues_share_no_key(one: tuple[str, str], other: tuple[str, str]) -> None:
    assume(one != other)
    assert keys_of(*one).isdisjoint(keys_of(*other))
    assert keys_of(*one).isdisjoint(globals_of(other[0]) | globals_of(one[0]))
    if one[0] != other[0]:
        assert globals_of(one[0]).isdisjoint(globals_of(other[0]))
    tags = {key.partition("{")[2].partition("}")[0] for key in keys_of(*one)}
    assert tags == {":".join(one)}, "all keys of a queue are in one slot, whatever its name"


@pytest.mark.faults(81)
@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:20])
def test_hostile_name_is_refused_at_once(name: Any) -> None:
    wrong = (InvalidTask, ConfigError)
    for make in (
        lambda: QueueKeys("q", name),
        lambda: QueueKeys(name, "q"),
        lambda: GlobalKeys(name),
        lambda: Task("t", queue=name),
        lambda: Qsync("redis://127.0.0.1:1", prefix=name),
        lambda: Client(Broker(ADDRESS), prefix=name),
        lambda: Auditor(AsyncBroker(ADDRESS), prefix=name),
        lambda: Server(ADDRESS, prefix=name, mux=Mux()),
        lambda: Server(ADDRESS, mux=Mux(), queues={name: 1} if name != ["a"] else [name]),
    ):
        with pytest.raises(wrong) as raised:
            make()
        assert len(str(raised.value)) < 300, "a long name is not repeated in full"
