"""Combines the concurrent requests of an event loop into batches."""

from __future__ import annotations

import asyncio
import copy
import itertools
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

from qsync.broker import op_values, ops
from qsync.broker.base import LINE_S, LOOP_BLOCKED_S
from qsync.errors import QsyncError, StoreUnavailable
from qsync.loop_internals import is_quiet

T = TypeVar("T")

U = TypeVar("U")

IN_TWO: Final = 32
"""If at least this many items arrive together, the first batch takes only half of them."""


class Batcher(Generic[T, U]):
    """Combines concurrent requests into batches, one batch in flight at a time, in order.

    Items that arrive while a batch is in flight go into the next batch. So an idle batcher sends
    immediately, and a busy batcher sends large batches. When IN_TWO or more items arrive together,
    half of them go first. From then on, the store works on one half of the items while the callers
    of the other half continue. If a batch fails, all its callers get the error. A lone caller sends
    its own item directly, which is faster. The caller sends immediately if no other callback of the
    event loop is ready to run. Some event loops, such as uvloop's, do not reveal whether callbacks
    are ready. On such a loop, a lone caller sends immediately if no item arrived while the last
    lone caller's item was in flight.

    A caller waits at most `patience` seconds from its arrival, and then gets the error that
    `too_late` returns. No caller expires while the store keeps answering. A caller expires only
    after the store has been silent for LINE_S, or for half of the caller's patience if that is
    less.
    """

    def __init__(
        self,
        run: Callable[[list[T], float], Awaitable[Sequence[U | Exception]]],
        size: Callable[[T], int],
        *,
        patience: float,
        too_late: Callable[[], Exception],
        calls: int = 1,
        max_bytes: int = op_values.BATCH_BYTES,
        run_one: Callable[[T, float], Awaitable[U]] | None = None,
    ) -> None:
        """Create a batcher.

        run       sends a batch; receives the items and the seconds left to the batch's last caller
        size      returns the size of an item, in bytes
        patience  longest time that a caller waits, in seconds
        too_late  returns the error for a caller that waited longer
        calls     maximum number of calls in a batch; together they carry at most BATCH_BYTES
        max_bytes maximum size of one call, in bytes
        run_one   sends one item, faster than `run`; receives the seconds left to its caller
        """
        self._run = run
        self._run_one = self._send_single if run_one is None else run_one
        self._size = size
        self._patience = patience
        self._line_s = min(LINE_S, patience / 2)
        self._too_late = too_late
        self._calls = calls
        self._max_bytes = max_bytes
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
        self._is_solo = False
        """Whether a caller that found the batcher idle is sending its item or collecting more
        items."""
        self._was_alone = False
        """Whether the last caller that found the batcher idle remained the only caller."""
        self._solo_ended: asyncio.Event | None = None
        """Set when the caller that found the batcher idle is done; None until `drain` first waits
        for it."""

    def submit(self, item: T) -> Awaitable[U]:
        """Return an awaitable for the reply, which the caller must await immediately.

        Cancelling the awaitable does not affect other callers; the item may already have been sent.
        """
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        if self._sender is None and not self._is_solo:
            self._is_solo = True
            return self._submit_first(loop, item)
        return self._add(loop, item)

    def _add(self, loop: asyncio.AbstractEventLoop, item: T) -> asyncio.Future[U]:
        future: asyncio.Future[U] = loop.create_future()
        self._items.append(item)
        self._futures.append(future)
        self._arrivals.append(loop.time())
        return future

    async def _submit_first(self, loop: asyncio.AbstractEventLoop, item: T) -> U:
        """Send the item of a caller that found the batcher idle, together with items of callers
        that are ready now."""
        try:
            quiet = is_quiet(loop)
            if quiet or (quiet is None and self._was_alone):
                return await self._run_one(item, self._patience)
            future = self._add(loop, item)
            try:
                await asyncio.sleep(0)  # so that other callers that are ready can join the batch
                if len(self._items) == 1:
                    remaining_s = self._remaining_s(self._arrivals[0])
                    self._items, self._futures, self._arrivals = [], [], []
                    return await self._run_one(item, remaining_s)
            except BaseException:
                future.cancel()
                raise
        finally:
            self._is_solo, self._was_alone = False, not self._items
            if self._items:
                self._sender = loop.create_task(self._send())
                self._sender.add_done_callback(self._on_sender_done)
            if self._solo_ended is not None:
                self._solo_ended.set()
        return await future

    async def _send_single(self, item: T, remaining_s: float) -> U:
        """Send one item as a batch; the default of `run_one`."""
        [reply] = await self._replies([item], remaining_s)
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def drain(self) -> None:
        """Wait until no batch is in flight."""
        while self._sender is not None or self._is_solo:
            if self._sender is not None:
                await asyncio.wait([self._sender])
            else:
                self._solo_ended = self._solo_ended or asyncio.Event()
                self._solo_ended.clear()
                await self._solo_ended.wait()
            await asyncio.sleep(0)  # so that the lone caller can start the next batch
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def _remaining_s(self, arrival: float) -> float:
        """Return the remaining wait, in seconds, of a caller whose item is being sent."""
        until = max(arrival + self._patience, self._answered + self._line_s)
        return until - asyncio.get_running_loop().time()

    def _expire(self, due: float) -> None:
        """Fail the callers whose patience has run out, and set the timer for the next caller."""
        now, self._expiry = asyncio.get_running_loop().time(), None
        oldest = math.inf
        limit = now - self._patience if now - self._answered >= self._line_s else -math.inf
        if now - due > LOOP_BLOCKED_S:  # the loop was blocked, so replies may be waiting unread
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
            self._expire_at(max(oldest + self._patience, now + LOOP_BLOCKED_S / 2))

    def _expire_at(self, due: float) -> None:
        self._expiry = asyncio.get_running_loop().call_at(due, self._expire, due)

    async def _send(self) -> None:
        count = len(self._items)
        if self._calls == 1 and count >= IN_TWO:
            count = (count + 1) // 2
        try:
            while self._items:
                await self._deliver(*self._pop_batch(min(count, self._batch_count())))
                count = len(self._items)
        finally:
            self._give_up()

    def _on_sender_done(self, sender: asyncio.Task[None]) -> None:
        """Clean up after a sender that was cancelled before its first step, as at the end of
        `asyncio.run`."""
        if self._sender is sender:
            self._give_up()

    def _give_up(self) -> None:
        """Cancel the callers that are still waiting; there are none unless the sender was
        cancelled."""
        self._sender = None
        for future in self._futures:
            future.cancel()
        self._items.clear()
        self._futures.clear()
        self._arrivals.clear()

    def _pop_batch(self, count: int) -> tuple[list[T], list[asyncio.Future[U]], list[float]]:
        taken = self._items[:count], self._futures[:count], self._arrivals[:count]
        del self._items[:count], self._futures[:count], self._arrivals[:count]
        items, futures, arrivals = taken
        waiting = [index for index, future in enumerate(futures) if not future.done()]
        if len(waiting) < len(futures):
            return (
                [items[index] for index in waiting],
                [futures[index] for index in waiting],
                [arrivals[index] for index in waiting],
            )
        return taken

    def _batch_count(self) -> int:
        """Return how many items go into the next batch."""
        runs = ops.batches(
            self._items[: self._calls * op_values.BATCH_SIZE], self._size, self._max_bytes
        )
        count = len(next(runs))
        if self._calls > 1:
            room = op_values.BATCH_BYTES - sum(map(self._size, self._items[:count]))
            for run in itertools.islice(runs, self._calls - 1):
                room -= sum(map(self._size, run))
                if room < 0:
                    break
                count += len(run)
        return count

    async def _replies(self, items: list[T], remaining_s: float) -> Sequence[U | Exception]:
        replies = await self._run(items, remaining_s)
        if len(replies) != len(items):
            msg = f"{len(items)} were submitted, and the store answered for {len(replies)}"
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
            replies = await self._replies(items, self._remaining_s(arrivals[-1]))
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
        # Resolve the futures in a later callback, so that the next batch is sent first. The store
        # then works on that batch while the callers of this batch continue.
        loop.call_soon(_resolve, futures, replies)


def _resolve(futures: Sequence[asyncio.Future[U]], replies: Sequence[U | Exception]) -> None:
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
        self._idle = asyncio.Event()
        self._idle.set()

    def __enter__(self) -> None:
        self._count += 1
        self._idle.clear()

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until nothing is in flight."""
        await self._idle.wait()


def copy_for_caller(error: Exception) -> Exception:
    """Return a copy of the error for one of several callers, since sharing one exception would mix
    their tracebacks."""
    if not isinstance(error, QsyncError):
        return error
    copied = copy.copy(error)
    copied.__cause__ = error.__cause__
    return copied
