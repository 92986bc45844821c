"""Decides which queues to fetch from now, and when the next round begins. Without I/O."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, NamedTuple

from qsync.broker.op_values import FetchResult
from qsync.server.config import Config
from qsync.server.idle_scan import PASS_ON_S, BusyQueues
from qsync.server.queue_state import LeasedTask, QueueState
from qsync.server.weights import Shares

ROUND_TIMEOUT_S: Final = 0.1
"""How long a round waits for the fetches of the previous round, in seconds, so that all queues take
part in it."""

SLOT_RESERVATION_S: Final = 0.3
"""How long other queues may not use the slots of a fetch in flight, in seconds. A node that takes
longer may be down; if it replies after that, surplus tasks are handed back."""

CROWD: Final = 256
"""Maximum number of busy queues in one round; further queues follow in the next rounds."""

CROWDED_ROUND_S: Final = 0.005
"""Delay before the next round while more than CROWD queues are busy, in seconds."""

GRAIN: Final = 4
"""Minimum average number of slots per queue in a round that fetches from more than SOME queues,
because a fetch of fewer tasks is not worth its cost."""

SOME: Final = 16
"""Number of queues that may always share the slots of one round, however few each queue gets."""

WATCH_S: Final = 0.05
"""Length of one blocking wait on queues that may be empty while another queue has tasks, in
seconds."""

WAKE_MARGIN_S: Final = 0.0005
"""Margin added to a wait for a due time, in seconds, because the store's waits end on whole
milliseconds."""

RULES_CHECK_S: Final = 0.1
"""Interval between two checks of whether the store has the rules of a queue, in seconds."""


class Round(NamedTuple):
    """One round of fetches."""

    fetches: Sequence[tuple[QueueState, int]]
    """Queues to fetch from, each with the number of tasks to ask for."""
    considered: Sequence[QueueState]
    """Busy queues without a fetch in flight."""
    ready: Sequence[QueueState]
    """Queues of `considered` from which the round may fetch: their rules are in the store, and no
    failed fetch delays the next one."""
    slots: int
    """Number of slots that the round may fill; 0 or less if it may fill none."""


class FetchTiming:
    """The state of a fetcher's rounds. Times are by the clock `boot_s`."""

    def __init__(
        self,
        config: Config,
        queues: Mapping[str, QueueState],
        in_flight: Collection[str],
        busy_queues: BusyQueues,
        open_slots: Callable[[], int],
    ) -> None:
        self._config = config
        self._queues = queues
        self._in_flight = in_flight
        self._busy_queues = busy_queues
        self._open = open_slots
        self.shares: Shares = Shares(config.weights, strict=config.strict)
        self.woken: set[str] = set()
        """Queues for which a wake has arrived since their last fetch."""
        self.free: dict[str, int] = {}
        """For each queue, the number of free slots that its fetch in flight may fill with tasks
        that have limits; such tasks are not leased ahead."""
        self.awaiting_slots: set[str] = set()
        """Queues whose last fetch left only tasks with limits, because the server had no free
        slots."""
        self.in_order: set[str] = set()
        """Queues from which tasks with limits are to be leased next. While there are such queues,
        no tasks are leased ahead, since those would take the slots that tasks with limits need."""
        self.retry_at: dict[str, float] = dict.fromkeys(queues, 0.0)
        """Earliest time of the next fetch from a queue whose last fetch failed."""
        self.wait_again_at: float = 0.0
        """Time of the next wait for tasks, by the clock `boot_s`, if the last wait failed."""

    def awaited_until(self, now: float) -> float | None:
        """Return when the next round stops waiting for fetches in flight; None to begin now."""
        times = [self._awaited_until(self._queues[queue]) for queue in self._in_flight]
        return min((time for time in times if time > now), default=None)

    def _awaited_until(self, queue: QueueState) -> float:
        """Return the time until which a round waits for the fetch in flight from a queue.

        If the round did not wait, the other queues would get this queue's share.
        """
        if queue.exhausted:
            return -math.inf
        # Large payloads take longer.
        large = self.shares.is_truncated(queue.name)
        return queue.sent_at + (SLOT_RESERVATION_S if large else ROUND_TIMEOUT_S)

    def plan(self, now: float, wanted: int, free: int) -> Round:
        """Plan a round that, together with the fetches in flight, should lease `wanted` tasks.

        `free` is the number of slots for tasks with limits, which are not leased ahead.
        """
        busy_queues = self._busy_queues
        busy_queues.begin(now)
        queues = [queue for queue in busy_queues.first(CROWD) if queue.name not in self._in_flight]
        if self.in_order:
            wanted = min(wanted, free)
        slots = wanted - self._reserved(now)
        ready = [
            queue for queue in queues if now >= self.retry_at[queue.name] and not queue.awaits_rules
        ]
        # Upkeep also fetches tasks, so that a lost wake delays them by at most `sweep`.
        upkeep = {queue.name for queue in ready if self._upkeep_due(queue, now)}
        hungry = [
            queue.name
            for queue in ready
            if not queue.refused
            and (not queue.exhausted or queue.name in upkeep)
            and (free > 0 or queue.name not in self.awaiting_slots)
        ]
        crowd = max(SOME, slots // GRAIN)
        if len(hungry) > crowd and not self._config.strict:
            # The other queues come next, since a queue moves to the end after a fetch.
            hungry = hungry[:crowd]
        shares = self.shares.split(slots, hungry) if slots > 0 and hungry else {}
        fetches = [
            (queue, shares.get(queue.name, 0))
            for queue in ready
            if shares.get(queue.name) or queue.name in upkeep
        ]
        return Round(fetches, queues, ready, slots)

    def note_limits(
        self, queue: str, count: int, fetched: FetchResult, leased: Sequence[LeasedTask]
    ) -> None:
        """Record whether a fetch of `count` tasks skipped or returned tasks with limits."""
        (self.awaiting_slots.add if fetched.left_for_free else self.awaiting_slots.discard)(queue)
        if fetched.passed_over:
            self.in_order.add(queue)
        elif count and queue in self.in_order and not any(task.has_limits for task in leased):
            self.in_order.remove(queue)

    def open_slots(self) -> int:
        """Return the number of free slots, except those that fetches in flight reserve for tasks
        with limits."""
        flying = sum(self.free.get(queue, 0) for queue in self._in_flight)
        return max(0, self._open() - flying)

    def _reserved(self, now: float) -> int:
        """Return the number of slots that fetches in flight reserve."""
        flying = [self._queues[name] for name in self._in_flight]
        return sum(queue.requested for queue in flying if now - queue.sent_at < SLOT_RESERVATION_S)

    def _upkeep_due(self, queue: QueueState, now: float) -> bool:
        if queue.upkeep_pending or queue.in_flight is not None or queue.name in self.woken:
            return True
        return queue.name in self._busy_queues.due or now >= self._busy_queues.upkeep_at(queue)

    def at_rest(self, queue: QueueState) -> bool:
        """Return whether a queue is idle until a wake, a check or its next due time."""
        return (
            queue.exhausted
            and queue.in_flight is None
            and not (queue.upkeep_pending or queue.held)
            and queue.name not in self._in_flight
            and queue.name not in self.woken
        )

    def next_round(self, now: float, planned: Round) -> float:
        """Return the time until the next round; infinity if only an event can start it."""
        room = planned.slots > 0
        times = [math.inf, self._busy_queues.next_at()]
        if now < self.wait_again_at:  # the only time for idle queues
            times.append(self.wait_again_at)
        if self._busy_queues.count() > CROWD and not self._in_flight:
            # This round left out some busy queues.
            times.append(now + (CROWDED_ROUND_S if room else PASS_ON_S))
        for name in self._in_flight:
            queue = self._queues[name]
            if queue.requested and now - queue.sent_at < SLOT_RESERVATION_S:
                times.append(queue.sent_at + SLOT_RESERVATION_S)
        for queue in planned.considered:
            if queue.name in self._in_flight:
                continue
            if now < self.retry_at[queue.name]:
                times.append(self.retry_at[queue.name])
                continue
            if queue.awaits_rules:
                times.append(now + RULES_CHECK_S)
                continue
            times.append(self._busy_queues.upkeep_at(queue))
            if room and queue.next_due is not None:
                times.append(queue.next_due)
        return max(0.0, min(times) - now)

    # The functions below decide how to wait for a wake.

    def to_block_on(self, queues: Sequence[QueueState], now: float) -> list[QueueState]:
        """Return the queues of a connection to block on now. Return none for a while after a failed
        wait."""
        if any(now < self.retry_at[queue.name] or queue.awaits_rules for queue in queues):
            return []
        if self._busy_queues.many:
            return [queue for queue in queues if not self._has_its_turn(queue)]
        return [queue for queue in queues if not (queue.has_more_pending or queue.refused)]

    def _has_its_turn(self, queue: QueueState) -> bool:
        """Return whether the server will fetch from a queue without being woken."""
        if self._busy_queues.is_idle(queue) or queue.exhausted:
            return False
        return queue.has_more_pending or queue.refused or queue.name not in self._in_flight

    def block_s(
        self, blocked: Sequence[QueueState], queues: Sequence[QueueState], now: float
    ) -> float:
        """Return how long to block on some of a connection's queues, in seconds.

        If a busy queue is left out, the wait ends soon, so that the next wait can include the queue
        if it is empty by then. The wait is longer for many lists, since the cost of a blocking pop
        grows with their number.
        """
        if blocked == queues:
            return self._until_upkeep(blocked, now)
        return WATCH_S + len(blocked) / 10_000

    def _until_upkeep(self, queues: Sequence[QueueState], now: float) -> float:
        """Return the time until these queues need a fetch even without a wake, in seconds."""
        times = [now + self._config.sweep_s]
        for queue in () if self._busy_queues.many else queues:
            if queue.name not in self._in_flight:
                times += (queue.last_fetch + self._config.sweep_s, queue.next_due or math.inf)
        return max(0.001, min(times) - now + WAKE_MARGIN_S)

    @property
    def foresight_s(self) -> float:
        """Return the longest wait that may precede a fetch in one pipeline, in seconds.

        If a fetch is older than lease / 4, the heartbeat assumes that the loop has not read its
        reply.
        """
        return self._config.lease_s / 6

    def due_soon(self, queue: QueueState, now: float) -> bool:
        """Return whether something is due before a wait ends; a wait can end 100 ms late."""
        return queue.next_due is not None and queue.next_due < now + self.foresight_s
