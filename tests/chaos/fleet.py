"""Runs `qsync worker` as in production: a parent with children that are killed, frozen and
replaced."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final, Self

from tests.support.processes import ROOT
from tests.support.stores import _watchdog, wait_until

STARTED: Final = re.compile(r" started, pid (\d+)")


class Worker:
    """One parent process, its child processes, and their log."""

    _numbers = itertools.count(1)

    def __init__(self, url: str, prefix: str, folder: Path, *options: str) -> None:
        self._log = folder / f"worker-{next(self._numbers)}.log"
        self._environment = {**os.environ, "QSYNC_URL": url, "QSYNC_PREFIX": prefix,
                             "CHAOS_HISTORY": str(folder / "history")}  # fmt: skip
        self._command = [sys.executable, "-m", "qsync", "worker", "tests.chaos.app:app", *options]

    def start(self) -> Self:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        _watchdog().add(self.process.pid)
        return self

    def wait_ready(self, count: int = 1) -> Self:
        """Wait until this many servers in total are ready."""

        def ready() -> bool:
            assert self.running, self.log()
            return self.log().count(" is ready: ") >= count

        wait_until(ready, timeout=30, message=f"not ready:\n{self.log()}")
        return self

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def children(self) -> list[int]:
        """Return the process ids of the live children, oldest first."""
        found = [int(pid) for pid in STARTED.findall(self.log())]
        return [pid for pid in found if _lives(pid, self.process.pid)]

    def kill(self) -> list[int]:
        """Kill all processes together, as the loss of a machine does; return the killed
        children."""
        children = self.children()
        if self.running:
            self.process.kill()
        for pid in children:
            send(pid, signal.SIGKILL)
        self.process.wait(timeout=10)
        _watchdog().remove(self.process.pid)
        for pid in self.children():  # kill children that were being started too
            send(pid, signal.SIGKILL)
        return children

    def stop(self, timeout: float = 20) -> int:
        """Stop gracefully; return the exit code."""
        if self.running:
            self.process.terminate()
        code = self.process.wait(timeout=timeout)
        _watchdog().remove(self.process.pid)
        return code


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _lives(pid: int, parent: int) -> bool:
    """Return whether the process is alive and, unless `parent` has died, still its child."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] != "Z" and (int(fields[1]) == parent or not Path(f"/proc/{parent}").exists())
