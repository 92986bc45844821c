"""Planted mistakes, each of which the simulation must find.

A mistake is planted for one history by replacing a part of the code under test.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

import redis
from msgspec.structs import replace

from qsync import schedule
from qsync.broker import aio, base, blocking, error_mapping, exchanges, schedule_ops
from qsync.broker.error_mapping import Fault
from qsync.enqueue_batching import Batcher
from qsync.server import leases, periodic, queue_state, server, stored_ticks
from qsync.server.crash_isolation import CrashIsolation
from qsync.server.fetch_replies import FetchReplies
from qsync.server.fetcher import Fetcher
from qsync.server.handler_context import HandlerContext
from qsync.server.leases import LeaseKeeper, ThreadLeaseKeeper
from qsync.server.queue_state import RUNNING, LeasedTask, Phase, QueueState
from qsync.server.run_records import RunRecords
from qsync.server.runner import Runner
from qsync.server.settler import Settler
from qsync.server.shutdown import Shutdown
from qsync.server.stopping import Stopping
from tests.scripts.model.mistakes import (
    Plant,
    crash_not_counted,
    due_tasks_moved_in_two_steps,
    enqueue_not_kept,
    exchanged,
    fetch_without_number,
    in_flow,
    lock_outlives_death,
    named,
    opening_not_stored,
    paused_type_is_fetched,
    promoted_but_not_pending,
    rate_taken_by_a_repeated_fetch,
    replaced_task_runs_the_old_payload,
    retry_without_token,
    settle_without_token,
    slot_freed_twice,
    slot_kept_by_an_expired_lease,
    start_not_refunded,
    waiter_not_moved,
)
from tests.simulation import clock
from tests.simulation.history import History, Outcome, live
from tests.simulation.threads import Turns
from tests.support.mutation import planted


def heartbeat_on_the_loop() -> contextlib.AbstractContextManager[None]:
    """The heartbeat has no separate thread, so a blocked loop also blocks the heartbeat."""
    return exchanged(Turns, "on_loop", True)


@contextlib.contextmanager
def fetch_neither_repeated_nor_reconciled() -> Iterator[None]:
    """After a lost reply, the fetch is repeated under a new number and the tasks that the first
    fetch may have leased are not reconciled. Both precautions are removed, because either of them
    alone keeps the tasks safe."""
    real = Fetcher._call

    def call(self: Fetcher, queue: QueueState, wanted: int) -> Any:
        queue.in_flight = None
        return real(self, queue, wanted)

    async def nothing(self: LeaseKeeper, queue: QueueState, ids: Any) -> None:
        pass

    with exchanged(Fetcher, "_call", call), exchanged(LeaseKeeper, "mend", nothing):
        yield


def restarted_server_keeps_leases() -> contextlib.AbstractContextManager[None]:
    """A server with a reused name treats its predecessor's leases as its own."""
    return exchanged(server, "holder_of", lambda given, server_id: server_id)


def noscript_not_handled() -> contextlib.AbstractContextManager[None]:
    """A script that is missing from the store is not sent."""

    def unrepeated(calls: Any, replies: list[Any]) -> exchanges.Exchanges:
        return replies
        yield []

    return exchanged(exchanges, "_repeat_unknown", unrepeated)


def transient_not_retried() -> contextlib.AbstractContextManager[None]:
    """A transient error reaches the caller."""

    def classify(error: BaseException) -> Fault:
        found = error_mapping.classify(error)
        return Fault.UNEXPECTED if found is Fault.TRANSIENT else found

    return exchanged(base, "classify", classify)


def deadline_by_own_clock() -> contextlib.AbstractContextManager[None]:
    """The server uses its own clock to decide whether a deadline has passed."""
    return exchanged(
        QueueState, "store_time_us", lambda self: int(clock.this_process().wall() * 1_000_000)
    )


@contextlib.contextmanager
def no_hand_back_at_shutdown() -> Iterator[None]:
    """A server that stops does not hand back its tasks; their leases expire."""

    async def nothing_to_stop(self: Shutdown) -> None:
        pass

    def nothing(self: Stopping, **_: Any) -> None:
        pass

    with (
        exchanged(Shutdown, "_stop_running", nothing_to_stop),
        exchanged(Stopping, "hand_back_ready", nothing),
    ):
        yield


def start_without_lease_check() -> contextlib.AbstractContextManager[None]:
    """A task is started although its lease may have expired."""
    real = Runner._begin

    def begin(self: Runner, leased: LeasedTask) -> bool:
        leased.expires = math.inf
        return real(self, leased)

    return exchanged(Runner, "_begin", begin)


def crash_not_marked() -> contextlib.AbstractContextManager[None]:
    """A task that has crashed before is started without being marked."""

    async def mark(self: Runner, leased: LeasedTask) -> bool:
        return True

    return exchanged(Runner, "_mark", mark)


@contextlib.contextmanager
def suspects_not_alone() -> Iterator[None]:
    """A task that has crashed twice runs alongside other tasks."""

    def at_once(self: CrashIsolation, *args: Any, **_: Any) -> float:
        return 0.0

    with (
        exchanged(CrashIsolation, "delay", at_once),
        exchanged(CrashIsolation, "blocks_others", lambda self, now: False),
    ):
        yield


def suspect_ends_before_its_settlement() -> contextlib.AbstractContextManager[None]:
    """Other tasks start as soon as the handler of a suspect has ended, although a crash would still
    be charged to the suspect."""

    def see(self: Runner) -> None:
        suspects = self._suspects
        if suspects.alone is not None and suspects.alone.phase != RUNNING:
            suspects.end(queue_state.boot_s())

    return exchanged(Runner, "see_suspect_end", see)


def no_check_after_the_mark() -> contextlib.AbstractContextManager[None]:
    """The lease and the deadline are checked before a task is marked, but not again afterwards."""
    real = RunRecords.too_late

    def too_late(self: RunRecords, leased: LeasedTask) -> Any:
        return None if leased.phase == RUNNING else real(self, leased)

    return exchanged(RunRecords, "too_late", too_late)


def thread_starts_task_without_check() -> contextlib.AbstractContextManager[None]:
    """A thread that becomes free begins the next task without checking whether the task may still
    start."""
    return exchanged(HandlerContext, "may_begin", lambda self: True)


def cancel_ignored() -> contextlib.AbstractContextManager[None]:
    """A running task continues despite a cancel request."""
    real = Stopping.stop

    def stop(self: Stopping, leased: LeasedTask, why: Any) -> None:
        if why != "cancelled":
            real(self, leased, why)

    return exchanged(Stopping, "stop", stop)


def settlement_dropped() -> contextlib.AbstractContextManager[None]:
    """A settlement that the store did not accept is dropped."""
    real = Settler._settle

    async def settle(self: Settler, completed: Any, entries: Any) -> list[Any]:
        await real(self, completed, entries)
        return []

    return exchanged(Settler, "_settle", settle)


def settling_not_renewed() -> contextlib.AbstractContextManager[None]:
    """The heartbeat does not renew tasks that are being settled."""
    return exchanged(leases, "RELEASED", Phase.SETTLING)


@contextlib.contextmanager
def unread_fetch_not_renewed() -> Iterator[None]:
    """While a handler blocks the loop, the heartbeat neither renews nor hands back newly fetched
    tasks. Both precautions are removed, because either of them alone keeps the tasks safe."""
    with (
        exchanged(ThreadLeaseKeeper, "renew_unread", lambda self, queue: True),
        exchanged(ThreadLeaseKeeper, "hand_back_unread", lambda self, queue: None),
    ):
        yield


def lease_counted_from_the_reply() -> contextlib.AbstractContextManager[None]:
    """The server counts a lease from the time at which the reply arrives, and does not renew a
    lease that arrives late."""
    real = FetchReplies.leased

    async def landed(
        self: FetchReplies,
        queue: QueueState,
        wanted: int,
        fetched: Any,
        sent: float,
        *,
        repeated: bool,
    ) -> list[LeasedTask]:
        now = queue_state.boot_s()
        return await real(self, queue, wanted, fetched, now, repeated=False)

    return exchanged(FetchReplies, "leased", landed)


@contextlib.contextmanager
def fetches_left_open_at_shutdown() -> Iterator[None]:
    """A server that stops does not wait for the reply to its last fetch."""

    async def finish(self: Fetcher, patience: float) -> None:
        for task in self._in_flight.values():
            task.cancel()

    with exchanged(Fetcher, "finish", finish):
        yield


def ticks_by_own_clock() -> contextlib.AbstractContextManager[None]:
    """The server uses its own clock to decide when periodic tasks are due."""

    async def learn(self: Any) -> float:
        until = await real(self)
        self._ahead_us = int((clock.this_process().wall() - queue_state.boot_s()) * 1_000_000)
        return float(until)

    real = periodic._PeriodicQueue._learn
    return exchanged(periodic._PeriodicQueue, "_learn", learn)


def lease_by_own_clock() -> contextlib.AbstractContextManager[None]:
    """The server uses its own clock to decide when a lease ends."""
    real = Fetcher._call

    def call(self: Fetcher, queue: QueueState, wanted: int) -> Any:
        made = real(self, queue, wanted)
        args = list(made.args)
        ahead = clock.this_process().wall() - queue.store_time_us() / 1_000_000
        args[4] = round(args[4] + ahead * 1_000_000)
        return replace(made, args=tuple(args))

    return exchanged(Fetcher, "_call", call)


def tick_id_without_time() -> contextlib.AbstractContextManager[None]:
    """All tasks of a schedule have the same id."""
    return exchanged(schedule, "tick_id", lambda name, tick_us: f"{name}@tick")


def changed_schedule_owes_ticks() -> contextlib.AbstractContextManager[None]:
    """Schedules with different expressions are treated as equal."""
    return exchanged(periodic, "digest_of", lambda schedule: "")


def stored_tick_of_an_old_version() -> contextlib.AbstractContextManager[None]:
    """A tick is enqueued although its schedule has been replaced since the server read it."""
    right = "  elseif string.sub(record, 1, 8) ~= stamp or tonumber(score or '') ~= due then\n"
    return planted("tick_schedules.lua", right, "  elseif not score then\n")


def stored_tick_dies_with_its_server() -> contextlib.AbstractContextManager[None]:
    """A schedule is advanced to its next tick before the task of the current tick is enqueued."""

    async def tick_due(
        broker: Any, keys: Any, *, unread: int = 0, now_us: int | None = None
    ) -> Any:
        due = await broker.run(schedule_ops.due_schedules(keys, now_us=now_us))
        rows = [stored_ticks._ticks(row, keys.queue, due.now_us) for row in due.rows]
        nexts = [one for one in (due.next_us, *(row.next_us for row in rows)) if one is not None]
        if rows:
            moved = [row._replace(tasks=[]) for row in rows]
            outcomes = await broker.run(schedule_ops.tick_schedules(keys, moved))
            await asyncio.sleep(0.1)
            left = [
                row._replace(row=row.row._replace(next_us=row.next_us))
                for row, outcome in zip(rows, outcomes, strict=True)
                if outcome == "ticked"
            ]
            if left:
                await broker.run(schedule_ops.tick_schedules(keys, left))
        next_us = min(nexts, default=None)
        return stored_ticks.TickCheck(due.now_us, next_us, len(rows), [], [], 0, more=False)

    return exchanged(stored_ticks, "tick_due", tick_due)


def changed_stored_schedule_owes_ticks() -> contextlib.AbstractContextManager[None]:
    """A stored schedule also enqueues ticks of the three seconds before it was stored."""
    real = stored_ticks.ticks_of

    def ticks_of(row: Any, content: Any, now_us: int) -> Any:
        early_us = row.since_us - 3_000_000
        stamp = early_us.to_bytes(8, "big")
        found = real(row._replace(record=stamp + row.record[8:], next_us=early_us), content, now_us)
        return found if row.next_us - row.since_us < 2_000_000 else real(row, content, now_us)

    return exchanged(stored_ticks, "ticks_of", ticks_of)


@contextlib.contextmanager
def patience_adds_up() -> Iterator[None]:
    """A caller's patience begins when its batch is sent, not when the call is made."""
    with (
        exchanged(Batcher, "_remaining_s", lambda self, arrival: self._patience),
        exchanged(Batcher, "_expire_at", lambda self, due: None),
    ):
        yield


@contextlib.contextmanager
def patience_begins_again() -> Iterator[None]:
    """When a call is repeated alone after a round trip with other calls, its patience starts
    again."""
    real, awaited = blocking.Broker.run, aio.AsyncBroker.run

    def run(self: blocking.Broker, call: Any, *, ends: float | None = None, **options: Any) -> Any:
        return real(self, call, **options)

    async def run_async(
        self: aio.AsyncBroker, call: Any, *, ends: float | None = None, **options: Any
    ) -> Any:
        return await awaited(self, call, **options)

    with (
        exchanged(blocking.Broker, "run", run),
        exchanged(aio.AsyncBroker, "run", run_async),
    ):
        yield


@contextlib.contextmanager
def waiters_not_moved() -> Iterator[None]:
    """When a slot is returned, no waiting task is moved, neither immediately nor by a later
    fetch."""
    with waiter_not_moved(), opening_not_stored():
        yield


def starving_priority() -> contextlib.AbstractContextManager[None]:
    """A new task with a priority other than normal overtakes the tasks that are waiting with the
    same priority."""
    right = "    last[key] = tag\n"
    wrong = """    local priority = read_member(key)
    local first = priority ~= normal_priority and lowest_of_band(KEYS.pending, priority)
    tag = first and first - 1 or tag
"""
    return planted("include/fairness_tags.lua", right, f"{in_flow(wrong)}{right}")


BROKE: Final = "a part of the server failed"
"""Part of the exception's message when a bug in the server's code ends the server."""

MUTANTS: Final[dict[str, Plant]] = named(
    settle_without_token, heartbeat_on_the_loop, fetch_neither_repeated_nor_reconciled,
    noscript_not_handled, transient_not_retried,
    deadline_by_own_clock, no_hand_back_at_shutdown, start_without_lease_check,
    crash_not_marked, suspects_not_alone, suspect_ends_before_its_settlement,
    no_check_after_the_mark, thread_starts_task_without_check, cancel_ignored, settlement_dropped,
    settling_not_renewed, unread_fetch_not_renewed, lease_counted_from_the_reply,
    fetches_left_open_at_shutdown, ticks_by_own_clock, enqueue_not_kept,
    promoted_but_not_pending, crash_not_counted, lock_outlives_death,
    due_tasks_moved_in_two_steps, retry_without_token, lease_by_own_clock,
    fetch_without_number, tick_id_without_time, restarted_server_keeps_leases,
    changed_schedule_owes_ticks, patience_adds_up, patience_begins_again,
    stored_tick_of_an_old_version, stored_tick_dies_with_its_server,
    changed_stored_schedule_owes_ticks,
    slot_freed_twice, slot_kept_by_an_expired_lease, rate_taken_by_a_repeated_fetch,
    waiters_not_moved, start_not_refunded, paused_type_is_fetched, starving_priority,
    replaced_task_runs_the_old_payload,
)  # fmt: skip


def caught(
    plant: Plant,
    store: redis.Redis,
    seeds: Iterator[int] | range,
    *,
    arrange: Callable[[History], Any] | None = None,
) -> Outcome | None:
    """Return the outcome of the first seed that finds the mistake, or None if no seed does.

    `arrange` may change the faults of the histories.

    If a seed also fails without the mistake, it has found another problem, which is printed to
    stderr.
    """
    for seed in seeds:
        with plant():
            outcome = live(seed, store, arrange=arrange)
        if outcome.wrong:
            if BROKE in outcome.wrong[0]:
                raise AssertionError(f"the mistake no longer matches the code: {outcome.wrong[0]}")
            without = live(seed, store, arrange=arrange)
            if not without.wrong:
                return outcome
            sys.stderr.write(f"seed {seed} fails without the mistake: {without.wrong[0]}\n")
    return None
