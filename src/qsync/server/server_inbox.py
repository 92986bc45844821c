"""The server's record in the store, and its inbox of operators' orders."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import os
import socket
import sys
import threading
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from traceback import FrameSummary
from types import FrameType
from typing import Any, Final

from qsync import codec
from qsync.backoff import AWAY_CAP_S, Backoff
from qsync.broker import registry_ops
from qsync.broker.aio import AsyncBroker
from qsync.broker.base import ends_in
from qsync.broker.call import Call
from qsync.broker.listeners import BlockingPop
from qsync.errors import QsyncError
from qsync.keys import GlobalKeys
from qsync.server.capacity import Capacity
from qsync.server.clock import boot_s
from qsync.server.config import Config
from qsync.server.deadlock_detection import Waits
from qsync.server.error_text import DEPTH_LIMIT, STACK_LIMIT, stack_text
from qsync.server.leases import LeaseKeeper
from qsync.server.loop_watchdog import STALE_S
from qsync.server.outage_log import Outage
from qsync.server.queue_state import RUNNING, LeasedTask, QueueState
from qsync.server.runner import Runner
from qsync.version import __version__

log: Final = logging.getLogger("qsync.server")

INBOX_WAIT_S: Final = 10.0
"""Length of one blocking read of the inbox, in seconds."""

WITHDRAW_S: Final = 1.0
"""How long a stopping server waits for the store to delete its record, in seconds."""

EMPTY_S: Final = 1.0
"""How long the first record waits for the inbox to be empty, in seconds."""

ANNOUNCE: Final = "announce the server"
READ_INBOX: Final = "read the inbox"


class ServerInbox:
    """Publishes the server's record, and carries out the orders in its inbox."""

    def __init__(
        self,
        server_id: str,
        prefix: str,
        config: Config,
        broker: AsyncBroker,
        queues: Sequence[QueueState],
        runner: Runner,
        capacity: Capacity,
        leases: LeaseKeeper,
        types: Sequence[str],
        on_stop: Callable[[], None],
        outage: Outage,
        waits: Waits,
        process_stack: Callable[[LeasedTask], Awaitable[str]],
    ) -> None:
        self._server_id = server_id
        self._keys = GlobalKeys(prefix)
        self._config = config
        self._broker = broker
        self._queues = {queue.name: queue for queue in queues}
        self._runner = runner
        self._capacity = capacity
        self._leases = leases
        self._types = types
        self._on_stop = on_stop
        self._outage = outage
        self._waits = waits
        self._stacks = HandlerStacks(queues, process_stack)
        self._started = boot_s()
        self._inbox = BlockingPop(broker, (self._keys.inbox(server_id),))
        self._emptied = asyncio.Event()
        """Set once the orders that were in the inbox at the start have been discarded."""
        self._again = asyncio.Event()
        self._recorded_running = 0
        """Number of running tasks that the last record shows."""
        self._corrected = False
        """Whether the record has already been published early since it was last due."""
        self._registered = False
        self.quiet: bool = False

    async def announce(self) -> None:
        """Publish the server's record twice per lease duration, until cancelled.

        The first record is published once the inbox is empty, because operators who see the server
        may send it orders. After EMPTY_S, the record is published in any case, because the cluster
        node that holds the inbox may be down.
        """
        every, backoff = self._config.lease_s / 2, Backoff(cap=AWAY_CAP_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EMPTY_S):
                await self._emptied.wait()
        while True:
            self._corrected = self._corrected and self._again.is_set()
            self._again.clear()
            if (error := await self._publish_record()) is None:
                self._outage.worked(ANNOUNCE)
                backoff.reset()
            else:
                self._outage.failed(ANNOUNCE, error)
            pause = every if error is None else backoff.next()
            # Not `asyncio.wait_for`, which before Python 3.12 ignores a cancellation that coincides
            # with a result.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._again.wait()

    def announce_now(self) -> None:
        """Publish the record now, before it is due."""
        self._again.set()

    def announce_again(self) -> None:
        """Publish the record and register the queues now, because the store has lost its data."""
        self._registered = False
        self._again.set()

    async def _publish_record(self) -> QsyncError | None:
        """Publish the record, and register the queues if needed; return the first error, or None.

        The keys may be on different nodes.
        """
        live_ms = int(self._config.lease_s * 2000) + 10_000
        keys = self._keys
        calls: list[Call[Any]] = [
            registry_ops.server_heartbeat(keys, self._server_id, ttl_us=live_ms * 1000),
            registry_ops.set_server_info(keys, self._server_id, self._record(), ttl_ms=live_ms),
        ]
        registering = not self._registered
        if registering:
            self._registered = True  # first: `announce_again` may clear the flag during the call
            calls.append(registry_ops.register(keys, self._queues))
        replies = await self._broker.run_many(calls)
        if registering and isinstance(replies[-1], QsyncError):
            self._registered = False
        return next((reply for reply in replies if isinstance(reply, QsyncError)), None)

    def _record(self) -> dict[str, bytes | str | int]:
        self._recorded_running = self._capacity.running
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": __version__,
            "app_version": self._config.version or "",
            "python": ".".join(map(str, sys.version_info[:3])),
            "uptime_s": int(boot_s() - self._started),
            "concurrency": self._config.concurrency,
            "running": self._capacity.in_use,
            "quiet": int(self.quiet),
            "waiting": self._capacity.in_use if self._waits.stuck else self._waits.count,
            "queues": codec.encode(self._config.weights),
            "types": codec.encode(list(self._types)),
            "unknown": codec.encode(self._runner.unknown_types),
            **self._stacks.fields(),
        }

    async def withdraw(self) -> None:
        """Delete the server's record when the server stops."""
        calls: list[Call[Any]] = [
            registry_ops.server_heartbeat(self._keys, self._server_id, ttl_us=0),
            registry_ops.set_server_info(self._keys, self._server_id, {}, ttl_ms=0),
        ]
        for reply in await self._broker.run_many(calls, ends=ends_in(WITHDRAW_S)):
            if isinstance(reply, QsyncError):
                self._outage.note("withdraw the server's record", reply)
        await self._inbox.aclose()

    async def watch_tasks(self) -> None:
        """Hand back tasks that were leased ahead over STALE_S ago and have not started, including
        those that now wait for a thread.

        If the record shows no running tasks although some are running, publish it early, but only
        once before it is due.
        """
        while True:
            await asyncio.sleep(STALE_S / 4)
            capacity = self._capacity
            if capacity.running and not (self._recorded_running or self._corrected):
                self._corrected = True
                self.announce_now()
            if capacity.ready or capacity.gathering.due:
                self._runner.stopping.hand_back_ready(older_than=STALE_S)
            if capacity.running > self._config.concurrency:
                self._runner.take_back_from_threads(STALE_S)

    async def read_inbox(self) -> None:
        """Carry out orders until cancelled.

        Orders that are in the inbox at the start are discarded, since they were meant for an
        earlier server with this id.
        """
        backoff = Backoff(cap=AWAY_CAP_S)
        while True:
            try:
                at_once = not self._emptied.is_set() or READ_INBOX in self._outage.parts
                order = await self._inbox.pop(0.001 if at_once else INBOX_WAIT_S)
                if READ_INBOX in self._outage.parts:
                    self._again.set()  # a restarted store may have lost the server's record
                self._outage.worked(READ_INBOX)
                if order is None:
                    self._emptied.set()
                elif self._emptied.is_set():
                    await self._carry_out(order[1])
                backoff.reset()
            except QsyncError as error:
                self._outage.failed(READ_INBOX, error)
                await asyncio.sleep(backoff.next())

    async def _carry_out(self, data: bytes) -> None:
        try:
            verb, *rest = codec.decode(data, list[str])
        except (codec.CodecError, ValueError):
            log.warning("the inbox held an unreadable order")
            return
        if verb == "cancel" and len(rest) == 2:
            await self._cancel(*rest)
        elif verb == "stack" and len(rest) == 3:
            await self._stacks.answer(*rest)
            self.announce_now()
        elif verb == "quiet":
            log.info("draining as requested: no more tasks are fetched")
            self.quiet = True
            self._runner.stopping.stop_accepting()
            self.announce_now()
        elif verb == "stop":
            log.info("told to stop")
            self._on_stop()
        else:
            log.warning("the inbox held an unknown order: %s", ascii(verb)[:80])

    async def _cancel(self, name: str, id: str) -> None:
        """Cancel a task if the store contains a cancel request for it; the order is only a hint."""
        queue = self._queues.get(name)
        leased = queue.held.get(id) if queue is not None else None
        if queue is None or leased is None:
            return
        await self._leases.renew([leased])


STACKS_KEPT: Final = 5
"""Maximum number of stacks in a server's record."""

RUNS_RECORDED: Final = 100
"""Maximum number of tasks whose start is in a server's record; these tasks have been running
longest."""

ELSEWHERE: Final = "The handler runs in another process, which does not answer."

WAITING: Final = "The handler waits for a free thread or process."


class HandlerStacks:
    """Reads the stacks of a server's running handlers; used on the event loop."""

    def __init__(
        self,
        queues: Sequence[QueueState],
        process_stack: Callable[[LeasedTask], Awaitable[str]],
    ) -> None:
        self._queues = {queue.name: queue for queue in queues}
        self._process_stack = process_stack
        self._answers: deque[tuple[str, str, str, str]] = deque(maxlen=STACKS_KEPT)
        """Answers, each with the number of its request, queue, id and stack."""

    async def answer(self, number: str, name: str, id: str) -> None:
        """Read the stack of a task for the request with this number."""
        queue = self._queues.get(name)
        leased = None if queue is None else queue.held.get(id)
        text = "" if leased is None else stack_of(leased)
        if leased is not None and text == ELSEWHERE:
            text = await self._process_stack(leased) or ELSEWHERE
        self._answers.append((number[:40], name, id, text))

    def fields(self) -> dict[str, bytes]:
        """Return the fields of the server's record."""
        return {
            "since": codec.encode(self._longest()),
            "stacks": codec.encode(list(self._answers)),
        }

    def _longest(self) -> list[tuple[str, str, int]]:
        """Return the queue, id and start (us, store's clock) of the tasks that have been running
        longest."""
        running = [
            (leased.begun_s, queue.name, leased.id)
            for queue in self._queues.values()
            for leased in list(queue.held.values())
            if leased.phase is RUNNING and leased.begun_s
        ]
        now = boot_s()
        return [
            (name, id, self._queues[name].store_time_us() - int((now - begun) * 1_000_000))
            for begun, name, id in heapq.nsmallest(RUNS_RECORDED, running)
        ]


def stack_of(leased: LeasedTask) -> str:
    """Return the stack of a task's handler; empty if it has not started or has ended."""
    if leased.phase is not RUNNING:
        return ""
    if leased.waits:
        return WAITING
    if leased.thread and leased.thread != threading.get_ident():
        frame = sys._current_frames().get(leased.thread)
        frames = [] if frame is None else list(traceback.extract_stack(frame, DEPTH_LIMIT))
    else:
        frames = _awaiting(leased.task.get_coro()) if isinstance(leased.task, asyncio.Task) else []
    return stack_text(frames, STACK_LIMIT) or (ELSEWHERE if leased.turn else "")


def _awaiting(coroutine: Any) -> list[FrameSummary]:
    """Return the frames of a suspended coroutine and of the awaitables within it, the outermost
    first."""
    frames: list[FrameSummary] = []
    while coroutine is not None and len(frames) < DEPTH_LIMIT:
        frame: FrameType | None = None
        for prefix in ("cr", "gi", "ag"):
            frame = getattr(coroutine, f"{prefix}_frame", None) or frame
        if frame is None:
            break
        frames += traceback.StackSummary.extract([(frame, frame.f_lineno)])
        # A run that was started inline is not awaited, so take its coroutine from the frame.
        driven = frame.f_code.co_name == "_resume"
        inner = frame.f_locals.get("run") if driven else None
        for name in ("cr_await", "gi_yieldfrom", "ag_await"):
            inner = inner or getattr(coroutine, name, None)
        coroutine = inner
    return frames
