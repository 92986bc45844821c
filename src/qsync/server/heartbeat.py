"""Renews leases in a thread of its own, so that no lease expires while a handler blocks the loop.

Every third of the lease duration, the thread renews the leases of all held tasks. The answers name
the tasks whose lease is lost or that are to be cancelled. The thread also detects a stalled event
loop: it logs the stack of the blocked thread, and hands back tasks that were leased ahead and
cannot start now.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Final

from qsync.broker import ops
from qsync.broker.blocking import Broker
from qsync.errors import QsyncError, StoreUnavailable
from qsync.server.clock import boot_s
from qsync.server.outage_log import Outage
from qsync.server.queue_state import GONE, READY, LeasedTask, QueueState
from qsync.server.runner import STALE_S, Runner

log = logging.getLogger("qsync.server")

STALL_S: Final = 1.0
"""Time without a turn of the event loop after which it counts as stalled, in seconds."""

TICK_S: Final = 0.25
"""Longest pause between two checks of the heartbeat thread, in seconds."""


class Heartbeat:
    """A thread that renews the leases of some queues, all on one node."""

    def __init__(
        self,
        broker: Broker,
        lanes: Sequence[QueueState],
        runner: Runner,
        *,
        lease_s: float,
        watches_loop: bool,
        outage: Outage,
    ) -> None:
        self._broker = broker
        self._lanes = lanes
        self._runner = runner
        self._lease_s = lease_s
        self._watches_loop = watches_loop
        self._outage = outage
        self._loop = asyncio.get_running_loop()
        self.loop_thread = threading.get_ident()
        self._end = threading.Event()
        self._beat_sent = self._beat_seen = time.monotonic()
        self._said_stalled = False
        self._given_back: dict[str, str] = {}
        """Token of the last fetch whose tasks this thread handed back unread, by queue."""
        self._thread = threading.Thread(target=self._run, name="qsync-heartbeat", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def stop(self) -> None:
        """Stop the thread; wait up to lease / 3 + 1 s for a renewal in flight."""
        self._end.set()
        await asyncio.to_thread(self._thread.join, self._lease_s / 3 + 1)
        self._broker.close()

    def loop_blocked_s(self) -> float:
        """Return for how many seconds the loop has been blocked; always 0 unless `watches_loop`."""
        sent = self._beat_sent
        return time.monotonic() - sent if self._beat_seen < sent else 0.0

    def _run(self) -> None:
        next_renewal = boot_s() + self._lease_s / 3
        tick = min(TICK_S, self._lease_s / 12)
        while not self._end.wait(tick):
            try:
                if self._watches_loop:
                    self._watch()
                if boot_s() >= next_renewal:
                    began = boot_s()
                    done = self._renew()
                    # After a failure, retry soon, before the leases expire.
                    next_renewal = began + self._lease_s / (3 if done else 10)
            except Exception:
                log.exception("the heartbeat goes on after an unexpected error")

    # Renewal.

    def _renew(self) -> bool:
        """Renew the leases of all held tasks; return False if some renewals failed.

        Cluster slots move, so these queues may be on several nodes. A node that does not answer is
        skipped for the rest of the round, so that it does not delay the renewals on the others.
        """
        silent: set[str] = set()
        all_done = True
        for lane in self._lanes:
            node = self._broker.node_name(lane.keys.key("active"))
            if node in silent:
                all_done = False
                continue
            all_done &= self._renew_unread(lane)
            if (error := self._renew_held(lane)) is not None:
                all_done = False
                if isinstance(error, StoreUnavailable):
                    silent.add(node)
        return all_done

    def _renew_held(self, lane: QueueState) -> QsyncError | None:
        part_name = f"renew leases of queue {lane.queue}"
        held = [leased for leased in lane.held.copy().values() if leased.phase != GONE]
        if not held:
            self._outage.worked(part_name)
        for part in ops.batches(held, lambda one: len(one.id) + len(one.token)):
            sent = boot_s()
            call = ops.renew(
                lane.keys,
                [leased.held for leased in part],
                lease_us=int(self._lease_s * 1_000_000),
            )
            try:
                answers = self._broker.run(call, patience=self._lease_s / 10)
            except QsyncError as error:
                self._outage.failed(part_name, error)
                return error
            told = []
            for leased, answer in zip(part, answers, strict=True):
                if answer in ("ok", "cancelled"):
                    leased.expires = sent + self._lease_s
                if answer != "ok":
                    told.append((leased, answer))
            self._outage.worked(part_name)
            if told:
                self._post(self._tell, told)
        return None

    def _renew_unread(self, lane: QueueState) -> bool:
        """Renew the leases of fetched tasks whose answer is unread while a handler blocks the loop.

        A repetition of the fetch tells which tasks these are. Return False if the renewal failed.
        """
        asked = lane.unanswered
        if asked is None or boot_s() - asked.since < self._lease_s / 4:
            return True
        if self._given_back.get(lane.queue) == asked.token:
            return True
        patience = self._lease_s / 10
        try:
            ids = self._broker.run(asked.again, patience=patience).ids
            if ids:
                lane.unread = ids
                held = [ops.LeaseRef(id, asked.token) for id in ids]
                lease_us = int(self._lease_s * 1_000_000)
                self._broker.run(ops.renew(lane.keys, held, lease_us=lease_us), patience=patience)
        except QsyncError as error:
            self._outage.note(f"renew what was fetched from queue {lane.queue}", error)
            return False
        return True

    def _tell(self, told: Sequence[tuple[LeasedTask, str]]) -> None:
        """Stop the cancelled and lost tasks; runs on the loop."""
        for leased, answer in told:
            if answer == "cancelled":
                self._runner.stop(leased, "cancelled")
            else:
                self._runner.lose(leased)

    def _post(self, function: object, *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)  # type: ignore[arg-type]
        except RuntimeError:  # the loop is closed
            self._end.set()

    # The loop.

    def _watch(self) -> None:
        now = time.monotonic()
        if self._beat_seen >= self._beat_sent:
            self._beat_sent = now
            self._said_stalled = False
            self._post(self._beat)
            return
        if now - self._beat_sent < STALL_S:
            return
        if not self._said_stalled:
            self._said_stalled = True
            frame = sys._current_frames().get(self.loop_thread)
            stack = "".join(traceback.format_stack(frame)) if frame else "unknown"
            log.warning(
                "a handler blocks the event loop for over %g s; use `def`, or await:\n%s",
                STALL_S,
                stack,
            )
        self._hand_back_ready()
        for lane in self._lanes:
            self._hand_back_unread(lane)

    def _hand_back_unread(self, lane: QueueState) -> None:
        """Hand back the tasks of a fetch in flight, which cannot start while the loop stalls.

        This thread repeats the fetch to learn its tasks; `lane.revoked` keeps the loop from
        starting them.
        """
        asked = lane.unanswered
        if asked is None or self._given_back.get(lane.queue) == asked.token:
            return
        lane.revoked = asked.token  # first: from now on the loop starts none of these tasks
        if lane.unanswered is not asked:  # the loop read the answer just before
            lane.revoked = None
            return
        patience = self._lease_s / 10
        try:
            ids = self._broker.run(asked.again, patience=patience).ids
            if ids:
                backs = [ops.HandedBack(id, asked.token) for id in ids]
                self._broker.run(ops.hand_back(lane.keys, backs), patience=patience)
            self._given_back[lane.queue] = asked.token
        except QsyncError as error:
            self._outage.note(f"hand back what was fetched from queue {lane.queue}", error)

    def _beat(self) -> None:
        self._beat_seen = time.monotonic()

    def _hand_back_ready(self) -> None:
        """Hand back tasks that are stale in `ready`, from the right, as the loop takes the left."""
        limit = boot_s() - STALE_S
        taken: list[LeasedTask] = []
        while self._runner.ready:
            try:
                leased = self._runner.ready.pop()
            except IndexError:
                break
            if leased.phase != READY:
                continue
            if leased.fetched > limit:
                self._runner.ready.append(leased)
                break
            taken.append(leased)
        by_lane: dict[str, list[LeasedTask]] = {}
        for leased in reversed(taken):
            by_lane.setdefault(leased.lane.queue, []).append(leased)
        for mine in by_lane.values():
            lane = mine[0].lane
            for part in ops.batches(mine, lambda one: len(one.id) + len(one.token)):
                backs = [ops.HandedBack(leased.id, leased.token) for leased in part]
                try:
                    self._broker.run(ops.hand_back(lane.keys, backs), patience=self._lease_s / 10)
                except QsyncError as error:
                    self._outage.note(f"hand back tasks of queue {lane.queue}", error)
                    # Keep them, so that their leases are renewed and the next check tries again.
                    self._runner.ready.extendleft(reversed(part))
                    continue
                lane.drop(part)
