"""Leases tasks from the queues, does their upkeep, and waits when there is no work.

Each fetch also does upkeep: it promotes due tasks, recovers tasks with expired leases, and removes
expired data.

The fetches of each queue are numbered. A fetch that gets no reply is repeated under the same number
until the store replies, so that no task is leased to a server that does not know about it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, cast

from qsync.broker import ops
from qsync.broker.aio import AsyncBroker
from qsync.broker.call import Call
from qsync.broker.listeners import BlockingPop
from qsync.broker.op_values import FetchResult
from qsync.broker.slot_map import Node
from qsync.errors import QsyncError, SchemaMismatch
from qsync.server.blocking_waits import PROBE_S, UNSENT_S, Waiters
from qsync.server.capacity import Capacity
from qsync.server.clock import boot_s
from qsync.server.config import Config
from qsync.server.crash_log import CrashLog
from qsync.server.fetch_replies import FetchReplies
from qsync.server.fetch_timing import FetchTiming
from qsync.server.idle_scan import BusyQueues
from qsync.server.leases import LeaseKeeper
from qsync.server.outage_log import Outage, fetch_part
from qsync.server.queue_state import FetchInFlight, QueueState
from qsync.server.runner import Runner
from qsync.server.server_parts import cancel
from qsync.server.wake_channel import Wakes
from qsync.server.weights import interleave

log: Final = logging.getLogger("qsync.server")

Group = Sequence[tuple[QueueState, int]]
"""Fetches that are sent together: the queues, each with the number of tasks to ask for."""

Send = Callable[[Group], asyncio.Task[None]]
"""A function that lets an asyncio task send fetches, and returns that task."""


class Fetcher:
    """Supplies the runner with tasks from all queues of the server."""

    def __init__(
        self,
        holder: str,
        config: Config,
        broker: AsyncBroker,
        queues: Sequence[QueueState],
        runner: Runner,
        capacity: Capacity,
        leases: LeaseKeeper,
        outage: Outage,
        crash_log: CrashLog,
    ) -> None:
        self._holder = holder
        self._config = config
        self._broker = broker
        self._queues = {queue.name: queue for queue in queues}
        self._runner = runner
        self._capacity = capacity
        self._outage = outage
        self._policy = config.policy()
        self._wakes = self._make_wakes(queues)
        self._busy_queues = BusyQueues(
            broker, queues, config, outage, self._wakes,
            on_found=lambda: self._wakeup.set(), on_unsent=self._on_unsent,
        )  # fmt: skip
        self._listening: set[asyncio.Task[None]] = set()
        self._waiters = Waiters(broker, queues)
        if self._wakes is None:
            self._waiters.block_on_all()
        self._in_flight: dict[str, asyncio.Task[None]] = {}
        self._timing = FetchTiming(
            config, self._queues, self._in_flight, self._busy_queues, capacity.open_slots
        )
        self._replies = FetchReplies(
            holder, config, queues, runner, capacity, leases, outage, crash_log, self._timing,
            self._busy_queues, on_fatal=self._fail,
        )  # fmt: skip
        self._wakeup = capacity.room_made
        self._crash_log = crash_log
        self._runs = False
        self._fatal: BaseException | None = None

    async def run(self) -> None:
        """Fetch until cancelled."""
        loop = asyncio.get_running_loop()
        self._runs = True
        looking = self._spawn(self._busy_queues.run()) if self._busy_queues.many else None
        if self._wakes is not None:
            self._wakes.start()
        try:
            while True:
                self._wakeup.clear()
                delay = self._start_round()
                timer = loop.call_later(delay, self._wakeup.set) if math.isfinite(delay) else None
                await self._wakeup.wait()
                if timer is not None:
                    timer.cancel()
                if self._fatal is not None:
                    raise self._fatal
        finally:
            self._runs = False
            if looking is not None:
                looking.cancel()

    async def finish(self, patience: float) -> None:
        """Cancel the waits, and wait up to `patience` seconds for fetches in flight.

        The tasks of these fetches are passed to the runner. A cancelled wait may have consumed a
        wake; in that case, `pass_on` wakes another server.
        """
        if self._wakes is not None:
            await self._wakes.aclose()
        await cancel([*filter(None, self._waiters.tasks.values()), *self._listening])
        ends, pause = boot_s() + patience, 0.0
        while boot_s() < ends:
            if self._in_flight:
                await asyncio.wait(set(self._in_flight.values()), timeout=max(0.0, ends - boot_s()))
            fetching = [queue for queue in self._busy_queues.all() if queue.in_flight is not None]
            if not fetching:
                break
            await asyncio.sleep(pause)
            self._start_fetches([(queue, 0) for queue in fetching])
            pause = 0.05
        for task in self._in_flight.values():
            task.cancel()
        await asyncio.gather(*self._in_flight.values(), return_exceptions=True)

    async def pass_on(self) -> None:
        """Wake another server for each queue in which this server may leave pending tasks."""
        queues = list(self._queues.values())
        cluster = self._broker.address.kind == "cluster"
        groups = [[queue] for queue in queues] if cluster else [queues]
        await asyncio.gather(*map(self._pass_on, groups))

    async def _pass_on(self, queues: Sequence[QueueState]) -> None:
        queues = await self._busy_queues.with_tasks(queues)
        calls = [self._call(queue, 0) for queue in queues if queue.in_flight is None]
        for answer in await self._broker.run_many(calls):
            if isinstance(answer, QsyncError) and not isinstance(answer, SchemaMismatch):
                self._outage.note("wake another server", answer)

    async def aclose(self) -> None:
        """Close the connections that wait for tasks."""
        if self._wakes is not None:
            await self._wakes.aclose()
        await self._crash_log.aclose()
        await self._waiters.aclose()

    # One round.

    def _start_round(self, send: Send | None = None) -> float:
        """Start one round of fetches and waits; return the seconds until the next round."""
        now, timing = boot_s(), self._timing
        awaited_until = timing.awaited_until(now)
        self._capacity.notify_room = awaited_until is None
        if awaited_until is not None:
            return awaited_until - now
        planned = timing.plan(now, self._capacity.fetch_size(), timing.open_slots())
        if planned.fetches:
            self._start_fetches(planned.fetches, send)
        self._busy_queues.rest(queue for queue in planned.ready if timing.at_rest(queue))
        self._busy_queues.has_room = planned.slots > 0
        if planned.slots > 0:
            self._listen(now)
            self._wait_for_wake(now, planned.slots)
        return timing.next_round(now, planned)

    # Messages.

    def _make_wakes(self, queues: Sequence[QueueState]) -> Wakes | None:
        """Return the receiver of wake messages; None outside a cluster or for a single queue."""
        if self._broker.address.kind != "cluster" or len(queues) == 1:
            return None
        return Wakes(
            self._broker, self._holder, queues, self._outage,
            lease_us=self._policy.lease_us,
            on_wake=self._on_wake,
            on_change=lambda: self._wakeup.set(),
            on_denied=lambda queue: self._block(queue, math.inf),
        )  # fmt: skip

    def _on_wake(self, queue: QueueState) -> None:
        queue.exhausted = False
        self._timing.woken.add(queue.name)
        self._busy_queues.wake(queue)
        self._wakeup.set()

    def _on_unsent(self, queue: QueueState) -> None:
        log.info(
            "clients add tasks to queue %s without a wake message: they lack the permission to "
            "send one, or use an earlier release. This server blocks on the queue for an hour, "
            "on a separate connection",
            queue.name,
        )
        self._block(queue, UNSENT_S)

    def _block(self, queue: QueueState, seconds: float) -> None:
        self._waiters.block_on(queue, seconds)
        self._wakeup.set()

    def _listen(self, now: float) -> None:
        """Register this server as idle in the queues that may be empty."""
        if self._wakes is None:
            return
        by_node: dict[Node | None, list[QueueState]] = {}
        for queue in self._wakes.unlisted():
            idle = self._busy_queues.is_idle(queue) or queue.exhausted
            if (
                idle
                and queue.name not in self._in_flight
                and now >= self._timing.retry_at[queue.name]
            ):
                by_node.setdefault(self._broker.node_of(queue.keys.base), []).append(queue)
        for queues in by_node.values():
            task = self._spawn(self._say_idle(self._wakes, queues))
            self._wakes.take(queues)
            self._listening.add(task)
            task.add_done_callback(self._listening.discard)

    async def _say_idle(self, wakes: Wakes, queues: Sequence[QueueState]) -> None:
        if (error := await self._busy_queues.listen(wakes, queues)) is not None:
            self._outage.note("wait for tasks", error)

    def _wait_for_wake(self, now: float, slots: int) -> None:
        """Block on the wake lists of the queues that may be empty."""
        timing = self._timing
        for waiter in self._waiters.remove_expired(now):
            self._spawn(waiter.aclose())
        for waiter, task in self._waiters.tasks.items():
            if task is not None:
                continue
            queues = self._waiters.queues_of(waiter)
            blocked = timing.to_block_on(queues, now)
            if not blocked:
                continue
            failing = any(fetch_part(queue.name) in self._outage.parts for queue in blocked)
            seconds = PROBE_S if failing else timing.block_s(blocked, queues, now)
            if len(self._queues) > 1 or timing.due_soon(blocked[0], now):
                self._waiters.tasks[waiter] = self._spawn(self._wait(waiter, blocked, seconds))
            elif blocked[0].name not in self._in_flight and blocked[0].in_flight is None:
                self._wait_and_fetch(waiter, blocked[0], slots, min(seconds, timing.foresight_s))

    async def _wait(self, waiter: BlockingPop, queues: Sequence[QueueState], max_s: float) -> None:
        try:
            everything = len(queues) == len(waiter.keys)
            keys = None if everything else [queue.keys.key("wake") for queue in queues]
            woken = await waiter.pop(max_s, keys)
            self._waiters.backoffs[waiter].reset()
            if self._outage.parts:
                for queue in queues:
                    self._outage.worked(fetch_part(queue.name))
            if woken is not None:
                queue = self._waiters.queue_of(woken[0])
                if self._wakes is not None and self._wakes.waits(queue):
                    self._waiters.block_on(queue, UNSENT_S)
                self._on_wake(queue)
        except QsyncError as error:
            again_at = self._timing.wait_again_at = boot_s() + self._waiters.backoffs[waiter].next()
            for queue in queues:
                self._timing.retry_at[queue.name] = again_at
                self._outage.failed(fetch_part(queue.name), error)
        finally:
            self._waiters.tasks[waiter] = None
            self._wakeup.set()

    def _wait_and_fetch(
        self, waiter: BlockingPop, queue: QueueState, slots: int, seconds: float
    ) -> None:
        """Block on the wake list and send a fetch along with the wait, which saves one round trip.

        Only a server of one queue can do this, since other queues could fill the slots during the
        wait.
        """
        queue.requested, queue.sent_at = slots, boot_s()
        queue.blocked_until = queue.sent_at + seconds
        self._timing.free[queue.name] = min(slots, self._timing.open_slots())
        work = self._spawn(self._fetch_on_wake(waiter, queue, slots, seconds))
        self._in_flight[queue.name] = self._waiters.tasks[waiter] = work

    async def _fetch_on_wake(
        self, waiter: BlockingPop, queue: QueueState, slots: int, seconds: float
    ) -> None:
        try:
            sent = boot_s()
            answer = await waiter.pop_then_run(seconds, self._call(queue, slots))
            if answer is not None:
                self._waiters.backoffs[waiter].reset()
            if isinstance(answer, QsyncError):
                self._replies.failed(queue, answer)
            elif answer is not None:
                leased_at = queue.ran_at(answer.now_us, sent)
                self._runner.submit(
                    await self._replies.leased(queue, slots, answer, leased_at, repeated=False)
                )
        except QsyncError as error:
            self._timing.retry_at[queue.name] = boot_s() + self._waiters.backoffs[waiter].next()
            self._outage.failed(fetch_part(queue.name), error)
        finally:
            self._waiters.tasks[waiter] = None
            queue.requested, queue.blocked_until = 0, 0.0
            self._in_flight.pop(queue.name, None)
            self._wakeup.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        """Make `run` raise the exception of a background task; store errors do not get here."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Make `run` raise an exception."""
        self._fatal = error
        self._wakeup.set()

    def _start_fetches(self, calls: Group, send: Send | None = None) -> None:
        """Send fetches: in one pipeline, or separately in a cluster."""
        cluster = self._broker.address.kind == "cluster"
        for group in [[call] for call in calls] if cluster else [calls]:
            task = (send or self._spawn_sender)(group)
            for queue, count in group:
                queue.requested, queue.sent_at = count, boot_s()
                self._timing.free[queue.name] = min(count, self._timing.open_slots())
                self._in_flight[queue.name] = task
                # A wake that arrives from now on may be for a task that this fetch does not see.
                self._timing.woken.discard(queue.name)
                self._busy_queues.fetched(queue)

    def _spawn_sender(self, group: Group) -> asyncio.Task[None]:
        return self._spawn(self._send_fetches(group))

    async def _send_fetches(self, group: Group) -> None:
        """Send fetches; also send those of the next round while their queues have more tasks.

        A new asyncio task would send the next fetches only after some handlers have run, and the
        store would be idle until then.
        """
        groups = [group]

        def send(group: Group) -> asyncio.Task[None]:
            if groups:
                return self._spawn_sender(group)
            groups.append(group)
            return sender

        sender = cast("asyncio.Task[None]", asyncio.current_task())
        while groups:
            group = groups.pop()
            await self._fetch(group)
            if self._runs and any(queue.has_more_pending for queue, _ in group):
                self._start_round(send)

    async def _fetch(self, group: Group) -> None:
        try:
            sent = boot_s()
            calls = []
            repeated = set()
            for queue, count in group:
                if queue.in_flight is not None:
                    repeated.add(queue.name)
                calls.append(self._call(queue, count))
            answers = await self._broker.run_many(calls)
            runs = []
            for (queue, count), answer in zip(group, answers, strict=True):
                if isinstance(answer, QsyncError):
                    self._replies.failed(queue, answer)
                else:
                    leased = await self._replies.leased(
                        queue, count, answer, sent, repeated=queue.name in repeated
                    )
                    runs.append((leased, count))
            self._runner.submit(interleave(runs))
        finally:
            for queue, _ in group:
                queue.requested = 0
                self._in_flight.pop(queue.name, None)
            self._wakeup.set()

    def _call(self, queue: QueueState, wanted: int) -> Call[FetchResult]:
        if queue.in_flight is None:
            queue.number += 1
            call = ops.fetch(
                queue.keys,
                server=self._holder,
                number=queue.number,
                wanted=wanted,
                policy=self._policy,
                free=self._timing.free.get(queue.name, 0),
                rules=queue.rules_generation,
            )
            queue.in_flight = FetchInFlight(call, f"{self._holder}/{queue.number}", boot_s())
            return call
        return queue.in_flight.again
