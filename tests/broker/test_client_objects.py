"""An app copies the settings of a redis-py client that is passed to it, or refuses them by name. It
never drops a setting."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.cluster
import redis.connection
import valkey
import valkey.asyncio
import valkey.asyncio.cluster
import valkey.sentinel

from qsync import ConfigError, Qsync
from qsync.broker import redis_clients
from qsync.task import Task
from tests.support.stores import HOST, Cluster, Store

NODES = [redis.Redis, redis.asyncio.Redis, valkey.Valkey, valkey.asyncio.Valkey]
node = pytest.mark.parametrize("make", NODES, ids=lambda kind: f"{kind.__module__}")


@node
def test_address_and_user_of_the_client_are_copied(make: Any) -> None:
    given: dict[str, Any] = {"username": "u", "password": "p", "db": 3, "client_name": "mine"}
    address = redis_clients.address_of(make(host="h", port=7, socket_connect_timeout=2, **given))
    assert str(address) == "redis://h:7/3"
    settings = {**address.settings}
    settings.pop("socket_keepalive", None)  # only some releases set this by default
    assert settings == {**given, "socket_connect_timeout": 2.0}


@node
def test_plain_client_is_accepted(make: Any, store: Store, prefix: str) -> None:
    with Qsync(make(host=HOST, port=store.port), prefix=prefix) as app, app.client() as client:
        assert client.enqueue(Task("t")).created


@node
def test_tls_settings_are_copied(make: Any) -> None:
    tls = {"ssl_check_hostname": False, "ssl_cert_reqs": "optional", "ssl_ciphers": "HIGH",
           "ssl_min_version": ssl.TLSVersion.TLSv1_3}  # fmt: skip
    address = redis_clients.address_of(make(host="h", ssl=True, **tls))
    assert address.tls
    assert {name: address.settings[name] for name in tls} == tls
    assert (
        str(redis_clients.address_of(make.from_url("unix:///tmp/s?db=2"))) == "unix:///tmp/s?db=2"
    )


@node
def test_disabled_certificate_check_stays_disabled(make: Any) -> None:
    client = make(host="h", ssl=True, ssl_cert_reqs=None, ssl_check_hostname=False)
    assert redis_clients.address_of(client).settings["ssl_cert_reqs"] == "none"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"ssl": True, "ssl_validate_ocsp": True}, "ssl_validate_ocsp: qsync does not know"),
        ({"ssl": True, "ssl_validate_ocsp_stapled": True}, "ssl_validate_ocsp_stapled: qsync"),
        ({"ssl": True, "ssl_ocsp_expected_cert": "x"}, "ssl_ocsp_expected_cert: qsync does not"),
        ({"redis_connect_func": print}, "redis_connect_func: qsync does not know"),
        ({"ssl": True, "ssl_cert_reqs": "maybe"}, "ssl_cert_reqs: must be one of"),
        ({"ssl": True, "ssl_ca_certs": "/no/ca.pem"}, "ssl_ca_certs: there is no such file"),
        ({"ssl": True, "ssl_keyfile": "/no/key.pem"}, "ssl_keyfile: requires ssl_certfile"),
        ({"port": "here"}, "port: must be a number"),
        ({"db": "first"}, "db: must be a database number"),
        ({"host": 7}, "host: must be text"),
        ({"socket_connect_timeout": "soon"}, "socket_connect_timeout: must be a number"),
        ({"password": ["s3cr3t"]}, "password: must be text"),
    ],
)
def test_unsupported_client_option_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"url: the client: {named}") as raised:
        Qsync(redis.Redis(**options))
    assert "s3cr3t" not in str(raised.value)


def test_credentials_from_a_provider_are_kept(prefix: str) -> None:
    provider = redis.UsernamePasswordCredentialProvider("default", "right")
    with Store("valkey", config={"requirepass": "right"}) as store:
        client = redis.Redis(host=HOST, port=store.port, credential_provider=provider)
        with Qsync(client, prefix=prefix) as app:
            assert app.ping() > 0
            assert asyncio.run(app.aping()) > 0


class OwnConnection(redis.connection.Connection):
    """A connection class that, like that of fakeredis, does not connect to a real store."""


class OwnAsyncConnection(redis.asyncio.Connection):
    """An async connection class that does not connect to a real store."""


def test_custom_connection_class_is_refused() -> None:
    pool = redis.ConnectionPool(connection_class=OwnConnection)
    with pytest.raises(ConfigError, match=r"OwnConnection, but qsync opens its own .*embedded://"):
        Qsync(redis.Redis(connection_pool=pool))
    asyncio_pool = redis.asyncio.ConnectionPool(connection_class=OwnAsyncConnection)
    with pytest.raises(ConfigError, match="OwnAsyncConnection"):
        Qsync(redis.asyncio.Redis(connection_pool=asyncio_pool))


@pytest.mark.parametrize("given", [7, b"redis://h", object(), redis.Redis, redis.ConnectionPool()])
def test_non_client_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match="url: pass a URL, or a client of redis-py or valkey-py"):
        Qsync(given)


def moved(address: tuple[str, int]) -> tuple[str, int]:
    return HOST, address[1]


@pytest.mark.parametrize("library", ["redis", "valkey"])
@pytest.mark.parametrize("colour", ["blocking", "asyncio"])
def test_cluster_client_is_accepted(
    cluster: Cluster, library: str, colour: str, prefix: str
) -> None:
    """The app also uses the client's address_remap function."""
    blocking: Any = {"redis": redis.cluster.RedisCluster, "valkey": valkey.ValkeyCluster}
    awaited: Any = {
        "redis": redis.asyncio.cluster.RedisCluster,
        "valkey": valkey.asyncio.cluster.ValkeyCluster,
    }
    make = (blocking if colour == "blocking" else awaited)[library]

    async def main() -> Qsync:
        client = make(host=HOST, port=cluster.nodes[0].port, address_remap=moved)
        app = Qsync(client, prefix=prefix)
        assert redis_clients.address_of(client).finder == {"address_remap": moved}
        await (client.aclose() if colour == "asyncio" else asyncio.to_thread(client.close))
        async with app.async_client() as queue:
            assert (await queue.enqueue(Task("t"))).created
        return app

    with asyncio.run(main()) as app, app.client() as queue:
        assert queue.enqueue(Task("t")).created


def test_valkey_client_made_by_sentinel_is_accepted() -> None:
    finder = valkey.sentinel.Sentinel([("h", 7)], sentinel_kwargs={"password": "p"}, db=2)
    address = redis_clients.address_of(finder.master_for("main", password="q"))
    assert str(address) == "redis+sentinel://h:7/main/2"
    assert address.settings["password"] == "q"
    assert address.finder["password"] == "p"
