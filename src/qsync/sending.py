"""Checks and encodes tasks, and groups them into calls and round trips."""

from __future__ import annotations

import asyncio
import copy
import itertools
import math
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Final, Generic, NamedTuple, Self, TypeVar, cast

from qsync.broker import ops
from qsync.broker.aio_pool import LINE_S
from qsync.broker.call import Call, Durability, Wait
from qsync.broker.ops import Enqueued
from qsync.broker.protocol import LATE_S
from qsync.errors import ConfigError, DuplicateTask, InvalidTask, QsyncError, StoreUnavailable
from qsync.keys import QueueKeys, shorten
from qsync.new_task import (
    NewTask,
    encode_plain_task,
    encode_task,
    new_id,
    new_nonce,
    new_task,
    payload_of,
)
from qsync.running_task import check_lease, nonce_of_parent
from qsync.task import Task, has_options
from qsync.times import Duration, duration_us

T = TypeVar("T")
U = TypeVar("U")

CONFIRM_TIMEOUT: Final = 2.0
"""Default time to wait for a confirmation, seconds; a store that syncs each second takes up to 1 s.
"""

CALL_BYTES: Final = 1024 * 1024
"""Largest size of a call, bytes, unless one task is larger; the store takes 2 to 5 ms for it."""

IN_TWO: Final = 32
"""Number of items from which on the first batch takes only half of them."""

_COSTLY: Final = 2 * CALL_BYTES // ops.BATCH_SIZE
"""Least size that a task with a lock, a fairness key, a due time or a chosen id counts as, bytes.
Such a task takes the store as long as two plain tasks."""

_BESIDE: Final = 128
"""Most bytes of a task's options and of the framing in a call, without the fairness key."""


def ready(task: object, *, queue: str | None, payload_limit: int, remember_us: int) -> NewTask:
    """Encode a task to send; InvalidTask when it is wrong, LeaseLost as in `check_lease`."""
    check_lease()
    checked = _checked(task)
    nonce = None if checked.id is None else nonce_of_parent()
    return new_task(
        checked,
        nonce or new_nonce(),
        queue=queue,
        payload_limit=payload_limit,
        remember_us=remember_us,
    )


def check_remember_ids(value: object) -> int:
    """Return the time to remember chosen ids, in microseconds; ConfigError if it is no duration."""
    try:
        return duration_us("remember_ids", cast("Duration", value))
    except InvalidTask as error:
        raise ConfigError(str(error)) from None


def check_durability(value: object) -> Durability | None:
    """Return the durability; ConfigError unless it is "fsync", "replica" or None."""
    match value:
        case None | "fsync" | "replica":
            return value
    msg = f"durability: {shorten(value)} is neither 'fsync' nor 'replica' nor None"
    raise ConfigError(msg)


def check_confirm_timeout(value: object) -> float:
    """Return the time to wait for a confirmation, seconds; ConfigError unless 0.001 to 3600."""
    if type(value) not in (int, float) or not 0.001 <= cast("float", value) <= 3600:
        msg = f"confirm_timeout: {shorten(value)} is not a number of seconds from 0.001 to 3600"
        raise ConfigError(msg)
    return cast("float", value)


def _checked(task: object) -> Task:
    if not isinstance(task, Task):
        how = "give Task(type, payload)"
        if hasattr(task, "build"):  # a TaskFunction
            name = getattr(task, "__name__", "task")
            how = f"give {name}.build(...), or call {name}.enqueue(...)"
        msg = f"task: {type(task).__name__} is not a Task; {how}"
        raise InvalidTask(msg)
    return task


def size_of(task: NewTask) -> int:
    """Return the approximate bytes of a task in a call, at least _COSTLY for a costly one."""
    size = len(task.message) + len(task.id) + len(task.fairness_key) + _BESIDE
    costly = task.lock or task.fairness_key or task.due or task.remember_us
    return max(size, _COSTLY) if costly else size


def is_refused(reply: Enqueued) -> bool:
    """Return whether the reply to an enqueue of one task is an error.

    It is no error when a handler enqueues a child task that an earlier attempt enqueued and that
    has left the queue.
    """
    if reply.outcome == "created":
        return False
    return reply.outcome != "repeated" or nonce_of_parent() is None


def duplicate(task: NewTask, holder: Enqueued) -> DuplicateTask:
    """Return the error for a task whose id or lock is taken."""
    if holder.outcome == "exists":
        msg = f"id {task.id!r} is taken by another task in queue {task.queue!r}"
    elif holder.outcome == "repeated":
        msg = (
            f"id {task.id!r} was enqueued in queue {task.queue!r} before, less than "
            f"{task.remember_us / 1_000_000:g} s ago, and that task has left the queue: it is not "
            "run again; choose another id for other work"
        )
    else:
        msg = f"the unique lock is held by task {holder.id!r} in queue {task.queue!r}"
    return DuplicateTask(msg, id=holder.id, queue=task.queue)


class Chunk(NamedTuple):
    """The tasks of one call, and their indexes among the tasks of the bulk."""

    places: Sequence[int]
    tasks: Sequence[NewTask]


class RoundTrip(NamedTuple):
    """The chunks of one round trip, and the calls for them."""

    parts: Sequence[Chunk]
    calls: Sequence[Call[list[Enqueued]]]


class BulkEnqueue(Generic[T]):
    """The tasks of one `enqueue_many`: cuts them into round trips and makes their handles.

    The constructor checks all tasks; InvalidTask names the index of the first that is wrong.
    Encoding and making handles are done in pieces, while the store works on other tasks.
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        *,
        payload_limit: int,
        remember_us: int = 0,
        handle: Callable[[NewTask, Enqueued], T],
    ) -> None:
        self._handle = handle
        self._remember_us = remember_us
        self._tasks: list[Task] = []
        self._payloads: list[bytes] = []
        self._sealed: list[NewTask | None] = []
        """Encoded tasks that have options; None: a plain task, encoded when its call is made."""
        self._nonce = new_nonce()
        self._nonces: dict[int, bytes] = {}
        """Nonces by index, for ids that are repeated in the bulk and for children of a handler."""
        self._answered: list[tuple[Chunk, list[Enqueued]]] = []
        """Chunks with their replies whose handles are not made yet."""
        self._check(tasks, payload_limit)
        self._handles: list[T | None] = [None] * len(self._tasks)

    def _check(self, tasks: Iterable[Task], payload_limit: int) -> None:
        try:
            given = iter(tasks)
        except TypeError:
            msg = f"tasks: {type(tasks).__name__} is not an iterable of Task"
            raise InvalidTask(msg) from None
        named: set[tuple[str, str]] = set()
        check_lease()
        of_parent = nonce_of_parent()
        for at, task in enumerate(given):
            try:
                payload = payload_of(_checked(task), payload_limit)
                if task.id is not None:
                    if (name := (task.queue, task.id)) in named:
                        self._nonces[at] = new_nonce()
                    elif of_parent is not None:
                        self._nonces[at] = of_parent
                    named.add(name)
                options = has_options(task)
                self._sealed.append(
                    encode_task(task, payload, self._nonce_of(at), task.queue, self._remember_us)
                    if options
                    else None
                )
                self._payloads.append(payload)
                self._tasks.append(task)
            except InvalidTask as error:
                msg = f"tasks[{at}]: {error}"
                raise InvalidTask(msg) from error

    def places(self) -> dict[str, list[int]]:
        """Return the indexes of the tasks by queue, in order."""
        places: dict[str, list[int]] = {}
        for at, task in enumerate(self._tasks):
            places.setdefault(task.queue, []).append(at)
        return places

    def trips(
        self,
        keys: QueueKeys,
        places: Sequence[int],
        lent: SequenceLease,
        wait: Wait | None,
        *,
        calls: int,
    ) -> Iterator[RoundTrip]:
        """Yield the round trips for tasks of a queue, each of at most `calls` calls.

        A round trip carries at most BATCH_BYTES. The next one may be made while the one before is
        in flight; this also makes the handles of tasks that were answered.
        """
        for first in range(0, len(places), calls * ops.BATCH_SIZE):
            self._make_handles()
            some = places[first : first + calls * ops.BATCH_SIZE]
            tasks = self._seal(some)
            for runs in _cut([size_of(task) for task in tasks], calls):
                parts = [
                    Chunk(some[run.start : run.stop], tasks[run.start : run.stop]) for run in runs
                ]
                yield RoundTrip(parts, _calls(keys, parts, lent.more(len(parts)), wait))

    def note(self, trip: RoundTrip, replies: Sequence[list[Enqueued] | QsyncError]) -> None:
        """Take the replies of a round trip; raise the first error among them."""
        failed: QsyncError | None = None
        for part, reply in zip(trip.parts, replies, strict=True):
            if isinstance(reply, QsyncError):
                failed = failed or reply
            else:
                self._answered.append((part, reply))
        if failed is not None:
            raise failed

    def handles(self) -> list[T]:
        """Return the handles of the tasks that the store answered for, in order."""
        self._make_handles()
        return [handle for handle in self._handles if handle is not None]

    def _nonce_of(self, at: int) -> bytes:
        return self._nonces.get(at, self._nonce)

    def _seal(self, places: Sequence[int]) -> list[NewTask]:
        made, tasks, payloads, nonce_of = self._sealed, self._tasks, self._payloads, self._nonce_of
        remember_us = self._remember_us
        return [
            made[at]
            or encode_plain_task(
                tasks[at], payloads[at], nonce_of(at), tasks[at].queue, remember_us
            )
            for at in places
        ]

    def _make_handles(self) -> None:
        handle, handles = self._handle, self._handles
        for part, reply in self._answered:
            for at, task, outcome in zip(part.places, part.tasks, reply, strict=True):
                handles[at] = handle(task, outcome)
        self._answered.clear()


def _cut(sizes: Sequence[int], calls: int) -> Iterator[Sequence[range]]:
    """Cut tasks of these sizes, in bytes, into calls, and the calls into round trips."""
    runs = list(ops.batches(range(len(sizes)), sizes.__getitem__, CALL_BYTES))
    for fitting in ops.batches(runs, lambda run: sum(sizes[run.start : run.stop])):
        for at in range(0, len(fitting), calls):
            yield fitting[at : at + calls]


def _calls(
    keys: QueueKeys, parts: Sequence[Chunk], numbers: Sequence[CallId], wait: Wait | None
) -> list[Call[list[Enqueued]]]:
    return [
        ops.enqueue(keys, part.tasks, sender=sender, number=number, wait=wait)
        for part, (sender, number) in zip(parts, numbers, strict=True)
    ]


class Lookahead(Generic[T]):
    """An iterator that can make its next item ahead."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._made: list[T] = []

    def make(self) -> None:
        """Make the next item, unless it is made already."""
        if not self._made:
            self._made.extend(itertools.islice(self._items, 1))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        self.make()
        if not self._made:
            raise StopIteration
        return self._made.pop()


class CallId(NamedTuple):
    """The identity of a call, by which the store recognizes a repeated one."""

    sender: str
    number: int


class CallSequences:
    """Gives each enqueue call of a client a sender and a sequence number while it is in flight.

    A sender has one call in flight, so the store keeps only its last number. A client has as many
    senders as concurrent calls. The sender that was freed last is used first, so that the store
    soon forgets the senders of a burst. Threads may share this object. A forked child makes new
    senders, since its parent goes on with the old ones.
    """

    def __init__(self) -> None:
        self._free: list[CallId] = []
        self._pid = os.getpid()

    def lend(self, count: int) -> SequenceLease:
        """Lease call ids for `count` calls; no call may be repeated after the `with` block."""
        if self._pid != (pid := os.getpid()):
            self._free, self._pid = [], pid
        return SequenceLease(self._free, count)


class SequenceLease:
    """Call ids that are in use within a `with` block."""

    __slots__ = ("_free", "_numbers")

    def __init__(self, free: list[CallId], count: int) -> None:
        self._free = free
        self._numbers: list[CallId] = []
        self._draw(count)

    def __enter__(self) -> list[CallId]:
        return self._numbers

    def __exit__(self, *_: object) -> None:
        self._free += reversed(self._numbers)

    def more(self, count: int) -> list[CallId]:
        """Return `count` new call ids; all calls with the ones before must have been answered."""
        self._numbers = [CallId(sender, number + 1) for sender, number in self._numbers]
        self._draw(count)
        return self._numbers[:count]

    def _draw(self, count: int) -> None:
        free, numbers = self._free, self._numbers
        while len(numbers) < count:
            try:
                last = free.pop()
            except IndexError:
                last = CallId(new_id(), 0)
            numbers.append(CallId(last.sender, last.number + 1))


def duplicate_client_error(keys: QueueKeys) -> QsyncError:
    """Return the error for a call that the store refused since its sender made a later one.

    The later call came from a copy of this process, e.g. of a restored snapshot.
    """
    return QsyncError(
        f"enqueue to queue {keys.queue!r}: another process has the identity of this client, as "
        "after the restore of a snapshot: make a new client"
    )


class Batcher(Generic[T, U]):
    """Combines concurrent requests into batches, one batch in flight at a time, in order.

    Items that arrive while a batch is in flight go in the next one: an idle batcher sends at once,
    a busy one sends large batches. When IN_TWO or more items arrive together, half of them go
    first: from then on the store works on one half while the callers of the other continue. An
    error of a batch goes to all its callers. A lone caller sends its own item directly, which is
    faster.

    A caller waits at most `patience` seconds from its arrival, and then gets the error that
    `too_late` makes. Callers do not expire while the store answers: only after it has been silent
    for LINE_S, or for half of their patience if that is less.
    """

    def __init__(
        self,
        run: Callable[[list[T], float], Awaitable[Sequence[U | Exception]]],
        size: Callable[[T], int],
        *,
        patience: float,
        too_late: Callable[[], Exception],
        calls: int = 1,
        most: int = ops.BATCH_BYTES,
    ) -> None:
        """Make a batcher.

        run       sends a batch; gets the items and the seconds left to the batch's last caller
        size      returns the size of an item, bytes
        patience  longest wait of a caller, seconds
        too_late  makes the error for a caller that waited longer
        calls     most calls in a batch; together they carry at most BATCH_BYTES
        most      most bytes of one call
        """
        self._run = run
        self._size = size
        self._patience = patience
        self._line_s = min(LINE_S, patience / 2)
        self._too_late = too_late
        self._calls = calls
        self._most = most
        self._loop: asyncio.AbstractEventLoop | None = None
        """Event loop of the first caller; the owner rejects callers on other loops."""
        self._items: list[T] = []
        self._futures: list[asyncio.Future[U]] = []
        self._arrivals: list[float] = []
        """Arrival times of the waiting items, by the loop's clock."""
        self._sent: list[asyncio.Future[U]] = []
        self._sent_arrivals: list[float] = []
        """Arrival times of the items in flight, by the loop's clock."""
        self._answered = -math.inf
        """Time of the store's last answer, by the loop's clock."""
        self._expiry: asyncio.TimerHandle | None = None
        """Timer for the oldest caller; one timer serves all callers."""
        self._sender: asyncio.Task[None] | None = None
        self._alone: asyncio.Future[U] | None = None
        """Future of the caller that found the batcher idle, until its item is answered or goes to
        `_sender`."""

    def ask(self, item: T) -> Awaitable[U]:
        """Return an awaitable of the reply; the caller must await it at once.

        Cancelling it affects no other caller; the item may have been sent.
        """
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        future: asyncio.Future[U] = self._loop.create_future()
        self._items.append(item)
        self._futures.append(future)
        self._arrivals.append(self._loop.time())
        if self._sender is not None or self._alone is not None:
            return future
        self._alone = future
        return self._begin(future)

    async def _begin(self, future: asyncio.Future[U]) -> U:
        """Send the waiting items, the first of which is this future's; return its reply."""
        try:
            await asyncio.sleep(0)  # let other callers that are ready now join the batch
            if len(self._items) == 1:
                return await self._ask_alone()
        except BaseException:
            future.cancel()
            raise
        finally:
            self._alone = None
            if self._items:
                self._sender = asyncio.get_running_loop().create_task(self._send())
        return await future

    async def _ask_alone(self) -> U:
        [item], [future] = self._items, self._futures
        left = self._left(self._arrivals[0])
        self._items, self._futures, self._arrivals = [], [], []
        [reply] = await self._replies([item], left)
        future.cancel()  # only drain() awaits this future
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def drain(self) -> None:
        """Wait until no batch is in flight."""
        while (waits := self._sender or self._alone) is not None:
            await asyncio.wait([waits])
            await asyncio.sleep(0)  # let the lone caller start the next batch
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def _left(self, arrival: float) -> float:
        """Return how many seconds a caller whose item is being sent still waits."""
        until = max(arrival + self._patience, self._answered + self._line_s)
        return until - asyncio.get_running_loop().time()

    def _expire(self, due: float) -> None:
        """Fail the callers whose patience has run out, and set the timer for the next."""
        now, self._expiry = asyncio.get_running_loop().time(), None
        oldest = math.inf
        limit = now - self._patience if now - self._answered >= self._line_s else -math.inf
        if now - due > LATE_S:  # the loop was blocked: replies may be waiting to be read
            limit = -math.inf
        for futures, arrivals in (
            (self._sent, self._sent_arrivals), (self._futures, self._arrivals)
        ):  # fmt: skip
            for future, arrival in zip(futures, arrivals, strict=True):
                if future.done():
                    continue
                if arrival > limit:
                    oldest = min(oldest, arrival)
                    break
                future.set_exception(self._too_late())
        if oldest < math.inf:
            self._expire_at(max(oldest + self._patience, now + LATE_S / 2))

    def _expire_at(self, due: float) -> None:
        self._expiry = asyncio.get_running_loop().call_at(due, self._expire, due)

    async def _send(self) -> None:
        count = len(self._items)
        if self._calls == 1 and count >= IN_TWO:
            count = (count + 1) // 2
        try:
            while self._items:
                await self._deliver(*self._take(min(count, self._count())))
                count = len(self._items)
        finally:
            self._sender = None
            for future in self._futures:
                future.cancel()
            self._items.clear()
            self._futures.clear()
            self._arrivals.clear()

    def _take(self, count: int) -> tuple[list[T], list[asyncio.Future[U]], list[float]]:
        taken = self._items[:count], self._futures[:count], self._arrivals[:count]
        del self._items[:count], self._futures[:count], self._arrivals[:count]
        items, futures, arrivals = taken
        kept = [at for at, future in enumerate(futures) if not future.done()]
        if len(kept) < len(futures):
            return (
                [items[at] for at in kept],
                [futures[at] for at in kept],
                [arrivals[at] for at in kept],
            )
        return taken

    def _count(self) -> int:
        """Return how many of the items go in the next batch."""
        runs = ops.batches(self._items[: self._calls * ops.BATCH_SIZE], self._size, self._most)
        count = len(next(runs))
        if self._calls > 1:
            room = ops.BATCH_BYTES - sum(map(self._size, self._items[:count]))
            for run in itertools.islice(runs, self._calls - 1):
                room -= sum(map(self._size, run))
                if room < 0:
                    break
                count += len(run)
        return count

    async def _replies(self, items: list[T], left: float) -> Sequence[U | Exception]:
        replies = await self._run(items, left)
        if len(replies) != len(items):
            msg = f"{len(items)} were asked for, and the store answered for {len(replies)}"
            raise QsyncError(msg)
        return replies

    async def _deliver(
        self, items: list[T], futures: list[asyncio.Future[U]], arrivals: list[float]
    ) -> None:
        if not items:
            return
        loop = asyncio.get_running_loop()
        self._sent, self._sent_arrivals = futures, arrivals
        if self._expiry is None:
            self._expire_at(arrivals[0] + self._patience)
        replies: Sequence[U | Exception]
        try:
            replies = await self._replies(items, self._left(arrivals[-1]))
            if not isinstance(replies[-1], StoreUnavailable):
                self._answered = loop.time()
        except StoreUnavailable as error:
            replies = [copy_for_caller(error) for _ in futures]
        except Exception as error:
            self._answered = loop.time()
            replies = [copy_for_caller(error) for _ in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        self._sent, self._sent_arrivals = [], []
        # Later, so that the next batch is sent first: the store works on it while the callers of
        # this batch continue.
        loop.call_soon(_answer, futures, replies)


def _answer(futures: Sequence[asyncio.Future[U]], replies: Sequence[U | Exception]) -> None:
    for future, reply in zip(futures, replies, strict=True):
        if future.done():
            continue
        if isinstance(reply, Exception):
            future.set_exception(reply)
        else:
            future.set_result(reply)


class InFlight:
    """Counts operations in flight, so that `aclose` can wait for them."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    def __enter__(self) -> None:
        self._count += 1
        self._none.clear()

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self._none.set()

    async def none(self) -> None:
        """Wait until nothing is in flight."""
        await self._none.wait()


def copy_for_caller(error: Exception) -> Exception:
    """Return a copy of the error for one of several callers: a shared one would mix tracebacks."""
    if not isinstance(error, QsyncError):
        return error
    copied = copy.copy(error)
    copied.__cause__ = error.__cause__
    return copied
