"""Keeps a server's leases: renews and repairs them, hands tasks back, and drops tasks with lost
leases.

The event loop keeps leases with a LeaseKeeper. While a handler may block the loop, each heartbeat
thread keeps the leases of its node with a ThreadLeaseKeeper. Both keepers use `Renewal` to
interpret the store's replies.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal, Protocol

from qsync.broker import ops, views
from qsync.broker.aio import AsyncBroker
from qsync.broker.blocking import Broker
from qsync.broker.call import Call
from qsync.broker.op_values import FetchResult, HandedBack, LeaseRef
from qsync.errors import QsyncError
from qsync.formatting import plural
from qsync.server.clock import boot_s
from qsync.server.outage_log import Outage
from qsync.server.queue_state import RELEASED, FetchInFlight, LeasedTask, QueueState, Stop
from qsync.value_text import shorten

log: Final = logging.getLogger("qsync.server")

RenewAnswer = Literal["ok", "cancelled", "done", "lost"]

Refusal = tuple[LeasedTask, RenewAnswer]
"""A task for which the store's reply to a renewal was not "ok", and that reply: cancelled, done or
lost."""


class Renewal:
    """One call that renews the leases on some tasks of a queue."""

    def __init__(self, tasks: Sequence[LeasedTask], lease_s: float) -> None:
        self._tasks = tasks
        self._expires = boot_s() + lease_s
        self.call: Call[list[RenewAnswer]] = ops.renew(
            tasks[0].queue.keys,
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
        """Stop a task because its lease is lost."""


class OnGeneration(Protocol):
    """Callback that is called when the server first sees a queue's generation, and whenever the
    generation changes."""

    def __call__(self, queue: QueueState, *, lost: bool) -> None:
        """Record a queue's generation; `lost` means that the store has lost the data of the
        previous generation."""


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
        """Renew leases on tasks of one queue; stop those that are cancelled or lost."""
        renewal = Renewal(tasks, self._lease_s)
        self.stop(renewal.apply(await self._broker.run(renewal.call)))

    def stop(self, refusals: Iterable[Refusal]) -> None:
        """Stop the cancelled tasks, and those whose lease this server no longer holds."""
        for leased, answer in refusals:
            if answer == "cancelled":
                self._stopper.stop(leased, "cancelled")
            else:
                self._stopper.lose(leased)

    async def confirm(
        self, queue: QueueState, tasks: list[LeasedTask], since: float
    ) -> list[LeasedTask]:
        """Renew the leases on tasks of a late or repeated fetch; return the tasks that are still
        held.

        The leases began at `since`, by the clock `boot_s`, or later. If the renewal fails, the
        leases are assumed to have begun at `since`, so that no task starts whose lease may have
        expired.
        """
        for leased in tasks:
            leased.leased_us = 0  # a repeated reply does not state the time of the lease
        renewal = Renewal(tasks, self._lease_s)
        try:
            answers = await self._broker.run(renewal.call, patience=self._lease_s / 3)
        except QsyncError as error:
            self._outage.note(f"renew leases of queue {queue.name}", error)
            for leased in tasks:
                leased.expires = since + self._lease_s
            return tasks
        queue.drop([task for task, answer in renewal.apply(answers) if answer != "cancelled"])
        return [leased for leased in tasks if leased.phase is not RELEASED]

    async def repeat(self, queue: QueueState, fetch: FetchInFlight) -> FetchResult | None:
        """Repeat a fetch that a heartbeat thread has already repeated, and return the reply; None
        if the store does not answer.

        The store does not record a fetch that found no tasks, so repeating such a fetch may lease
        tasks. If the thread's reply was lost, this server does not know about these tasks. Call
        this method before the next fetch, since the store answers a repetition only until then.
        Meanwhile the thread renews the leases, as it does for any fetch in flight.
        """
        queue.in_flight = fetch
        try:
            return await self._broker.run(fetch.again, patience=self._lease_s / 3)
        except QsyncError as error:
            self._outage.note(f"hand back the tasks fetched from queue {queue.name}", error)
            return None
        finally:
            queue.in_flight = None

    async def mend(self, queue: QueueState, ids: Sequence[str]) -> None:
        """Repair leases of this server that have expired or that it may not know about.

        Renew the leases on held tasks, and hand the other tasks back.
        """
        held = [queue.held[id] for id in ids if id in queue.held]
        stray = [id for id in ids if id not in queue.held]
        try:
            if held:
                renewal = Renewal(held, self._lease_s)
                renewal.apply(await self._broker.run(renewal.call))
            if stray:
                await self._hand_back_stray(queue, stray)
        except QsyncError as error:
            self._outage.note(f"repair leases of queue {queue.name}", error)

    async def _hand_back_stray(self, queue: QueueState, ids: Sequence[str]) -> None:
        rows = await self._broker.run(views.get_tasks(queue.keys, ids))
        backs = [
            HandedBack(id, row.owner)
            for id, row in zip(ids, rows, strict=True)
            if row is not None
            and row.owner is not None
            and row.owner.startswith(f"{self._holder}/")
            and id not in queue.held
        ]
        if backs:
            await self._broker.run(ops.hand_back(queue.keys, backs))

    def see_generation(self, queue: QueueState, generation: str) -> None:
        """If the generation changed, the store has lost the queue's data, so give up all held
        tasks."""
        before, queue.generation = queue.generation, generation
        if before == generation:
            return
        self._on_generation(queue, lost=before is not None)
        if before is None:
            return
        held = list(queue.held.values())
        log.error(
            "store lost: the generation of queue %s changed from %s to %s; %s held here are lost",
            queue.name, shorten(before), shorten(generation), plural(len(held), "task"),
        )  # fmt: skip
        for leased in held:
            self._stopper.lose(leased)


class ThreadLeaseKeeper:
    """Keeps the leases of one node in a heartbeat thread, on its own connection."""

    def __init__(self, broker: Broker, lease_s: float, outage: Outage) -> None:
        self._broker = broker
        self._lease_s = lease_s
        self._patience = lease_s / 10
        self._outage = outage

    def node_of(self, queue: QueueState) -> str:
        """Return the name of the node that holds a queue."""
        return self._broker.node_name(queue.keys.key("active"))

    def renew(
        self, queue: QueueState, on_refusals: Callable[[Sequence[Refusal]], None]
    ) -> QsyncError | None:
        """Renew the leases on all held tasks; return the error that ended the renewal, or None."""
        part = f"renew leases of queue {queue.name}"
        held = [leased for leased in queue.held.copy().values() if leased.phase is not RELEASED]
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

    def renew_unread(self, queue: QueueState) -> bool:
        """Renew the leases on the tasks of a fetch whose reply the blocked loop has not read.

        The thread repeats the fetch to learn which tasks it leased. Returns False if the renewal
        failed.
        """
        fetch = queue.in_flight
        if fetch is None or boot_s() - fetch.since < self._lease_s / 4:
            return True
        if queue.handed_back_token == fetch.token:
            return True
        queue.repeated_token = fetch.token
        try:
            ids = self._broker.run(fetch.again, patience=self._patience).ids
            if ids:
                queue.unread_ids = ids
                leases = [LeaseRef(id, fetch.token) for id in ids]
                lease_us = int(self._lease_s * 1_000_000)
                call = ops.renew(queue.keys, leases, lease_us=lease_us)
                self._broker.run(call, patience=self._patience)
        except QsyncError as error:
            self._outage.note(f"renew the leases on tasks fetched from queue {queue.name}", error)
            return False
        return True

    def hand_back_unread(self, queue: QueueState) -> None:
        """Hand back the tasks of a fetch in flight, which cannot start while the loop stalls.

        This thread repeats the fetch to learn which tasks it leased; `queue.revoked_token` keeps
        the loop from starting them.
        """
        fetch = queue.in_flight
        if fetch is None or queue.handed_back_token == fetch.token:
            return
        queue.revoked_token = fetch.token  # set first, so that the loop starts none of the tasks
        if queue.in_flight is not fetch:  # the loop had already read the reply
            queue.revoked_token = None
            return
        queue.repeated_token = fetch.token
        try:
            ids = self._broker.run(fetch.again, patience=self._patience).ids
            if ids:
                backs = [HandedBack(id, fetch.token) for id in ids]
                self._broker.run(ops.hand_back(queue.keys, backs), patience=self._patience)
            queue.handed_back_token = fetch.token
        except QsyncError as error:
            self._outage.note(f"hand back the tasks fetched from queue {queue.name}", error)

    def hand_back(self, tasks: Iterable[LeasedTask]) -> list[LeasedTask]:
        """Hand back tasks that have not started, of any queue; return those that remain held."""
        by_queue: dict[str, list[LeasedTask]] = {}
        for leased in tasks:
            by_queue.setdefault(leased.queue.name, []).append(leased)
        failed: list[LeasedTask] = []
        for of_queue in by_queue.values():
            queue = of_queue[0].queue
            for batch in ops.batches(of_queue, _size):
                backs = [
                    HandedBack(leased.id, leased.token, leased_us=leased.leased_us)
                    for leased in batch
                ]
                try:
                    self._broker.run(ops.hand_back(queue.keys, backs), patience=self._patience)
                except QsyncError as error:
                    self._outage.note(f"hand back tasks of queue {queue.name}", error)
                    failed += batch
                    continue
                queue.drop(batch)
        return failed

    def close(self) -> None:
        """Close the connection."""
        self._broker.close()


def _size(leased: LeasedTask) -> int:
    return len(leased.id) + len(leased.token)
