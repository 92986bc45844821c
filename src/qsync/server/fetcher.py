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
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final

from qsync import codec
from qsync.backoff import AWAY_CAP_S, Backoff
from qsync.broker import ops, views
from qsync.broker.aio import AsyncBroker
from qsync.broker.call import Call
from qsync.broker.listeners import BlockingPop
from qsync.broker.ops import FetchResult, HandedBack
from qsync.broker.slot_map import Node
from qsync.errors import QsyncError, SchemaMismatch
from qsync.keys import shorten
from qsync.message import NO_FAILURE, decode_failure, decode_message
from qsync.server import outcome
from qsync.server.clock import boot_s
from qsync.server.config import Config
from qsync.server.crash_log import CrashLog
from qsync.server.idle_scan import PASS_ON_S, Lookout
from qsync.server.outage_log import Outage
from qsync.server.queue_state import FetchInFlight, LeasedTask, QueueState
from qsync.server.runner import Runner
from qsync.server.task_waits import UNSENT_S, Waiters
from qsync.server.wake_channel import Wakes
from qsync.server.weights import Shares, interleave

log = logging.getLogger("qsync.server")

ROUND_TIMEOUT_S: Final = 0.1
"""Longest time that a round waits for the fetches of the previous round, in seconds, so that all
queues take part in it."""

SLOT_RESERVATION_S: Final = 0.3
"""Time for which a fetch in flight reserves its slots against the other queues, in seconds. After
that its node may be down; if it answers after all, surplus tasks are handed back."""

CROWD: Final = 256
"""Maximum number of busy queues in one round; the others follow in the next rounds."""

TURN_S: Final = 0.005
"""Delay before the next round while more than CROWD queues are busy, in seconds."""

GRAIN: Final = 4
"""Average number of slots per queue, at least, when a round fetches from more than SOME queues: a
fetch for fewer tasks is not worth its cost."""

SOME: Final = 16
"""Number of queues that may share the slots of one round, however few slots each one gets."""

WATCH_S: Final = 0.05
"""Time of one blocking wait on queues that may be empty while another queue is full, in seconds."""

UNKNOWN_TYPE_YIELD_S: Final = 0.05
UNKNOWN_TYPE_WINDOW_S: Final = 120.0
"""Time after handing back a task without a handler, in seconds. During it, this server fetches due
tasks UNKNOWN_TYPE_YIELD_S later, so that other servers go first. It is longer than the maximum
delay of such a task."""

WAKE_MARGIN_S: Final = 0.0005
"""Margin added to a wait for a due time, in seconds: the store's waits end on whole
milliseconds."""


class Fetcher:
    """Supplies the runner with tasks from all queues of the server."""

    def __init__(
        self,
        holder: str,
        config: Config,
        broker: AsyncBroker,
        lanes: Sequence[QueueState],
        runner: Runner,
        outage: Outage,
    ) -> None:
        self._holder = holder
        self._config = config
        self._broker = broker
        self._lanes = {lane.queue: lane for lane in lanes}
        self._runner = runner
        self._outage = outage
        self._policy = config.policy()
        self._shares = Shares(config.weights, strict=config.strict)
        self._backoffs = {lane.queue: Backoff(cap=AWAY_CAP_S) for lane in lanes}
        self._retry_at = dict.fromkeys(self._lanes, 0.0)
        self._woken: set[str] = set()
        self._wakes = self._make_wakes(lanes)
        self._lookout = Lookout(
            broker, lanes, config, outage, self._wakes, lambda: self._kick.set()
        )
        self._lookout.on_unsent = self._on_unsent
        self._listening: set[asyncio.Task[None]] = set()
        self._waiters = Waiters(broker, lanes)
        if self._wakes is None:
            self._waiters.block_on_all()
        self._flights: dict[str, asyncio.Task[None]] = {}
        self._kick = runner.room_made
        self._crash_log = CrashLog(broker)
        self._runs = False
        self._mistake: BaseException | None = None
        self.on_store_lost: Callable[[], None] | None = None
        """Callback for when the store has lost the data of a queue."""

    async def run(self) -> None:
        """Fetch until cancelled."""
        loop = asyncio.get_running_loop()
        self._runs = True
        looking = self._spawn(self._lookout.run()) if self._lookout.many else None
        if self._wakes is not None:
            self._wakes.start()
        try:
            while True:
                self._kick.clear()
                delay = self._step()
                timer = loop.call_later(delay, self._kick.set) if math.isfinite(delay) else None
                await self._kick.wait()
                if timer is not None:
                    timer.cancel()
                if self._mistake is not None:
                    raise self._mistake
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
        interrupted = [task for task in self._waiters.tasks.values() if task is not None]
        interrupted += self._listening
        for task in interrupted:
            task.cancel()
        await asyncio.gather(*interrupted, return_exceptions=True)
        ends = boot_s() + patience
        while boot_s() < ends:
            if self._flights:
                await asyncio.wait(set(self._flights.values()), timeout=max(0.0, ends - boot_s()))
            open_lanes = [lane for lane in self._lookout.busy() if lane.unanswered is not None]
            if not open_lanes:
                break
            self._launch([(lane, 0) for lane in open_lanes])
            await asyncio.sleep(0.05)
        for task in self._flights.values():
            task.cancel()
        await asyncio.gather(*self._flights.values(), return_exceptions=True)

    async def pass_on(self) -> None:
        """Wake another server for each queue in which this server leaves pending tasks."""
        lanes = await self._lookout.with_tasks()
        calls = [self._call(lane, 0) for lane in lanes if lane.unanswered is None]
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

    def _step(self) -> float:
        """Start one round of fetches and waits; return the seconds until the next round."""
        now = boot_s()
        awaited = [
            ends
            for queue in self._flights
            if (ends := self._awaited_until(self._lanes[queue])) > now
        ]
        self._runner.room_matters = not awaited
        if awaited:
            return min(awaited) - now
        self._lookout.begin(now)
        lanes = [lane for lane in self._lookout.first(CROWD) if lane.queue not in self._flights]
        flying = [self._lanes[queue] for queue in self._flights]
        held = sum(lane.wanted for lane in flying if now - lane.flown < SLOT_RESERVATION_S)
        slots = self._runner.wants() - held
        ready = [lane for lane in lanes if now >= self._retry_at[lane.queue]]
        # Upkeep also fetches tasks, so that a lost wake delays them by at most `sweep`.
        upkeep = {lane.queue for lane in ready if self._upkeep_due(lane, now)}
        hungry = [
            lane.queue
            for lane in ready
            if not lane.refused and (not lane.empty or lane.queue in upkeep)
        ]
        crowd = max(SOME, slots // GRAIN)
        if len(hungry) > crowd and not self._config.strict:
            hungry = hungry[:crowd]  # the others come next: queues fetched from go to the end
        shares = self._shares.split(slots, hungry) if slots > 0 and hungry else {}
        calls = [
            (lane, shares.get(lane.queue, 0))
            for lane in ready
            if shares.get(lane.queue) or lane.queue in upkeep
        ]
        if calls:
            self._launch(calls)
        self._lookout.rest(lane for lane in ready if self._at_rest(lane))
        self._lookout.has_room = slots > 0
        if slots > 0:
            self._listen(now)
            self._wait_for_wake(now, slots)
        return self._next_step(now, slots > 0, lanes)

    def _awaited_until(self, lane: QueueState) -> float:
        """Return until when a round waits for the fetch in flight from a queue.

        A round that begins without the queue gives its share to the others.
        """
        if lane.empty:
            return -math.inf
        # Large payloads take longer.
        large = self._shares.is_truncated(lane.queue)
        return lane.flown + (SLOT_RESERVATION_S if large else ROUND_TIMEOUT_S)

    def _upkeep_due(self, lane: QueueState, now: float) -> bool:
        if lane.more or lane.unanswered is not None or lane.queue in self._woken:
            return True
        return lane.queue in self._lookout.due or now >= self._lookout.upkeep_at(lane)

    def _at_rest(self, lane: QueueState) -> bool:
        """Return whether a queue is idle until a wake, a look or its next due time."""
        return (
            lane.empty
            and lane.unanswered is None
            and not (lane.more or lane.held)
            and lane.queue not in self._flights
            and lane.queue not in self._woken
        )

    def _next_step(self, now: float, room: bool, lanes: Sequence[QueueState]) -> float:
        times = [math.inf, self._lookout.next_at()]
        if self._lookout.count() > CROWD and not self._flights:
            # This round left out some busy queues.
            times.append(now + (TURN_S if room else PASS_ON_S))
        for queue in self._flights:
            lane = self._lanes[queue]
            if lane.wanted and now - lane.flown < SLOT_RESERVATION_S:
                times.append(lane.flown + SLOT_RESERVATION_S)
        for lane in lanes:
            if lane.queue in self._flights:
                continue
            if now < self._retry_at[lane.queue]:
                times.append(self._retry_at[lane.queue])
                continue
            times.append(self._lookout.upkeep_at(lane))
            if room and lane.next_due is not None:
                times.append(lane.next_due)
        return max(0.0, min(times) - now)

    # Messages.

    def _make_wakes(self, lanes: Sequence[QueueState]) -> Wakes | None:
        """Return the receiver of wake messages; None outside a cluster or for a single queue."""
        if self._broker.address.kind != "cluster" or len(lanes) == 1:
            return None
        wakes = Wakes(
            self._broker, self._holder, lanes, self._outage, lease_us=self._policy.lease_us
        )
        wakes.on_wake = self._on_wake
        wakes.on_change = lambda: self._kick.set()
        wakes.on_denied = lambda lane: self._block(lane, math.inf)
        return wakes

    def _on_wake(self, lane: QueueState) -> None:
        lane.empty = False
        self._woken.add(lane.queue)
        self._lookout.wake(lane)
        self._kick.set()

    def _on_unsent(self, lane: QueueState) -> None:
        log.info(
            "tasks come to queue %s from clients that may not send messages to servers, or are of "
            "an earlier release: this server blocks on it for an hour, on a connection of its own",
            lane.queue,
        )
        self._block(lane, UNSENT_S)

    def _block(self, lane: QueueState, seconds: float) -> None:
        self._waiters.block_on(lane, seconds)
        self._kick.set()

    def _listen(self, now: float) -> None:
        """Register this server as idle in the queues that may be empty."""
        if self._wakes is None:
            return
        by_node: dict[Node | None, list[QueueState]] = {}
        for lane in self._wakes.unlisted():
            idle = self._lookout.rests(lane) or lane.empty
            if idle and lane.queue not in self._flights and now >= self._retry_at[lane.queue]:
                by_node.setdefault(self._broker.node_of(lane.keys.base), []).append(lane)
        for lanes in by_node.values():
            task = self._spawn(self._say_idle(self._wakes, lanes))
            self._wakes.take(lanes)
            self._listening.add(task)
            task.add_done_callback(self._listening.discard)

    async def _say_idle(self, wakes: Wakes, lanes: Sequence[QueueState]) -> None:
        if (error := await self._lookout.listen(wakes, lanes)) is not None:
            self._outage.note("wait for tasks", error)

    def _wait_for_wake(self, now: float, slots: int) -> None:
        """Block on the wake lists of the queues that may be empty.

        Leave out a busy queue; a short wait ends soon, and the next one includes the queue if it is
        empty by then.
        """
        for waiter in self._waiters.remove_expired(now):
            self._spawn(waiter.aclose())
        for waiter, task in self._waiters.tasks.items():
            if task is not None:
                continue
            lanes = self._waiters.lanes_of(waiter)
            if any(now < self._retry_at[lane.queue] for lane in lanes):
                continue
            if self._lookout.many:
                watched = [lane for lane in lanes if not self._has_its_turn(lane)]
            else:
                watched = [lane for lane in lanes if not (lane.full or lane.refused)]
            if not watched:
                continue
            # The store's cost of a blocking pop grows with the number of lists.
            seconds = WATCH_S + len(watched) / 10_000
            if watched == lanes:
                seconds = self._until_upkeep(watched, now)
            if len(self._lanes) > 1 or self._due_soon(watched[0], now):
                self._waiters.tasks[waiter] = self._spawn(self._wait(waiter, watched, seconds))
            elif watched[0].queue not in self._flights and watched[0].unanswered is None:
                self._wait_and_fetch(waiter, watched[0], slots, min(seconds, self._foresight_s))

    def _has_its_turn(self, lane: QueueState) -> bool:
        """Return whether the server will fetch from a queue without a wake."""
        if self._lookout.rests(lane) or lane.empty:
            return False
        return lane.full or lane.refused or lane.queue not in self._flights

    def _until_upkeep(self, lanes: Sequence[QueueState], now: float) -> float:
        """Return the seconds until these queues need a fetch even without a wake."""
        times = [now + self._config.sweep_s]
        for lane in () if self._lookout.many else lanes:
            if lane.queue not in self._flights:
                times += (lane.last_fetch + self._config.sweep_s, lane.next_due or math.inf)
        return max(0.001, min(times) - now + WAKE_MARGIN_S)

    @property
    def _foresight_s(self) -> float:
        """Return the longest wait that may precede a fetch in `_wait_and_fetch`, in seconds.

        The heartbeat assumes that the answer to a fetch older than lease / 4 lies unread.
        """
        return self._config.lease_s / 6

    def _due_soon(self, lane: QueueState, now: float) -> bool:
        """Return whether something is due before a wait ends; the store may end it 100 ms late."""
        return lane.next_due is not None and lane.next_due < now + self._foresight_s

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
                self._retry_at[lane.queue] = boot_s() + delay
            for lane in lanes:
                self._outage.failed(_part(lane), error)
        finally:
            self._waiters.tasks[waiter] = None
            self._kick.set()

    def _wait_and_fetch(
        self, waiter: BlockingPop, lane: QueueState, slots: int, seconds: float
    ) -> None:
        """Block on the wake list, and pipeline a fetch behind it: this saves one round trip.

        Only a server of one queue can do so, since nothing else may fill the slots meanwhile.
        """
        lane.wanted, lane.flown = slots, boot_s()
        work = self._spawn(self._fetch_on_wake(waiter, lane, slots, seconds))
        self._flights[lane.queue] = self._waiters.tasks[waiter] = work

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
                made = self._made_at(lane, answer, sent)
                self._runner.take(await self._landed(lane, slots, answer, made, repeated=False))
        except QsyncError as error:
            self._retry_at[lane.queue] = boot_s() + self._waiters.backoffs[waiter].next()
            self._outage.failed(_part(lane), error)
        finally:
            self._waiters.tasks[waiter] = None
            lane.wanted = 0
            self._flights.pop(lane.queue, None)
            self._kick.set()

    def _made_at(self, lane: QueueState, fetched: FetchResult, sent: float) -> float:
        """Estimate when the store ran a fetch that was sent at `sent`, by boot_s; never too late.

        The estimate uses the store's clock, which the previous fetch compared with ours.
        """
        if not lane.store_now_us:
            return sent
        passed = (fetched.now_us - lane.store_now_us) / 1_000_000
        return min(max(sent, lane.store_seen + passed), boot_s())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._see)
        return task

    def _see(self, task: asyncio.Task[None]) -> None:
        """Make `run` raise the exception of a background task; the tasks handle store errors."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._mistake = error
            self._kick.set()

    def _launch(self, calls: Sequence[tuple[QueueState, int]]) -> None:
        """Send fetches: in one pipeline, or in a cluster each by itself."""
        cluster = self._broker.address.kind == "cluster"
        for group in [[call] for call in calls] if cluster else [calls]:
            task = self._spawn(self._fly(group))
            for lane, wanted in group:
                lane.wanted, lane.flown = wanted, boot_s()
                self._flights[lane.queue] = task
                # A wake from now on may be for a task that this fetch does not see.
                self._woken.discard(lane.queue)
                self._lookout.fetched(lane)

    async def _fly(self, group: Sequence[tuple[QueueState, int]]) -> None:
        try:
            sent = boot_s()
            calls = []
            repeated = set()
            for lane, wanted in group:
                if lane.unanswered is not None:
                    repeated.add(lane.queue)
                calls.append(self._call(lane, wanted))
            answers = await self._broker.run_many(calls)
            runs = []
            for (lane, wanted), answer in zip(group, answers, strict=True):
                if isinstance(answer, QsyncError):
                    self._failed(lane, answer)
                else:
                    leased = await self._landed(
                        lane, wanted, answer, sent, repeated=lane.queue in repeated
                    )
                    runs.append((leased, wanted))
            self._runner.take(interleave(runs))
        finally:
            for lane, _ in group:
                lane.wanted = 0
                self._flights.pop(lane.queue, None)
            self._kick.set()
        if self._runs and any(lane.full for lane, _ in group):
            # Fetch again before handlers run, so that the store works at the same time.
            self._step()

    def _call(self, lane: QueueState, wanted: int) -> Call[FetchResult]:
        if lane.unanswered is None:
            lane.number += 1
            call = ops.fetch(
                lane.keys,
                server=self._holder,
                number=lane.number,
                wanted=wanted,
                policy=self._policy,
            )
            lane.unanswered = FetchInFlight(call, f"{self._holder}/{lane.number}", boot_s())
            return call
        return lane.unanswered.again

    def _failed(self, lane: QueueState, error: QsyncError) -> None:
        if isinstance(error, SchemaMismatch):  # a retry would fail in the same way
            lane.unanswered = None
            self._mistake = error
            return
        delay = self._backoffs[lane.queue].next()
        self._retry_at[lane.queue] = boot_s() + delay
        self._outage.failed(_part(lane), error)

    # The answer to a fetch.

    async def _landed(
        self, lane: QueueState, wanted: int, fetched: FetchResult, sent: float, *, repeated: bool
    ) -> list[LeasedTask]:
        received = boot_s()
        token = f"{self._holder}/{lane.number}"
        made = lane.unanswered.since if repeated and lane.unanswered is not None else sent
        lane.unanswered = None
        lane.last_fetch = lane.answered = received
        lane.store_now_us, lane.store_seen = fetched.now_us, sent
        lane.more = fetched.more
        lane.next_due = None
        if fetched.next_due_us is not None:
            lane.next_due = received + fetched.next_due_us / 1_000_000
            if received - lane.met_unknown < UNKNOWN_TYPE_WINDOW_S:
                lane.next_due += UNKNOWN_TYPE_YIELD_S
            self._lookout.at(lane, lane.next_due)
        self._backoffs[lane.queue].reset()
        if self._outage.parts:
            self._outage.worked(_part(lane))
        lane.full = fetched.left
        if fetched.left:  # upkeep may have made tasks pending without a wake, so don't wait for one
            lane.empty = False
        elif wanted and not (repeated or fetched.more):
            lane.empty = lane.queue not in self._woken
        if wanted and not repeated and (fetched.left or not fetched.more):
            self._shares.note_fetch(lane.queue, wanted, len(fetched.ids), left=fetched.left)
        self._see_generation(lane, fetched.generation)
        leased = self._lease(lane, token, fetched, sent)
        if fetched.recovered or fetched.died:
            self._crash_log.recovered(lane.keys, fetched, leased)
        late = received - sent > self._config.lease_s / 2  # e.g. a handler blocked the loop
        revoked = lane.revoked == token
        if (repeated or late or revoked) and leased:
            leased = await self._confirm(lane, leased, made)
        if revoked:  # the heartbeat thread may not have handed back all of them yet
            for one in leased:
                self._runner.settle(one, HandedBack(one.id, one.token))
            leased = []
        unread, lane.unread = lane.unread, ()
        astray = [*fetched.own_lapsed, *(id for id in unread if id not in fetched.ids)]
        if astray:
            await self._mend(lane, astray)
        return leased

    def _see_generation(self, lane: QueueState, generation: str) -> None:
        """Lose all held tasks if the generation changed: the store has lost the queue's data."""
        before, lane.generation = lane.generation, generation
        if before is None or before == generation:
            return
        held = list(lane.held.values())
        log.error(
            "store lost: the generation of queue %s changed from %s to %s; %d tasks held are lost",
            lane.queue, shorten(before), shorten(generation), len(held),
        )  # fmt: skip
        for one in held:
            self._runner.lose(one)
        if self.on_store_lost is not None:
            self.on_store_lost()

    def _lease(
        self, lane: QueueState, token: str, fetched: FetchResult, sent: float
    ) -> list[LeasedTask]:
        expires = sent + self._config.lease_s
        leased: list[LeasedTask] = []
        held, spared, since = lane.held, fetched.spared, fetched.since
        for id, data, record, crashes in zip(
            fetched.ids, fetched.messages, fetched.failures, fetched.crashes, strict=True
        ):
            try:
                message = decode_message(data)
            except codec.CodecError as error:
                log.error(
                    "task %s of queue %s cannot be read: %s", id, lane.queue, error,
                    extra={"task_id": id, "queue": lane.queue},
                )  # fmt: skip
                kill = outcome.undecodable(id, token, str(error), fetched.now_us)
                self._runner.settle_unread(lane, kill)
                continue
            failure = NO_FAILURE if record is None else decode_failure(record)
            one = LeasedTask(lane, id, token, message, failure, crashes, sent, expires)
            if spared:
                one.spared = spared.get(id, 0)
            if since:
                one.since_us = since.get(id, 0)
            if message.options is not None and message.options.fairness_key is not None:
                self._runner.keyed = True
            held[id] = one
            leased.append(one)
        return leased

    async def _confirm(
        self, lane: QueueState, leased: list[LeasedTask], made: float
    ) -> list[LeasedTask]:
        """Renew the leases of a late or repeated fetch, and return the tasks that are still held.

        Their leases began at `made`, by boot_s, or later. If the renewal fails, assume that they
        began at `made`, so that no task starts whose lease may have expired.
        """
        sent = boot_s()
        call = ops.renew(lane.keys, [one.held for one in leased], lease_us=self._policy.lease_us)
        try:
            answers = await self._broker.run(call, patience=self._config.lease_s / 3)
        except QsyncError as error:
            self._outage.note(f"renew leases of queue {lane.queue}", error)
            for one in leased:
                one.expires = made + self._config.lease_s
            return leased
        kept = []
        for one, answer in zip(leased, answers, strict=True):
            if answer in ("ok", "cancelled"):
                one.expires = sent + self._config.lease_s
                kept.append(one)
            else:
                lane.drop([one])
        return kept

    async def _mend(self, lane: QueueState, ids: Iterable[str]) -> None:
        """Repair leases of this server that expired or that it may not know about: renew those of
        held tasks, and hand back the other tasks."""
        ours = [lane.held[id] for id in ids if id in lane.held]
        sent = boot_s()
        try:
            if ours:
                call = ops.renew(
                    lane.keys, [one.held for one in ours], lease_us=self._policy.lease_us
                )
                answers = await self._broker.run(call)
                for one, answer in zip(ours, answers, strict=True):
                    if answer in ("ok", "cancelled"):
                        one.expires = sent + self._config.lease_s
            stray = [id for id in ids if id not in lane.held]
            if stray:
                shown = await self._broker.run(views.show(lane.keys, stray))
                backs = [
                    HandedBack(id, one.owner)
                    for id, one in zip(stray, shown, strict=True)
                    if one is not None
                    and one.owner is not None
                    and one.owner.startswith(f"{self._holder}/")
                    and id not in lane.held
                ]
                if backs:
                    await self._broker.run(ops.hand_back(lane.keys, backs))
        except QsyncError as error:
            self._outage.note(f"mend leases of queue {lane.queue}", error)


def _part(lane: QueueState) -> str:
    return f"fetch from queue {lane.queue}"
