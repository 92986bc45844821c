"""Cuts the tasks of one `enqueue_many` into calls and round trips."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Generic, NamedTuple, Self, TypeVar

from qsync.bounds import full_text
from qsync.broker import op_values, ops
from qsync.broker.call import Call, Wait
from qsync.broker.op_values import Enqueued
from qsync.declared_limits import DeclaredLimits
from qsync.enqueueing import checked_task
from qsync.errors import InvalidTask, QsyncError, QueueFull
from qsync.idempotency import CallId, SequenceLease
from qsync.keys import QueueKeys
from qsync.message import ENVELOPE_HEAD
from qsync.new_task import NewTask, encode_plain_task, encode_task, new_nonce, payload_of
from qsync.running_task import check_lease, nonce_of_parent
from qsync.task import Task, has_options

T = TypeVar("T")

CALL_BYTES: Final = 1024 * 1024
"""Maximum size of a call, in bytes; the store takes 2 to 5 ms for a call of this size.

A task larger than this is sent in a call of its own.
"""

_COSTLY: Final = 2 * CALL_BYTES // op_values.BATCH_SIZE
"""Minimum size, in bytes, to assume for a task with a lock, a fairness key, a due time or a chosen
id. The store needs as much time for such a task as for two plain tasks."""

_BESIDE: Final = 128
"""Maximum size of a task's options and framing in a call, in bytes, without the fairness key."""


_TIME_BYTES: Final = 8


def stored_size(task: NewTask) -> int:
    """Return the stored size of a task's message, which counts towards `max_bytes`."""
    return len(ENVELOPE_HEAD) + _TIME_BYTES + len(task.message)


def size_of(task: NewTask) -> int:
    """Return the approximate size of a task in a call; at least _COSTLY for a costly task."""
    size = len(task.message) + len(task.id) + len(task.fairness_key) + _BESIDE
    costly = task.lock or task.fairness_key or task.due or task.remember_us
    return max(size, _COSTLY) if costly else size


class Chunk(NamedTuple):
    """The tasks of one call, and their indexes among all tasks of the `enqueue_many`."""

    indices: Sequence[int]
    tasks: Sequence[NewTask]


class RoundTrip(NamedTuple):
    """The chunks that one round trip sends, and one call per chunk."""

    chunks: Sequence[Chunk]
    calls: Sequence[Call[list[Enqueued]]]


class BulkEnqueue(Generic[T]):
    """Cuts the tasks of one `enqueue_many` into round trips, and creates their handles.

    The constructor checks all tasks; InvalidTask names the index of the first invalid task. Tasks
    are encoded, and handles created, in pieces, while the store works on other tasks.
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        *,
        payload_limit: int,
        remember_us: int = 0,
        declared: DeclaredLimits | None = None,
        handle: Callable[[NewTask, Enqueued], T],
    ) -> None:
        self._handle = handle
        self._remember_us = remember_us
        self._declared = declared
        self._tasks: list[Task] = []
        self._payloads: list[bytes] = []
        self._encoded: dict[int, NewTask] = {}
        """Encoded tasks that have options, by index; plain tasks are encoded when their call is
        built."""
        self._nonce = new_nonce()
        self._nonces: dict[int, bytes] = {}
        """Nonces by index, for repeated ids and for tasks that a handler enqueues."""
        self._answered: list[tuple[Chunk, list[Enqueued]]] = []
        """Chunks whose handles are still to be created, with their replies."""
        self._late: list[NewTask] = []
        """Tasks that the store created after it had refused their call."""
        self._check(tasks, payload_limit)
        self._handles: list[T | None] = [None] * len(self._tasks)

    def _check(self, tasks: Iterable[Task], payload_limit: int) -> None:
        try:
            iterator = iter(tasks)
        except TypeError:
            raise InvalidTask(f"tasks: {type(tasks).__name__} is not an iterable of Task") from None
        chosen: set[tuple[str, str]] = set()
        check_lease()
        of_parent = nonce_of_parent()
        add_task, add_payload = self._tasks.append, self._payloads.append
        for index, task in enumerate(iterator):
            try:
                if type(task) is not Task:
                    checked_task(task)
                payload = task.payload
                if type(payload) is not bytes or len(payload) > payload_limit:
                    payload = payload_of(task, payload_limit)
                if task.id is not None:
                    if (name := (task.queue, task.id)) in chosen:
                        self._nonces[index] = new_nonce()
                    elif of_parent is not None:
                        self._nonces[index] = of_parent
                    chosen.add(name)
                if has_options(task):
                    self._encoded[index] = self._encode_options(task, payload, index)
                add_payload(payload)
                add_task(task)
            except InvalidTask as error:
                raise InvalidTask(f"tasks[{index}]: {error}") from error

    def _encode_options(self, task: Task, payload: bytes, index: int) -> NewTask:
        nonce = self._nonces.get(index, self._nonce)
        new = encode_task(task, payload, nonce, task.queue, self._remember_us)
        if self._declared is not None and task.limits:
            self._declared.check_task(task, task.queue)
        return new

    def indices_by_queue(self) -> dict[str, list[int]]:
        """Return the indexes of each queue's tasks, in order."""
        indices: dict[str, list[int]] = {}
        for index, task in enumerate(self._tasks):
            try:
                indices[task.queue].append(index)
            except KeyError:
                indices[task.queue] = [index]
        return indices

    def round_trips(
        self,
        keys: QueueKeys,
        indices: Sequence[int],
        leased: SequenceLease,
        wait: Wait | None,
        *,
        calls: int,
    ) -> Iterator[RoundTrip]:
        """Yield the round trips for tasks of a queue, each with at most `calls` calls.

        A round trip carries at most BATCH_BYTES. The caller may take the next round trip while the
        previous one is in flight. Taking it also creates the handles of the tasks whose replies
        have arrived.
        """
        for first in range(0, len(indices), calls * op_values.BATCH_SIZE):
            self._make_handles()
            batch = indices[first : first + calls * op_values.BATCH_SIZE]
            tasks = self._encode(batch)
            for runs in _cut([size_of(task) for task in tasks], calls):
                chunks = [
                    Chunk(batch[run.start : run.stop], tasks[run.start : run.stop]) for run in runs
                ]
                yield RoundTrip(chunks, _calls(keys, chunks, leased.next(len(chunks)), wait))

    def record(self, trip: RoundTrip, replies: Sequence[list[Enqueued] | QsyncError]) -> None:
        """Process the replies to a round trip; raise the first error among them."""
        failed: QsyncError | None = None
        for chunk, reply in zip(trip.chunks, replies, strict=True):
            if isinstance(reply, QsyncError):
                failed = failed or reply
            else:
                self._answered.append((chunk, reply))
        if failed is not None:
            raise failed

    def note(self, chunk: Chunk, reply: list[Enqueued]) -> None:
        """Process the reply to the tasks that were sent again."""
        self._answered.append((chunk, reply))
        self._late += [
            task
            for task, outcome in zip(chunk.tasks, reply, strict=True)
            if outcome.outcome == "created"
        ]

    def complete_error(self, error: QsyncError) -> None:
        """Add the handles to the error of the whole `enqueue_many`. A QueueFull then describes the
        queue as it is after the call has stored the tasks that fit."""
        error.handles = handles = self.handles()
        match error:
            case QueueFull(queue=str(queue), bound=str(bound), limit=int(limit), count=int(count)):
                late = [stored_size(task) for task in self._late if task.queue == queue]
                count += len(late) if bound == "max_tasks" else sum(late)
                error.count = count = min(count, limit)  # the queue may have dropped older tasks
                error.room = 0
                share = f"{len(handles):,} of the call's {len(self._tasks):,} tasks"
                accepted = f"the store accepted {share}; "
                error.args = (full_text(queue, bound, limit, count, accepted),)

    def handles(self) -> list[T]:
        """Return the handles of the tasks that the store answered for, in order."""
        self._make_handles()
        return [handle for handle in self._handles if handle is not None]

    def _encode(self, indices: Sequence[int]) -> list[NewTask]:
        encoded, tasks, payloads = self._encoded, self._tasks, self._payloads
        nonces, nonce, remember_us = self._nonces, self._nonce, self._remember_us
        return [
            (encoded and encoded.get(index))
            or encode_plain_task(
                tasks[index],
                payloads[index],
                nonces.get(index, nonce) if nonces else nonce,
                tasks[index].queue,
                remember_us,
            )
            for index in indices
        ]

    def _make_handles(self) -> None:
        handle, handles = self._handle, self._handles
        for chunk, reply in self._answered:
            for index, task, outcome in zip(chunk.indices, chunk.tasks, reply, strict=True):
                handles[index] = handle(task, outcome)
        self._answered.clear()


def fitting(trip: RoundTrip, replies: Sequence[list[Enqueued] | QsyncError]) -> Chunk | None:
    """Return the tasks of the first refused call that still fit into the queue, or None."""
    for chunk, reply in zip(trip.chunks, replies, strict=True):
        if isinstance(reply, QueueFull) and reply.room:
            return Chunk(chunk.indices[: reply.room], chunk.tasks[: reply.room])
        if isinstance(reply, QsyncError):
            return None
    return None


def _cut(sizes: Sequence[int], calls: int) -> Iterator[Sequence[range]]:
    """Split tasks of these sizes, in bytes, into calls, and the calls into round trips."""
    runs = list(ops.batches(range(len(sizes)), sizes.__getitem__, CALL_BYTES))
    for fitting in ops.batches(runs, lambda run: sum(sizes[run.start : run.stop])):
        for index in range(0, len(fitting), calls):
            yield fitting[index : index + calls]


def _calls(
    keys: QueueKeys, chunks: Sequence[Chunk], call_ids: Sequence[CallId], wait: Wait | None
) -> list[Call[list[Enqueued]]]:
    return [
        ops.enqueue(keys, chunk.tasks, sender=sender, number=number, wait=wait)
        for chunk, (sender, number) in zip(chunks, call_ids, strict=True)
    ]


class Lookahead(Generic[T]):
    """An iterator that can compute its next item in advance."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._prepared: list[T] = []

    def prepare(self) -> None:
        """Compute the next item in advance, unless it is already computed."""
        if not self._prepared:
            self._prepared.extend(itertools.islice(self._items, 1))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        self.prepare()
        if not self._prepared:
            raise StopIteration
        return self._prepared.pop()
