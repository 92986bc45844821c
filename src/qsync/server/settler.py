"""Settles ended tasks in batches; a batch contains the tasks that ended while the previous batch
was in flight.

Each queue has its own settler, so that an unreachable node delays only the queues on it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec

from qsync import codec
from qsync.backoff import AWAY_CAP_S, Backoff
from qsync.broker import op_values, ops
from qsync.broker.call import Call
from qsync.broker.op_values import Completion, HandedBack, Killed, Retried
from qsync.errors import QsyncError, QueueFull
from qsync.formatting import plural
from qsync.message import Result, decode_failure
from qsync.server.clock import boot_s
from qsync.server.error_text import first_line
from qsync.server.hook_calls import HookCalls
from qsync.server.outage_log import Outage
from qsync.server.pipelined_calls import CallPipeline
from qsync.server.queue_state import SETTLING, LeasedTask, QueueState
from qsync.server.run_metrics import RunMetrics
from qsync.server.schedule_notes import ScheduleNotes
from qsync.server.settlement_batches import (
    Entry,
    Record,
    SettlementBatch,
    completing,
    completions,
    result_size,
    settling,
    split,
)
from qsync.server.type_counter import TIMED, TypeCounter

log: Final = logging.getLogger("qsync.server")

NO_ROOM: Final = codec.encode(Result(error="the store had no memory for the result"))

SHORT_RESULT: Final = 64
"""Maximum size of a result that is stored even if the store is out of memory, in bytes.

An error record in its place would be as large.
"""

SHORT_ERROR: Final = 64
"""Size to which errors are truncated if the store is out of memory, in bytes."""


class Settler:
    """Settles the tasks of one queue.

    `on_settled` is called after the store has accepted settlements, and `on_accepted` when it
    accepts them again after refusing some.
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
        """Sample of the ended tasks, one of every TIMED tasks in a batch, each with its end time by
        boot_s."""
        self._floors = type_counter.slowest(queue.name).floors
        self._slow_ends: dict[str, float] = {}
        """End times, by boot_s, of runs that may be among the slowest of their type, by task id."""
        self._schedule_notes = ScheduleNotes(broker, queue.keys)
        self._completed: list[LeasedTask] = []
        """Tasks that completed without a result and wait to be settled."""
        self._waiting: list[Entry] = []
        """All other tasks that wait to be settled."""
        self._in_flight: tuple[Sequence[LeasedTask], Sequence[Entry]] = ((), ())
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def add(self, leased: LeasedTask | None, record: Record) -> None:
        """Queue a task for settlement; its lease is renewed until the store has replied."""
        if leased is not None:
            leased.phase = SETTLING
            now = boot_s()
            if not (len(self._waiting) + len(self._completed)) % TIMED:
                self._timed.append((leased, now))
            if now - leased.begun_s > self._floors.get(leased.message.type, 0.0):
                self._slow_ends[leased.id] = now
            if type(record) is HandedBack and not record.started:
                record = record._replace(leased_us=leased.leased_us)
        self._begin()
        if leased is not None and type(record) is Completion and record.retention_us is None:
            self._completed.append(leased)
        else:
            self._waiting.append((leased, record))

    def add_all(
        self,
        completed: Sequence[LeasedTask],
        entries: Sequence[tuple[LeasedTask, Record]],
        timed: Sequence[tuple[LeasedTask, float]],
        slowest: Sequence[tuple[LeasedTask, float]] = (),
    ) -> None:
        """Queue several tasks in the phase SETTLING, as `add` does.

        `completed` are those that completed without a result. `timed` is a sample of all tasks, and
        `slowest` contains the slowest tasks, each with its end time by boot_s.
        """
        self._timed += timed
        for leased, ended_s in slowest:
            if ended_s - leased.begun_s > self._floors.get(leased.message.type, 0.0):
                self._slow_ends[leased.id] = ended_s
        self._begin()
        self._completed += completed
        self._waiting += entries

    def _begin(self) -> None:
        if not self._waiting and not self._completed:
            self._wake.set()
            self._idle.clear()

    async def drained(self) -> None:
        """Wait until all added tasks are settled."""
        await self._idle.wait()

    async def run(self) -> None:
        """Settle until cancelled."""
        backoff = Backoff(cap=AWAY_CAP_S)
        while True:
            if not self._waiting and not self._completed:
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()
            self._in_flight = self._completed, self._waiting
            self._completed, self._waiting = [], []
            failed = await self._settle(*self._in_flight)
            self._waiting[:0] = failed
            self._in_flight = (), ()
            await self._schedule_notes.send()
            self._note(refused=bool(failed))
            if failed:
                await asyncio.sleep(backoff.next())
            else:
                backoff.reset()
                if self._outage.parts:
                    self._outage.worked(self._part)

    def _note(self, *, refused: bool) -> None:
        """Record whether the store refuses settlements; nothing is fetched while it does."""
        accepts_again = self.queue.refused and not refused
        self.queue.refused = refused
        if accepts_again:
            self._on_accepted()

    async def hand_back_rest(self) -> None:
        """Hand back the tasks that the store did not settle, since an expired lease would count as
        a crash.

        Failed attempts still count. A completed task that is handed back loses its outcome and runs
        again.
        """
        completed, others = self._in_flight
        entries = [*completions((*completed, *self._completed)), *others, *self._waiting]
        backs = [_hand_back_record(record) for _, record in entries]
        calls = [  # few calls, so they may run even if the store is out of memory
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

    async def _settle(
        self, completed: Sequence[LeasedTask], entries: Sequence[Entry]
    ) -> list[Entry]:
        """Settle tasks; return those that the store refused."""
        failed: list[Entry] = []
        full: list[Entry] = []
        long: list[SettlementBatch] = []
        for part, error in await self._send([*completing(completed), *settling(entries)]):
            if not isinstance(error, QueueFull):
                failed += self._refused(part, error)
            elif part.verb == "complete":
                full += part.entries()
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
            plural(sum(len(part.tasks) for part in parts), "task"), self.queue.name, SHORT_ERROR,
            _some_ids([entry for part in parts for entry in part.entries()]),
        )  # fmt: skip
        failed: list[Entry] = []
        for part, error in await self._send([_with_short_failures(part) for part in parts]):
            failed += self._refused(part, error)
        return failed

    async def _complete_in_full_store(self, entries: Sequence[Entry]) -> list[Entry]:
        """Complete tasks while the store is out of memory; return those that it refused.

        Completes tasks without a long result first, which may free memory. Then completes the other
        tasks with their results, for as long as the store accepts the results. Completes the
        remaining tasks with an error instead of their result.
        """
        short = [entry for entry in entries if result_size(entry) <= SHORT_RESULT]
        long = [entry for entry in entries if result_size(entry) > SHORT_RESULT]
        failed: list[Entry] = []
        full: list[Entry] = []
        for part, error in await self._send(
            [*_without_room(short), *split(long, "complete", ops.complete)]
        ):
            if isinstance(error, QueueFull):
                full += part.entries()
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
        calls = [part.call(self.queue.keys) for part in parts]
        answers = await self._broker.run_many(calls)
        refused = []
        for part, answer in zip(parts, answers, strict=True):
            if isinstance(answer, QsyncError):
                refused.append((part, answer))
            else:
                self._settled(part, answer)
        return refused

    def _refused(self, part: SettlementBatch, error: QsyncError) -> Sequence[Entry]:
        self._outage.failed(self._part, error)
        return part.entries()

    def _settled(self, part: SettlementBatch, outcomes: Sequence[op_values.Outcome]) -> None:
        tasks = [leased for leased in part.tasks if leased is not None]
        lost = outcomes.count("lost")
        self._type_counter.settled(self.queue.name, part.verb, part.tasks, outcomes)
        if self._timed:
            self._type_counter.timed(self.queue, self._timed)
            self._timed = []
        if lost or self._slow_ends or self._metrics is not None or self._hooks is not None:
            self._report(part, outcomes)
        if "@" in "".join([leased.id for leased in tasks]):  # ids of schedules' tasks contain @
            for (leased, record), outcome in zip(part.entries(), outcomes, strict=True):
                if leased is not None and "@" in record.id and outcome != "lost":
                    self._schedule_notes.settled(leased, record)
        self.queue.drop(tasks)
        if lost:
            self._on_lost(lost)
        self._on_settled()

    def _report(self, part: SettlementBatch, outcomes: Sequence[op_values.Outcome]) -> None:
        """Pass settled tasks to the metrics and hooks; note slow runs, and log lost leases."""
        for (leased, record), outcome in zip(part.entries(), outcomes, strict=True):
            lost = outcome == "lost"
            ended_s = self._slow_ends.pop(record.id, None)
            if lost:
                self._log_lost(part.verb, leased, record)
            if leased is None:
                continue
            if ended_s is not None and part.verb == "complete" and not lost:
                self._type_counter.completed_slowly(self.queue, leased, ended_s)
            if self._metrics is not None:
                self._metrics.settled(leased, None if lost else record)
            if self._hooks is not None:
                self._hooks.settled(leased, None if lost else record)

    def _log_lost(self, verb: str, leased: LeasedTask | None, record: Record) -> None:
        fields = {"task_id": record.id, "queue": self.queue.name}
        log.warning(
            "the lease on task %s of queue %s was lost, so its outcome is discarded (%s)",
            record.id, self.queue.name, verb,
            extra=fields if leased is None else leased.fields,
        )  # fmt: skip


def _without_room(entries: Sequence[Entry]) -> Iterator[SettlementBatch]:
    return split(entries, "complete", ops.complete_without_room)


def _without_result(record: Record) -> Record:
    return msgspec.structs.replace(record, result=NO_ROOM) if type(record) is Completion else record


def _with_short_failures(part: SettlementBatch) -> SettlementBatch:
    """Return the batch with short failure records, for a store that is out of memory.

    A record counts the attempts, so it must be stored. A short record leaves out the history of
    attempts and most of the error, which may be 4 KiB long. Otherwise, many failing tasks would use
    much more memory.
    """

    def operation(*args: Any) -> Call[list[op_values.Outcome]]:
        return ops.without_room(part.operation(*args))

    records = [_with_short_failure(record) for _, record in part.entries()]
    return SettlementBatch(part.verb, operation, part.tasks, records)


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
    """Return a record that hands the task back but keeps the history of its failed attempts."""
    if isinstance(record, HandedBack):
        return record
    delay_us = record.delay_us if isinstance(record, Retried) else None
    failure = getattr(record, "failure", b"")
    return HandedBack(record.id, record.token, delay_us, failure, started=True)


def _back_size(back: HandedBack) -> int:
    return len(back.id) + len(back.token) + len(back.failure)
