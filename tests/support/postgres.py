"""Runs a PostgreSQL server for tests, on a socket in a temporary folder, without TCP."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest

from tests.support.stores import wait_until

ACCOUNT: Final = "postgres"
"""System account of Debian's package. If the tests run as root, this account runs the server."""


def program(name: str) -> Path | None:
    """Return the path of this program in the newest installed PostgreSQL, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=_version)
    if found:
        return found[-1]
    path = shutil.which(name)
    return None if path is None else Path(path)


def _version(path: Path) -> int:
    text = path.parents[1].name
    return int(text) if text.isdecimal() else 0


def available() -> bool:
    """Return whether a server can be started on this machine."""
    if program("initdb") is None:
        return False
    return os.geteuid() != 0 or ACCOUNT in {entry.pw_name for entry in pwd.getpwall()}


needs_postgres: Final = pytest.mark.skipif(
    not available(), reason="needs PostgreSQL: apt-get install postgresql"
)


class Postgres:
    """A server with one database, which tests can kill and start again."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="qsync-pg-"))
        self.user = pwd.getpwuid(os.geteuid()).pw_name
        if os.geteuid() == 0:
            self.user = ACCOUNT
            entry = pwd.getpwnam(ACCOUNT)
            os.chown(self.folder, entry.pw_uid, entry.pw_gid)
        self._process: subprocess.Popen[bytes] | None = None
        self._run(
            "initdb", "--pgdata", str(self.folder / "data"), "--auth", "trust", "--no-sync",
            "--encoding", "UTF8", "--no-locale",
        )  # fmt: skip

    @property
    def dsn(self) -> str:
        """Connection string for libpq."""
        return f"host={self.folder} user={self.user} dbname=postgres"

    @property
    def address(self) -> str:
        """URL for SQLAlchemy with psycopg."""
        return f"postgresql+psycopg://{self.user}@/postgres?host={self.folder}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)  # stops the server immediately
            self._process.wait(20)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start the server and wait until it answers.

        After a kill, the server refuses to start until the processes of its connections have ended.
        """
        self._begin()
        wait_until(self._answers, timeout=30)

    def _begin(self) -> None:
        settings = ("listen_addresses=", "fsync=off", "max_connections=200")
        options = [part for setting in settings for part in ("-c", setting)]
        data = str(self.folder / "data")
        self._process = subprocess.Popen(
            self._command("postgres", "-D", data, "-k", str(self.folder), *options),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
            start_new_session=True,
            **self._as_account(),
        )

    def kill(self) -> None:
        """Kill the server, like a crash."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)
            self._process = None

    def _answers(self) -> bool:
        import psycopg

        if self._process is not None and self._process.poll() is not None:
            self._begin()
        try:
            psycopg.connect(self.dsn, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            self._command(name, *arguments),
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            **self._as_account(),
        )
        if done.returncode:
            raise AssertionError(f"{name}: {done.stderr}")

    @staticmethod
    def _command(name: str, *arguments: str) -> list[str]:
        path = program(name)
        if path is None:
            raise AssertionError(f"{name} is not installed")
        return [str(path), *arguments]

    @staticmethod
    def _as_account() -> dict[str, str]:
        return {"user": ACCOUNT, "group": ACCOUNT} if os.geteuid() == 0 else {}
