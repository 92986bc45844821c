"""The store of a test session, and each test's clock and prefix."""

from __future__ import annotations

import atexit
import itertools
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Final

from qsync.broker import redis_clients, views
from qsync.broker.address import Address
from qsync.broker.blocking import Broker
from qsync.embedded import valkey_program
from qsync.errors import ConfigError, QsyncError, StoreUnavailable
from qsync.keys import QUEUE_KEYS, GlobalKeys, QueueKeys

PREFIX: Final = "qsync-test-"
"""Text with which the prefix of each test begins."""

START_TIMEOUT_S: Final = 30.0
"""Time limit for the start of a store, in seconds."""

WATCHED: Final = '"$0" "$@" & store=$!; read -r _; kill $store; wait $store'
"""Shell program that runs a store until its standard input closes, i.e. until this process ends."""

LOOKED_AT: Final = 100_000
"""Maximum number of keys to search, in a store with a URL, for queues that no test created."""


class Clock:
    """The time that scripts receive, which is the real time plus the time that tests have added."""

    def __init__(self) -> None:
        self.ahead_us = 0

    def now_us(self) -> int:
        """Return the time in microseconds."""
        return time.time_ns() // 1000 + self.ahead_us


class SessionStore:
    """A store that the tests of this process share; each test has a unique prefix."""

    def __init__(self, address: Address, *, private: bool) -> None:
        self._address = address
        self._private = private
        self._broker = Broker(address)
        self._numbers = itertools.count(1)
        self._session = secrets.token_hex(4)

    def of_test(self) -> TestStore:
        """Return one test's view of the store."""
        return TestStore(self._address, f"{PREFIX}{self._session}-{next(self._numbers)}", self)

    def check_is_for_tests(self) -> None:
        """Raise ConfigError if the store has a queue with another prefix."""
        if self._private:
            return
        for key in self._keys(f"*:{GlobalKeys('x').queues.partition(':')[2]}"):
            if not key.startswith(PREFIX):
                raise ConfigError(
                    f"advance: the store at {self._address} has queues of the prefix "
                    f"{key.rpartition(':')[0]!r}, so it is not for tests alone; set QSYNC_TEST_URL "
                    "or qsync_test_url to a store for tests, or set neither to use a private store"
                )

    def _keys(self, pattern: str) -> Iterator[str]:
        if self._address.kind == "cluster":
            raise ConfigError(
                "advance: a cluster cannot be searched for queues that no test created; set "
                "QSYNC_TEST_URL or qsync_test_url to a store of one node"
            )
        cursor, seen = b"0", 0
        while seen < LOOKED_AT:
            reply = self._broker.ask("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
            if reply is None:
                raise ConfigError(f"advance: the store at {self._address} refuses SCAN")
            cursor, keys = reply
            seen += 1000
            yield from (key.decode(errors="replace") for key in keys)
            if cursor == b"0":
                return

    def delete(self, prefix: str) -> None:
        """Delete the queues that have this prefix."""
        keys = GlobalKeys(prefix)
        try:
            names = self._broker.run(views.queues(keys)).names
            for name in names:
                of_queue = QueueKeys(prefix, name)
                self._broker.ask("UNLINK", *of_queue.names(tuple(QUEUE_KEYS)), key=of_queue.base)
            for key in keys.lasting:
                self._broker.ask("UNLINK", key, key=key)
        except QsyncError:
            return  # a test may have stopped the store


class TestStore:
    """The prefix and the clock of one test."""

    __test__ = False  # tell pytest that this class is not a test

    def __init__(self, address: Address, prefix: str, session: SessionStore) -> None:
        self.clock: Clock = Clock()
        self.prefix = prefix
        self.session = session
        self.address: Address = replace(address, clock=self.clock.now_us)
        self.broker: Broker = Broker(self.address)

    def close(self) -> None:
        """Delete the test's data."""
        self.broker.close()
        self.session.delete(self.prefix)


@cache
def _session_store(url: str, pid: int) -> SessionStore:
    if url:
        return SessionStore(redis_clients.parse(url), private=False)
    return SessionStore(Address("node", settings={"path": _start_store()}), private=True)


def session_store(url: str = "") -> SessionStore:
    """Return this process's store at this URL; if the URL is empty, start a private store."""
    if url.startswith("embedded://"):
        raise ConfigError(
            "QSYNC_TEST_URL: without it, tests start a private store; unset it, or set redis://..."
        )
    return _session_store(url, os.getpid())


def _start_store() -> str:
    """Start a Valkey that ends with this process, and return the path of its socket."""
    folder = Path(tempfile.mkdtemp(prefix="qsync-", dir=_short_folder()))
    path = folder / "s"
    settings = {
        "port": "0", "unixsocket": str(path), "unixsocketperm": "700", "dir": str(folder),
        "save": "", "appendonly": "no", "maxmemory-policy": "noeviction",
    }  # fmt: skip
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    with (folder / "log").open("wb") as log:
        watch = subprocess.Popen(  # noqa: S603 - a path from the wheel
            ["/bin/sh", "-c", WATCHED, valkey_program(), *words],
            stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    owner = os.getpid()

    def end() -> None:
        if os.getpid() == owner and watch.stdin is not None:
            watch.stdin.close()
            watch.wait()
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    ends = time.monotonic() + START_TIMEOUT_S
    while not _answers(path):
        if watch.poll() is not None or time.monotonic() > ends:
            said = (folder / "log").read_text(errors="replace")[-2000:]
            raise StoreUnavailable(f"the store for tests did not start:\n{said}")
        time.sleep(0.002)
    return str(path)


def _answers(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False


def _short_folder() -> str | None:
    """Return a folder for a socket, whose path may have at most 108 bytes; None means the
    default."""
    return "/tmp" if len(tempfile.gettempdir()) > 60 else None  # noqa: S108 - mkdtemp is private
