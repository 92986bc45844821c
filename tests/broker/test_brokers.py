"""The brokers handle cancellation, errors from the store, and scripts that are missing from the
store."""

from __future__ import annotations

import asyncio
import random
import re
import threading
import time
from collections.abc import Callable

import pytest
import uvloop
from redis import exceptions as failures

from qsync import Qsync
from qsync.broker import op_values, ops, redis_clients, registry_ops, views
from qsync.broker.aio import AsyncBroker
from qsync.broker.blocking import Broker
from qsync.broker.error_mapping import Fault, classify
from qsync.errors import ConfigError, QsyncError, QueueFull, StoreUnavailable
from qsync.keys import GlobalKeys, QueueKeys
from qsync.new_task import new_nonce, new_task
from qsync.task import Task
from tests.support.stores import Cluster, Store, free_port, wait_until


@pytest.mark.parametrize("cancelled", [False, True])
async def test_connections_being_opened_are_closed_with_the_pool(
    valkey: Store, cancelled: bool
) -> None:
    broker = AsyncBroker(redis_clients.parse(valkey.url), connections=8)
    for turns in range(12):
        pool = broker._pool_for(None)
        callers = [asyncio.ensure_future(pool.acquire(5.0)) for _ in range(8)]
        for _ in range(turns):
            await asyncio.sleep(0)
        await broker.aclose()
        if cancelled:
            for caller in callers:
                caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        connections = [*pool._pool._available_connections, *pool._pool._in_use_connections]
        assert connections or not turns
        assert not any(connection.is_connected for connection in connections)


async def test_cancellation_at_any_moment_is_raised_and_mixes_up_no_replies(
    store: Store, prefix: str
) -> None:
    """On Python 3.11, asyncio.wait_for, which redis-py uses to send, may swallow a cancellation."""

    broker = AsyncBroker(redis_clients.parse(store.url), connections=4)
    keys = GlobalKeys(prefix)
    outcomes = {"answered": 0, "cancelled": 0}
    turns, draw = 13, random.Random(1)
    for number in range(600):
        call = registry_ops.register(keys, [f"queue{at}" for at in range(number % 50 + 1)])
        task = asyncio.get_running_loop().create_task(broker.run(call))
        for _ in range(draw.randrange(turns)):
            await asyncio.sleep(0)
        asked = task.cancel()
        done, _ = await asyncio.wait({task}, timeout=5)
        assert done, "a cancelled call did not end"
        assert task.cancelled() is asked
        outcomes["cancelled" if asked else "answered"] += 1
        # A busy store replies after more turns of the event loop.
        if outcomes["answered"] < number // 8:
            turns += turns // 4
        if not asked:
            # Earlier calls that were cancelled may or may not have been sent.
            assert 0 <= task.result() <= number % 50 + 1
        # Later calls on the same connections get their own replies.
        size = await broker.run(
            registry_ops.server_heartbeat(keys, f"server{number}", ttl_us=60_000_000)
        )
        assert size == number + 1
    assert min(outcomes.values()) > 50
    await broker.aclose()


@pytest.mark.faults(25)
@pytest.mark.guarantee(7)
def test_calls_survive_a_flush_of_scripts(store: Store, prefix: str) -> None:
    broker = Broker(redis_clients.parse(store.url))
    keys = QueueKeys(prefix, "default")
    stop = threading.Event()

    def flush() -> None:
        with store.client() as client:
            while not stop.wait(0.001):
                client.script_flush("SYNC")

    thread = threading.Thread(target=flush)
    thread.start()
    try:
        for number in range(500):
            task = new_task(Task("x", id=f"t{number}"), new_nonce())
            assert [one.outcome for one in broker.run(ops.enqueue(keys, [task]))] == ["created"]
            answers = broker.run_many([ops.enqueue(keys, [task])] * 3)
            assert [answer[0].outcome for answer in answers if isinstance(answer, list)] == (
                ["created"] * 3
            )
    finally:
        stop.set()
        thread.join()
    with store.client() as client:
        assert client.zcard(keys.key("pending")) == 500
    broker.close()


@pytest.mark.faults(24)
@pytest.mark.guarantee(7)
@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (failures.ConnectionError("gone"), Fault.TRANSIENT),
        (failures.TimeoutError("slow"), Fault.TRANSIENT),
        (failures.BusyLoadingError("loading"), Fault.TRANSIENT),
        (failures.ReadOnlyError("You can't write against a read only replica."), Fault.TRANSIENT),
        (failures.ResponseError("READONLY Can not run script with write flag"), Fault.TRANSIENT),
        (failures.ClusterDownError("CLUSTERDOWN The cluster is down"), Fault.TRANSIENT),
        (failures.MasterDownError("MASTERDOWN Link with MASTER is down"), Fault.TRANSIENT),
        (failures.TryAgainError("TRYAGAIN"), Fault.TRANSIENT),
        (failures.ResponseError("BUSY Redis is busy running a script"), Fault.TRANSIENT),
        (failures.ResponseError("MISCONF Errors writing to the AOF file"), Fault.TRANSIENT),
        (failures.ResponseError("NOREPLICAS Not enough good replicas"), Fault.TRANSIENT),
        (failures.ResponseError("UNKILLABLE Sorry the script"), Fault.TRANSIENT),
        (failures.ResponseError("ERR max number of clients reached"), Fault.TRANSIENT),
        (OSError("no route to host"), Fault.TRANSIENT),
        (failures.OutOfMemoryError("command not allowed"), Fault.FULL),
        (failures.ResponseError("OOM command not allowed"), Fault.FULL),
        (failures.NoPermissionError("this user has no permissions"), Fault.DENIED),
        (failures.AuthenticationError("invalid username-password pair"), Fault.DENIED),
        (failures.ResponseError("DB index is out of range"), Fault.WRONG_STORE),
        (failures.ResponseError("unknown command 'SENTINEL', with args"), Fault.WRONG_STORE),
        (failures.ResponseError("unknown command 'INFO', with args"), Fault.UNSUPPORTED),
        (failures.ResponseError("Unknown Redis command called from script"), Fault.UNSUPPORTED),
        (
            failures.RedisClusterException("Cluster mode is not enabled on this node"),
            Fault.WRONG_STORE,
        ),
        (failures.RedisClusterException("no reachable node"), Fault.TRANSIENT),
        (failures.ResponseError("WRONGTYPE Operation against a key"), Fault.UNEXPECTED),
    ],
)
def test_store_errors_are_classified(error: Exception, fault: Fault) -> None:
    assert classify(error) is fault


@pytest.mark.parametrize("scheme", ["redis+cluster", "redis+sentinel"])
def test_store_of_the_wrong_kind_is_an_error_at_once(
    store: Store, prefix: str, scheme: str
) -> None:
    """The error is raised whether the first call comes from a blocking client, an asyncio client,
    or a starting server."""
    url = store.url.replace("redis", scheme) + "/main" * (scheme == "redis+sentinel")
    app = Qsync(url, prefix=prefix)
    says = f"the store at {re.escape(url)} does not match the URL"

    async def main() -> None:
        async with app.async_client() as client:
            with pytest.raises(ConfigError, match=says):
                await client.enqueue(Task("t"))
        with pytest.raises(ConfigError, match=says):
            await app.aping()
        with pytest.raises(ConfigError, match=says):
            await app.server().start()

    with app.client() as client, pytest.raises(ConfigError, match=says):
        client.enqueue(Task("t"))
    with pytest.raises(ConfigError, match=says):
        app.ping()
    asyncio.run(main())


def test_missing_database_is_an_error_at_once(store: Store, prefix: str) -> None:
    app = Qsync(f"{store.url}/9999", prefix=prefix)
    with app.client() as client, pytest.raises(ConfigError, match="DB index is out of range"):
        client.enqueue(Task("t"))
    with pytest.raises(ConfigError, match="DB index is out of range"):
        app.ping()
    with pytest.raises(ConfigError, match="DB index is out of range"):
        asyncio.run(app.server().start())


def test_cluster_node_is_distinguished_from_single_store(cluster: Cluster, prefix: str) -> None:
    """A server that connects to a single node of a cluster would see only some of its queues. The
    error names the right scheme."""
    [url, *_] = (node.url for node in cluster.nodes)
    app = Qsync(url, prefix=prefix, patience=0)
    with pytest.raises(ConfigError, match=r"is a node of a cluster; use redis\+cluster://"):
        asyncio.run(app.server().start())
    with (
        app.client() as client,
        pytest.raises(StoreUnavailable, match=r"a node of a cluster .*; use redis\+cluster://"),
    ):
        for number in range(100):
            client.enqueue(Task("t"), queue=f"q{number}")


async def test_unreachable_store_is_retried_and_then_reported(prefix: str) -> None:
    port = free_port()
    call = registry_ops.register(GlobalKeys(prefix), ["default"])
    blocking = Broker(redis_clients.parse(f"redis://user:secret@127.0.0.1:{port}"))
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{port}") as raised:
        blocking.run(call, patience=0.3)
    assert 0.1 < time.monotonic() - began < 3
    assert "secret" not in str(raised.value)
    [answer] = blocking.run_many([call])
    assert isinstance(answer, StoreUnavailable)
    blocking.close()

    broker = AsyncBroker(redis_clients.parse(f"redis://127.0.0.1:{port}"))
    with pytest.raises(StoreUnavailable):
        await broker.run(call, patience=0.3)
    with pytest.raises(StoreUnavailable):
        await broker.ping()
    await broker.aclose()


@pytest.mark.parametrize("loop", [None, asyncio.new_event_loop, uvloop.new_event_loop])
def test_overlap_runs_while_the_store_is_busy(
    store: Store, prefix: str, loop: Callable[[], asyncio.AbstractEventLoop] | None
) -> None:
    """`overlap` runs once, after the calls have been sent."""
    keys = GlobalKeys(prefix)
    calls = [registry_ops.register(keys, [f"q{number}"]) for number in range(20)]
    known = registry_ops.register(keys, ["known"])
    seen: list[bool] = []

    def meanwhile() -> None:
        with store.client() as client:
            seen.append(wait_until(lambda: client.scard(keys.queues) > 1))

    async def main() -> list[int | QsyncError]:
        broker = AsyncBroker(redis_clients.parse(store.url))
        await broker.run(known)
        try:
            return await broker.run_many(calls, overlap=meanwhile)
        finally:
            await broker.aclose()

    if loop is None:
        broker = Broker(redis_clients.parse(store.url))
        broker.run(known)
        assert broker.run_many(calls, overlap=meanwhile) == [1] * len(calls)
        broker.close()
    else:
        with asyncio.Runner(loop_factory=loop) as runner:
            assert runner.run(main()) == [1] * len(calls)
    assert seen == [True]


def test_call_before_the_store_starts_is_answered_later(prefix: str) -> None:
    with Store("valkey") as early:
        early.stop()
        broker = Broker(redis_clients.parse(early.url))
        found: list[int] = []
        call = registry_ops.register(GlobalKeys(prefix), ["default"])
        thread = threading.Thread(target=lambda: found.append(broker.run(call, patience=None)))
        thread.start()
        early.restart()
        thread.join(timeout=10)
        assert found == [1]
        broker.close()


@pytest.mark.faults(26)
@pytest.mark.guarantee(7)
def test_full_store_refuses_tasks_and_accepts_all_other_calls(store: Store, prefix: str) -> None:
    broker = Broker(redis_clients.parse(store.url))
    keys = QueueKeys(prefix, "default")
    policy = op_values.FetchPolicy(30_000_000, 3, 1000, 10**12)
    broker.run(ops.enqueue(keys, [new_task(Task("x", id="a"), new_nonce())]))
    client = store.client()
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(QueueFull, match="out of memory"):
            broker.run(ops.enqueue(keys, [new_task(Task("x", id="b"), new_nonce())]))
        fetched = broker.run(ops.fetch(keys, server="s", number=1, wanted=5, policy=policy))
        assert fetched.ids == ["a"]
        held = [op_values.LeaseRef("a", "s/1")]
        assert broker.run(ops.renew(keys, held, lease_us=30_000_000)) == ["ok"]
        with pytest.raises(QueueFull):
            broker.run(
                ops.complete(keys, [op_values.Completion("a", "s/1", 60_000_000, b"x" * 100)])
            )
        assert broker.run(ops.complete(keys, [op_values.Completion("a", "s/1")])) == ["ok"]
    finally:
        client.config_set("maxmemory", 0)
    assert client.hexists(keys.key("tasks"), "b") == 0
    broker.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:6379", "does not begin with"),
        ("http://localhost", "http:// is not a scheme of a store"),
        ("redis://localhost:port", "url"),
        ("redis://localhost/0?nonsense=1", "nonsense"),
        ("redis+sentinel://localhost:26379", "does not name the service"),
        ("redis+cluster://a:1,b:two", "host number 2 is not host:port"),
        ("redis+cluster://a:1/3", "only database 0"),
        ("redis://me:s3cr3t@localhost:99999999/0", "its port is not a number from 0 to 65535"),
        ("redis://me:s3cr3t@localhost/x", "its path is not a database number"),
        ("redis://localhost/-1", "its path is not a database number"),
        ("redis+sentinel://localhost/main/x", "its path is not a database number"),
        ("redis://:s3cr3t/s3cr3t@localhost", "write / as %2F"),
        ("redis+cluster://:s3cr3t?s3cr3t@a:1,b:2", "write / as %2F"),
        ("unix://", "does not name the socket"),
        ("", "url: it is empty; use e.g. redis://localhost:6379"),
    ],
)
def test_wrong_url_error_hides_password(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        redis_clients.parse(url)
    assert "s3cr3t" not in str(raised.value)


def test_address_text_shows_hosts_without_credentials() -> None:
    shown = {
        "redis://u:pw@h:1/2": "redis://h:1/2",
        "redis://u:pw@h:1/0": "redis://h:1",
        "rediss://h": "rediss://h:6379",
        "redis+cluster://u:pw@a:1,b:2": "redis+cluster://a:1,b:2",
        "rediss+sentinel://u:pw@a,b:2/main": "rediss+sentinel://a:26379,b:2/main",
        "redis+sentinel://u:pw@a/main/3": "redis+sentinel://a:26379/main/3",
        "unix:///tmp/s.sock": "unix:///tmp/s.sock",
        "unix:///tmp/s.sock?db=4": "unix:///tmp/s.sock?db=4",
    }
    for url, text in shown.items():
        address = redis_clients.parse(url)
        assert str(address) == text
        assert "pw" not in repr(address)


def test_wrong_password_is_an_error_at_once(prefix: str) -> None:
    with Store("valkey", config={"requirepass": "right"}) as store:
        wrong = store.url.replace("redis://", "redis://:wrong@")
        broker = Broker(redis_clients.parse(wrong))
        with pytest.raises(QsyncError, match="refuses") as raised:
            broker.run(registry_ops.register(GlobalKeys(prefix), ["default"]))
        assert "wrong" not in str(raised.value)
        broker.close()


@pytest.mark.faults(39)
def test_unreachable_store_is_tried_ten_times_a_second_for_any_number_of_callers(
    prefix: str,
) -> None:
    """Each connection is reset as soon as it is open. All calls fail, and none hangs."""
    attempts = 0

    async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        writer.transport.abort()

    async def main() -> float:
        listener = await asyncio.start_server(reset, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        broker = AsyncBroker(redis_clients.parse(f"redis://127.0.0.1:{port}"), patience=1.0)
        began = time.monotonic()
        calls = [
            broker.run(registry_ops.register(GlobalKeys(prefix), ["default"])) for _ in range(50)
        ]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        took = time.monotonic() - began
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
        await broker.aclose()
        listener.close()
        return took

    took = asyncio.run(main())
    # The first calls start together, before any of them has failed.
    assert 50 <= attempts <= 50 + 10 * took + 1


def test_plain_command_gets_a_connection_when_all_are_in_use(store: Store) -> None:
    call = views.get_tasks(QueueKeys("test", "default"), ["a"])

    async def main() -> None:
        broker = AsyncBroker(redis_clients.parse(store.url), connections=1)
        for _ in range(3):
            await broker.run(call)
            await broker.ping()
        runs, pings = [broker.run(call) for _ in range(5)], [broker.ping() for _ in range(5)]
        await asyncio.gather(*runs, *pings)
        await broker.aclose()

    asyncio.run(asyncio.wait_for(main(), 5))


@pytest.mark.faults(90)
def test_callers_get_connections_in_order_of_arrival(store: Store) -> None:
    call = views.get_tasks(QueueKeys("test", "default"), ["a"])

    async def main() -> None:
        broker = AsyncBroker(redis_clients.parse(store.url), connections=3)
        made = [0] * 9

        async def caller(which: int) -> None:
            for _ in range(100):
                await broker.run(call)
                made[which] += 1

        callers = [asyncio.ensure_future(caller(which)) for which in range(9)]
        await asyncio.wait(callers, return_when=asyncio.FIRST_COMPLETED)
        assert min(made) > 90
        await asyncio.gather(*callers)
        await broker.aclose()

    asyncio.run(asyncio.wait_for(main(), 30))


@pytest.mark.faults(49)
async def test_calls_to_a_node_of_a_cluster_wait_for_a_connection(
    cluster: Cluster, prefix: str
) -> None:
    """No call fails because no connection is free, however many calls run concurrently."""

    broker = AsyncBroker(redis_clients.parse(cluster.url), connections=3)
    replies = await broker.run_many([views.counts(QueueKeys(prefix, "q"))] * 100)
    assert [reply for reply in replies if isinstance(reply, QsyncError)] == []
    await broker.aclose()
