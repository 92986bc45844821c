"""Groups of ended tasks that one call settles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from qsync.broker import op_values, ops
from qsync.broker.call import Call
from qsync.broker.op_values import BATCH_SIZE, Completion, HandedBack, Killed, LeaseRef, Retried
from qsync.keys import QueueKeys
from qsync.server.outcome import Snoozed
from qsync.server.queue_state import LeasedTask

Record = Completion | Retried | Killed | HandedBack | LeaseRef
Entry = tuple[LeasedTask | None, Record]
Operation = Callable[..., Call[list[op_values.Outcome]]]


class SettlementBatch(NamedTuple):
    """Tasks that one call settles."""

    verb: str
    operation: Operation
    tasks: Sequence[LeasedTask | None]
    records: Sequence[Record] | None = None
    """Outcomes of the tasks; None if all of them completed without a result."""

    def call(self, keys: QueueKeys) -> Call[list[op_values.Outcome]]:
        """Return the call that settles the tasks."""
        return self.operation(keys, self.tasks if self.records is None else self.records)

    def entries(self) -> list[Entry]:
        """Return each task with its outcome."""
        if self.records is None:
            return completions(self.tasks)
        return list(zip(self.tasks, self.records, strict=True))


_VERBS: Final[dict[type, tuple[str, Operation]]] = {
    Retried: ("retry", ops.retry),
    Killed: ("kill", ops.kill),
    HandedBack: ("hand back", ops.hand_back),
    Snoozed: ("snooze", ops.hand_back),
    LeaseRef: ("cancel", ops.end_cancelled),
}


def completions(tasks: Sequence[LeasedTask | None]) -> list[Entry]:
    """Return tasks that completed without a result, each with its outcome."""
    return [(task, Completion(task.id, task.token)) for task in tasks if task is not None]


def completing(tasks: Sequence[LeasedTask]) -> Iterator[SettlementBatch]:
    """Split tasks that completed without a result into calls."""
    for start in range(0, len(tasks), BATCH_SIZE):
        part = tasks[start : start + BATCH_SIZE]
        yield SettlementBatch("complete", ops.complete_without_results, part)


def settling(entries: Sequence[Entry]) -> Iterator[SettlementBatch]:
    """Group entries by kind of record, and split them into calls."""
    for kind in dict.fromkeys(type(record) for _, record in entries):
        verb, operation = _VERBS.get(kind) or ("complete", ops.complete)
        yield from split([entry for entry in entries if type(entry[1]) is kind], verb, operation)


def split(entries: Sequence[Entry], verb: str, operation: Operation) -> Iterator[SettlementBatch]:
    """Split entries into calls."""
    for part in ops.batches(entries, _size):
        tasks, records = zip(*part, strict=True)
        yield SettlementBatch(verb, operation, tasks, records)


def result_size(entry: Entry) -> int:
    """Return the size of a completed task's result, in bytes."""
    record = entry[1]
    return len(record.result) if type(record) is Completion else 0


def _size(entry: Entry) -> int:
    record: Any = entry[1]
    size = len(record.id) + len(record.token) + result_size(entry)
    return size + len(getattr(record, "failure", b""))
