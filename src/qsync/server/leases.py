"""Keeps a server's leases: renews and repairs them, hands tasks back, and drops lost ones.

The event loop keeps leases with a LeaseKeeper. While a handler may block the loop, each heartbeat
thread keeps the leases of its node with a ThreadLeaseKeeper. Both interpret the store's answers
with `Renewal`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal, Protocol

from qsync.broker import ops, views
from qsync.broker.aio import AsyncBroker
from qsync.broker.blocking import Broker
from qsync.broker.call import Call
from qsync.broker.op_values import HandedBack, LeaseRef
from qsync.errors import QsyncError
from qsync.keys import shorten
from qsync.server.clock import boot_s
from qsync.server.outage_log import Outage
from qsync.server.queue_state import RELEASED, LeasedTask, QueueState, Stop

log: Final = logging.getLogger("qsync.server")

RenewAnswer = Literal["ok", "cancelled", "done", "lost"]

Refusal = tuple[LeasedTask, RenewAnswer]
"""A task whose lease the store did not simply renew, and its answer: cancelled, done or lost."""


class Renewal:
    """One call that renews the leases of some tasks of a queue."""

    def __init__(self, tasks: Sequence[LeasedTask], lease_s: float) -> None:
        self._tasks = tasks
        self._expires = boot_s() + lease_s
        self.call: Call[list[RenewAnswer]] = ops.renew(
            tasks[0].lane.keys,
            [leased.held for leased in tasks],
            lease_us=int(lease_s * 1_000_000),
        )

    def apply(self, answers: list[RenewAnswer]) -> list[Refusal]:
        """Extend the leases that the store renewed; return the tasks that are to stop."""
        refusals: list[Refusal] = []
        for leased, answer in zip(self._tasks, answers, strict=True):
            if answer in ("ok", "cancelled"):
                leased.expires = self._expires
            if answer != "ok":
                refusals.append((leased, answer))
        return refusals


class Stopper(Protocol):
    """Stops tasks; implemented by `Stopping`."""

    def stop(self, leased: LeasedTask, why: Stop) -> None:
        """Stop a task."""

    def lose(self, leased: LeasedTask) -> None:
        """Stop a task whose lease is lost."""


class OnGeneration(Protocol):
    """Called with the first generation of a queue that the server sees, and with each new one."""

    def __call__(self, lane: QueueState, *, lost: bool) -> None:
        """Record a generation; if `lost`, the store has lost the data of the previous one."""


class LeaseKeeper:
    """Keeps leases on the event loop."""

    def __init__(
        self,
        broker: AsyncBroker,
        holder: str,
        lease_s: float,
        stopper: Stopper,
        on_generation: OnGeneration,
        outage: Outage,
    ) -> None:
        self._broker = broker
        self._holder = holder
        self._lease_s = lease_s
        self._stopper = stopper
        self._on_generation = on_generation
        self._outage = outage

    async def renew(self, tasks: Sequence[LeasedTask]) -> None:
        """Renew leases of tasks of one queue; stop those that are cancelled or lost."""
        renewal = Renewal(tasks, self._lease_s)
        self.stop(renewal.apply(await self._broker.run(renewal.call)))

    def stop(self, refusals: Iterable[Refusal]) -> None:
        """Stop the cancelled tasks, and lose the others."""
        for leased, answer in refusals:
            if answer == "cancelled":
                self._stopper.stop(leased, "cancelled")
            else:
                self._stopper.lose(leased)

    async def confirm(
        self, lane: QueueState, tasks: list[LeasedTask], since: float
    ) -> list[LeasedTask]:
        """Renew the leases of a late or repeated fetch, and return the tasks that are still held.

        Their leases began at `since`, by boot_s, or later. If the renewal fails, assume that they
        began at `since`, so that no task starts whose lease may have expired.
        """
        renewal = Renewal(tasks, self._lease_s)
        try:
            answers = await self._broker.run(renewal.call, patience=self._lease_s / 3)
        except QsyncError as error:
            self._outage.note(f"renew leases of queue {lane.queue}", error)
            for leased in tasks:
                leased.expires = since + self._lease_s
            return tasks
        lane.drop([task for task, answer in renewal.apply(answers) if answer != "cancelled"])
        return [leased for leased in tasks if leased.phase is not RELEASED]

    async def mend(self, lane: QueueState, ids: Sequence[str]) -> None:
        """Repair leases of this server that expired or that it may not know about: renew those of
        held tasks, and hand back the other tasks."""
        held = [lane.held[id] for id in ids if id in lane.held]
        stray = [id for id in ids if id not in lane.held]
        try:
            if held:
                renewal = Renewal(held, self._lease_s)
                renewal.apply(await self._broker.run(renewal.call))
            if stray:
                await self._hand_back_stray(lane, stray)
        except QsyncError as error:
            self._outage.note(f"mend leases of queue {lane.queue}", error)

    async def _hand_back_stray(self, lane: QueueState, ids: Sequence[str]) -> None:
        rows = await self._broker.run(views.get_tasks(lane.keys, ids))
        backs = [
            HandedBack(id, row.owner)
            for id, row in zip(ids, rows, strict=True)
            if row is not None
            and row.owner is not None
            and row.owner.startswith(f"{self._holder}/")
            and id not in lane.held
        ]
        if backs:
            await self._broker.run(ops.hand_back(lane.keys, backs))

    def see_generation(self, lane: QueueState, generation: str) -> None:
        """Lose all held tasks if the generation changed: the store has lost the queue's data."""
        before, lane.generation = lane.generation, generation
        if before == generation:
            return
        self._on_generation(lane, lost=before is not None)
        if before is None:
            return
        held = list(lane.held.values())
        log.error(
            "store lost: the generation of queue %s changed from %s to %s; %d tasks held are lost",
            lane.queue, shorten(before), shorten(generation), len(held),
        )  # fmt: skip
        for leased in held:
            self._stopper.lose(leased)


class ThreadLeaseKeeper:
    """Keeps the leases of one node in a heartbeat thread, on a connection of its own."""

    def __init__(self, broker: Broker, lease_s: float, outage: Outage) -> None:
        self._broker = broker
        self._lease_s = lease_s
        self._patience = lease_s / 10
        self._outage = outage

    def node_of(self, lane: QueueState) -> str:
        """Return the name of the node that has a queue."""
        return self._broker.node_name(lane.keys.key("active"))

    def renew(
        self, lane: QueueState, on_refusals: Callable[[Sequence[Refusal]], None]
    ) -> QsyncError | None:
        """Renew the leases of all held tasks; return the error that ended this, or None."""
        part = f"renew leases of queue {lane.queue}"
        held = [leased for leased in lane.held.copy().values() if leased.phase is not RELEASED]
        if not held:
            self._outage.worked(part)
        for batch in ops.batches(held, _size):
            renewal = Renewal(batch, self._lease_s)
            try:
                answers = self._broker.run(renewal.call, patience=self._patience)
            except QsyncError as error:
                self._outage.failed(part, error)
                return error
            refusals = renewal.apply(answers)
            self._outage.worked(part)
            if refusals:
                on_refusals(refusals)
        return None

    def renew_unread(self, lane: QueueState) -> bool:
        """Renew the leases of fetched tasks whose answer is unread while a handler blocks the loop.

        A repetition of the fetch tells which tasks these are. Return False if the renewal failed.
        """
        fetch = lane.in_flight
        if fetch is None or boot_s() - fetch.since < self._lease_s / 4:
            return True
        if lane.handed_back_token == fetch.token:
            return True
        try:
            ids = self._broker.run(fetch.again, patience=self._patience).ids
            if ids:
                lane.unread_ids = ids
                leases = [LeaseRef(id, fetch.token) for id in ids]
                lease_us = int(self._lease_s * 1_000_000)
                call = ops.renew(lane.keys, leases, lease_us=lease_us)
                self._broker.run(call, patience=self._patience)
        except QsyncError as error:
            self._outage.note(f"renew what was fetched from queue {lane.queue}", error)
            return False
        return True

    def hand_back_unread(self, lane: QueueState) -> None:
        """Hand back the tasks of a fetch in flight, which cannot start while the loop stalls.

        This thread repeats the fetch to learn its tasks; `lane.revoked_token` keeps the loop from
        starting them.
        """
        fetch = lane.in_flight
        if fetch is None or lane.handed_back_token == fetch.token:
            return
        lane.revoked_token = fetch.token  # first: from now on the loop starts none of these tasks
        if lane.in_flight is not fetch:  # the loop read the answer just before
            lane.revoked_token = None
            return
        try:
            ids = self._broker.run(fetch.again, patience=self._patience).ids
            if ids:
                backs = [HandedBack(id, fetch.token) for id in ids]
                self._broker.run(ops.hand_back(lane.keys, backs), patience=self._patience)
            lane.handed_back_token = fetch.token
        except QsyncError as error:
            self._outage.note(f"hand back what was fetched from queue {lane.queue}", error)

    def hand_back(self, tasks: Iterable[LeasedTask]) -> list[LeasedTask]:
        """Hand back tasks of any queues that have not started; return those that the store did not
        take."""
        by_queue: dict[str, list[LeasedTask]] = {}
        for leased in tasks:
            by_queue.setdefault(leased.lane.queue, []).append(leased)
        failed: list[LeasedTask] = []
        for of_queue in by_queue.values():
            lane = of_queue[0].lane
            for batch in ops.batches(of_queue, _size):
                backs = [HandedBack(leased.id, leased.token) for leased in batch]
                try:
                    self._broker.run(ops.hand_back(lane.keys, backs), patience=self._patience)
                except QsyncError as error:
                    self._outage.note(f"hand back tasks of queue {lane.queue}", error)
                    failed += batch
                    continue
                lane.drop(batch)
        return failed

    def close(self) -> None:
        """Close the connection."""
        self._broker.close()


def _size(leased: LeasedTask) -> int:
    return len(leased.id) + len(leased.token)
