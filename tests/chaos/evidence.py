"""The evidence of a chaos run: plain data, from which the verdict is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


class Note(NamedTuple):
    """A line that a handler wrote: `start`, then `end`, `fail` or `cancelled`."""

    at: float
    """Time in seconds, by CLOCK_MONOTONIC."""
    pid: int
    kind: str
    id: str
    attempt: int
    crashes: int
    token: str


def read_notes(path: Path) -> list[Note]:
    """Return all lines of a history, in the order of their times."""
    notes = []
    if path.exists():
        for line in path.read_bytes().rpartition(b"\n")[0].decode().splitlines():
            at, pid, kind, id, attempt, crashes, token = line.split(" ")
            notes.append(Note(int(at) / 1e9, int(pid), kind, id, int(attempt), int(crashes), token))
    return sorted(notes)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The tasks that a client tried to enqueue."""

    id: str
    retry: int
    fail: int
    retention: bool
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Trouble:
    """A fault of servers or of the store, with its start and end."""

    kind: str
    begin: float
    end: float
    pid: int | None = None
    clients_only: bool = False


@dataclass(frozen=True, slots=True)
class Dead:
    """A dead task, as stored."""

    error: str
    attempts: int
    crashes: int


@dataclass
class Evidence:
    """All of it. Times are of CLOCK_MONOTONIC.

    accepted  what a call to enqueue returned for
    perhaps   what a call raised for without saying that nothing was written
    refused   what was said to be a duplicate, and of which task
    notes     what the handlers wrote
    troubles  the faults
    counters  of the store
    dead      tasks among the dead
    results   of completed tasks that are kept: the token that the handler returned
    left      what else the queue still holds, by the name of its part
    keys      keys that live for ever
    audit     what `qsync doctor --audit` said, when it found damages
    broken    lines in which workers logged errors: in all of this there is no cause for one
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
