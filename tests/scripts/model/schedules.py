"""The model of the operations on stored schedules."""

from __future__ import annotations

from collections.abc import Sequence

from qsync.broker.op_values import Enqueued
from qsync.broker.schedule_ops import PutOutcome, TickOutcome, TickRow
from qsync.broker.stored_schedules import StoredScheduleRow
from qsync.new_task import NewTask
from tests.scripts.model.queue import Queue


class Schedules(Queue):
    """A queue with the schedules that clients store; schedules that programs publish are left
    out."""

    def _enqueue(self, now: int, tasks: Sequence[NewTask]) -> tuple[list[Enqueued], list[int]]:
        raise NotImplementedError

    def put_schedule(self, now: int, name: str, next_us: int, record: bytes) -> PutOutcome:
        before = self.stored.get(name)
        if before and before.record[8:] == record:
            return PutOutcome(before.stamp, None)
        row = self.stored[name] = StoredScheduleRow(
            name, self._stamp(now, before) + record, next_us
        )
        return PutOutcome(row.stamp, None)

    def delete_schedule(self, now: int, name: str, *, stamp: bytes = b"") -> bool:
        row = self.stored.get(name)
        if row is None or (stamp and row.stamp != stamp):
            return False
        del self.stored[name]
        self.schedule_pauses.pop(name, None)
        return True

    def pause_schedule(self, now: int, name: str, note: bytes) -> bool | None:
        if name not in self.stored:
            return None
        before = self.schedule_pauses.get(name)
        since = str(now).encode() if before is None else before.split()[0]
        self.schedule_pauses[name] = since + b" " + note
        return before is None

    def resume_schedule(self, now: int, name: str) -> bool | None:
        row = self.stored.get(name)
        if row is None:
            return None
        if self.schedule_pauses.pop(name, None) is None:
            return False
        self.stored[name] = row._replace(record=self._stamp(now, row) + row.record[8:])
        self.ticks[name] = max(now, self.ticks.get(name, 0))
        return True

    def tick_schedules(self, now: int, rows: Sequence[TickRow]) -> list[TickOutcome]:
        outcomes = [self._outcome(tick.row) for tick in rows]
        ticked = zip(rows, outcomes, strict=True)
        tasks = [task for tick, outcome in ticked if outcome == "ticked" for task in tick.tasks]
        self._enqueue(now, tasks)
        for tick, outcome in zip(rows, outcomes, strict=True):
            if outcome in ("ticked", "paused"):
                row = self.stored[tick.row.name]
                self.stored[tick.row.name] = row._replace(next_us=tick.next_us)
        return outcomes

    def _outcome(self, read: StoredScheduleRow) -> TickOutcome:
        row = self.stored.get(read.name)
        if row is None:
            return "lost"
        if (row.stamp, row.next_us) != (read.stamp, read.next_us):
            return "changed"
        return "paused" if read.name in self.schedule_pauses else "ticked"

    def _stamp(self, now: int, before: StoredScheduleRow | None) -> bytes:
        """Return the time as a stamp, or one microsecond more if the record already has this
        stamp."""
        stamp = now.to_bytes(8, "big")
        return (now + 1).to_bytes(8, "big") if before and before.stamp == stamp else stamp
