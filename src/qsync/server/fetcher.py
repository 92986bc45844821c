"""Leases tasks from the queues, does their upkeep, and waits when there is nothing to do.

Each fetch also does upkeep: it promotes due tasks, recovers tasks with expired leases, and removes
expired data.

The fetches of each queue are numbered. A fetch without an answer is repeated under the same number
until the store answers, so that no task is leased to a server that does not know about it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from qsync.backoff import AWAY_CAP_S, Backoff
from qsync.broker import ops
from qsync.broker.aio import AsyncBroker
from qsync.broker.call import Call
from qsync.broker.listeners import BlockingPop
from qsync.broker.op_values import FetchResult, HandedBack
from qsync.broker.slot_map import Node
from qsync.errors import QsyncError, SchemaMismatch
from qsync.server.blocking_waits import UNSENT_S, Waiters
from qsync.server.capacity import Capacity
from qsync.server.clock import boot_s
from qsync.server.config import Config
from qsync.server.crash_log import CrashLog
from qsync.server.fetch_timing import FetchTiming
from qsync.server.fetched_tasks import hold
from qsync.server.idle_scan import BusyQueues
from qsync.server.leases import LeaseKeeper
from qsync.server.outage_log import Outage
from qsync.server.queue_state import FetchInFlight, LeasedTask, QueueState
from qsync.server.runner import Runner
from qsync.server.server_parts import cancel
from qsync.server.wake_channel import Wakes
from qsync.server.weights import interleave

log: Final = logging.getLogger("qsync.server")

UNKNOWN_TYPE_YIELD_S: Final = 0.05
UNKNOWN_TYPE_WINDOW_S: Final = 120.0
"""Time after handing back a task without a handler, in seconds. During it, this server fetches due
tasks UNKNOWN_TYPE_YIELD_S later, so that other servers go first. It is longer than the maximum
delay of such a task."""


class Fetcher:
    """Supplies the runner with tasks from all queues of the server."""

    def __init__(
        self,
        holder: str,
        config: Config,
        broker: AsyncBroker,
        lanes: Sequence[QueueState],
        runner: Runner,
        capacity: Capacity,
        leases: LeaseKeeper,
        outage: Outage,
        crash_log: CrashLog,
    ) -> None:
        self._holder = holder
        self._config = config
        self._broker = broker
        self._lanes = {lane.queue: lane for lane in lanes}
        self._runner = runner
        self._capacity = capacity
        self._leases = leases
        self._outage = outage
        self._policy = config.policy()
        self._backoffs = {lane.queue: Backoff(cap=AWAY_CAP_S) for lane in lanes}
        self._wakes = self._make_wakes(lanes)
        self._busy_queues = BusyQueues(
            broker, lanes, config, outage, self._wakes,
            on_found=lambda: self._wakeup.set(), on_unsent=self._on_unsent,
        )  # fmt: skip
        self._listening: set[asyncio.Task[None]] = set()
        self._waiters = Waiters(broker, lanes)
        if self._wakes is None:
            self._waiters.block_on_all()
        self._in_flight: dict[str, asyncio.Task[None]] = {}
        self._timing = FetchTiming(
            config, self._lanes, self._in_flight, self._busy_queues, capacity.open_slots
        )
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
        """Cancel the waits, and wait up to `patience` seconds for the fetches in flight; the runner
        gets their tasks.

        A cancelled wait may have consumed a wake; `pass_on` then wakes another server instead.
        """
        if self._wakes is not None:
            await self._wakes.aclose()
        await cancel([*filter(None, self._waiters.tasks.values()), *self._listening])
        ends, pause = boot_s() + patience, 0.0
        while boot_s() < ends:
            if self._in_flight:
                await asyncio.wait(set(self._in_flight.values()), timeout=max(0.0, ends - boot_s()))
            open_lanes = [lane for lane in self._busy_queues.all() if lane.in_flight is not None]
            if not open_lanes:
                break
            await asyncio.sleep(pause)
            self._start_fetches([(lane, 0) for lane in open_lanes])
            pause = 0.05
        for task in self._in_flight.values():
            task.cancel()
        await asyncio.gather(*self._in_flight.values(), return_exceptions=True)

    async def pass_on(self) -> None:
        """Wake another server for each queue in which this server leaves pending tasks."""
        lanes = list(self._lanes.values())
        cluster = self._broker.address.kind == "cluster"
        groups = [[lane] for lane in lanes] if cluster else [lanes]
        await asyncio.gather(*map(self._pass_on, groups))

    async def _pass_on(self, lanes: Sequence[QueueState]) -> None:
        lanes = await self._busy_queues.with_tasks(lanes)
        calls = [self._call(lane, 0) for lane in lanes if lane.in_flight is None]
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

    def _start_round(self) -> float:
        """Start one round of fetches and waits; return the seconds until the next round."""
        now, timing = boot_s(), self._timing
        awaited_until = timing.awaited_until(now)
        self._capacity.notify_room = awaited_until is None
        if awaited_until is not None:
            return awaited_until - now
        planned = timing.plan(now, self._capacity.fetch_size(), timing.open_slots())
        if planned.fetches:
            self._start_fetches(planned.fetches)
        self._busy_queues.rest(lane for lane in planned.ready if timing.at_rest(lane))
        self._busy_queues.has_room = planned.slots > 0
        if planned.slots > 0:
            self._listen(now)
            self._wait_for_wake(now, planned.slots)
        return timing.next_round(now, planned)

    # Messages.

    def _make_wakes(self, lanes: Sequence[QueueState]) -> Wakes | None:
        """Return the receiver of wake messages; None outside a cluster or for a single queue."""
        if self._broker.address.kind != "cluster" or len(lanes) == 1:
            return None
        return Wakes(
            self._broker, self._holder, lanes, self._outage,
            lease_us=self._policy.lease_us,
            on_wake=self._on_wake,
            on_change=lambda: self._wakeup.set(),
            on_denied=lambda lane: self._block(lane, math.inf),
        )  # fmt: skip

    def _on_wake(self, lane: QueueState) -> None:
        lane.exhausted = False
        self._timing.woken.add(lane.queue)
        self._busy_queues.wake(lane)
        self._wakeup.set()

    def _on_unsent(self, lane: QueueState) -> None:
        log.info(
            "tasks come to queue %s from clients that may not send messages to servers, or are of "
            "an earlier release: this server blocks on it for an hour, on a connection of its own",
            lane.queue,
        )
        self._block(lane, UNSENT_S)

    def _block(self, lane: QueueState, seconds: float) -> None:
        self._waiters.block_on(lane, seconds)
        self._wakeup.set()

    def _listen(self, now: float) -> None:
        """Register this server as idle in the queues that may be empty."""
        if self._wakes is None:
            return
        by_node: dict[Node | None, list[QueueState]] = {}
        for lane in self._wakes.unlisted():
            idle = self._busy_queues.is_idle(lane) or lane.exhausted
            if (
                idle
                and lane.queue not in self._in_flight
                and now >= self._timing.retry_at[lane.queue]
            ):
                by_node.setdefault(self._broker.node_of(lane.keys.base), []).append(lane)
        for lanes in by_node.values():
            task = self._spawn(self._say_idle(self._wakes, lanes))
            self._wakes.take(lanes)
            self._listening.add(task)
            task.add_done_callback(self._listening.discard)

    async def _say_idle(self, wakes: Wakes, lanes: Sequence[QueueState]) -> None:
        if (error := await self._busy_queues.listen(wakes, lanes)) is not None:
            self._outage.note("wait for tasks", error)

    def _wait_for_wake(self, now: float, slots: int) -> None:
        """Block on the wake lists of the queues that may be empty."""
        timing = self._timing
        for waiter in self._waiters.remove_expired(now):
            self._spawn(waiter.aclose())
        for waiter, task in self._waiters.tasks.items():
            if task is not None:
                continue
            lanes = self._waiters.lanes_of(waiter)
            blocked = timing.to_block_on(lanes, now)
            if not blocked:
                continue
            seconds = timing.block_s(blocked, lanes, now)
            if len(self._lanes) > 1 or timing.due_soon(blocked[0], now):
                self._waiters.tasks[waiter] = self._spawn(self._wait(waiter, blocked, seconds))
            elif blocked[0].queue not in self._in_flight and blocked[0].in_flight is None:
                self._wait_and_fetch(waiter, blocked[0], slots, min(seconds, timing.foresight_s))

    async def _wait(self, waiter: BlockingPop, lanes: Sequence[QueueState], seconds: float) -> None:
        try:
            everything = len(lanes) == len(waiter.keys)
            keys = None if everything else [lane.keys.key("wake") for lane in lanes]
            woken = await waiter.pop(seconds, keys)
            self._waiters.backoffs[waiter].reset()
            if self._outage.parts:
                for lane in lanes:
                    self._outage.worked(_part(lane))
            if woken is not None:
                lane = self._waiters.lane_of(woken[0])
                if self._wakes is not None and self._wakes.waits(lane):
                    self._waiters.block_on(lane, UNSENT_S)
                self._on_wake(lane)
        except QsyncError as error:
            delay = self._waiters.backoffs[waiter].next()
            for lane in lanes:
                self._timing.retry_at[lane.queue] = boot_s() + delay
            for lane in lanes:
                self._outage.failed(_part(lane), error)
        finally:
            self._waiters.tasks[waiter] = None
            self._wakeup.set()

    def _wait_and_fetch(
        self, waiter: BlockingPop, lane: QueueState, slots: int, seconds: float
    ) -> None:
        """Block on the wake list, and pipeline a fetch behind it: this saves one round trip.

        Only a server of one queue can do so, since nothing else may fill the slots meanwhile.
        """
        lane.requested, lane.sent_at = slots, boot_s()
        self._timing.free[lane.queue] = min(slots, self._timing.open_slots())
        work = self._spawn(self._fetch_on_wake(waiter, lane, slots, seconds))
        self._in_flight[lane.queue] = self._waiters.tasks[waiter] = work

    async def _fetch_on_wake(
        self, waiter: BlockingPop, lane: QueueState, slots: int, seconds: float
    ) -> None:
        try:
            sent = boot_s()
            answer = await waiter.pop_then_run(seconds, self._call(lane, slots))
            if answer is not None:
                self._waiters.backoffs[waiter].reset()
            if isinstance(answer, QsyncError):
                self._failed(lane, answer)
            elif answer is not None:
                leased_at = lane.ran_at(answer.now_us, sent)
                self._runner.submit(
                    await self._handle_result(lane, slots, answer, leased_at, repeated=False)
                )
        except QsyncError as error:
            self._timing.retry_at[lane.queue] = boot_s() + self._waiters.backoffs[waiter].next()
            self._outage.failed(_part(lane), error)
        finally:
            self._waiters.tasks[waiter] = None
            lane.requested = 0
            self._in_flight.pop(lane.queue, None)
            self._wakeup.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        """Make `run` raise the exception of a background task; the tasks handle store errors."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fatal = error
            self._wakeup.set()

    def _start_fetches(self, calls: Sequence[tuple[QueueState, int]]) -> None:
        """Send fetches: in one pipeline, or separately in a cluster."""
        cluster = self._broker.address.kind == "cluster"
        for group in [[call] for call in calls] if cluster else [calls]:
            task = self._spawn(self._send_fetches(group))
            for lane, wanted in group:
                lane.requested, lane.sent_at = wanted, boot_s()
                self._timing.free[lane.queue] = min(wanted, self._timing.open_slots())
                self._in_flight[lane.queue] = task
                # A wake from now on may be for a task that this fetch does not see.
                self._timing.woken.discard(lane.queue)
                self._busy_queues.fetched(lane)

    async def _send_fetches(self, group: Sequence[tuple[QueueState, int]]) -> None:
        try:
            sent = boot_s()
            calls = []
            repeated = set()
            for lane, wanted in group:
                if lane.in_flight is not None:
                    repeated.add(lane.queue)
                calls.append(self._call(lane, wanted))
            answers = await self._broker.run_many(calls)
            runs = []
            for (lane, wanted), answer in zip(group, answers, strict=True):
                if isinstance(answer, QsyncError):
                    self._failed(lane, answer)
                else:
                    leased = await self._handle_result(
                        lane, wanted, answer, sent, repeated=lane.queue in repeated
                    )
                    runs.append((leased, wanted))
            self._runner.submit(interleave(runs))
        finally:
            for lane, _ in group:
                lane.requested = 0
                self._in_flight.pop(lane.queue, None)
            self._wakeup.set()
        if self._runs and any(lane.has_more_pending for lane, _ in group):
            # Fetch again before handlers run, so that the store works at the same time.
            self._start_round()

    def _call(self, lane: QueueState, wanted: int) -> Call[FetchResult]:
        if lane.in_flight is None:
            lane.number += 1
            call = ops.fetch(
                lane.keys,
                server=self._holder,
                number=lane.number,
                wanted=wanted,
                policy=self._policy,
                free=self._timing.free.get(lane.queue, 0),
            )
            lane.in_flight = FetchInFlight(call, f"{self._holder}/{lane.number}", boot_s())
            return call
        return lane.in_flight.again

    def _failed(self, lane: QueueState, error: QsyncError) -> None:
        if isinstance(error, SchemaMismatch):  # a retry would fail in the same way
            lane.in_flight = None
            self._fatal = error
            return
        delay = self._backoffs[lane.queue].next()
        self._timing.retry_at[lane.queue] = boot_s() + delay
        self._outage.failed(_part(lane), error)

    # The answer to a fetch.

    async def _handle_result(
        self, lane: QueueState, wanted: int, fetched: FetchResult, sent: float, *, repeated: bool
    ) -> list[LeasedTask]:
        received = boot_s()
        token = f"{self._holder}/{lane.number}"
        leased_at = lane.in_flight.since if repeated and lane.in_flight is not None else sent
        lane.in_flight = None
        self._note_result(lane, wanted, fetched, sent, received, repeated=repeated)
        leased = hold(
            lane, token, fetched, sent, self._config.lease_s, self._runner, self._capacity
        )
        if fetched.recovered or fetched.died:
            self._crash_log.recovered(lane.keys, fetched, leased)
        late = received - sent > self._config.lease_s / 2  # e.g. a handler blocked the loop
        revoked = lane.revoked_token == token
        if (repeated or late or revoked) and leased:
            leased = await self._leases.confirm(lane, leased, leased_at)
        if revoked:  # the heartbeat thread may not have handed back all of them yet
            for task in leased:
                self._runner.settle(task, HandedBack(task.id, task.token))
            leased = []
        unread, lane.unread_ids = lane.unread_ids, ()
        astray = [*fetched.own_lapsed, *(id for id in unread if id not in fetched.ids)]
        if astray:
            await self._leases.mend(lane, astray)
        return leased

    def _note_result(
        self, lane: QueueState, wanted: int, fetched: FetchResult, sent: float, received: float, *,
        repeated: bool,
    ) -> None:  # fmt: skip
        """Record what a result says about its queue."""
        lane.last_fetch = lane.answered = received
        lane.store_now_us, lane.store_now_read_at = fetched.now_us, sent
        lane.upkeep_pending = fetched.more
        lane.next_due = None
        if fetched.next_due_us is not None:
            lane.next_due = received + fetched.next_due_us / 1_000_000
            if received - lane.unknown_type_at < UNKNOWN_TYPE_WINDOW_S:
                lane.next_due += UNKNOWN_TYPE_YIELD_S
            self._busy_queues.set_due(lane, lane.next_due)
        self._backoffs[lane.queue].reset()
        if self._outage.parts:
            self._outage.worked(_part(lane))
        lane.has_more_pending = fetched.left
        awaiting = self._timing.awaiting_slots
        (awaiting.add if fetched.left_for_free else awaiting.discard)(lane.queue)
        # Upkeep may have made tasks pending without a wake, so don't wait for one.
        if fetched.left or fetched.left_for_free:
            lane.exhausted = False
        elif wanted and not (repeated or fetched.more):
            lane.exhausted = lane.queue not in self._timing.woken
        if wanted and not repeated and (fetched.left or not fetched.more):
            self._timing.shares.note_fetch(lane.queue, wanted, len(fetched.ids), left=fetched.left)
        self._leases.see_generation(lane, fetched.generation)


def _part(lane: QueueState) -> str:
    return f"fetch from queue {lane.queue}"
