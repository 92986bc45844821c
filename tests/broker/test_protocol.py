"""Async connections handle replies that arrive in pieces, too late, malformed or not at all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import hiredis
import pytest
import redis.exceptions as failures
import uvloop
from redis.asyncio.connection import Connection

from qsync.broker.protocol import RedisConnection, pack_command
from tests.support.server import until
from tests.support.stores import HOST, Store, wait_until

Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def connected(answer: Answer) -> AsyncIterator[RedisConnection]:
    """Yield a connection to a server that calls this function for each command after the
    handshake."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader()
        while data := await reader.read(65536):
            parser.feed(data)
            while command := parser.gets():
                if command[0] == b"CLIENT":
                    writer.write(b"+OK\r\n")
                else:
                    await answer(command[-1], writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    connection = Connection(host=host, port=port, protocol=2)
    await connection.connect()
    made = RedisConnection(connection)
    try:
        yield made
    finally:
        await connection.disconnect(nowait=True)
        server.close()


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Any], None]:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run(work: Any) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(work, 20))

    return run


async def echo(word: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"$%d\r\n%s\r\n" % (len(word), word))


def test_replies_may_arrive_in_any_pieces(run: Callable[[Any], None]) -> None:
    async def byte_by_byte(word: bytes, writer: asyncio.StreamWriter) -> None:
        for at in range(len(word)):
            writer.write(word[at : at + 1])
            await writer.drain()
            await asyncio.sleep(0)

    async def main() -> None:
        async with connected(byte_by_byte) as one:
            words = [b"+OK\r\n", b":7\r\n", b"-ERR no\r\n", b"*2\r\n$1\r\na\r\n$-1\r\n", b"*-1\r\n"]
            replies = await one.request([("ECHO", word) for word in words], 10)
            assert replies[:2] == [b"OK", 7]
            assert type(replies[2]) is failures.ResponseError
            assert replies[3:] == [[b"a", None], None]
            assert one.is_open
            assert await one.request([("ECHO", words[0])], 10) == [b"OK"]
            packet = pack_command(("ECHO", words[0]))
            [in_pieces] = await one.request([packet], 10, usual_reply=words[0])
            assert in_pieces in (b"OK", words[0])  # the network may merge the pieces
        async with connected(echo) as one:
            packet, usual = pack_command(("ECHO", "a")), b"$1\r\na\r\n"
            assert await one.request([packet], 10, usual_reply=usual) == [usual]
            assert await one.request([packet], 10, usual_reply=b"other") == [b"a"]
            assert await one.request([packet], 10) == [b"a"]

    run(main())


def test_large_data_passes_in_both_directions(run: Callable[[Any], None]) -> None:
    async def main() -> None:
        async with connected(echo) as one:
            words = [bytes([at]) * 3_000_000 for at in range(3)]
            assert await one.request([("ECHO", word) for word in words], 10) == words

    run(main())


def test_late_or_missing_reply_becomes_an_error_in_its_place(
    run: Callable[[Any], None],
) -> None:
    async def some(word: bytes, writer: asyncio.StreamWriter) -> None:
        if word == b"close":
            writer.close()
        elif word != b"silence":
            await echo(word, writer)

    async def main() -> None:
        async with connected(some) as one:
            replies = await one.request([("ECHO", "a"), ("ECHO", "silence"), ("ECHO", "b")], 0.2)
            # The reply to the third command looks like a reply to the second, so no further reply
            # is trusted.
            assert replies[0] == b"a"
            assert isinstance(replies[2], TimeoutError)
            assert not one.is_open
            [again] = await one.request([("ECHO", "c")], 10)
            assert isinstance(again, TimeoutError)
        async with connected(some) as one:
            replies = await one.request([("ECHO", "a"), ("ECHO", "close"), ("ECHO", "b")], 10)
            assert replies[0] == b"a"
            assert all(isinstance(reply, failures.ConnectionError) for reply in replies[1:])
            assert not one.is_open

    run(main())


@pytest.mark.parametrize(
    ("says", "error"),
    [
        (b"nonsense\r\n", failures.InvalidResponse),
        (b"+OK\r\n+more\r\n", failures.InvalidResponse),
        (b"-LOADING Redis is loading the dataset in memory\r\n", failures.BusyLoadingError),
    ],
    ids=["no reply", "a reply too many", "loading"],
)
def test_connection_is_unusable_after_invalid_data(
    run: Callable[[Any], None], says: bytes, error: type[Exception]
) -> None:
    async def wrong(word: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(says)

    async def main() -> None:
        async with connected(wrong) as one:
            [reply] = await one.request([("ECHO", "a")], 10)
            assert isinstance(reply, error)
            assert not one.is_open

    run(main())


def test_connection_closed_by_the_peer_is_not_open(run: Callable[[Any], None]) -> None:
    async def once(word: bytes, writer: asyncio.StreamWriter) -> None:
        await echo(word, writer)
        writer.close()

    async def main() -> None:
        async with connected(once) as one:
            assert await one.request([("ECHO", "a")], 10) == [b"a"]
            await until(lambda: not one.is_open)
            [reply] = await one.request([("ECHO", "b")], 10)
            assert isinstance(reply, failures.ConnectionError)

    run(main())


def test_connection_of_cancelled_exchange_is_not_reused(
    run: Callable[[Any], None],
) -> None:
    async def silence(word: bytes, writer: asyncio.StreamWriter) -> None:
        pass

    async def main() -> None:
        async with connected(silence) as one:
            task = asyncio.ensure_future(one.request([("ECHO", "a")], 10))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not one.is_open

    run(main())


def test_reply_that_arrived_while_the_loop_was_blocked_is_not_late(
    run: Callable[[Any], None], store: Store
) -> None:
    async def main() -> None:
        connection = Connection(host=HOST, port=store.port, protocol=2)
        await connection.connect()
        one = RedisConnection(connection)
        loop = asyncio.get_running_loop()
        loop.call_later(0.05, block_until, time.monotonic() + 0.5)
        [reply] = await one.request([("BLPOP", "no-list", "0.1")], 0.2)
        assert reply is None
        assert one.is_open
        await connection.disconnect(nowait=True)

    run(main())


def test_each_exchange_has_its_own_timeout(run: Callable[[Any], None], store: Store) -> None:
    async def main() -> None:
        connection = Connection(host=HOST, port=store.port, protocol=2)
        await connection.connect()
        one = RedisConnection(connection)
        assert await one.request([("PING",)], 0.1) == [b"PONG"]
        assert await one.request([("BLPOP", "no-list", "0.3")], 5) == [None]
        assert await one.request([("PING",)], 60) == [b"PONG"]
        began = time.monotonic()
        [reply] = await one.request([("BLPOP", "no-list", "5")], 0.2)
        assert isinstance(reply, TimeoutError)
        assert 0.15 < time.monotonic() - began < 3
        assert not one.is_open
        await connection.disconnect(nowait=True)

    run(main())


def block_until(moment: float) -> None:
    wait_until(lambda: time.monotonic() >= moment)
