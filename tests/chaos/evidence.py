"""The evidence of a chaos run: plain data on which the verdict is based."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


class Note(NamedTuple):
    """A line that a handler wrote; its kind is `start`, and later `end`, `fail` or `cancelled`."""

    at: float
    """Time in seconds, by CLOCK_MONOTONIC."""
    pid: int
    kind: str
    id: str
    attempt: int
    crashes: int
    token: str


def read_notes(path: Path) -> list[Note]:
    """Return all lines of a history, ordered by time."""
    notes = []
    if path.exists():
        for line in path.read_bytes().rpartition(b"\n")[0].decode().splitlines():
            at, pid, kind, id, attempt, crashes, token = line.split(" ")
            notes.append(Note(int(at) / 1e9, int(pid), kind, id, int(attempt), int(crashes), token))
    return sorted(notes)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A task that a client tried to enqueue."""

    id: str
    retry: int
    fail: int
    retention: bool
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Trouble:
    """A fault of a server or of the store, with its start and end."""

    kind: str
    begin: float
    end: float
    pid: int | None = None
    clients_only: bool = False


@dataclass(frozen=True, slots=True)
class Dead:
    """A dead task, as the store holds it."""

    error: str
    attempts: int
    crashes: int


@dataclass
class Evidence:
    """All evidence of a run. Times are measured with CLOCK_MONOTONIC.

    accepted  tasks whose enqueue returned
    perhaps   tasks whose enqueue raised an error that leaves open whether they were written
    refused   ids of refused duplicates, with the ids of the tasks that they duplicate
    notes     lines that the handlers wrote
    troubles  the faults
    counters  counters of the store
    dead      dead tasks
    results   returned tokens of retained completed tasks
    left      other data that is left in the queue, by key
    keys      keys without a TTL
    audit     output of `qsync doctor --audit`, if it found damage
    broken    log lines of workers about errors that no fault of the run explains
    """

    lease: float
    max_crashes: int
    accepted: dict[str, Wanted] = field(default_factory=dict)
    perhaps: dict[str, Wanted] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    dead: dict[str, Dead] = field(default_factory=dict)
    results: dict[str, str] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    audit: str = ""
    broken: list[str] = field(default_factory=list)
