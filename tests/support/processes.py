"""Runs servers in separate processes and reads their histories."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import msgspec

from qsync.task import Task
from tests.support.server_main import Plan
from tests.support.stores import _watchdog, wait_until

ROOT: Final = Path(__file__).parents[2]
TICKS: Final = os.sysconf("SC_CLK_TCK")


class Event(NamedTuple):
    """A line of a history."""

    at: float
    """Time in seconds, by CLOCK_MONOTONIC."""
    wall_us: int
    pid: int
    kind: str
    id: str
    attempt: int
    crashes: int


class History:
    """A file to which servers append events; it is read as it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[Event] = []
        self._by_kind: dict[str, list[Event]] = defaultdict(list)
        self._read = 0

    def poll(self) -> list[Event]:
        """Return all events so far."""
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(self._read)
            whole = file.read().rpartition(b"\n")[0]
            self._read += len(whole) + 1 if whole else 0
            for line in whole.decode().splitlines():
                at, wall, pid, kind, id, attempt, crashes = line.split(" ")
                event = Event(
                    int(at) / 1e9, int(wall) // 1000, int(pid), kind, id, int(attempt), int(crashes)
                )
                self.events.append(event)
                self._by_kind[kind].append(event)
        return self.events

    def of(self, kind: str, *, id: str | None = None, pid: int | None = None) -> list[Event]:
        """Return the events of a kind so far, optionally only for one task or one process."""
        self.poll()
        return [
            event
            for event in self._by_kind[kind]
            if (id is None or event.id == id) and (pid is None or event.pid == pid)
        ]

    def ids(self, kind: str) -> set[str]:
        return {event.id for event in self.of(kind)}

    def wait(self, kind: str, count: int, *, timeout: float = 10, **which: Any) -> list[Event]:
        """Wait until there are `count` events of a kind."""

        def enough() -> list[Event] | None:
            found = self.of(kind, **which)
            return found if len(found) >= count else None

        found = wait_until(
            enough, timeout=timeout, message=f"fewer than {count} events {kind!r} in {timeout} s"
        )
        assert found is not None
        return found


class ServerProcess:
    """A server in its own process. A restart creates a new server with the same settings."""

    _numbers = itertools.count(1)

    def __init__(self, url: str, prefix: str, history: History, **config: Any) -> None:
        self.history = history
        self._command = [sys.executable, "-m", "tests.support.server_main", url, prefix]
        threads = config.get("concurrency", 100)  # so that no task waits for a thread
        usual = {"lease": 1.0, "sweep": 0.2, "shutdown_timeout": 2.0, "threads": threads}
        self.config = {**usual, **config}
        self._process: subprocess.Popen[bytes] | None = None
        self.id = ""
        self._log = Path()

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server was never started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        assert not self.running, "the server is running"
        self.id = self.config.get("server_id") or f"server-{next(self._numbers)}"
        self._log = self.history.path.with_name(f"{self.id}.log")
        config = json.dumps({**self.config, "server_id": self.id})
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, str(self.history.path), config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                start_new_session=True,  # Ctrl-C reaches only the tests, and they end this process
            )
        _watchdog().add(self.pid)
        return self

    def wait_ready(self) -> Self:
        """Wait until the server fetches tasks."""

        def ready() -> bool:
            assert self.running, f"the server has exited:\n{self.log()}"
            return " is ready: " in self.log()

        wait_until(ready, message=f"the server is not ready:\n{self.log()}")
        return self

    def log(self) -> str:
        """Return the log so far."""
        return self._log.read_text(errors="replace")

    def cpu_s(self) -> float:
        """Return the CPU time that the process has used, in seconds."""
        # The name of a process may contain spaces. After the name, utime and stime are fields 12
        # and 13.
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def sockets(self) -> set[str]:
        """Return the sockets that the process has open."""
        found = set()
        for file in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.add(str(file.readlink()))
        return {name for name in found if name.startswith("socket:")}

    def kill(self) -> None:
        """Kill the process (SIGKILL), even if it is stopped."""
        if self.running:
            self._signal(signal.SIGKILL)
        if self._process is not None:
            self.wait()

    def pause(self) -> None:
        """Stop the process (SIGSTOP)."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def leap(self) -> None:
        """Change the error of the process's clock from `clock_s` to `-clock_s`."""
        self._signal(signal.SIGUSR1)

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def wait(self, timeout: float = 30) -> int:
        """Wait until the process has exited; return the exit status."""
        assert self._process is not None
        status = self._process.wait(timeout)
        _watchdog().remove(self.pid)
        return status

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


def task(type: str = "work", /, *, plan: Plan | None = None, **options: Any) -> Task:
    """Return a task for the handlers of a ServerProcess. Options that Task does not have go into
    its Plan."""
    own = {name: options.pop(name) for name in Plan.__struct_fields__ if name in options}
    return Task(type, msgspec.to_builtins(plan or Plan(**own)), **options)


def percentile(values: list[float], share: float) -> float:
    """Return the value below which this share (e.g. 0.999) of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
