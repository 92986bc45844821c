"""The operations that record and read the last runs of schedules. See `qsync.broker.ops`.

A note states how a run was created and how it ended: `<tick, ms><how><what>`. `<what>` is `-` if
the end is not known, or `m` and the first missed tick. Otherwise, it is `c`, `f` or `x` (completed,
failed, cancelled) and `<lag, ms>,<duration, ms>`; the lag is the time from the tick to the start.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

from qsync.broker.call import Argument, Call, queue_call
from qsync.broker.stored_task import number
from qsync.keys import QueueKeys
from qsync.schedule import tick_id
from qsync.times import datetime_us

Made = Literal["tick", "manual", "backfill"]
Outcome = Literal["completed", "failed", "cancelled", "missed"]

MADE: Final[dict[str, Made]] = {"T": "tick", "M": "manual", "B": "backfill"}
OUTCOMES: Final[dict[str, Outcome]] = {
    "c": "completed", "f": "failed", "x": "cancelled", "m": "missed",
}  # fmt: skip

MISSED: Final = "!"
"""Field that holds the missed ticks of a queue."""

_TICK_ID: Final = re.compile(r"(.{1,110})@(\d{4}-\d\d-\d\dT[\d:.]{8,15})Z")
_ENTRY: Final = re.compile(r"(\d{1,15})([TMB])(-|m\d{1,15}|[cfx]-?\d{1,15},\d{1,15})")


class Note(NamedTuple):
    """A run of a schedule, for `note_runs`.

    An empty `made` keeps the stored value. `schedule` is the schedule's name if the tick was
    missed.
    """

    field: str
    tick_ms: int
    made: str = ""
    what: str = "-"
    schedule: str = ""


class StoredRun(NamedTuple):
    """A noted run. For a missed run, `first_ms` is the first of the ticks that were missed
    together."""

    tick_ms: int
    made: Made
    outcome: Outcome | None = None
    lag_ms: int = 0
    took_ms: int = 0
    first_ms: int | None = None

    @property
    def ended_ms(self) -> int:
        """Time at which the run ended; for a missed run, the time of its tick."""
        return self.tick_ms + self.lag_ms + self.took_ms


class LastRuns(NamedTuple):
    """A schedule's last successful run, and its last failed or missed run. Each is None if no such
    run is recorded."""

    field: str
    success: StoredRun | None
    failure: StoredRun | None


def run_field(name: str) -> str:
    """Return the field of a schedule: the common prefix of its tasks' ids."""
    return tick_id(name, 0).partition("@")[0]


def tick_of(id: str) -> tuple[str, int] | None:
    """Return the field and the tick, in us, of a schedule's task; None for any other task."""
    match = _TICK_ID.fullmatch(id)
    if match is None:
        return None
    try:
        return match[1], datetime_us("time", datetime.fromisoformat(f"{match[2]}+00:00"))
    except ValueError:
        return None


def ended(field: str, tick_us: int, outcome: str, *, begun_us: int, took_ms: int) -> Note:
    """Return the note for a run that ended."""
    lag_ms = (begun_us - tick_us) // 1000
    return Note(field, tick_us // 1000, "", f"{outcome}{lag_ms},{max(0, took_ms)}")


def missed(name: str, tick_us: int, first_us: int) -> Note:
    """Return the note for ticks that no server enqueued; `tick_us` is the last of them."""
    return Note(run_field(name), tick_us // 1000, "", f"m{first_us // 1000}", name)


def note_runs(keys: QueueKeys, notes: Sequence[Note]) -> Call[int]:
    """Record runs, at most 100; return how many were recorded.

    Missed runs of a paused schedule are not noted.
    """
    args: list[Argument] = []
    for note in notes:
        args += (note.field, note.tick_ms, note.made, note.what, note.schedule)
    return queue_call("note_runs", keys, args, int)


def schedule_runs(keys: QueueKeys, names: Sequence[str]) -> Call[list[list[StoredRun]]]:
    """Read the noted runs of schedules, in the order in which they were noted."""

    def decode(reply: Any) -> list[list[StoredRun]]:
        return [_runs(text.decode(errors="replace")) for text in reply]

    fields = tuple(run_field(name) for name in names)
    return queue_call("schedule_runs", keys, fields, decode)


def last_runs(keys: QueueKeys, *, count: int) -> Call[list[LastRuns]]:
    """Read the last success and failure of up to `count` schedules of a queue."""

    def decode(reply: Any) -> list[LastRuns]:
        texts = [text.decode(errors="replace") for text in reply]
        return [
            LastRuns(field, *(next(iter(_runs(text)), None) for text in both))
            for field, *both in zip(texts[::3], texts[1::3], texts[2::3], strict=True)
        ]

    return queue_call("last_runs", keys, (count,), decode)


def missed_runs(keys: QueueKeys) -> Call[list[tuple[str, int]]]:
    """Read which schedules of a queue missed their last tick, and the time of that tick in us."""

    def decode(reply: Any) -> list[tuple[str, int]]:
        pairs = [entry.rpartition("@") for entry in reply[0].decode(errors="replace").split()]
        return [
            (field, number(ms.encode()) * 1000)
            for field, _, ms in pairs
            if number(ms.encode()) and field
        ]

    return queue_call("schedule_runs", keys, (MISSED,), decode)


def _runs(text: str) -> list[StoredRun]:
    runs = []
    for entry in text.split():
        match = _ENTRY.fullmatch(entry)
        if match is None:
            continue
        tick_ms, origin, outcome = int(match[1]), MADE[match[2]], match[3]
        if outcome == "-":
            runs.append(StoredRun(tick_ms, origin))
        elif outcome[0] == "m":
            runs.append(StoredRun(tick_ms, origin, "missed", first_ms=int(outcome[1:])))
        else:
            lag, took = map(int, outcome[1:].split(","))
            runs.append(StoredRun(tick_ms, origin, OUTCOMES[outcome[0]], lag, took))
    return runs
