"""How tasks are made ready for the store and put together into round trips."""

from __future__ import annotations

import asyncio
import copy
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Final, Generic, NamedTuple, TypeVar, cast

from qsync.broker import ops
from qsync.broker.call import Call, Durability, Wait
from qsync.broker.ops import Enqueued
from qsync.errors import ConfigError, DuplicateTask, InvalidTask, QsyncError
from qsync.keys import QueueKeys, shorten
from qsync.task import Outgoing, Task, new_id, new_nonce, outgoing

T = TypeVar("T")
U = TypeVar("U")

REGISTER_EVERY: Final = 60.0
"""A queue that is used is put into the set of queues so often, seconds: a store may be emptied."""

REGISTER_AGAIN: Final = 1.0
"""How soon that is tried again when it failed, seconds."""

CONFIRM_TIMEOUT: Final = 2.0
"""How long a confirmation is waited for, seconds: a store that syncs every second takes one."""

CALL_BYTES: Final = 1024 * 1024
"""What a call carries at most, unless one task is larger: storing it takes the store 2 to 5 ms."""

IN_TWO: Final = 32
"""From so many items on, a first batch is half of what there is."""

_COSTLY: Final = 2 * CALL_BYTES // ops.BATCH
"""What a task counts at least that is more than a message to store: it has a lock, a fairness key
or a time. It takes the store as long as two others."""

_BESIDE: Final = 128
"""What a task's options and the framing take in a call at most, bytes, the fairness key apart."""


def ready(task: object, *, queue: str | None, payload_limit: int) -> Outgoing:
    """The task as it is sent; InvalidTask when it is none, or does not fit."""
    return outgoing(_checked(task), new_nonce(), queue=queue, payload_limit=payload_limit)


def ready_all(tasks: Iterable[Task], *, payload_limit: int) -> list[Outgoing]:
    """All tasks as they are sent; InvalidTask names the place of the first that does not fit.

    They share a nonce, but for those that repeat an id: by it the store tells them apart.
    """
    try:
        given = iter(tasks)
    except TypeError:
        msg = f"tasks: {type(tasks).__name__} is not an iterable of Task"
        raise InvalidTask(msg) from None
    nonce = new_nonce()
    named: set[tuple[str, str]] = set()
    prepared: list[Outgoing] = []
    for at, task in enumerate(given):
        own = nonce
        try:
            if (id := _checked(task).id) is not None:
                own = new_nonce() if (task.queue, id) in named else nonce
                named.add((task.queue, id))
            prepared.append(outgoing(task, own, payload_limit=payload_limit))
        except InvalidTask as error:
            msg = f"tasks[{at}]: {error}"
            raise InvalidTask(msg) from error
    return prepared


def check_durability(value: object) -> Durability | None:
    """Return what a task is to outlive, or raise ConfigError."""
    match value:
        case None | "fsync" | "replica":
            return value
    msg = f"durability: {shorten(value)} is neither 'fsync' nor 'replica' nor None"
    raise ConfigError(msg)


def check_confirm_timeout(value: object) -> float:
    """Return the seconds that a confirmation is waited for, or raise ConfigError."""
    if type(value) not in (int, float) or not 0.001 <= cast("float", value) <= 3600:
        msg = f"confirm_timeout: {shorten(value)} is not a number of seconds from 0.001 to 3600"
        raise ConfigError(msg)
    return cast("float", value)


def _checked(task: object) -> Task:
    if not isinstance(task, Task):
        msg = f"task: {type(task).__name__} is not a Task; give Task(type, payload)"
        raise InvalidTask(msg)
    return task


def size_of(task: Outgoing) -> int:
    """The bytes that a task takes in a call, about, or those that it counts as."""
    size = len(task.message) + len(task.id) + len(task.fairness_key) + _BESIDE
    return max(size, _COSTLY) if task.lock or task.fairness_key or task.due else size


def duplicate(task: Outgoing, holder: Enqueued) -> DuplicateTask:
    """The error for a task whose id or lock is taken."""
    if holder.outcome == "exists":
        msg = f"id {task.id!r} is taken by another task in queue {task.queue!r}"
    else:
        msg = f"the unique lock is held by task {holder.id!r} in queue {task.queue!r}"
    return DuplicateTask(msg, id=holder.id, queue=task.queue)


class Bulk:
    """The tasks of one call: which go together, and what became of each."""

    def __init__(self, tasks: Sequence[Outgoing]) -> None:
        self.tasks = tasks
        self.outcomes: list[Enqueued | None] = [None] * len(tasks)

    def places(self) -> dict[str, list[int]]:
        """For each queue where its tasks are, in order."""
        places: dict[str, list[int]] = {}
        for at, task in enumerate(self.tasks):
            places.setdefault(task.queue, []).append(at)
        return places

    def trips(self, places: Sequence[int], *, calls: int) -> Iterator[Sequence[Sequence[int]]]:
        """Cut the places of a queue into calls, and these into round trips of so many at most.

        A round trip carries no more bytes than any call may.
        """
        sizes = [size_of(self.tasks[at]) for at in places]
        runs = list(ops.batches(range(len(places)), sizes.__getitem__, CALL_BYTES))
        for trip in ops.batches(runs, lambda run: sum(sizes[run.start : run.stop])):
            for at in range(0, len(trip), calls):
                yield [places[run.start : run.stop] for run in trip[at : at + calls]]

    def calls(
        self,
        keys: QueueKeys,
        trip: Sequence[Sequence[int]],
        numbers: Sequence[CallNumber],
        wait: Wait | None,
    ) -> list[Call[list[Enqueued]]]:
        """The calls of a round trip."""
        return [
            ops.enqueue(
                keys, [self.tasks[at] for at in part], sender=sender, number=number, wait=wait
            )
            for part, (sender, number) in zip(trip, numbers, strict=True)
        ]

    def note(
        self, trip: Sequence[Sequence[int]], replies: Sequence[list[Enqueued] | QsyncError]
    ) -> None:
        """Keep what became of the tasks of a round trip; raise the first error among them."""
        failed: QsyncError | None = None
        for part, reply in zip(trip, replies, strict=True):
            if isinstance(reply, QsyncError):
                failed = failed or reply
                continue
            for at, outcome in zip(part, reply, strict=True):
                self.outcomes[at] = outcome
        if failed is not None:
            raise failed

    def answered(self) -> Iterator[tuple[Outgoing, Enqueued]]:
        """The tasks that the store has answered for, in order, with what became of them."""
        for task, outcome in zip(self.tasks, self.outcomes, strict=True):
            if outcome is not None:
                yield task, outcome


class CallNumber(NamedTuple):
    """By what the store knows a call that comes again."""

    sender: str
    number: int


class Senders:
    """Numbers the enqueues of a client, for as long as each of them is under way.

    A sender has one call under way at a time, so the store keeps only its last: a client has as
    many senders as it has calls at the same time. The last to become free goes first, so that those
    which a burst took are soon forgotten by the store. Threads may share them. A forked child takes
    none of its parent's, whose numbers go on to rise.
    """

    def __init__(self) -> None:
        self._free: list[CallNumber] = []
        self._pid = os.getpid()

    def lend(self, count: int) -> Lent:
        """Numbers for so many calls, which nobody makes again when the block has ended."""
        if self._pid != (pid := os.getpid()):
            self._free, self._pid = [], pid
        free = self._free
        numbers: list[CallNumber] = []
        while len(numbers) < count:
            try:
                last = free.pop()
            except IndexError:
                last = CallNumber(new_id(), 0)
            numbers.append(CallNumber(last.sender, last.number + 1))
        return Lent(free, numbers)


class Lent:
    """Numbers that are in use within a block."""

    __slots__ = ("_free", "_numbers")

    def __init__(self, free: list[CallNumber], numbers: list[CallNumber]) -> None:
        self._free = free
        self._numbers = numbers

    def __enter__(self) -> list[CallNumber]:
        return self._numbers

    def __exit__(self, *_: object) -> None:
        self._free += reversed(self._numbers)


def overtaken(keys: QueueKeys) -> QsyncError:
    """The error for a call that the store did not take, since it knows a later one of its sender.

    That is none of ours: the memory of this process was copied, and the copy enqueues too.
    """
    return QsyncError(
        f"enqueue to queue {keys.queue!r}: another process has the identity of this client, as "
        "after the restore of a snapshot: make a new client"
    )


class Registry:
    """When to tell the store which queues are in use."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next: dict[str, float] = {}

    def due(self, queue: str) -> bool:
        """Whether the store is to be told now; true for one of those who ask at the same time."""
        now = self._clock()
        if now < self._next.get(queue, now):
            return False
        self._next[queue] = now + REGISTER_EVERY
        return True

    def failed(self, queue: str) -> None:
        """The store could not be told: soon again."""
        self._next[queue] = self._clock() + REGISTER_AGAIN


class Batcher(Generic[T, U]):
    """Puts together what is asked for at the same time.

    Whatever waits while one batch is under way goes in the next one: an idle batcher sends at
    once, a busy one sends much at a time, and the order is kept. When many ask at once, half of
    them go first: from then on the store works for one half while the other goes on to ask again.
    A hard failure of a batch goes to all who wait for it. Who asks alone sends for himself, which
    is quicker.
    """

    def __init__(
        self,
        run: Callable[[list[T]], Awaitable[Sequence[U | Exception]]],
        size: Callable[[T], int],
        *,
        calls: int = 1,
        most: int = ops.BATCH_BYTES,
    ) -> None:
        """`calls`: how many calls a batch may take, each of `most` bytes.

        Together they are no larger than any call may be.
        """
        self._run = run
        self._size = size
        self._calls = calls
        self._most = most
        self._items: list[T] = []
        self._futures: list[asyncio.Future[U]] = []
        self._sender: asyncio.Task[None] | None = None
        self._alone: asyncio.Future[U] | None = None
        """Of the one who asks while nothing is under way, until his batch is or was."""

    async def ask(self, item: T) -> U:
        """The reply. Cancelling it disturbs no other, and may come too late to matter."""
        future: asyncio.Future[U] = asyncio.get_running_loop().create_future()
        self._items.append(item)
        self._futures.append(future)
        if self._sender is not None or self._alone is not None:
            return await future
        self._alone = future
        try:
            await asyncio.sleep(0)  # all that is ready to run now may ask too: that is one batch
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
        self._items, self._futures = [], []
        [reply] = await self._replies([item])
        future.cancel()  # nobody waits for it, but for the end of all that is under way
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def drain(self) -> None:
        """Wait until nothing is under way."""
        while (waits := self._sender or self._alone) is not None:
            await asyncio.wait([waits])
            await asyncio.sleep(0)  # what comes next begins when he who was alone goes on

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

    def _take(self, count: int) -> tuple[list[T], list[asyncio.Future[U]]]:
        items, futures = self._items[:count], self._futures[:count]
        del self._items[:count], self._futures[:count]
        if any(future.cancelled() for future in futures):
            kept = [at for at, future in enumerate(futures) if not future.cancelled()]
            return [items[at] for at in kept], [futures[at] for at in kept]
        return items, futures

    def _count(self) -> int:
        """How many of the items go in the next batch."""
        runs = ops.batches(self._items, self._size, self._most)
        count = len(next(runs))
        if self._calls > 1:
            room = ops.BATCH_BYTES - sum(map(self._size, self._items[:count]))
            for run in itertools.islice(runs, self._calls - 1):
                room -= sum(map(self._size, run))
                if room < 0:
                    break
                count += len(run)
        return count

    async def _replies(self, items: list[T]) -> Sequence[U | Exception]:
        replies = await self._run(items)
        if len(replies) != len(items):
            msg = f"{len(items)} were asked for, and the store answered for {len(replies)}"
            raise QsyncError(msg)
        return replies

    async def _deliver(self, items: list[T], futures: list[asyncio.Future[U]]) -> None:
        replies: Sequence[U | Exception]
        try:
            replies = await self._replies(items) if items else []
        except Exception as error:
            replies = [own(error) for _ in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        # Not here and now: first the next batch is sent, so that the callers of this one go on
        # while the store works on that.
        asyncio.get_running_loop().call_soon(_answer, futures, replies)


def _answer(futures: Sequence[asyncio.Future[U]], replies: Sequence[U | Exception]) -> None:
    for future, reply in zip(futures, replies, strict=True):
        if future.done():
            continue
        if isinstance(reply, Exception):
            future.set_exception(reply)
        else:
            future.set_result(reply)


class UnderWay:
    """Counts what is under way, so that closing can wait for its end."""

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
        """Wait until nothing is under way."""
        await self._none.wait()


def own(error: Exception) -> Exception:
    """An exception for one of several callers: one object would mix their traces."""
    if not isinstance(error, QsyncError):
        return error
    copied = copy.copy(error)
    copied.__cause__ = error.__cause__
    return copied
