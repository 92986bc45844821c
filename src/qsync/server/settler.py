"""Settles ended tasks in batches; a batch has the tasks that ended while the last one was in
flight.

Each queue has its own settler, so that an unreachable node delays only the queues on it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any, Final, NamedTuple

import msgspec

from qsync import codec
from qsync.backoff import AWAY_CAP_S, Backoff
from qsync.broker import op_values, ops
from qsync.broker.call import Call
from qsync.broker.op_values import BATCH_SIZE, Completion, HandedBack, Killed, LeaseRef, Retried
from qsync.errors import QsyncError, QueueFull
from qsync.formatting import plural
from qsync.message import Result, decode_failure
from qsync.server.clock import boot_s
from qsync.server.error_text import first_line
from qsync.server.hook_calls import HookCalls
from qsync.server.outage_log import Outage
from qsync.server.outcome import Snoozed
from qsync.server.pipelined_calls import CallPipeline
from qsync.server.queue_state import SETTLING, LeasedTask, QueueState
from qsync.server.run_metrics import RunMetrics
from qsync.server.schedule_notes import ScheduleNotes
from qsync.server.type_counter import TIMED, TypeCounter

log: Final = logging.getLogger("qsync.server")

Record = Completion | Retried | Killed | HandedBack | LeaseRef
Entry = tuple[LeasedTask | None, Record]

NO_ROOM: Final = codec.encode(Result(error="the store had no memory for the result"))

SHORT_RESULT: Final = 64
"""Size up to which a result is stored even if the store is out of memory, in bytes: an error record
in its place would be as large."""

SHORT_ERROR: Final = 64
"""Size to which errors are cut if the store is out of memory, in bytes."""

Operation = Callable[..., Call[list[op_values.Outcome]]]


class SettlementBatch(NamedTuple):
    """Entries that one call settles."""

    verb: str
    operation: Operation
    entries: Sequence[Entry]
    records: Sequence[Record]


_VERBS: Final[dict[type, tuple[str, Operation]]] = {
    Retried: ("retry", ops.retry),
    Killed: ("kill", ops.kill),
    HandedBack: ("hand back", ops.hand_back),
    Snoozed: ("snooze", ops.hand_back),
    LeaseRef: ("cancel", ops.end_cancelled),
}


class Settler:
    """Settles the tasks of one queue.

    `on_settled` is called after the store has accepted settlements, `on_accepted` when it accepts
    them again after it had refused some.
    """

    def __init__(
        self,
        broker: CallPipeline,
        queue: QueueState,
        outage: Outage,
        *,
        on_lost: Callable[[int], None],
        on_settled: Callable[[], None],
        on_accepted: Callable[[], None],
        metrics: RunMetrics | None,
        hooks: HookCalls | None,
        type_counter: TypeCounter,
    ) -> None:
        self._broker = broker
        self.queue = queue
        self._outage = outage
        self._part = f"settle tasks of queue {queue.name}"
        self._on_lost = on_lost
        self._on_settled = on_settled
        self._on_accepted = on_accepted
        self._metrics = metrics
        self._hooks = hooks
        self._type_counter = type_counter
        self._timed: list[tuple[LeasedTask, float]] = []
        """Sample of the ended tasks, one in TIMED of a batch, each with the time of its end by
        boot_s."""
        self._floors = type_counter.slowest(queue.name).floors
        self._slow_ends: dict[str, float] = {}
        """End times, by boot_s, of runs that may be among the slowest of their type, by task id."""
        self._schedule_notes = ScheduleNotes(broker, queue.keys)
        self._waiting: list[Entry] = []
        self._in_flight: Sequence[Entry] = ()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def add(self, leased: LeasedTask | None, record: Record) -> None:
        """Queue a task for settlement; its lease is renewed until the store has answered."""
        if leased is not None:
            leased.phase = SETTLING
            now = boot_s()
            if not len(self._waiting) % TIMED:
                self._timed.append((leased, now))
            if now - leased.begun_s > self._floors.get(leased.message.type, 0.0):
                self._slow_ends[leased.id] = now
            if type(record) is HandedBack and not record.started:
                record = record._replace(leased_us=leased.leased_us)
        if not self._waiting:
            self._wake.set()
            self._idle.clear()
        self._waiting.append((leased, record))

    def add_all(
        self,
        entries: Sequence[tuple[LeasedTask, Record]],
        timed: Sequence[tuple[LeasedTask, float]],
        slowest: Sequence[tuple[LeasedTask, float]] = (),
    ) -> None:
        """Queue several tasks in the phase SETTLING, as `add` does.

        `timed` is a sample of them, and `slowest` the slowest ones, each with the time of its end
        by boot_s.
        """
        self._timed += timed
        for leased, ended_s in slowest:
            if ended_s - leased.begun_s > self._floors.get(leased.message.type, 0.0):
                self._slow_ends[leased.id] = ended_s
        if not self._waiting:
            self._wake.set()
            self._idle.clear()
        self._waiting += entries

    async def drained(self) -> None:
        """Wait until all added tasks are settled."""
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
            self._in_flight = entries
            failed = await self._settle(entries)
            self._in_flight = ()
            await self._schedule_notes.send()
            self._waiting[:0] = failed
            self._note(refused=bool(failed))
            if failed:
                await asyncio.sleep(backoff.next())
            else:
                backoff.reset()
                if self._outage.parts:
                    self._outage.worked(self._part)

    def _note(self, *, refused: bool) -> None:
        """Record whether the store refuses settlements; while it does, the queue is not fetched
        from."""
        accepts_again = self.queue.refused and not refused
        self.queue.refused = refused
        if accepts_again:
            self._on_accepted()

    async def hand_back_rest(self) -> None:
        """Hand back the tasks that the store did not settle, since an expired lease would count as
        a crash.

        Failed attempts still count. A completed task whose outcome is lost in this way runs again.
        """
        backs = [_hand_back_record(record) for _, record in (*self._in_flight, *self._waiting)]
        calls = [  # even in a full store: these are few
            ops.without_room(ops.hand_back(self.queue.keys, part))
            for part in ops.batches(backs, _back_size)
        ]
        answers = await self._broker.run_many(calls)
        for answer in answers:
            if isinstance(answer, QsyncError):
                log.warning(
                    "cannot hand back tasks of queue %s; their leases will expire: %s",
                    self.queue.name, answer,
                )  # fmt: skip
            else:
                log.warning(
                    "handed back %s of queue %s that the store did not settle",
                    plural(len(answer), "task"), self.queue.name,
                )  # fmt: skip

    async def _settle(self, entries: Sequence[Entry]) -> list[Entry]:
        """Settle entries; return those that the store refused."""
        failed: list[Entry] = []
        full: list[Entry] = []
        long: list[SettlementBatch] = []
        for part, error in await self._send(list(_parts(entries))):
            if not isinstance(error, QueueFull):
                failed += self._refused(part, error)
            elif part.verb == "complete":
                full += part.entries
            else:
                long.append(part)
        if long:
            failed += await self._fail_in_full_store(long)
        return failed + await self._complete_in_full_store(full) if full else failed

    async def _fail_in_full_store(self, parts: Sequence[SettlementBatch]) -> list[Entry]:
        """Settle failed tasks with short failure records while the store is out of memory; return
        those that it refused."""
        log.warning(
            "the store is out of memory: the errors of %s of queue %s are cut to %d bytes (%s)",
            plural(sum(len(part.entries) for part in parts), "task"), self.queue.name, SHORT_ERROR,
            _some_ids([entry for part in parts for entry in part.entries]),
        )  # fmt: skip
        failed: list[Entry] = []
        for part, error in await self._send([_with_short_failures(part) for part in parts]):
            failed += self._refused(part, error)
        return failed

    async def _complete_in_full_store(self, entries: Sequence[Entry]) -> list[Entry]:
        """Complete tasks while the store is out of memory; return those that it refused.

        First complete the tasks without a long result, which may free memory. Then complete the
        others with their results, as long as the store accepts these. The remaining tasks complete
        with an error instead of their result.
        """
        short = [entry for entry in entries if _result_size(entry) <= SHORT_RESULT]
        long = [entry for entry in entries if _result_size(entry) > SHORT_RESULT]
        failed: list[Entry] = []
        full: list[Entry] = []
        for part, error in await self._send([*_without_room(short), *_completing(long)]):
            if isinstance(error, QueueFull):
                full += part.entries
            else:
                failed += self._refused(part, error)
        if full:
            log.warning(
                "the store is out of memory: the results of %s of queue %s are lost (%s)",
                plural(len(full), "task"), self.queue.name, _some_ids(full),
            )  # fmt: skip
            without = [(leased, _without_result(record)) for leased, record in full]
            for part, error in await self._send(list(_without_room(without))):
                failed += self._refused(part, error)
        return failed

    async def _send(
        self, parts: Sequence[SettlementBatch]
    ) -> list[tuple[SettlementBatch, QsyncError]]:
        """Make the calls of these parts; return the refused parts with their errors."""
        calls = [part.operation(self.queue.keys, part.records) for part in parts]
        answers = await self._broker.run_many(calls)
        refused = []
        for part, answer in zip(parts, answers, strict=True):
            if isinstance(answer, QsyncError):
                refused.append((part, answer))
            else:
                self._settled(part.verb, part.entries, answer)
        return refused

    def _refused(self, part: SettlementBatch, error: QsyncError) -> Sequence[Entry]:
        self._outage.failed(self._part, error)
        return part.entries

    def _settled(
        self, verb: str, part: Sequence[Entry], outcomes: Sequence[op_values.Outcome]
    ) -> None:
        self._type_counter.settled(self.queue.name, verb, part, outcomes)
        if self._timed:
            self._type_counter.timed(self.queue, self._timed)
            self._timed = []
        if self._slow_ends:
            self._note_slow_runs(verb, part, outcomes)
        if self._metrics is not None:
            for (leased, record), outcome in zip(part, outcomes, strict=True):
                if leased is not None:
                    self._metrics.settled(leased, record if outcome != "lost" else None)
        if self._hooks is not None:
            for (leased, record), outcome in zip(part, outcomes, strict=True):
                if leased is not None:
                    self._hooks.settled(leased, record if outcome != "lost" else None)
        if "@" in "".join([record.id for _, record in part]):  # a tick of a schedule, perhaps
            for (leased, record), outcome in zip(part, outcomes, strict=True):
                if leased is not None and "@" in record.id and outcome != "lost":
                    self._schedule_notes.settled(leased, record)
        self.queue.drop([leased for leased, _ in part if leased is not None])
        if lost := outcomes.count("lost"):
            self._note_lost(verb, part, outcomes)
            self._on_lost(lost)
        self._on_settled()

    def _note_slow_runs(
        self, verb: str, part: Sequence[Entry], outcomes: Sequence[op_values.Outcome]
    ) -> None:
        for (leased, record), outcome in zip(part, outcomes, strict=True):
            ended_s = self._slow_ends.pop(record.id, None)
            if ended_s is None or leased is None or verb != "complete" or outcome == "lost":
                continue
            self._type_counter.completed_slowly(self.queue, leased, ended_s)

    def _note_lost(
        self, verb: str, part: Sequence[Entry], outcomes: Sequence[op_values.Outcome]
    ) -> None:
        for (leased, record), outcome in zip(part, outcomes, strict=True):
            if outcome != "lost":
                continue
            fields = {"task_id": record.id, "queue": self.queue.name}
            log.warning(
                "lease of task %s of queue %s was lost: nothing to %s",
                record.id, self.queue.name, verb,
                extra=fields if leased is None else leased.fields,
            )  # fmt: skip


_result_of: Final = attrgetter("result")


def _parts(entries: Sequence[Entry]) -> Iterator[SettlementBatch]:
    """Yield the entries grouped by kind of record and split into calls."""
    records = [record for _, record in entries]
    kinds = dict.fromkeys(map(type, records))
    small = len(entries) <= BATCH_SIZE and [*kinds] == [Completion]
    if small and not any(map(_result_of, records)):  # by far the most frequent case
        yield SettlementBatch("complete", ops.complete, entries, records)
        return
    for kind in kinds:
        chosen = entries
        if len(kinds) > 1:
            chosen = [entry for entry in entries if type(entry[1]) is kind]
        if kind is Completion:
            yield from _completing(chosen)
        else:
            verb, operation = _VERBS[kind]
            for part in ops.batches(chosen, _size):
                yield SettlementBatch(verb, operation, part, [record for _, record in part])


def _completing(
    entries: Sequence[Entry], operation: Operation = ops.complete
) -> Iterator[SettlementBatch]:
    if any(record.result for _, record in entries):  # type: ignore[union-attr]
        parts = ops.batches(entries, _size)
    else:
        parts = (
            entries[start : start + BATCH_SIZE] for start in range(0, len(entries), BATCH_SIZE)
        )
    for part in parts:
        yield SettlementBatch("complete", operation, part, [record for _, record in part])


def _without_room(entries: Sequence[Entry]) -> Iterator[SettlementBatch]:
    return _completing(entries, ops.complete_without_room)


def _result_size(entry: Entry) -> int:
    record = entry[1]
    return len(record.result) if type(record) is Completion else 0


def _size(entry: Entry) -> int:
    record: Any = entry[1]
    size = len(record.id) + len(record.token) + _result_size(entry)
    return size + len(getattr(record, "failure", b""))


def _without_result(record: Record) -> Record:
    return msgspec.structs.replace(record, result=NO_ROOM) if type(record) is Completion else record


def _with_short_failures(part: SettlementBatch) -> SettlementBatch:
    """Return the batch with short failure records, for a store that is out of memory.

    A record counts the attempts, so it must be stored. Since it leaves out the error of up to 4 KiB
    and the history of attempts, a queue of failing tasks does not make the store much larger.
    """

    def operation(*args: Any) -> Call[list[op_values.Outcome]]:
        return ops.without_room(part.operation(*args))

    records = [_with_short_failure(record) for record in part.records]
    entries = [(leased, record) for (leased, _), record in zip(part.entries, records, strict=True)]
    return SettlementBatch(part.verb, operation, entries, records)


def _with_short_failure(record: Record) -> Record:
    if not isinstance(record, Retried | Killed | HandedBack) or not record.failure:
        return record
    failure = decode_failure(record.failure)
    error = first_line(failure.error, SHORT_ERROR)
    short = codec.encode(msgspec.structs.replace(failure, error=error, history=()))
    return record._replace(failure=short)


def _some_ids(entries: Sequence[Entry]) -> str:
    shown = ", ".join(record.id for _, record in entries[:5])
    return f"{shown} and others" if len(entries) > 5 else shown


def _hand_back_record(record: Record) -> HandedBack:
    """Return the record that hands a task back and keeps its failed attempts."""
    if isinstance(record, HandedBack):
        return record
    delay_us = record.delay_us if isinstance(record, Retried) else None
    failure = getattr(record, "failure", b"")
    return HandedBack(record.id, record.token, delay_us, failure, started=True)


def _back_size(back: HandedBack) -> int:
    return len(back.id) + len(back.token) + len(back.failure)
