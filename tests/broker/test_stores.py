"""The helper that starts stores for tests can kill, pause and fail over these stores."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from tests.support.stores import (
    Binary,
    Cluster,
    Sentinel,
    Store,
    available,
    wait_until,
    wait_until_async,
)

binaries = pytest.mark.parametrize(
    "binary",
    [
        pytest.param(name, marks=pytest.mark.skipif(not available(name), reason=f"needs {name}"))
        for name in ("valkey", "redis")
    ],
)


@binaries
def test_store_keeps_port_and_aof_after_kill_and_restart(binary: Binary) -> None:
    with Store(binary, aof=True) as store, store.client() as client:
        url = store.url
        client.set("key", "value")
        store.kill()
        assert not store.running
        assert store.start().url == url
        assert client.get("key") == b"value"
        store.restart()
        assert client.get("key") == b"value"
        store.flush()
        assert client.dbsize() == 0
    assert not store.folder.exists()


@binaries
def test_store_uses_the_given_settings(binary: Binary) -> None:
    with Store(binary, config={"maxmemory": "10mb", "requirepass": "secret"}) as store:
        assert store.command("CONFIG", "GET", "maxmemory") in (
            [b"maxmemory", b"10485760"],
            {b"maxmemory": b"10485760"},
        )
        stranger = store.client(password=None, retry=None)
        with pytest.raises(redis.AuthenticationError), stranger:
            stranger.ping()


@binaries
def test_paused_store_answers_only_after_resume(binary: Binary) -> None:
    with Store(binary) as store:
        store.pause()
        with store.client(socket_timeout=0.05, retry=None) as client:
            with pytest.raises(redis.TimeoutError):
                client.ping()
            store.resume()
            assert client.ping()


@binaries
def test_port_in_use_by_another_process_is_detected(binary: Binary) -> None:
    with Store(binary) as first, pytest.raises(RuntimeError, match="did not start"):
        Store(binary, port=first.port, folder=first.folder).start()


def test_a_killed_test_process_leaves_no_server() -> None:
    program = """
import os, signal
from tests.support.stores import Store
store = Store()
print(store.folder, store.start().port, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    folder, port = done.stdout.decode().split()
    wait_until(lambda: refused(int(port)))
    shutil.rmtree(folder)


def refused(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) != 0


@binaries
def test_a_cluster_forms_and_replaces_a_dead_primary(binary: Binary) -> None:
    with Cluster(binary) as cluster, cluster.client() as client:
        assert cluster.url.count(",") == 5
        for number in range(50):
            client.set(f"key{number}", number)
        primary = cluster.holder("key0")
        primary.kill()
        follower = cluster.nodes[cluster.nodes.index(primary) + cluster.primaries]
        wait_until(lambda: follower.command("ROLE")[0] == b"master")
        wait_until(lambda: b"cluster_state:ok" in follower.command("CLUSTER", "INFO"))
        primary.start()
        wait_until(cluster.settled)
        assert cluster.holder("key0") is follower


@binaries
@pytest.mark.parametrize("sentinels", [1, 3])
def test_sentinels_change_the_primary(binary: Binary, sentinels: int) -> None:
    with Sentinel(binary, sentinels=sentinels) as group, group.client() as client:
        client.set("key", "value")
        old, new = group.primary, group.replica
        group.failover()
        assert (group.primary, group.replica) == (new, old)
        assert client.get("key") == b"value"
        new.kill()
        group.wait_promoted(old)
        assert client.get("key") == b"value"


def test_wait_returns_the_first_true_value() -> None:
    answers = iter([0, "", "yes"])
    assert wait_until(lambda: next(answers)) == "yes"
    with pytest.raises(AssertionError, match="never"):
        wait_until(lambda: False, timeout=0, message="never")
    with pytest.raises(AssertionError, match=r"os\.getpid"):
        wait_until(lambda: os.getpid() < 0, timeout=0)


async def unavailable() -> bool:
    return False


async def test_wait_does_not_block_the_loop() -> None:
    assert await wait_until_async(lambda: 1) == 1
    with pytest.raises(AssertionError, match="never"):
        await wait_until_async(unavailable, timeout=0, message="never")
