"""Durable enqueues wait until the store has the task on disk or on a replica."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from qsync import AsyncClient, ConfigError, Qsync, Task
from qsync.broker import op_values, ops, redis_clients
from qsync.broker.aio import AsyncBroker
from qsync.broker.blocking import Broker
from qsync.keys import QueueKeys
from qsync.new_task import new_nonce, new_task
from tests.conftest import NEEDS, Colour
from tests.support.stores import (
    HOST,
    Cluster,
    Sentinel,
    Store,
    available,
    free_port,
    wait_until,
    wait_until_async,
)

SHORT = 0.1
"""Duration of a wait that is expected to fail, in seconds."""

needs_valkey = pytest.mark.skipif(not available("valkey"), reason=NEEDS["valkey"])


class Pair:
    """A primary with an append-only file, and a replica that can be paused."""

    def __init__(self) -> None:
        self.primary, self.replica = Store("valkey"), Store("valkey")

    def __enter__(self) -> Pair:
        self.primary.start()
        self.replica.start().command("REPLICAOF", HOST, self.primary.port)
        wait_until(lambda: b"state=online" in self.primary_says())
        with self.primary.client() as client:
            client.publish("replicate", "")  # the first acknowledgement may take a second
            assert client.wait(1, 4000) == 1
        return self

    def __exit__(self, *_: object) -> None:
        self.primary.close()
        self.replica.close()

    def primary_says(self) -> bytes:
        with self.primary.client() as client:
            connection: Any = client.connection_pool.get_connection()
            connection.send_command("INFO", "replication")
            text: bytes = connection.read_response()
            client.connection_pool.release(connection)
        return text

    @contextlib.contextmanager
    def silent_replica(self) -> Iterator[None]:
        """Keep the replica connected but prevent its acknowledgements."""
        self.replica.pause()
        try:
            yield
        finally:
            self.replica.resume()


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    if not available("valkey"):
        pytest.skip(NEEDS["valkey"])
    with Pair() as pair:
        yield pair


def stored(store: Store, prefix: str, queue: str = "default") -> int:
    """Return the number of messages in the queue."""
    return int(store.command("HLEN", QueueKeys(prefix, queue).key("tasks")))


def test_a_task_on_disk_is_confirmed(own_store: Store, prefix: str, colour: Colour) -> None:
    client = colour.client(own_store.url, prefix)
    assert colour.do(client.enqueue(Task("t"))).confirmed is None
    assert colour.do(client.enqueue(Task("t"), durability="fsync")).confirmed is True
    many = [Task("t", queue=queue) for queue in ("a", "b") for _ in range(2)]
    handles = colour.do(client.enqueue_many(many, durability="fsync"))
    assert [handle.confirmed for handle in handles] == [True] * 4
    own_store.kill()
    own_store.start()
    assert [stored(own_store, prefix, queue) for queue in ("default", "a", "b")] == [2, 2, 2]


def test_a_task_on_a_replica_is_confirmed(pair: Pair, prefix: str, colour: Colour) -> None:
    client = colour.client(pair.primary.url, prefix, durability="replica")
    assert colour.do(client.enqueue(Task("t"))).confirmed is True
    assert stored(pair.replica, prefix) == 1
    [handle] = colour.do(client.enqueue_many([Task("t")]))
    assert handle.confirmed is True
    assert stored(pair.replica, prefix) == 2


def test_unconfirmed_enqueue_error_has_the_handle(pair: Pair, prefix: str, colour: Colour) -> None:
    client = colour.client(pair.primary.url, prefix, durability="replica", confirm_timeout=SHORT)
    with pair.silent_replica():
        handle = colour.do(client.enqueue(Task("t", id="a")))
        others = colour.do(client.enqueue_many([Task("t", id="b"), Task("t", id="a")]))
    assert (handle.id, handle.created, handle.confirmed) == ("a", True, False)
    assert [(one.id, one.created, one.confirmed) for one in others] == [
        ("b", True, False),
        ("a", False, False),
    ]
    assert stored(pair.primary, prefix) == 2
    [again] = colour.do(client.enqueue_many([Task("t", id="a")]))
    assert (again.created, again.confirmed) == (False, True), "the replica now has the task"
    assert colour.do(handle.info()).id == "a"


def test_connection_lost_during_the_wait_leaves_the_task_unconfirmed(
    pair: Pair, prefix: str, colour: Colour
) -> None:
    client = colour.client(pair.primary.url, prefix, durability="replica", confirm_timeout=60)
    assert colour.do(client.enqueue(Task("t"))).confirmed is True
    with pair.silent_replica():
        waiting = colour.begin(lambda: client.enqueue(Task("t", id="a")))
        with pair.primary.client() as own:
            wait_until(lambda: own.info("clients")["blocked_clients"] == 1)
            [blocked] = [one for one in own.client_list() if "b" in one["flags"]]
            own.client_kill_filter(_id=blocked["id"])
        handle = waiting.result(timeout=10)
    assert (handle.id, handle.created, handle.confirmed) == ("a", True, False)
    assert stored(pair.primary, prefix) == 2


@pytest.mark.parametrize("colour_of", [Broker, AsyncBroker])
def test_a_call_that_is_repeated_is_not_confirmed_by_an_older_write(
    pair: Pair, prefix: str, colour_of: type
) -> None:
    """The reply to the first call is lost; the repeated call writes nothing that WAIT could wait
    for."""
    keys = QueueKeys(prefix, "default")
    tasks = [new_task(Task("t"), new_nonce())]
    call = ops.enqueue(keys, tasks, wait=ops.wait(keys, "replica", timeout_ms=100))

    async def run(broker: Any) -> Any:
        answer = broker.run(call)
        try:
            return answer if isinstance(answer, list) else await answer
        finally:
            if isinstance(broker, Broker):
                broker.close()
            else:
                await broker.aclose()

    with pair.silent_replica():
        for _ in range(2):
            [outcome] = asyncio.run(run(colour_of(redis_clients.parse(pair.primary.url))))
            assert outcome == op_values.Enqueued("created", tasks[0].id, False)
    assert stored(pair.primary, prefix) == 1


def test_enqueues_at_the_same_time_share_a_wait(own_store: Store, prefix: str) -> None:
    async def main() -> None:
        broker = AsyncBroker(redis_clients.parse(own_store.url))
        async with AsyncClient(broker, prefix=prefix, durability="fsync") as client:
            first = await client.enqueue_many([Task("t")] * 2)  # loads the script
            own_store.command("CONFIG", "RESETSTAT")
            handles = await asyncio.gather(*[client.enqueue(Task("t")) for _ in range(2000)])
            assert {handle.confirmed for handle in [*first, *handles]} == {True}

    asyncio.run(main())
    stats = own_store.command("INFO", "commandstats")
    assert stats["cmdstat_waitaof"]["calls"] == 1
    assert stored(own_store, prefix) == 2002


async def test_wait_for_confirmation_does_not_delay_other_callers(pair: Pair, prefix: str) -> None:
    broker = AsyncBroker(redis_clients.parse(pair.primary.url), connections=1)
    async with AsyncClient(broker, prefix=prefix, confirm_timeout=60) as client:
        await client.enqueue(Task("t"), durability="replica")
        with pair.silent_replica():
            waiting = asyncio.ensure_future(client.enqueue(Task("t"), durability="replica"))
            with pair.primary.client() as own:
                await wait_until_async(lambda: own.info("clients")["blocked_clients"] == 1)
            async with asyncio.timeout(5):
                handle = await client.enqueue(Task("t"))
                assert (await handle.info()).state == "pending"
            assert not waiting.done()
        assert (await waiting).confirmed is True


def test_durability_of_the_app_applies_to_its_tasks_and_clients(
    own_store: Store, prefix: str
) -> None:
    app = Qsync(own_store.url, prefix=prefix, durability="fsync", confirm_timeout=5)

    @app.task(name="add")
    def add(a: int, b: int) -> int:
        return a + b

    async def main() -> None:
        async with app, app.async_client() as client:
            assert (await add.enqueue(1, 2)).confirmed is True
            assert (await client.enqueue(Task("t"))).confirmed is True

    asyncio.run(main())
    with app, app.client() as client:
        assert add.enqueue_sync(1, 2).confirmed is True
        assert client.enqueue(Task("t")).confirmed is True


@needs_valkey
def test_task_missing_on_the_replica_was_not_confirmed(prefix: str, colour: Colour) -> None:
    """A replica that is disconnected during enqueues and then promoted has all confirmed tasks."""
    with Pair() as pair:
        client = colour.client(
            pair.primary.url, prefix, durability="replica", confirm_timeout=SHORT
        )
        handles = [colour.do(client.enqueue(Task("t"))) for _ in range(20)]
        pair.replica.command("REPLICAOF", HOST, free_port())
        wait_until(lambda: b"connected_slaves:0" in pair.primary_says())
        handles += [colour.do(client.enqueue(Task("t"))) for _ in range(3)]
        pair.replica.command("REPLICAOF", "NO", "ONE")
        held = pair.replica.command("HKEYS", QueueKeys(prefix, "default").key("tasks"))
    assert [handle.confirmed for handle in handles] == [True] * 20 + [False] * 3
    assert [handle.id.encode() in held for handle in handles] == [True] * 20 + [False] * 3


@needs_valkey
def test_confirmed_task_survives_the_primary(prefix: str) -> None:
    """Enqueues continue while the replica is promoted; afterwards, the replica has all confirmed
    tasks."""
    confirmed: list[str] = []

    async def main(sentinel: Sentinel) -> None:
        broker = AsyncBroker(redis_clients.parse(sentinel.url), patience=30)
        async with AsyncClient(broker, prefix=prefix, confirm_timeout=0.5) as client:

            async def feed() -> None:
                while True:
                    batch = [client.enqueue(Task("t"), durability="replica") for _ in range(20)]
                    handles = await asyncio.gather(*batch)
                    confirmed.extend(handle.id for handle in handles if handle.confirmed)

            feeding = asyncio.create_task(feed())
            await wait_until_async(lambda: len(confirmed) > 100)
            new = sentinel.replica
            sentinel.primary.kill()
            await asyncio.to_thread(sentinel.wait_promoted, new)
            assert not feeding.done()
            handle = await client.enqueue(Task("t"))
            feeding.cancel()
            await asyncio.wait([feeding])
        held = {
            id.decode() for id in new.command("HKEYS", QueueKeys(prefix, "default").key("tasks"))
        }
        assert handle.id in held
        assert set(confirmed) <= held

    with Sentinel() as sentinel:
        asyncio.run(main(sentinel))


# Stores that cannot confirm


def refused(colour: Colour, store: Store, prefix: str, durability: Any) -> str:
    """Check that a durable enqueue fails without writing anything; return its error."""
    client = colour.client(store.url, prefix)
    with pytest.raises(ConfigError, match=r"^durability") as caught:
        colour.do(client.enqueue(Task("t"), durability=durability))
    with pytest.raises(ConfigError, match=r"^durability"):
        colour.do(client.enqueue_many([Task("t")], durability=durability))
    assert store.command("EXISTS", QueueKeys(prefix, "default").key("tasks")) == 0
    assert colour.do(client.enqueue(Task("t"))).confirmed is None
    return str(caught.value)


@needs_valkey
def test_store_without_aof_cannot_confirm_fsync(valkey: Store, prefix: str, colour: Colour) -> None:
    assert "set appendonly to yes" in refused(colour, valkey, prefix, "fsync")


@needs_valkey
def test_store_without_replica_cannot_confirm_replication(
    valkey: Store, prefix: str, colour: Colour
) -> None:
    assert "has no replica" in refused(colour, valkey, prefix, "replica")


def test_old_store_cannot_confirm(redis_store: Store, prefix: str, colour: Colour) -> None:
    version = redis_store.command("INFO", "server")["redis_version"]
    if tuple(map(int, version.split(".")[:2])) >= (7, 2):
        pytest.skip("needs a Redis before 7.2")
    assert "needs Redis 7.2 or Valkey" in refused(colour, redis_store, prefix, "fsync")


def test_file_that_is_never_synced_is_refused(
    own_store: Store, prefix: str, colour: Colour
) -> None:
    own_store.command("CONFIG", "SET", "appendfsync", "no")
    assert "everysec or always" in refused(colour, own_store, prefix, "fsync")
    own_store.command("CONFIG", "SET", "appendfsync", "always")
    client = colour.client(own_store.url, prefix, durability="fsync")
    assert colour.do(client.enqueue(Task("t"))).confirmed is True


def test_a_store_that_hides_its_settings_is_trusted(
    own_store: Store, pair: Pair, prefix: str, colour: Colour
) -> None:
    for store, durability in ((own_store, "fsync"), (pair.primary, "replica")):
        rules = ("on", ">secret", "~*", "&*", "+@all", "-config", "-info")
        store.command("ACL", "SETUSER", "shy", *rules)
        url = store.url.replace("//", "//shy:secret@")
        client = colour.client(url, prefix, durability=durability)
        assert colour.do(client.enqueue(Task("t"))).confirmed is True


def test_missing_right_to_wait_is_reported_before_the_write(
    own_store: Store, pair: Pair, prefix: str, colour: Colour
) -> None:
    for store, durability in ((own_store, "fsync"), (pair.primary, "replica")):
        rules = ("on", ">secret", "~*", "&*", "+@all", "-waitaof", "-wait")
        store.command("ACL", "SETUSER", "hasty", *rules)
        client = colour.client(store.url.replace("//", "//hasty:secret@"), prefix)
        with pytest.raises(ConfigError, match="refuses WAIT"):
            colour.do(client.enqueue(Task("t"), durability=durability))
        assert stored(store, prefix) == 0


def test_invalid_durability_is_refused(own_store: Store, prefix: str, colour: Colour) -> None:
    client = colour.client(own_store.url, prefix)
    for wrong in ("disk", True, b"fsync"):
        with pytest.raises(ConfigError, match="is not 'fsync', 'replica' or None"):
            colour.do(client.enqueue(Task("t"), durability=wrong))
        with pytest.raises(ConfigError, match="is not 'fsync', 'replica' or None"):
            colour.do(client.enqueue_many([Task("t")], durability=wrong))
        with pytest.raises(ConfigError, match="is not 'fsync', 'replica' or None"):
            Qsync(own_store.url, durability=wrong)  # type: ignore[arg-type]
    for seconds in (0, -1, 3601, float("nan"), "1", True):
        with pytest.raises(ConfigError, match=r"^confirm_timeout"):
            Qsync(own_store.url, confirm_timeout=seconds)  # type: ignore[arg-type]


# Clusters


@pytest.fixture(scope="module")
def replicated() -> Iterator[Cluster]:
    if not available("valkey"):
        pytest.skip(NEEDS["valkey"])
    with Cluster(primaries=3, replicas=1, config={"appendonly": "yes"}) as cluster:
        yield cluster


QUEUES = [f"q{number}" for number in range(6)]


def test_each_node_of_a_cluster_confirms_its_own_tasks(
    replicated: Cluster, prefix: str, colour: Colour
) -> None:
    client = colour.client(replicated.url, prefix)
    for durability in ("replica", "fsync"):
        tasks = [Task("t", queue=queue) for queue in QUEUES]
        handles = colour.do(client.enqueue_many(tasks, durability=durability))
        assert [handle.confirmed for handle in handles] == [True] * len(QUEUES)
        assert colour.do(client.enqueue(Task("t"), durability=durability)).confirmed is True


def test_durable_enqueue_follows_a_moved_queue(
    replicated: Cluster, prefix: str, colour: Colour
) -> None:
    client = colour.client(replicated.url, prefix, durability="replica")
    tasks = [Task("t", queue=queue) for queue in QUEUES]
    colour.do(client.enqueue_many(tasks))
    old, new = replicated.nodes[0], replicated.nodes[3]
    if old.command("INFO", "replication")["role"] != "master":
        old, new = new, old
    new.command("CLUSTER", "FAILOVER")
    wait_until(lambda: old.command("INFO", "replication")["role"] == "slave")
    wait_until(lambda: old.command("INFO", "replication")["master_link_status"] == "up")
    wait_until(replicated.settled)
    handles = colour.do(client.enqueue_many(tasks))
    assert [handle.confirmed for handle in handles] == [True] * len(QUEUES)


def test_durable_enqueue_follows_a_queue_that_is_being_moved(
    replicated: Cluster, prefix: str, colour: Colour
) -> None:
    client = colour.client(replicated.url, prefix, durability="fsync")
    with replicated.client() as own:
        key = QueueKeys(prefix, "moving").key("tasks")
        slot = own.keyslot(key)
        source = own.get_node_from_key(key)
        target = next(node for node in own.get_primaries() if node.port != source.port)
        stores = {node.port: node for node in replicated.nodes}
        giver, taker = stores[source.port], stores[target.port]
        ids = [node.command("CLUSTER", "MYID").decode() for node in (giver, taker)]
        taker.command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        giver.command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
        giver.command("CONFIG", "RESETSTAT")
        waiting = colour.begin(lambda: client.enqueue(Task("t", queue="moving")))
        wait_until(lambda: "errorstat_ASK" in giver.command("INFO", "errorstats"))
        for node in (taker, giver):
            node.command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
        assert waiting.result(timeout=10).confirmed is True
        assert stored(taker, prefix, "moving") == 1
