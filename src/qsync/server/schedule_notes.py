"""Records in the store how the runs of schedules ended, for the schedules' histories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from qsync.broker import schedule_run_ops
from qsync.broker.op_values import Completion, Killed, LeaseRef
from qsync.broker.schedule_run_ops import Note, ended, tick_of
from qsync.keys import QueueKeys
from qsync.server.clock import boot_s
from qsync.server.pipelined_calls import CallPipeline
from qsync.server.queue_state import LeasedTask

NOTES_PER_CALL: Final = 100

_OUTCOMES: Final[dict[type, str]] = {Completion: "c", Killed: "f", LeaseRef: "x"}


class ScheduleNotes:
    """Collects notes on how the runs of one queue ended, and sends them.

    Histories are only shown to users, so notes that the store refuses are dropped.
    """

    def __init__(self, broker: CallPipeline, keys: QueueKeys) -> None:
        self._broker = broker
        self._keys = keys
        self._notes: list[Note] = []

    def settled(self, leased: LeasedTask, record: Any) -> None:
        """If the task belongs to a schedule, note how this record settled the task."""
        outcome, tick = _OUTCOMES.get(type(record)), tick_of(leased.id)
        if outcome is None or tick is None:
            return
        now_us, field = leased.queue.store_time_us(), tick[0]
        took_ms = round((boot_s() - leased.begun_s) * 1000) if leased.begun_s else 0
        begun_us = now_us - took_ms * 1000
        self._notes.append(ended(field, tick[1], outcome, begun_us=begun_us, took_ms=took_ms))

    async def send(self) -> None:
        """Send the collected notes."""
        while self._notes:
            part, self._notes = self._notes[:NOTES_PER_CALL], self._notes[NOTES_PER_CALL:]
            await send_notes(self._broker, self._keys, part)


async def send_notes(broker: Any, keys: QueueKeys, notes: Sequence[Note]) -> None:
    """Send notes, and ignore errors from the store."""
    await broker.run_many(
        [
            schedule_run_ops.note_runs(keys, notes[start : start + NOTES_PER_CALL])
            for start in range(0, len(notes), NOTES_PER_CALL)
        ]
    )
