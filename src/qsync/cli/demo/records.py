"""What the processes of the demo write down, and how the client reads it.

Each process appends to files of its own in the folder that QSYNC_DEMO names, never through the
store that is being tried. A line is one write, so a process that is killed leaves no half of one.
Times are those of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

FOLDER: Final = "QSYNC_DEMO"


def write(name: str, line: str) -> None:
    """The line is in this process's file of that name."""
    os.write(_file(name, os.getpid()), f"{line}\n".encode())


@cache
def _file(name: str, pid: int) -> int:
    path = Path(os.environ[FOLDER]) / f"{name}-{pid}"
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def open_gate() -> None:
    """Let tasks that wait at the gate go on."""
    (Path(os.environ[FOLDER]) / "gate").touch()


def gate_is_open() -> bool:
    """Return whether `open_gate` was called, in any process."""
    return (Path(os.environ[FOLDER]) / "gate").exists()


def note(what: str, *facts: object) -> None:
    """An event of the history."""
    write("history", " ".join(map(str, (what, time.monotonic_ns(), *facts))))


class Start(NamedTuple):
    """A handler began."""

    at: float
    pid: int
    attempt: int
    crashes: int


class End(NamedTuple):
    """A handler ended: done, failed, or stopped from outside."""

    at: float
    pid: int
    how: str


class History:
    """What the servers have written down so far."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}
        self.servers: dict[int, int] = {}
        """pid -> pid of its parent."""
        self.kinds: dict[str, str] = {}
        """id -> type, of every task that ever began."""
        self.starts: dict[str, list[Start]] = defaultdict(list)
        self.ends: dict[str, list[End]] = defaultdict(list)
        self.done: dict[str, set[str]] = defaultdict(set)
        """type -> ids that ended well at least once."""
        self.failed: dict[str, set[tuple[str, int]]] = defaultdict(set)
        """type -> (id, attempt) that failed."""
        self.again: Counter[str] = Counter()
        """type -> how often an attempt was begun once more, its server having died."""
        self.running: dict[int, set[str]] = defaultdict(set)
        """pid -> ids that began there and have not ended."""
        self.stopped: dict[str, float] = {}
        """id -> when its handler was stopped from outside."""

    def poll(self) -> None:
        """Read on."""
        for path in sorted(self._folder.glob("history-*")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                whole, newline, _ = file.read().rpartition(b"\n")
            if newline:
                self._read[path] = self._read.get(path, 0) + len(whole) + 1
                pid = int(path.name.partition("-")[2])
                for line in whole.decode().split("\n"):
                    self._take(pid, line.split(" "))

    def _take(self, pid: int, line: list[str]) -> None:
        what, at = line[0], int(line[1]) / 1e9
        if what == "server":
            self.servers[pid] = int(line[2])
        elif what == "start":
            id, kind, attempt, crashes = line[2], line[3], int(line[4]), int(line[5])
            self.kinds[id] = kind
            if any(start.attempt == attempt for start in self.starts[id]):
                self.again[kind] += 1
            self.starts[id].append(Start(at, pid, attempt, crashes))
            self.running[pid].add(id)
        else:
            self._end(pid, what, at, line[2], int(line[3]))

    def _end(self, pid: int, how: str, at: float, id: str, attempt: int) -> None:
        self.ends[id].append(End(at, pid, how))
        self.running[pid].discard(id)
        if how == "done":
            self.done[self.kinds[id]].add(id)
        elif how == "failed":
            self.failed[self.kinds[id]].add((id, attempt))
        else:
            self.stopped[id] = at

    def is_done(self, id: str) -> bool:
        """Whether it ended well at least once."""
        return any(end.how == "done" for end in self.ends.get(id, ()))


def read_manifest(folder: Path) -> tuple[dict[str, str], int]:
    """What the handlers found, by block; and how many lines said something else than another.

    A task that ran twice wrote its line twice, and a mapping does not mind.
    """
    manifest: dict[str, str] = {}
    contradictions = 0
    for path in sorted(folder.glob("manifest-*")):
        for line in path.read_text("utf-8").splitlines():
            digest, _, block = line.partition(" ")
            contradictions += manifest.setdefault(block, digest) != digest
    return manifest, contradictions
