"""The proxy causes the faults that it promises, and never delivers a reply to the wrong command."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from tests.chaos.proxy import Proxy
from tests.chaos.resp import Frames
from tests.support.stores import HOST, Store, wait_until


@pytest.fixture
def proxy(valkey: Store) -> Iterator[Proxy]:
    valkey.flush()
    with Proxy(valkey.port) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[redis.Redis]:
    with connected(proxy) as client:
        yield client


def connected(proxy: Proxy, **options: Any) -> redis.Redis:
    retry = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
    options = {"socket_timeout": 5, "retry": retry, "protocol": 2, **options}
    return redis.Redis(host=HOST, port=proxy.port, **options)


def test_stream_is_cut_into_frames_at_any_break() -> None:
    frames = [
        b"+OK\r\n", b":1\r\n", b"-ERR no\r\n", b"$-1\r\n", b"$0\r\n\r\n", b"$4\r\n\r\n*3\r\n",
        b"*-1\r\n", b"*0\r\n", b"*2\r\n*1\r\n$1\r\na\r\n:5\r\n", b"*1\r\n$3\r\n$1\r\r\n",
    ]  # fmt: skip
    stream = b"".join(frames)
    chance = random.Random(1)
    for _ in range(200):
        cutter, found, at = Frames(), [], 0
        while at < len(stream):
            step = chance.randrange(1, 9)
            found += cutter.feed(stream[at : at + step])
            at += step
        assert found == frames
        assert cutter.rest() == b""


def test_proxy_forwards_commands_replies_and_messages(proxy: Proxy, client: redis.Redis) -> None:
    large = random.Random(2).randbytes(1 << 20)
    client.set("large", large)
    assert client.get("large") == large
    with client.pipeline(transaction=False) as pipe:
        for n in range(100):
            pipe.echo(str(n))
        assert pipe.execute() == [str(n).encode() for n in range(100)]
    with client.pubsub() as pubsub:
        pubsub.subscribe("news")
        assert pubsub.get_message(timeout=5)["type"] == "subscribe"
        client.publish("news", "hello")
        assert pubsub.get_message(timeout=5)["data"] == b"hello"
    assert client.blpop(["nothing"], timeout=0.01) is None


def test_planned_errors_replace_only_their_replies(proxy: Proxy, client: redis.Redis) -> None:
    client.ping()
    answer = proxy.answer("BUSY try later", share=0.3)
    for _ in range(20):
        with client.pipeline(transaction=False) as pipe:
            for n in range(50):
                pipe.echo(str(n))
            replies = pipe.execute(raise_on_error=False)
        for n, reply in enumerate(replies):
            assert reply == str(n).encode() or "try later" in str(reply), reply
    assert 100 < answer.given < 500
    proxy.heal()
    proxy.answer("OOM no memory", count=2, only=b"SET")
    for _ in range(2):
        assert client.echo("a") == b"a"
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            client.set("a", 1)
    assert client.get("a") is None
    client.set("a", 1)


def test_command_with_a_lost_reply_was_executed(
    valkey: Store, proxy: Proxy, client: redis.Redis
) -> None:
    client.ping()
    proxy.down.cut = 1.0
    with pytest.raises(redis.exceptions.ConnectionError):
        client.incr("n")
    assert valkey.command("GET", "n") == b"1"
    proxy.heal()
    with connected(proxy, socket_timeout=0.1) as hasty:
        hasty.ping()
        proxy.down.swallow = 1.0
        with pytest.raises(redis.exceptions.TimeoutError):
            hasty.incr("n")
        assert valkey.command("GET", "n") == b"2"
        proxy.heal()
        proxy.up.cut = 1.0
        with pytest.raises(redis.exceptions.ConnectionError):
            hasty.incr("n")
        assert valkey.command("GET", "n") == b"2"


def test_delay_applies_until_it_is_lifted(proxy: Proxy, client: redis.Redis) -> None:
    client.ping()
    proxy.up.delay = proxy.down.delay = 0.05
    began = time.monotonic()
    client.ping()
    assert time.monotonic() - began >= 0.1
    proxy.heal()
    fastest = 1.0
    for _ in range(10):
        began = time.monotonic()
        client.ping()
        fastest = min(fastest, time.monotonic() - began)
    assert fastest < 0.05


@pytest.mark.parametrize("forget", [True, False])
def test_a_black_hole_holds_everything(proxy: Proxy, forget: bool) -> None:
    proxy.forget = forget
    with (
        connected(proxy, socket_timeout=0.1) as before,
        connected(proxy, socket_timeout=0.3) as during,
    ):
        connection: Any = before.connection_pool.get_connection()
        connection.send_command("PING")
        assert connection.read_response() == b"PONG"
        proxy.up.hole = proxy.down.hole = True
        connection.send_command("ECHO", "late")
        assert not connection.can_read(timeout=0.2)
        with pytest.raises(redis.exceptions.TimeoutError):
            during.ping()
        proxy.heal()
        assert connection.can_read(timeout=0.3 if forget else 5) is not forget
        if not forget:
            assert connection.read_response() == b"late"
        before.connection_pool.disconnect()
        assert before.ping(), "a new connection passes"


def test_connections_are_reset_half_closed_and_refused(proxy: Proxy) -> None:
    def opened() -> socket.socket:
        connection = socket.create_connection((HOST, proxy.port), timeout=5)
        connection.sendall(b"*1\r\n$4\r\nPING\r\n")
        assert connection.recv(100) == b"+PONG\r\n"
        return connection

    with opened() as one:
        assert proxy.reset() == 1
        with pytest.raises(ConnectionResetError):
            one.recv(100)
    wait_until(lambda: proxy.open == 0)
    with opened() as one:
        assert proxy.half_close() == 1
        assert one.recv(100) == b""
        before = proxy.commands
        one.sendall(b"*1\r\n$4\r\nPING\r\n")
        wait_until(lambda: proxy.commands == before + 1)
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        opened()
    proxy.heal()
    opened().close()
