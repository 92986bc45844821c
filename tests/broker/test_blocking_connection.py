"""Blocking connections handle replies that arrive in pieces, too late, malformed or not at all, and
threads can share the connections of a pool."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import hiredis
import pytest
import redis.exceptions as failures
from redis.connection import Connection

from qsync.broker import redis_clients
from qsync.broker.blocking import Broker
from qsync.broker.blocking_connection import (
    LibraryConnection,
    SocketConnection,
    wrap_connection,
)
from qsync.broker.blocking_pool import Pool
from tests.support.stores import Store, wait_until

Answer = Callable[[bytes, socket.socket], None]
Kind = type[SocketConnection] | type[LibraryConnection]

TIMEOUT_S = 10


ECHO_LATE = hiredis.pack_command(("ECHO", "late"))


@contextmanager
def connected(answer: Answer, kind: Kind = SocketConnection) -> Iterator[SocketConnection]:
    """Yield a connection to a server that calls this function for each command after the
    handshake."""

    def serve() -> None:
        sock, _ = listener.accept()
        parser = hiredis.Reader()
        with sock:
            while data := received(sock):
                parser.feed(data)
                while command := parser.gets():
                    if command[0] == b"CLIENT":
                        sock.sendall(b"+OK\r\n")
                    else:
                        with suppress(OSError):  # the peer has closed the connection
                            answer(command[-1], sock)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve)
        server.start()
        host, port = listener.getsockname()
        connection = Connection(host=host, port=port, protocol=2)  # type: ignore[no-untyped-call]
        connection.connect()
        made = wrap_connection(connection, TIMEOUT_S)
        if kind is LibraryConnection:
            made = LibraryConnection(connection, TIMEOUT_S)
        assert type(made) is kind
        try:
            yield made  # type: ignore[misc]
        finally:
            connection.disconnect()
            server.join()


def received(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65536)
    except OSError:
        return b""


def echo(word: bytes, sock: socket.socket) -> None:
    if word == b"close":
        sock.shutdown(socket.SHUT_RDWR)
    elif word != b"silence":
        sock.sendall(b"$%d\r\n%s\r\n" % (len(word), word))


both = pytest.mark.parametrize("kind", [SocketConnection, LibraryConnection])


@both
def test_replies_may_arrive_in_any_pieces_and_sizes(kind: Kind) -> None:
    def byte_by_byte(word: bytes, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(word)):
            sock.sendall(word[at : at + 1])

    with connected(byte_by_byte, kind) as one:
        words = [b"+OK\r\n", b":7\r\n", b"-ERR no\r\n", b"*2\r\n$1\r\na\r\n$-1\r\n", b"*-1\r\n"]
        replies = one.request([("ECHO", word) for word in words], None)
        assert replies[:2] == [b"OK", 7]
        assert type(replies[2]) is failures.ResponseError
        assert replies[3:] == [[b"a", None], None]
        assert one.is_usable()
        assert one.error is None
        assert one.request([("ECHO", words[0])], time.monotonic() + 9) == [b"OK"]
    with connected(echo, kind) as one:
        seen = []
        words = [bytes([at]) * 300_000 for at in range(3)]
        assert (
            one.request([("ECHO", word) for word in words], None, lambda: seen.append(1)) == words
        )
        assert seen == [1]


@both
def test_error_takes_the_place_of_each_missing_reply(kind: Kind) -> None:
    with connected(echo, kind) as one:
        began = time.monotonic()
        replies = one.request([("ECHO", "a"), ("ECHO", "silence")], began + 0.2)
        assert replies[0] == b"a"
        assert isinstance(replies[1], failures.TimeoutError | TimeoutError)
        assert 0.1 < time.monotonic() - began < TIMEOUT_S / 2
        assert one.error is replies[1]
    with connected(echo, kind) as one:
        replies = one.request([("ECHO", "a"), ("ECHO", "close"), ("ECHO", "b")], None)
        assert replies[0] == b"a"
        assert all(isinstance(reply, failures.ConnectionError) for reply in replies[1:])
        assert one.error is replies[1] is replies[2]


def test_each_exchange_has_its_own_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.delattr("select.poll")  # as on Windows
        with connected(echo) as one:
            assert one.request([("ECHO", "a")], time.monotonic() + 0.5) == [b"a"]
            assert one.raw._sock.gettimeout() < 1
            assert one.request([("ECHO", "a")], None) == [b"a"]
            assert one.raw._sock.gettimeout() == TIMEOUT_S
            assert one.is_usable()
    with connected(echo) as one:
        waits = []
        poll = one._poll
        one._poll = lambda ms: waits.append(ms) or poll(ms)
        assert one.request([("ECHO", "a")], time.monotonic() + 0.5) == [b"a"]
        assert one.request([("ECHO", "a")], None) == [b"a"]
        assert waits == []  # no call to `_poll`, because the kernel waited
        for until, limit_ms in ((time.monotonic() + 0.5, 500), (None, TIMEOUT_S * 1000)):
            sent = threading.Timer(0.1, lambda: one.raw._sock.sendall(ECHO_LATE))
            sent.start()
            assert one.request([("ECHO", "silence")], until) == [b"late"]
            sent.join()
            assert limit_ms - 450 < waits.pop() <= limit_ms
        assert one.raw._sock.gettimeout() is None


def test_packet_succeeds_only_with_the_expected_reply() -> None:
    with connected(echo) as one:
        packet = hiredis.pack_command(("ECHO", "a"))
        assert one.converse(packet, b"$1\r\na\r\n")
        assert not one.converse(packet, b"$1\r\nb\r\n")
        assert one.error is None
        assert one.request([("ECHO", "c")], None) == [b"c"]
        one._timeout = 0.05
        assert not one.converse(hiredis.pack_command(("ECHO", "silence")), b"+OK\r\n")
        assert isinstance(one.error, failures.TimeoutError)


def test_command_that_the_peer_does_not_read_times_out() -> None:
    sent = threading.Event()

    def stop_reading(word: bytes, sock: socket.socket) -> None:
        echo(word, sock)
        sent.wait(TIMEOUT_S)

    with connected(stop_reading) as one:
        assert one.request([("ECHO", "a")], None) == [b"a"]
        began = time.monotonic()
        [reply] = one.request([("ECHO", b"x" * 64_000_000)], began + 0.2)
        assert isinstance(reply, failures.TimeoutError)
        assert one.error is reply
        assert 0.1 < time.monotonic() - began < TIMEOUT_S / 2
        sent.set()


def test_signals_do_not_postpone_the_timeout_of_an_exchange() -> None:
    previous = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        with connected(echo) as one:
            began = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
            [reply] = one.request([("ECHO", "silence")], began + 0.3)
            assert isinstance(reply, failures.TimeoutError)
            assert 0.2 < time.monotonic() - began < TIMEOUT_S / 2
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@pytest.mark.parametrize(
    ("says", "error"),
    [
        (b"nonsense\r\n", failures.InvalidResponse),
        (b"+OK\r\n+more\r\n", failures.InvalidResponse),
        (b"-LOADING Redis is loading the dataset in memory\r\n", failures.BusyLoadingError),
    ],
    ids=["no reply", "a reply too many", "loading"],
)
def test_unexpected_reply_breaks_the_connection(says: bytes, error: type[Exception]) -> None:
    with connected(lambda _, sock: sock.sendall(says)) as one:
        [reply] = one.request([("ECHO", "a")], None)
        assert isinstance(reply, error)
        assert one.error is reply


@both
@pytest.mark.parametrize("says", [b"+unasked\r\n", None], ids=["data", "close"])
def test_idle_connection_with_data_or_without_peer_is_not_usable(
    kind: Kind, says: bytes | None
) -> None:
    peers: list[socket.socket] = []

    def keep(word: bytes, sock: socket.socket) -> None:
        peers.append(sock)
        echo(word, sock)

    with connected(keep, kind) as one:
        assert one.request([("ECHO", "a")], None) == [b"a"]
        assert one.is_usable()
        if says is None:
            peers[0].shutdown(socket.SHUT_RDWR)
        else:
            peers[0].sendall(says)
        wait_until(lambda: not one.is_usable())


def test_interrupt_during_an_exchange_leaves_no_reply_to_the_next_caller(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Broker(redis_clients.parse(store.url), connections=1)
    assert broker.ask("ECHO", "a") == b"a"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SocketConnection, "_receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            broker.ask("ECHO", "b")
    assert broker.ask("ECHO", "c") == b"c"
    with monkeypatch.context() as patch:
        patch.setattr(Pool, "_connect", interrupted)
        broker.close()
        with pytest.raises(KeyboardInterrupt):
            broker.ask("ECHO", "d")
    assert broker.ask("ECHO", "e") == b"e", "the pool has a free connection again"
    broker.close()


def test_threads_wait_for_one_of_few_connections(store: Store) -> None:
    broker = Broker(redis_clients.parse(store.url), connections=2, read_timeout=5)
    before = store.command("INFO", "stats")["total_connections_received"]

    def ask(number: int) -> bool:
        return all(
            broker.ask("ECHO", f"{number} {at}") == b"%d %d" % (number, at) for at in range(50)
        )

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(ask, range(32)))
    assert store.command("INFO", "stats")["total_connections_received"] - before <= 3
    assert len(broker._pool_for(None)._free) == 2

    with ThreadPoolExecutor(2) as threads:
        pool = broker._pool_for(None)
        held = [pool.acquire(time.monotonic() + 5) for _ in range(2)]
        began = time.monotonic()
        with pytest.raises(failures.TimeoutError, match="in use"):
            pool.acquire(time.monotonic() + 0.05)
        assert time.monotonic() - began < 4
        waiting = [threads.submit(pool.acquire, time.monotonic() + 20) for _ in range(2)]
        wait_until(lambda: pool._waiting == 2)
        pool.release(held[0])
        wait_until(lambda: pool._waiting == 1)
        pool.discard(held[1])  # this frees a slot for the other caller
        taken = [future.result(20) for future in waiting]
        assert held[0] in taken
        assert held[1] not in taken
        for connection in taken:
            pool.release(connection)
    broker.close()
