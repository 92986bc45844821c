"""Only calls on a queue with flow control use the flow variants of the scripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from qsync.broker import op_values, ops, redis_clients
from qsync.broker.aio import AsyncBroker
from qsync.broker.blocking import Broker
from qsync.broker.op_values import Enqueued
from qsync.broker.script import load
from qsync.keys import QueueKeys
from qsync.new_task import FlowOptions, new_nonce, new_task
from qsync.task import Task
from tests.conftest import Colour
from tests.support.queue_driver import POLICY
from tests.support.stores import Cluster, Store

PLAIN, FLOW = load("enqueue").sha, load("enqueue", flow=True).sha


class Sent:
    """Records the digests of the scripts that a broker sends in each exchange."""

    def __init__(self) -> None:
        self.exchanges: list[list[str]] = []

    def note(self, commands: Sequence[tuple[Any, ...]]) -> None:
        digests = [command[1] for command in commands if command[0] == "EVALSHA"]
        if digests:
            self.exchanges.append(digests)

    def take(self) -> list[list[str]]:
        """Return the exchanges since the last call."""
        taken, self.exchanges = self.exchanges, []
        return taken


class RecordingBroker(Broker):
    sent: Sent

    def _exchange(self, pool: Any, commands: Any, ends: float, *rest: Any) -> list[Any]:
        self.sent.note(commands)
        return super()._exchange(pool, commands, ends, *rest)


class RecordingAsyncBroker(AsyncBroker):
    sent: Sent

    async def _exchange(self, pool: Any, commands: Any, *rest: Any) -> list[Any]:
        self.sent.note(commands)
        return await super()._exchange(pool, commands, *rest)


def recording(colour: Colour, url: str) -> Any:
    cls = RecordingAsyncBroker if colour.name == "async" else RecordingBroker
    broker: Any = cls(redis_clients.parse(url))
    broker.sent = Sent()
    return broker


def close(colour: Colour, broker: Any) -> None:
    colour.do(broker.aclose() if colour.name == "async" else broker.close())


def enqueue(keys: QueueKeys, id: str) -> Any:
    return ops.enqueue(keys, [new_task(Task("x", id=id), new_nonce())])


def queues(client: Any, prefix: str) -> tuple[QueueKeys, QueueKeys]:
    """Return a queue with layout 2, and a queue that does not exist yet."""
    flow, plain = QueueKeys(prefix, "flow"), QueueKeys(prefix, "plain")
    client.hset(flow.key("meta"), "schema", 2)
    return flow, plain


def test_refused_call_is_repeated_in_its_flow_variant_and_remembered(
    colour: Colour, store: Store, prefix: str
) -> None:
    flow, plain = queues(store.client(), prefix)
    for flow_variant in (False, True):
        store.client().script_load(load("enqueue", flow=flow_variant).text)
    broker = recording(colour, store.url)
    assert colour.do(broker.run(enqueue(flow, "a"))) == [Enqueued("created", "a")]
    assert broker.sent.take() == [[PLAIN], [FLOW]]
    assert colour.do(broker.run(enqueue(flow, "b"))) == [Enqueued("created", "b")]
    assert broker.sent.take() == [[FLOW]]
    assert colour.do(broker.run(enqueue(plain, "c"))) == [Enqueued("created", "c")]
    assert broker.sent.take() == [[PLAIN]]
    close(colour, broker)


def test_only_the_refused_calls_of_an_exchange_are_repeated(
    colour: Colour, store: Store, prefix: str
) -> None:
    flow, plain = queues(store.client(), prefix)
    broker = recording(colour, store.url)
    colour.do(broker.run(enqueue(plain, "first")))  # the store has loaded the plain variant
    colour.do(broker.run(ops.enqueue(flow, [flow_task("second")])))
    broker.sent.take()
    calls = [enqueue(plain, "a"), enqueue(flow, "b"), enqueue(plain, "c"), enqueue(flow, "d")]
    replies = colour.do(broker.run_many(calls))
    assert replies == [[Enqueued("created", id)] for id in "abcd"]
    assert broker.sent.take() == [[PLAIN] * 4, [FLOW] * 2]
    colour.do(broker.run_many([enqueue(plain, "e"), enqueue(flow, "f")]))
    assert broker.sent.take() == [[PLAIN, FLOW]]
    assert store.client().zcard(flow.key("pending")) == 4
    close(colour, broker)


def flow_task(id: str) -> Any:
    task = new_task(Task("x", id=id), new_nonce())
    return type(task)(
        task.id, task.queue, task.message, "", "", "", 0, None, flow=FlowOptions(priority=9)
    )


def test_task_with_flow_options_uses_the_flow_variant_at_once(
    colour: Colour, store: Store, prefix: str
) -> None:
    keys = QueueKeys(prefix, "default")
    store.client().script_load(load("enqueue", flow=True).text)
    broker = recording(colour, store.url)
    call = ops.enqueue(keys, [new_task(Task("x", id="a"), new_nonce()), flow_task("b")])
    assert [one.outcome for one in colour.do(broker.run(call))] == ["created", "created"]
    assert broker.sent.take() == [[FLOW]]
    close(colour, broker)


def test_flow_variant_follows_its_queue_in_a_cluster(
    colour: Colour, cluster: Cluster, prefix: str
) -> None:
    keys = QueueKeys(prefix, "flow")
    broker = recording(colour, cluster.url)
    colour.do(broker.run(enqueue(keys, "a")))
    node = next(node for node in cluster.nodes if holds(node.client(), keys))
    node.client().hset(keys.key("meta"), "schema", 2)
    assert colour.do(broker.run(enqueue(keys, "b"))) == [Enqueued("created", "b")]
    broker.sent.take()
    assert colour.do(broker.run(enqueue(keys, "c"))) == [Enqueued("created", "c")]
    assert broker.sent.take() == [[FLOW]]
    close(colour, broker)


def holds(client: Any, keys: QueueKeys) -> bool:
    try:
        return bool(client.exists(keys.key("meta")))
    except Exception:  # e.g. MOVED, because another node has the slot
        return False


@pytest.mark.parametrize("durable", [False, True])
def test_confirmed_enqueue_is_repeated_with_its_wait(
    colour: Colour, store: Store, prefix: str, durable: bool
) -> None:
    flow, _ = queues(store.client(), prefix)
    broker = recording(colour, store.url)
    wait = ops.wait(flow, "replica", timeout_ms=1) if durable else None
    call = ops.enqueue(flow, [new_task(Task("x", id="a"), new_nonce())], wait=wait)
    [outcome] = colour.do(broker.run(call))
    assert outcome == Enqueued("created", "a", False if durable else None)
    close(colour, broker)


async def test_blocking_pop_is_followed_by_the_flow_variant(store: Store, prefix: str) -> None:
    flow, _ = queues(store.client(), prefix)
    broker = AsyncBroker(redis_clients.parse(store.url))
    await broker.run(enqueue(flow, "a"))
    broker.flow_queues.clear()
    [pop] = broker.blocking_pops([flow.key("wake")])
    for number in (1, 2):
        call = ops.fetch(flow, server="s", number=number, wanted=1, policy=POLICY)
        fetched = await pop.pop_then_run(0.01, call)
        assert isinstance(fetched, op_values.FetchResult)
        assert fetched.ids == (["a"] if number == 1 else [])
    await pop.aclose()
    await broker.aclose()
