"""Tells the store how tasks ended, in batches of whatever ended while the last batch was under way.

Each queue has its own settler, so that a queue whose node is away holds up no other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from qsync import codec
from qsync.backoff import AWAY_CAP_S, Backoff
from qsync.broker import ops
from qsync.broker.call import Call
from qsync.broker.ops import BATCH, Done, HandedBack, Held, Killed, Retried
from qsync.broker.shell import AsyncBroker
from qsync.errors import QsyncError, QueueFull
from qsync.server.lane import SETTLING, Lane, Leased
from qsync.server.tally import Tally
from qsync.task import Result

log = logging.getLogger("qsync.server")

Record = Done | Retried | Killed | HandedBack | Held
Entry = tuple[Leased | None, Record]

_NO_ROOM = codec.encode(Result(error="the store had no memory for the result"))

_VERBS: dict[type, tuple[str, Callable[..., Call[list[ops.Outcome]]]]] = {
    Done: ("complete", ops.complete),
    Retried: ("retry", ops.retry),
    Killed: ("kill", ops.kill),
    HandedBack: ("hand back", ops.hand_back),
    Held: ("cancel", ops.end_cancelled),
}


class Settler:
    """Settles the tasks of one queue."""

    def __init__(self, broker: AsyncBroker, lane: Lane, on_lost: Callable[[int], None]) -> None:
        self._broker = broker
        self.lane = lane
        self._on_lost = on_lost
        self.on_settled: Callable[[], None] | None = None
        """Called after the store has taken some."""
        self.tally: Tally | None = None
        """Counts how runs ended, when somebody wants to know."""
        self._waiting: list[Entry] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def add(self, leased: Leased | None, record: Record) -> None:
        """Have a task settled; until the store has answered its lease is kept up."""
        if leased is not None:
            leased.phase = SETTLING
        if not self._waiting:
            self._wake.set()
            self._idle.clear()
        self._waiting.append((leased, record))

    async def drained(self) -> None:
        """Wait until all that was added is settled."""
        await self._idle.wait()

    async def run(self) -> None:
        """Settle until cancelled."""
        backoff = Backoff(cap=AWAY_CAP_S)
        while True:
            if not self._waiting:
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()
            entries, self._waiting = self._waiting, []
            failed = await self._settle(entries)
            if failed:
                self._waiting[:0] = failed
                await asyncio.sleep(backoff.next())
            else:
                backoff.reset()

    async def _settle(self, entries: Sequence[Entry]) -> list[Entry]:
        """Settle entries; returns those that the store did not take."""
        parts: list[tuple[str, Sequence[Entry]]] = []
        calls: list[Call[list[ops.Outcome]]] = []
        for kind in dict.fromkeys([type(record) for _, record in entries]):
            verb, operation = _VERBS[kind]
            chosen = [entry for entry in entries if type(entry[1]) is kind]
            for part in _parts(kind, chosen):
                parts.append((verb, part))
                calls.append(operation(self.lane.keys, [record for _, record in part]))
        failed: list[Entry] = []
        answers = await self._broker.run_many(calls)
        for (verb, part), answer in zip(parts, answers, strict=True):
            if not isinstance(answer, QsyncError):
                self._settled(verb, part, answer)
            elif isinstance(answer, QueueFull) and verb == "complete":
                failed += [(leased, _without_result(record)) for leased, record in part]
                log.warning(
                    "no memory in the store for %d results of queue %s", len(part), self.lane.queue
                )
            else:
                log.warning(
                    "cannot %s %d tasks of queue %s yet: %s",
                    verb,
                    len(part),
                    self.lane.queue,
                    answer,
                )
                failed += part
        return failed

    def _settled(self, verb: str, part: Sequence[Entry], outcomes: Sequence[ops.Outcome]) -> None:
        drop, tally = self.lane.drop, self.tally
        lost = 0
        for (leased, record), outcome in zip(part, outcomes, strict=True):
            if leased is not None:
                if tally is not None:
                    tally.settled(leased, record if outcome != "lost" else None)
                drop(leased)
            if outcome == "lost":
                lost += 1
                log.warning(
                    "lease of task %s of queue %s was lost: nothing to %s",
                    record.id,
                    self.lane.queue,
                    verb,
                    extra={"task_id": record.id, "queue": self.lane.queue}
                    if leased is None
                    else leased.fields,
                )
        if lost:
            self._on_lost(lost)
        if self.on_settled is not None:
            self.on_settled()


def _parts(kind: type, chosen: Sequence[Entry]) -> Iterable[Sequence[Entry]]:
    """Entries of a kind, cut into calls."""
    if kind is Done and not any(record.result for _, record in chosen):  # type: ignore[union-attr]
        return [chosen[at : at + BATCH] for at in range(0, len(chosen), BATCH)]
    return ops.batches(chosen, _size)


def _size(entry: Entry) -> int:
    record: Any = entry[1]
    size = len(record.id) + len(record.token)
    if type(record) is Done:
        return size + len(record.result)
    return size + len(getattr(record, "failure", b""))


def _without_result(record: Record) -> Record:
    if type(record) is Done and record.result:
        return msgspec.structs.replace(record, result=_NO_ROOM)
    return record
