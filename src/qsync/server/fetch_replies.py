"""Handles the replies to fetches: records the state of the queues, and returns the leased tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from qsync.backoff import AWAY_CAP_S, Backoff
from qsync.broker.op_values import FetchResult, HandedBack
from qsync.errors import QsyncError, SchemaMismatch
from qsync.server.capacity import Capacity
from qsync.server.clock import boot_s
from qsync.server.config import Config
from qsync.server.crash_log import CrashLog
from qsync.server.fetch_timing import FetchTiming
from qsync.server.fetched_tasks import hand_back_unread, hold
from qsync.server.idle_scan import BusyQueues
from qsync.server.leases import LeaseKeeper
from qsync.server.outage_log import Outage, fetch_part
from qsync.server.queue_state import LeasedTask, QueueState
from qsync.server.runner import Runner

UNKNOWN_TYPE_YIELD_S: Final = 0.05
UNKNOWN_TYPE_WINDOW_S: Final = 120.0
"""After a server hands back a task for which it has no handler, it fetches due tasks
UNKNOWN_TYPE_YIELD_S late for UNKNOWN_TYPE_WINDOW_S, so that other servers get them first. The
window is longer than the maximum delay of a task that was handed back."""


class FetchReplies:
    """Handles the replies to the fetches of all queues of a server."""

    def __init__(
        self,
        holder: str,
        config: Config,
        queues: Sequence[QueueState],
        runner: Runner,
        capacity: Capacity,
        leases: LeaseKeeper,
        outage: Outage,
        crash_log: CrashLog,
        timing: FetchTiming,
        busy_queues: BusyQueues,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self._holder = holder
        self._lease_s = config.lease_s
        self._runner = runner
        self._hold = partial(hold, lease_s=config.lease_s, runner=runner, capacity=capacity)
        self._leases = leases
        self._outage = outage
        self._crash_log = crash_log
        self._timing = timing
        self._busy_queues = busy_queues
        self._on_fatal = on_fatal
        self._backoffs = {queue.name: Backoff(cap=AWAY_CAP_S) for queue in queues}

    def failed(self, queue: QueueState, error: QsyncError) -> None:
        """Delay the next fetch from a queue; if that fetch cannot succeed either, report the error
        as fatal."""
        if isinstance(error, SchemaMismatch):
            queue.in_flight = None
            self._on_fatal(error)
            return
        delay = self._backoffs[queue.name].next()
        self._timing.retry_at[queue.name] = boot_s() + delay
        self._timing.in_order.discard(queue.name)  # a silent node must not slow other nodes
        self._outage.failed(fetch_part(queue.name), error)

    async def leased(
        self, queue: QueueState, count: int, fetched: FetchResult, sent: float, *, repeated: bool
    ) -> list[LeasedTask]:
        """Return the tasks that a fetch of `count` tasks leased, and that may start.

        The fetch was sent at `sent`, by boot_s. `repeated` tells whether the fetch repeated an
        earlier fetch that got no reply.
        """
        received = boot_s()
        token = f"{self._holder}/{queue.number}"
        fetch, queue.in_flight = queue.in_flight, None
        leased_at = fetch.since if repeated and fetch is not None else sent
        self._note(queue, count, fetched, sent, received, repeated=repeated)
        leased = self._hold(queue, token, fetched, sent)
        self._timing.note_limits(queue.name, count, fetched, leased)
        if fetched.recovered or fetched.died:
            self._crash_log.recovered(queue.keys, fetched, leased)
        if fetch is not None and queue.repeated_token == token:
            again = await self._leases.repeat(queue, fetch)
            hand_back_unread(queue, fetch, fetched, again, self._hold, self._runner)
        late = received - sent > self._lease_s / 2  # e.g. a handler blocked the loop
        revoked = queue.revoked_token == token
        if (repeated or late or revoked) and leased:
            leased = await self._leases.confirm(queue, leased, leased_at)
        if revoked:  # the heartbeat thread may not yet have handed back all tasks
            for task in leased:
                self._runner.settle(task, HandedBack(task.id, task.token))
            leased = []
        unread, queue.unread_ids = queue.unread_ids, ()
        astray = [*fetched.own_lapsed, *(id for id in unread if id not in fetched.ids)]
        if astray:
            await self._leases.mend(queue, astray)
        return leased

    def _note(
        self, queue: QueueState, count: int, fetched: FetchResult, sent: float, received: float, *,
        repeated: bool,
    ) -> None:  # fmt: skip
        """Record the state of the queue from the result of a fetch."""
        queue.last_fetch = queue.answered = received
        queue.store_now_us, queue.store_now_read_at = fetched.now_us, sent
        queue.upkeep_pending = fetched.more
        queue.next_due = None
        if fetched.next_due_us is not None:
            queue.next_due = received + fetched.next_due_us / 1_000_000
            if received - queue.unknown_type_at < UNKNOWN_TYPE_WINDOW_S:
                queue.next_due += UNKNOWN_TYPE_YIELD_S
            self._busy_queues.set_due(queue, queue.next_due)
        self._backoffs[queue.name].reset()
        if self._outage.parts:
            self._outage.worked(fetch_part(queue.name))
        queue.has_more_pending = fetched.left
        # Upkeep may have made tasks pending without a wake, so don't wait for one.
        if fetched.left or fetched.left_for_free:
            queue.exhausted = False
        elif count and not (repeated or fetched.more):
            queue.exhausted = queue.name not in self._timing.woken
        if count and not repeated and (fetched.left or not fetched.more):
            self._timing.shares.note_fetch(queue.name, count, len(fetched.ids), left=fetched.left)
        self._leases.see_generation(queue, fetched.generation)
